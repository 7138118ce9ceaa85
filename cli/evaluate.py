"""zoo evaluate: the quality of an exported model on labelled data."""

from pathlib import Path
from typing import Annotated

import typer
from zoo_cli.metrics import floor_name, print_confusion, print_labels, print_summary
from zoo_cli.output import counted, next_command, print_json, say
from zoo_cli.state import make_zoo

from zoo import DataOptions, Evaluation, GateError, UsageError, check_predictions, to_plain, write_predictions

#: The number of unreadable items that are listed; the others are only counted.
LISTED = 20


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A bundle (./pets), or a name as for zoo pull.")],
    data: Annotated[str, typer.Argument(help="A folder DATA/<class>/*.jpg, or a table: docs/data.md.")],
    held_out: Annotated[bool, typer.Option("--held-out", help="Use only the items that fine-tuning held out.")] = False,
    fail_under: Annotated[
        float | None,
        typer.Option(help="Exit 6 if the accuracy is lower (multi-label: macro-F1, regression: R²)."),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Write the prediction and scores of every item to this .csv or .parquet file.")
    ] = None,
    max_bad: Annotated[float, typer.Option(help="Fraction of items that may be unreadable; they are left out.")] = 0.0,
    labels: Annotated[
        Path | None, typer.Option(help="A CSV file of two columns: a label in the data, the model's label for it.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="The column of texts.")] = None,
    image: Annotated[str | None, typer.Option(help="The column of images.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda[:N] or tensorrt[:N].", envvar="ZOO_DEVICE")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure a model on labelled data: accuracy, F1, confusion and calibration, or the error of a regression.

    The data has the labels of the model; labels of ImageNet may also be WordNet ids (n02123045).
    """
    if fail_under is not None and not 0 <= fail_under <= 1:
        raise UsageError(f"--fail-under must be between 0 and 1, got {fail_under}", hint="--fail-under 0.9")
    if predictions is not None:
        check_predictions(predictions, inside=[Path(data), Path(model)])
    options = DataOptions(text=text, image=image, label=label, max_bad=max_bad)
    result = make_zoo(context).evaluate(model, data, options, held_out=held_out, labels=labels, device=device)
    if predictions is not None:
        write_predictions(result, predictions)
    is_below = fail_under is not None and result.metrics.score < fail_under
    if json and not is_below:
        facts = {"model": model, "data": str(data), "device": result.device, "trained_on": result.trained_on}
        skipped = {"skipped": result.skipped} if result.skipped else {}
        placement = {"placement": to_plain(result.placement)}
        print_json("evaluation", {**facts, **placement, **skipped, "metrics": to_plain(result.metrics)})
    elif not json:
        print_summary(result.metrics, result.device)
        print_labels(result.metrics)
        print_confusion(result.metrics)
    if result.placement is not None and result.placement.why is not None:
        say(f"ran on {result.placement}")
    _warn(result)
    if is_below:
        raise GateError(
            f"{floor_name(result.metrics)} {result.metrics.score:.3f} on {counted(result.metrics.n, 'item')} is below "
            f"--fail-under {fail_under:g}",
            report=result.metrics,
            hint="more data, a larger backbone, or a lower --fail-under",
        )
    if not json:
        next_command("zoo", "run", model, "INPUT")


def _warn(result: Evaluation) -> None:
    if result.skipped:
        total = len(result.skipped) + result.metrics.n
        say(f"warning: {len(result.skipped)} of {total} items could not be read and were left out:")
        for line in result.skipped[:LISTED]:
            say(f"  {' '.join(line.split())}")
        if len(result.skipped) > LISTED:
            say(f"  and {len(result.skipped) - LISTED} more")
    if result.trained_on:
        say(
            f"warning: the head was trained on {result.trained_on} of these {result.metrics.n} items: "
            "--held-out leaves them out"
        )
