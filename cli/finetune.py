"""zoo finetune: your classes on a frozen backbone."""

from pathlib import Path
from typing import Annotated

import typer
from zoo_cli.metrics import floor_name, summary
from zoo_cli.output import next_command, print_json, print_table, reference, say, write
from zoo_cli.state import make_zoo

from zoo import FinetuneOptions, Outcome, Task, UsageError, parse_head, to_plain

DEFAULTS, AUTO = FinetuneOptions(), "auto"
#: Items left out that are named; the bundle lists all.
LISTED = 10
#: An epoch of the last stages costs what thousands of a head's do.
DEEP_EPOCHS, DEEP_PATIENCE = 10, 3


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A name as for zoo pull.")],
    data: Annotated[str, typer.Argument(help="A folder DATA/<class>/*.jpg, or a table: docs/data.md.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder of the bundle to write.")],
    task: Annotated[Task, typer.Option(help="One label an item, several (a|b in the label column), or a number.")] = (
        DEFAULTS.task
    ),
    epochs: Annotated[
        int | None, typer.Option(min=1, help=f"{DEFAULTS.epochs} for a head, {DEEP_EPOCHS} with --unfreeze.")
    ] = None,
    head: Annotated[str, typer.Option(help="linear, mlp, or mlp:512,128.")] = "linear",
    unfreeze: Annotated[int, typer.Option(min=0, help="Train the last N stages of the backbone, too.")] = 0,
    augment: Annotated[int, typer.Option(min=0, help="Train on K random views of each picture, too.")] = 0,
    val: Annotated[str, typer.Option(help="Fraction to hold out, or a data set of its own.")] = str(DEFAULTS.val),
    lr: Annotated[str, typer.Option(help="Learning rate, or auto: it is searched for.")] = AUTO,
    weight_decay: Annotated[str, typer.Option(help="A number, or auto: it is searched for.")] = AUTO,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Items in a training step: 64 to 1,024 for a head, 32 with --unfreeze.")
    ] = None,
    auto_batch: Annotated[
        bool, typer.Option("--auto-batch", help="Halve --batch, at most five times, when memory does not suffice.")
    ] = False,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs that bring nothing better.")
    ] = None,
    class_weights: Annotated[
        bool, typer.Option("--class-weights", help="Let rare classes count as much as frequent ones.")
    ] = False,
    label_smoothing: Annotated[float, typer.Option(min=0, help="Part of each target that is spread evenly.")] = 0.0,
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction of the items that may be unreadable: they are left out.")
    ] = DEFAULTS.max_bad,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training of this -o.")] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Decides the split and the training.")
    ] = DEFAULTS.seed,
    text: Annotated[str | None, typer.Option(help="The text column.")] = None,
    image: Annotated[str | None, typer.Option(help="The column of pictures.")] = None,
    label: Annotated[str | None, typer.Option(help="The label column.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].", envvar="ZOO_DEVICE")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Fine-tune: features of the frozen backbone once, a new head, one checked ONNX bundle with a report.

    Ctrl-C finishes the step and saves: --resume goes on from there.
    """
    options = FinetuneOptions(
        task=task, epochs=epochs or (DEEP_EPOCHS if unfreeze else DEFAULTS.epochs), hidden=parse_head(head),
        lr=_number(lr, "--lr"), weight_decay=_number(weight_decay, "--weight-decay"), batch=batch,
        auto_batch=auto_batch, patience=patience or (DEEP_PATIENCE if unfreeze else DEFAULTS.patience),
        label_smoothing=label_smoothing, class_weights=class_weights,
        unfreeze=unfreeze, augment=augment, seed=seed, val=_fraction(val),
        max_bad=max_bad, resume=resume, device=device, text=text, image=image, label=label,
    )  # fmt: skip
    try:
        outcome = make_zoo(context).finetune(model, data, out, options)
    except KeyboardInterrupt as stopped:
        say(" ".join(map(str, stopped.args)) or "the features that were computed are kept")
        raise
    if json:
        facts = {
            "items": outcome.items,
            "skipped": outcome.skipped,
            "features_computed": outcome.computed,
            "best_epoch": outcome.best_epoch,
        }
        print_json("finetune", {"bundle": str(out), **facts, "metrics": to_plain(outcome.metrics)})
        return
    _print(outcome)
    say(f"report: {out / 'report.html'}")
    names = (("--text", text), ("--image", image), ("--label", label))
    columns = [word for name, value in names if value for word in (name, value)]
    # What was left out here is to be left out there.
    columns += ["--max-bad", f"{max_bad:g}"] if outcome.skipped else []
    judged = data if isinstance(options.val, float) else options.val
    next_command("zoo", "evaluate", reference(out), judged, "--held-out", *columns)
    write(str(out))


def _print(outcome: Outcome) -> None:
    curve, metrics = outcome.curve, outcome.metrics
    say(f"features: {outcome.computed} computed, {outcome.items - outcome.computed} from the cache")
    step = max(1, len(curve) // 8)
    lines = [line for line in curve if line.epoch == outcome.best_epoch or line.epoch % step == 0 or line.epoch == 1]
    rows = [
        (
            f"{line.epoch}{' *' if line.epoch == outcome.best_epoch else ''}",
            f"{line.train_loss:.4f}",
            f"{line.val_loss:.4f}",
            f"{line.val_score:.3f}",
        )
        for line in lines
    ]
    print_table(("EPOCH", "TRAIN LOSS", "INNER LOSS", f"INNER {floor_name(metrics).upper()}"), rows)
    if outcome.skipped:
        for each in outcome.skipped[:LISTED]:
            say(f"left out: {each}")
        say(f"{len(outcome.skipped)} left out of {outcome.items + len(outcome.skipped)}: see skipped.jsonl")
    if len(curve) > 1 and outcome.best_epoch == curve[-1].epoch:
        say("the last epoch was the best one: --resume with more --epochs may do better")
    write(f"held out: {summary(metrics)}")


def _fraction(val: str) -> float | str:
    try:
        return float(val)
    except ValueError:
        return val


def _number(text: str, option: str) -> float | None:
    if text == AUTO:
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option} {text} is not a number", hint=f"{option} auto") from None
