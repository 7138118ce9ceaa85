"""The plots of a training report as PNG files, drawn by matplotlib without a display and without global state."""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from zoo.schema import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from zoo.evaluation.report_data import Facts

CURVES, CONFUSION, SCATTER = "report-curves.png", "report-confusion.png", "report-scatter.png"
MAP, CALIBRATION = "report-map.png", "report-calibration.png"
#: Width of a plot in inches, at which its text is readable on a phone.
WIDTH = 5.4
#: Pixels per inch.
DPI = 180
#: The largest number of classes in a confusion matrix, and in a matrix that is no wider than the other plots.
MATRIX, NARROW = 40, 16
BLUE, ORANGE, GREY, RED = "#2f6db3", "#d9761a", "#8a8f98", "#b3261e"


def load() -> None:
    """Import matplotlib and draw one plot, because the first plot of a process takes twice as long as the next."""
    with plain_settings():
        figure, [axes] = new_figure(1.0)
        axes.plot([1, 2], [1, 2], label="a")
        axes.legend()
        _png(figure)


def draw(facts: "Facts") -> dict[str, bytes]:
    """The plots for these facts, as PNG by file name; a user's matplotlib settings do not change them."""
    curves = {CURVES: _curves} if facts.curve else {}
    is_number = facts.task is Task.REGRESSION
    results = {SCATTER: _scatter} if is_number else {CONFUSION: _confusion, CALIBRATION: _calibration}
    with plain_settings():
        return {name: _png(make(facts)) for name, make in {**curves, **results, MAP: _map}.items()}


@contextmanager
def plain_settings() -> Iterator[None]:
    """Use matplotlib's default settings, and drop its messages about caches and about letters that its font lacks."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import matplotlib

        with warnings.catch_warnings(), matplotlib.rc_context():
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            matplotlib.rcdefaults()
            # A dollar sign in a label must not start a formula.
            matplotlib.rcParams.update({"text.parse_math": False, "font.size": 9, "axes.unicode_minus": False})
            matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
            yield
    finally:
        logger.setLevel(level)


def _png(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    data = BytesIO()
    # None keeps the version of matplotlib out of the file.
    FigureCanvasAgg(figure).print_png(data, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return data.getvalue()


def new_figure(height: float, width: float = WIDTH, rows: int = 1) -> "tuple[Figure, list[Axes]]":
    """A figure of `width` x `height` inches with plots below each other that share the x axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)
    return figure, list(axes[:, 0])


