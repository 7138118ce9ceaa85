"""The plot of a comparison: score against time per item, with the size of each model as the area of its marker."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import UsageError
from zoo.evaluation.report_plots import BLUE, ORANGE, new_figure, plain_settings
from zoo.extras import REPORT, require
from zoo.results import Compared, Comparison
from zoo.schema import Task
from zoo.system.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The formats of a plot.
SUFFIXES = (".png", ".svg")
#: Area of the largest marker in points squared, and the smallest area that is still visible.
LARGEST, SMALLEST = 600.0, 12.0
NAMES = {Task.REGRESSION: "R²", Task.MULTI_LABEL: "macro-F1"}


def check_plot(path: Path, *, inside: Path | None = None) -> None:
    """Raise UsageError for a file that is neither PNG nor SVG or lies in the data `inside`.

    Raises MissingExtraError without matplotlib.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path}: the suffix must be {' or '.join(SUFFIXES)}", hint="--plot models.png")
    if inside is not None and path.resolve().is_relative_to(inside.resolve()):
        raise UsageError(f"{path} would change {inside}, which is being read", hint="choose another file")
    require("the plot", *REPORT)


def write_plot(comparison: Comparison, path: Path) -> None:
    """Write the plot as PNG or SVG, by the suffix of `path`; equal comparisons give equal bytes.

    Raises AccessError if the file cannot be written, and the errors of `check_plot`.
    """
    check_plot(path)
    kind = path.suffix.lower().removeprefix(".")
    with plain_settings():
        import matplotlib

        # Names of shapes in an SVG file are random otherwise.
        matplotlib.rcParams.update({"svg.hashsalt": "zoo", "svg.fonttype": "none"})
        data = BytesIO()
        metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        _draw(comparison).savefig(data, format=kind, metadata=metadata)
    write_atomic(path, data.getvalue())


def _draw(comparison: Comparison) -> "Figure":
    models = comparison.models
    figure, [axes] = new_figure(4.2)
    largest = max(each.size for each in models)
    for each in models:
        colour = ORANGE if each.model == comparison.choice else BLUE
        low, high = each.interval
        axes.vlines(each.ms, low, high, color=colour, linewidth=1.4)
        area = max(SMALLEST, LARGEST * each.size / largest)
        axes.scatter([each.ms], [each.metrics.score], s=area, color=colour, alpha=0.45, linewidths=0)
        axes.plot([each.ms], [each.metrics.score], "o", color=colour, markersize=3)
        _name(axes, each)
    axes.scatter([], [], color=ORANGE, label="the model to take")
    if len(models) > 1:
        axes.scatter([], [], color=BLUE, label="the others")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    axes.set_xscale("log")
    # The default labels of a logarithmic axis are formulas.
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    # Room for the names beside the outer markers.
    times = [each.ms for each in models]
    axes.set_xlim(min(times) / 4, max(times) * 4)
    axes.margins(y=0.12)
    axes.grid(alpha=0.25)
    score = NAMES.get(comparison.task, "accuracy")
    axes.set(xlabel=f"ms per item on {comparison.device}", ylabel=f"{score} of items left out, with 95 % interval")
    return figure


def _name(axes: "Axes", model: Compared) -> None:
    """Write the name of a model and the size of its file above its interval."""
    text = f"{model.model}\n{model.size / 1e6:,.0f} MB"
    axes.annotate(text, (model.ms, model.interval[1]), (0, 4), textcoords="offset points", ha="center", fontsize=8)
