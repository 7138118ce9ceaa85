"""zoo evaluate: the exported file's quality on labelled data."""

from pathlib import Path
from typing import Annotated

import typer
from zoo_cli.output import next_command, print_json, print_table, say, write
from zoo_cli.state import make_zoo

from zoo import Evaluation, GateError, UsageError, to_plain, write_predictions


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A fine-tuned bundle.")],
    data: Annotated[str, typer.Argument(help="A folder DATA/<class>/*.jpg, or a table: docs/data.md.")],
    held_out: Annotated[bool, typer.Option("--held-out", help="Only the items that fine-tuning held out.")] = False,
    fail_under: Annotated[float | None, typer.Option(min=0, max=1, help="Exit 6 when the accuracy is lower.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Write every item's scores to this CSV file.")] = None,
    text: Annotated[str | None, typer.Option(help="The text column.")] = None,
    label: Annotated[str | None, typer.Option(help="The label column.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda[:N].", envvar="ZOO_DEVICE")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure accuracy, macro-F1 and the confusion of a bundle's ONNX file."""
    if fail_under is not None and not 0 <= fail_under <= 1:
        raise UsageError(f"--fail-under {fail_under} is not between 0 and 1", hint="--fail-under 0.9")
    zoo = make_zoo(context)
    result = zoo.evaluate(model, data, held_out=held_out, text=text, label=label, device=device)
    if predictions is not None:
        write_predictions(result, predictions)
    is_below = fail_under is not None and result.metrics.score < fail_under
    if json and not is_below:
        facts = {"model": model, "data": str(data), "device": result.device, "trained_on": result.trained_on}
        print_json("evaluation", {**facts, "metrics": to_plain(result.metrics)})
    elif not json:
        _print(result)
    if result.trained_on:
        say(
            f"warning: the head was fitted to {result.trained_on} of these {result.metrics.n} items: "
            "--held-out leaves them out"
        )
    if is_below:
        raise GateError(
            f"accuracy {result.metrics.score:.3f} on {result.metrics.n} items is below the floor {fail_under:g}",
            report=result.metrics,
            hint="more data, a larger backbone, or a lower --fail-under",
        )
    if not json:
        next_command("zoo", "run", model, "INPUT")


def _print(result: Evaluation) -> None:
    metrics = result.metrics
    labels = list(metrics.per_class)
    assert metrics.accuracy_interval is not None
    low, high = metrics.accuracy_interval
    write(f"accuracy  {metrics.accuracy:.4f}  (95 %: {low:.3f} to {high:.3f}, n = {metrics.n}, on {result.device})")
    write(f"macro-F1  {metrics.macro_f1:.4f}")
    write()
    rows = [
        (label, str(int(facts["n"])), f"{facts['precision']:.3f}", f"{facts['recall']:.3f}", f"{facts['f1']:.3f}")
        for label, facts in metrics.per_class.items()
    ]
    print_table(("CLASS", "N", "PRECISION", "RECALL", "F1"), rows)
    write()
    confusion = [
        (label, *(str(count) if count else "." for count in row))
        for label, row in zip(labels, metrics.confusion, strict=True)
    ]
    print_table(("TRUE \\ PREDICTED", *labels), confusion)