def _whole(axes: "Axes") -> None:
    """Put ticks of the x axis at whole numbers only, because it counts items or epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _curves(facts: "Facts") -> "Figure":
    figure, (losses, scores) = new_figure(4.6, rows=2)
    solved = all(line.strength is not None for line in facts.curve)
    left_out = "left out" if solved else "validation"
    epochs = [float(line.epoch if line.strength is None else line.strength) for line in facts.curve]
    best = next((place for place, line in zip(epochs, facts.curve, strict=True) if line.epoch == facts.best_epoch), 0)
    style: dict[str, Any] = {"marker": "o" if len(epochs) < 15 else "", "markersize": 3, "linewidth": 1.4}
    losses.plot(epochs, [line.train_loss for line in facts.curve], color=BLUE, label="training", **style)
    losses.plot(epochs, [line.val_loss for line in facts.curve], color=ORANGE, label=left_out, **style)
    scores.plot(epochs, [line.val_score for line in facts.curve], color=ORANGE, **style)
    values = [value for line in facts.curve for value in (line.train_loss, line.val_loss)]
    if min(values) > 0 and max(values) > 30 * min(values):
        losses.set_yscale("log")
        # The default labels of a logarithmic axis are formulas.
        losses.yaxis.set_major_formatter("{x:g}")
        losses.yaxis.set_minor_formatter("")
    for axes in (losses, scores):
        axes.axvline(best, color=GREY, linewidth=1, linestyle="--")
        axes.grid(alpha=0.25)
    label = f"best strength: {best:.1e}" if solved else f"best epoch: {facts.best_epoch}"
    losses.plot([], [], color=GREY, linewidth=1, linestyle="--", label=label)
    losses.legend(frameon=False)
    losses.set_ylabel("loss")
    names = {Task.REGRESSION: "R²", Task.MULTI_LABEL: "macro-F1"}
    scores.set(xlabel="strength" if solved else "epoch", ylabel=f"{left_out} {names.get(facts.task, 'accuracy')}")
    if solved:
        # From the strongest regularisation to the weakest, as they were solved. Both plots share the axis.
        scores.set_xscale("log")
        scores.invert_xaxis()
        scores.xaxis.set_major_formatter("{x:.0e}")
        scores.xaxis.set_minor_formatter("")
    else:
        _whole(scores)
    return figure


def _confusion(facts: "Facts") -> "Figure":
    if facts.task is Task.MULTI_LABEL:
        return _label_counts(facts)
    return _matrix(facts) if len(facts.labels) <= MATRIX else _pairs(facts)


def _matrix(facts: "Facts") -> "Figure":
    import numpy as np

    counts = np.array(facts.metrics.confusion)
    size = len(counts)
    names = [_short(label) for label in facts.labels]
    room = 0.075 * max(map(len, names))
    side = max(WIDTH - 0.6 - room, 0.27 * size)
    figure, [axes] = new_figure(side + 0.5 + (room if size > 4 else 0.2), side + 0.6 + room)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="#d5d8dd", linewidth=0.5)
    axes.invert_yaxis()
    cell, digits = 72 * side / size, len(str(counts.max()))
    letters = min(9.0, 0.45 * cell, 0.8 * cell / (0.62 * digits))
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.55 else "black"
        axes.text(
            column + 0.5, row + 0.5, str(counts[row, column]),
            ha="center", va="center", color=colour, fontsize=letters,
        )  # fmt: skip
    turned = size > 4 or max(map(len, names)) * 0.075 * size > side
    ticks = np.arange(size) + 0.5
    axes.set_xticks(ticks, names, rotation=90 if turned else 0)
    axes.set_yticks(ticks, names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(aspect="equal", xlabel="predicted", ylabel="true")
    return figure


def _bars(axes: "Axes", names: Sequence[str], xlabel: str) -> None:
    """Label the axes of horizontal bars: one bar for each name, from top to bottom, with its length in items."""
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(xlabel)
    _whole(axes)


def _pairs(facts: "Facts") -> "Figure":
    pairs = facts.confused
    figure, [axes] = new_figure(0.8 + 0.26 * max(1, len(pairs)))
    bars = axes.barh(range(len(pairs)), [pair.n for pair in pairs], color=BLUE)
    axes.bar_label(bars, [str(pair.n) for pair in pairs], padding=3)
    axes.margins(x=0.12)
    _bars(axes, [f"{_short(pair.label)} → {_short(pair.predicted)}" for pair in pairs], "items, true → predicted")
    return figure


def _label_counts(facts: "Facts") -> "Figure":
    """Bars of right, missed and wrong predictions for each label; with many labels, those with the most mistakes."""
    counts = []
    for label, values in facts.metrics.per_class.items():
        right = round(values["recall"] * values["n"])
        counts.append((label, right, round(values["n"]) - right, facts.wrongly_given[label]))
    if len(counts) > MATRIX:
        counts = sorted(counts, key=lambda row: -(row[2] + row[3]))[:MATRIX]
    figure, [axes] = new_figure(1.1 + 0.26 * len(counts))
    left = [0] * len(counts)
    for column, (name, colour) in enumerate((("right", BLUE), ("missed", "#a9c4e4"), ("wrong", ORANGE)), 1):
        widths = [int(row[column]) for row in counts]
        axes.barh(range(len(counts)), widths, left=left, color=colour, label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    _bars(axes, [_short(row[0]) for row in counts], "items")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def _diagonal(axes: "Axes", low: float, high: float, room: float, label: str | None = None) -> None:
    """Set square axes from low to high, with `room` around them, and draw the dashed line on which both are equal."""
    ends = [low - room, high + room]
    line = [low, high] if label else ends
    axes.plot(line, line, color=GREY, linewidth=1, linestyle="--", label=label)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.grid(alpha=0.25)


def _scatter(facts: "Facts") -> "Figure":
    figure, [axes] = new_figure(4.6)
    truth, predicted = ([float(value) for value in values] for values in (facts.map.label, facts.map.predicted))
    axes.plot(truth, predicted, "o", color=BLUE, markersize=3.5, alpha=0.6, markeredgewidth=0)
    low, high = min(*truth, *predicted), max(*truth, *predicted)
    _diagonal(axes, low, high, 0.04 * (high - low) or 1)
    axes.set(xlabel="true", ylabel="predicted")
    return figure


def _calibration(facts: "Facts") -> "Figure":
    figure, [axes] = new_figure(4.6)
    _diagonal(axes, 0, 1, 0.02, "perfectly calibrated")
    x, y = ([getattr(each, name) for each in facts.calibration] for name in ("confidence", "accuracy"))
    axes.vlines(x, x, y, color=RED, linewidth=1.2, alpha=0.6, label="gap")
    axes.plot(x, y, "o-", color=BLUE, markersize=4, linewidth=1.2, label="groups of equally many items")
    is_multi = facts.task is Task.MULTI_LABEL
    axes.set_xlabel("score of a label" if is_multi else "score of the predicted class")
    axes.set_ylabel("share of items that have the label" if is_multi else "share of right predictions")
    title = f"calibration error {facts.metrics.calibration_error:.3f}"
    axes.legend(loc="upper left", frameon=False, title=title, alignment="left")
    return figure


def _map(facts: "Facts") -> "Figure":
    figure, [axes] = new_figure(4.6)
    spots = facts.map
    if facts.task is Task.REGRESSION:
        values = [float(value) for value in spots.label]
        points = axes.scatter(spots.x, spots.y, c=values, cmap="viridis", s=12, linewidths=0)
        figure.colorbar(points, ax=axes, label="true", fraction=0.05)
    else:
        _classes(figure, axes, facts)
    axes.set_xlabel(f"first principal axis ({spots.variance[0]:.0%} of the variance)")
    axes.set_ylabel(f"second principal axis ({spots.variance[1]:.0%})")
    axes.set(xticks=[], yticks=[])
    return figure


def _classes(figure: "Figure", axes: "Axes", facts: "Facts") -> None:
    """Draw points in the colour of their true label and mistakes as crosses, with a legend below."""
    spots, counts = facts.map, Counter(facts.map.label)
    ranked = sorted(counts, key=lambda label: (-counts[label], label))
    # Items with several labels have many different sets of labels, and each set is rare.
    limit = 10 if facts.task is Task.MULTI_LABEL else 20
    kept = sorted(ranked) if len(ranked) <= limit else sorted(ranked[: limit - 1])
    groups = [
        (_short(label) or "(none)", colour, {label}) for label, colour in zip(kept, _palette(len(kept)), strict=True)
    ]
    if others := set(ranked) - set(kept):
        groups.insert(0, (f"{len(others)} others", GREY, others))
    for name, colour, members in groups:
        for right, marker, size in ((True, "o", 11), (False, "x", 26)):
            rows = [i for i, label in enumerate(spots.label) if label in members and spots.right[i] is right]
            axes.scatter(
                [spots.x[i] for i in rows], [spots.y[i] for i in rows], color=[colour], marker=marker, s=size,
                linewidths=1.3 if marker == "x" else 0, alpha=0.75 if right else 1, zorder=2 if right else 3,
                label=name if right else None,
            )  # fmt: skip
    axes.scatter([], [], color="black", marker="x", s=26, linewidths=1.3, label="mistake")
    columns = max(1, min(5, 60 // (max(len(name) for name, _, _ in groups) + 6)))
    figure.set_figheight(4.0 + 0.16 * -(-(len(groups) + 1) // columns))
    figure.legend(
        loc="outside lower center", ncols=columns, frameon=False, fontsize=8,
        handletextpad=0.2, columnspacing=1.0, markerscale=1.4,
    )  # fmt: skip


def _palette(count: int) -> list[str]:
    """Distinct colours that are visible on white and, inverted, on black. None is grey, which marks other classes."""
    from colorsys import hls_to_rgb

    colours = [hls_to_rgb(index / count, 0.38 if index % 2 else 0.58, 0.7) for index in range(count)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in colours]


def _short(label: str, limit: int = 22) -> str:
    """A label in one line. A long label is cut in the middle, because names differ most at the start and the end."""
    label = " ".join(label.split())
    return label if len(label) <= limit else f"{label[: limit - 10]}…{label[-9:]}"
