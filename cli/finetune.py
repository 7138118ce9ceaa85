"""zoo finetune: your classes on a frozen backbone."""

from pathlib import Path
from typing import Annotated

import typer
from zoo_cli.output import next_command, print_json, print_table, reference, say, write
from zoo_cli.state import make_zoo

from zoo import FinetuneOptions, Outcome, UsageError, parse_head, to_plain

DEFAULTS, AUTO = FinetuneOptions(), "auto"


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A name as for zoo pull.")],
    data: Annotated[str, typer.Argument(help="A folder DATA/<class>/*.jpg, or a table: docs/data.md.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder of the bundle to write.")],
    epochs: Annotated[int, typer.Option(min=1)] = DEFAULTS.epochs,
    head: Annotated[str, typer.Option(help="linear, mlp, or mlp:512,128.")] = "linear",
    val: Annotated[str, typer.Option(help="Fraction to hold out, or a data set of its own.")] = str(DEFAULTS.val),
    lr: Annotated[str, typer.Option(help="Learning rate, or auto: it is searched for.")] = AUTO,
    weight_decay: Annotated[str, typer.Option(help="A number, or auto: it is searched for.")] = AUTO,
    batch: Annotated[int, typer.Option(min=1, help="Items in a training step.")] = DEFAULTS.batch,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Decides the split and the training.")
    ] = DEFAULTS.seed,
    text: Annotated[str | None, typer.Option(help="The text column.")] = None,
    label: Annotated[str | None, typer.Option(help="The label column.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].", envvar="ZOO_DEVICE")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Fine-tune: features of the frozen backbone once, a new head, one checked ONNX bundle."""
    options = FinetuneOptions(
        epochs=epochs, hidden=parse_head(head), lr=_number(lr, "--lr"),
        weight_decay=_number(weight_decay, "--weight-decay"), batch=batch, seed=seed,
        val=_fraction(val), device=device, text=text, label=label,
    )  # fmt: skip
    outcome = make_zoo(context).finetune(model, data, out, options)
    if json:
        facts = {"items": outcome.items, "features_computed": outcome.computed, "best_epoch": outcome.best_epoch}
        print_json("finetune", {"bundle": str(out), **facts, "metrics": to_plain(outcome.metrics)})
        return
    _print(outcome)
    columns = [word for name, value in (("--text", text), ("--label", label)) if value for word in (name, value)]
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
    print_table(("EPOCH", "TRAIN LOSS", "INNER LOSS", "INNER ACCURACY"), rows)
    assert metrics.accuracy_interval is not None
    low, high = metrics.accuracy_interval
    write(f"held out: accuracy {metrics.accuracy:.4f} (95 %: {low:.3f} to {high:.3f}), n = {metrics.n}")


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
