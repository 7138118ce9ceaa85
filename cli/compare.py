"""zoo compare: which model to fine-tune on your data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from zoo_cli.metrics import floor_name
from zoo_cli.output import counted, human_size, next_command, print_json, print_table, say, write
from zoo_cli.output_files import end_with_count
from zoo_cli.state import make_zoo

from zoo import Compared, CompareOptions, Comparison, Task, check_plot, to_plain, write_plot

DEFAULTS = CompareOptions()
#: The number of left-out items that are printed.
LISTED = 10
#: The tasks that can be trained: zoo.schema.TRAINED_TASKS.
Trained = Literal["single-label", "multi-label", "regression"]


def command(
    context: typer.Context,
    data: Annotated[str, typer.Argument(help="A folder DATA/<class>/*.jpg, or a table: docs/data.md.")],
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names as for zoo pull.")],
    task: Annotated[
        Trained, typer.Option(help="One label per item, several (a|b in the label column), or a number.")
    ] = "single-label",
    text: Annotated[str | None, typer.Option(help="The column of texts.")] = None,
    image: Annotated[str | None, typer.Option(help="The column of images.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels.")] = None,
    max_bad: Annotated[
        float, typer.Option(help="Fraction of items that may be unreadable; they are left out for every model.")
    ] = DEFAULTS.max_bad,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed of the folds.")] = DEFAULTS.seed,
    plot: Annotated[Path | None, typer.Option(help="Draw score against time per item: FILE.png or FILE.svg.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].", envvar="ZOO_DEVICE")] = DEFAULTS.device,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Compare models on your data before you fine-tune one: score, size and speed of each.

    A head is solved on the features of each model, as zoo finetune does, and measured by cross-validation on all items.
    Ctrl-C keeps the computed features; zoo finetune uses them too.
    """
    if plot is not None:
        check_plot(plot, inside=Path(data))
    options = CompareOptions(
        task=Task(task), text=text, image=image, label=label, max_bad=max_bad, seed=seed, device=device
    )
    try:
        found = make_zoo(context).compare(data, models, options)
    except KeyboardInterrupt:
        say("computed features are kept for the next run")
        raise
    if plot is not None:
        write_plot(found, plot)
    if json:
        print_json("comparison", to_plain(found))
    else:
        _print(found)
        if plot is not None:
            say(f"plot: {plot}")
        given = {"--task": None if options.task is DEFAULTS.task else task, "--text": text, "--image": image}
        given |= {"--label": label, "--max-bad": f"{max_bad:g}" if found.skipped else None}
        more = [word for name, value in given.items() if value for word in (name, value)]
        next_command("zoo", "finetune", found.choice, data, "-o", "DIR", *more)
    if found.failures:
        end_with_count(
            f"{len(found.failures)} of {counted(len(models), 'model')} could not be compared",
            hint="correct what the lines above say, and compare again; computed features are kept",
        )


def _print(found: Comparison) -> None:
    for line in found.skipped[:LISTED]:
        say(f"left out: {line}")
    if found.skipped:
        say(f"{len(found.skipped)} left out of {found.items + len(found.skipped)}, for every model")
    first = found.models[0].metrics
    is_number = found.task is Task.REGRESSION
    header = ("MODEL", floor_name(first).upper(), "95 %", "BEHIND", "MAE" if is_number else "NLL")
    print_table(
        (*header, "MS/ITEM", "INT8", "SIZE", "DIM", "FEATURES", "HEAD"), [_row(each, found) for each in found.models]
    )
    write()
    write(f"{found.why} (n = {found.items}, left out in turn; on {found.device})")


def _row(each: Compared, found: Comparison) -> Sequence[str]:
    metrics, (low, high) = each.metrics, each.interval
    behind = "best" if each is found.models[0] else f"{each.behind:.3f}" + " (noise)" * each.is_within_noise
    error = f"{metrics.mae:.4g}" if metrics.nll is None else f"{metrics.nll:.3f}"
    features = f"{each.feature_seconds:.1f} s"
    if each.computed < found.items:
        features += f", {each.computed} new" if each.computed else ", cached"
    return (
        each.model, f"{metrics.score:.4f}", f"{low:.3f} to {high:.3f}", behind, error,
        _ms(each.ms), "-" if each.int8_ms is None else _ms(each.int8_ms), f"{human_size(each.size):>8}",
        f"{each.dim:>4}", features, f"{each.head_seconds:.1f} s",
    )  # fmt: skip


def _ms(value: float) -> str:
    """Milliseconds with three digits, in the width of the column."""
    digits = 3 if value < 1 else 2 if value < 10 else 1
    return f"{value:>7.{digits}f}"
