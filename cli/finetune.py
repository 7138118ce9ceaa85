"""zoo finetune: train a classifier or regressor on your data."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from zoo_cli.metrics import floor_name, summary
from zoo_cli.output import counted, next_command, print_json, print_table, reference, say, write
from zoo_cli.state import make_zoo

from zoo import FinetuneOptions, Outcome, Task, UsageError, check_predictions, parse_head, to_plain, write_suspects

DEFAULTS, AUTO = FinetuneOptions(), "auto"
#: The number of left-out items that are printed; the bundle lists all.
LISTED = 10
#: Defaults with --unfreeze: an epoch then takes as long as thousands of epochs of a head alone.
DEEP_EPOCHS, DEEP_PATIENCE = 10, 3
#: The tasks that can be trained: zoo.schema.TRAINED_TASKS.
Trained = Literal["single-label", "multi-label", "regression"]


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A name as for zoo pull.")],
    data: Annotated[str, typer.Argument(help="A folder DATA/<class>/*.jpg, or a table: docs/data.md.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder of the bundle to write.")],
    task: Annotated[
        Trained, typer.Option(help="One label per item, several (a|b in the label column), or a number.")
    ] = ("single-label"),
    epochs: Annotated[
        int | None, typer.Option(min=1, help=f"Default: {DEFAULTS.epochs}, or {DEEP_EPOCHS} with --unfreeze.")
    ] = None,
    head: Annotated[str, typer.Option(help="linear, mlp (256 units), or layer widths such as mlp:512,128.")] = "linear",
    unfreeze: Annotated[int, typer.Option(min=0, help="Also train the last N stages of the backbone.")] = 0,
    augment: Annotated[int, typer.Option(min=0, help="Also train on N random views of each image.")] = 0,
    val: Annotated[str, typer.Option(help="Fraction to hold out, or the path of a data set.")] = str(DEFAULTS.val),
    lr: Annotated[str, typer.Option(help="Learning rate; auto searches for it, and solves a linear head.")] = AUTO,
    weight_decay: Annotated[
        str, typer.Option(help="Weight decay, or strength of a linear head; auto searches.")
    ] = AUTO,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Items per training step. Default: 64 to 1,024, or 32 with --unfreeze.")
    ] = None,
    auto_batch: Annotated[
        bool, typer.Option("--auto-batch", help="Halve --batch, at most five times, if memory runs out.")
    ] = False,
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after this many epochs without improvement."),
    ] = None,
    class_weights: Annotated[
        bool, typer.Option("--class-weights", help="Give rare classes as much weight as frequent ones.")
    ] = False,
    label_smoothing: Annotated[
        float, typer.Option(min=0, help="Fraction of each target that is spread over all labels.")
    ] = 0.0,
    max_bad: Annotated[
        float, typer.Option(help="Fraction of items that may be unreadable; they are left out.")
    ] = DEFAULTS.max_bad,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted training of this -o folder.")
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Random seed of the split and the training.")
    ] = DEFAULTS.seed,
    text: Annotated[str | None, typer.Option(help="The column of texts.")] = None,
    image: Annotated[str | None, typer.Option(help="The column of images.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels.")] = None,
    suspects: Annotated[
        Path | None,
        typer.Option(help="Write the training items that are probably mislabelled: FILE.csv or FILE.parquet."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].", envvar="ZOO_DEVICE")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Train a classifier (or regressor) on your data and save it as ONNX with a report.

    Ctrl-C finishes the current step and saves; --resume continues from there.
    """
    options = FinetuneOptions(
        task=Task(task), epochs=epochs or (DEEP_EPOCHS if unfreeze else DEFAULTS.epochs), hidden=parse_head(head),
        lr=_number(lr, "--lr"), weight_decay=_number(weight_decay, "--weight-decay"), batch=batch,
        auto_batch=auto_batch, patience=patience or (DEEP_PATIENCE if unfreeze else DEFAULTS.patience),
        label_smoothing=label_smoothing, class_weights=class_weights,
        unfreeze=unfreeze, augment=augment, seed=seed, val=_fraction(val),
        max_bad=max_bad, resume=resume, device=device, text=text, image=image, label=label,
    )  # fmt: skip
    if suspects is not None:
        check_predictions(suspects, inside=[Path(data), out], option="--suspects")
    try:
        outcome = make_zoo(context).finetune(model, data, out, options)
    except KeyboardInterrupt as stopped:
        say(" ".join(map(str, stopped.args)) or "computed features are kept for the next run")
        raise
    if suspects is not None:
        write_suspects(outcome.suspects, suspects)
    if json:
        facts = {"bundle": str(out), "items": outcome.items, "skipped": outcome.skipped}
        facts |= {"features_computed": outcome.computed, "best_epoch": outcome.best_epoch}
        print_json("finetune", {**facts, "metrics": to_plain(outcome.metrics)})
        return
    _print(outcome)
    say(f"report: {out / 'report.html'}")
    names = (("--text", text), ("--image", image), ("--label", label))
    columns = [word for name, value in names if value for word in (name, value)]
    # Items that fine-tuning could not read are also unreadable in the next command.
    columns += ["--max-bad", f"{max_bad:g}"] if outcome.skipped else []
    held_out = data if isinstance(options.val, float) else options.val
    next_command("zoo", "evaluate", reference(out), held_out, "--held-out", *columns)
    write(str(out))


def _print(outcome: Outcome) -> None:
    curve, metrics = outcome.curve, outcome.metrics
    say(f"features: {outcome.computed} computed, {outcome.items - outcome.computed} from the cache")
    step = max(1, len(curve) // 8)
    lines = [line for line in curve if line.epoch == outcome.best_epoch or line.epoch % step == 0 or line.epoch == 1]
    rows = [
        (
            # Heads that are solved have a strength of regularisation for each line.
            f"{line.epoch if line.strength is None else f'{line.strength:.1e}'}"
            f"{' *' if line.epoch == outcome.best_epoch else ''}",
            f"{line.train_loss:.4f}",
            f"{line.val_loss:.4f}",
            f"{line.val_score:.3f}",
        )
        for line in lines
    ]
    is_solved = any(line.strength is not None for line in curve)
    first, left_out = ("STRENGTH", "LEFT OUT") if is_solved else ("EPOCH", "INNER")
    print_table((first, "TRAIN LOSS", f"{left_out} LOSS", f"{left_out} {floor_name(metrics).upper()}"), rows)
    if outcome.skipped:
        for each in outcome.skipped[:LISTED]:
            say(f"left out: {each}")
        say(f"{len(outcome.skipped)} left out of {outcome.items + len(outcome.skipped)}: see skipped.jsonl")
    if outcome.suspects:
        number, worst = counted(len(outcome.suspects), "training item"), outcome.suspects[0]
        say(f"likely mislabelled: {number}, such as {worst.name} ({worst.label}; predicted {worst.predicted})")
    if not is_solved and len(curve) > 1 and outcome.best_epoch == curve[-1].epoch:
        say("the last epoch was the best: --resume with more --epochs may improve the result")
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
        raise UsageError(f"{option} must be a number or auto, got {text}", hint=f"{option} auto") from None
