"""The report on a training: one page to look at, its plots as PNG, and the numbers behind them as JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from zoo.data.dataset import Example
from zoo.evaluation.metrics import Bin, reliability
from zoo.runtime.answers import decide, predicted_labels
from zoo.schema import Epoch, Metrics, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA_VERSION = 1
#: Mistakes that are shown, pairs of classes that are listed, points on the map.
MISTAKES, PAIRS, POINTS = 12, 20, 2000
#: Width of the space in which principal axes are looked for, and how often it is turned towards them.
SUBSPACE, ITERATIONS = 16, 8


class Report(Struct, frozen=True, kw_only=True):
    """What a report is made of: the training and how it did on held-out items.

    `examples` are these items, with `scores` float32 [items, labels], `features` float32 [items, dim] and `targets`, in
    the form that `zoo.evaluation.metrics.measure` takes. `notes` are lines about the data: files that were skipped,
    warnings.
    """

    name: str
    backbone: str
    data: str
    task: Task
    labels: tuple[str, ...]
    metrics: Metrics
    trained_on: int
    curve: tuple[Epoch, ...]
    best_epoch: int
    examples: tuple[Example, ...]
    scores: "NDArray[np.float32]"
    targets: "NDArray[Any]"
    features: "NDArray[np.float32]"
    thresholds: tuple[float, ...] = ()
    class_weights: tuple[float, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Mistake(Struct, frozen=True, kw_only=True):
    """A held-out item that is answered wrongly, at `place` among them; `score` is that of the wrong label `about`.

    Of several labels `about` is the one that is furthest on the wrong side; of a number `score` is the error.
    """

    place: int
    name: str
    label: str
    predicted: str
    about: str
    score: float


class Pair(Struct, frozen=True, kw_only=True):
    """`n` items of the class `label` that are taken for `predicted`."""

    label: str
    predicted: str
    n: int


class Map(Struct, frozen=True, kw_only=True):
    """Features on their first two principal axes; `variance` is the share of the whole that each axis holds."""

    variance: tuple[float, float]
    x: tuple[float, ...]
    y: tuple[float, ...]
    label: tuple[str, ...]
    predicted: tuple[str, ...]
    right: tuple[bool, ...]


class Facts(Struct, frozen=True, kw_only=True):
    """`report.json`: every number that the page and its plots show. `map` holds at most POINTS items."""

    schema_version: int
    name: str
    backbone: str
    data: str
    task: Task
    labels: tuple[str, ...]
    trained_on: int
    metrics: Metrics
    best_epoch: int
    curve: tuple[Epoch, ...]
    calibration: tuple[Bin, ...]
    confused: tuple[Pair, ...]
    #: Items to which a label is given that they do not have.
    wrongly_given: dict[str, int]
    mistakes: tuple[Mistake, ...]
    map: Map
    thresholds: tuple[float, ...]
    class_weights: tuple[float, ...]
    options: dict[str, Any]
    versions: dict[str, str]
    notes: tuple[str, ...]


def gather(report: Report) -> Facts:
    """The numbers of a report."""
    task, metrics = report.task, report.metrics
    is_number = task is Task.REGRESSION
    said = predicted_labels(task, report.scores, report.labels, report.thresholds)
    shared = {name: getattr(report, name) for name in Facts.__struct_fields__ if hasattr(report, name)}
    return Facts(
        **shared,
        schema_version=SCHEMA_VERSION,
        calibration=() if is_number else reliability(task, report.scores, report.targets, report.class_weights),
        confused=confused(metrics.confusion, report.labels),
        wrongly_given={} if is_number else _wrongly_given(report),
        mistakes=tuple(_mistakes(report, said)),
        map=_map(report, said),
    )


def confused(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> tuple[Pair, ...]:
    """The pairs of classes that are most often confused, the worst first."""
    pairs = [
        Pair(label=labels[true], predicted=labels[answer], n=count)
        for true, row in enumerate(confusion)
        for answer, count in enumerate(row)
        if count and true != answer
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.n, pair.label, pair.predicted))[:PAIRS])


def _wrongly_given(report: Report) -> dict[str, int]:
    import numpy as np

    decided = decide(report.task, report.scores, report.thresholds)
    if report.task is Task.MULTI_LABEL:
        counts = (decided & (report.targets <= 0)).sum(0)
    else:
        counts = np.bincount(decided[decided != report.targets], minlength=len(report.labels))
    return dict(zip(report.labels, counts.tolist(), strict=True))


def _wrong(report: Report) -> "NDArray[np.float64]":
    """How far each label of each item is on the wrong side, [items, labels]: 0 where it is right, at most 1."""
    import numpy as np

    scores = report.scores.astype(np.float64)
    decided = decide(report.task, report.scores, report.thresholds)
    if report.task is Task.REGRESSION:
        return np.asarray(np.abs(scores - report.targets))
    if report.task is Task.MULTI_LABEL:
        edges = np.asarray(report.thresholds or [0.5] * scores.shape[1], np.float64)
        # A threshold may be 0 or 1; a decision on its edge is as wrong as any other.
        room = np.maximum(np.where(decided, 1 - edges, edges), 1e-6)
        return np.asarray(np.where(decided != (report.targets > 0), np.abs(scores - edges) / room + 1e-9, 0.0))
    wrong = np.zeros(scores.shape)
    rows = np.flatnonzero(decided != report.targets)
    wrong[rows, decided[rows]] = scores[rows, decided[rows]]
    return wrong


def _mistakes(report: Report, said: Sequence[str]) -> list[Mistake]:
    wrong = _wrong(report)
    worst, about = wrong.max(1).tolist(), wrong.argmax(1).tolist()
    order = sorted(range(len(worst)), key=lambda place: (-worst[place], report.examples[place].name))
    is_number = report.task is Task.REGRESSION
    return [
        Mistake(
            place=place,
            name=report.examples[place].name,
            label=report.examples[place].label,
            predicted=said[place],
            about="" if is_number else report.labels[about[place]],
            score=worst[place] if is_number else float(report.scores[place, about[place]]),
        )
        for place in order[:MISTAKES]
        if worst[place] > 0
    ]


def _map(report: Report, said: Sequence[str]) -> Map:
    import numpy as np

    count = len(report.features)
    chosen = np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(int))
    spots, variance = project(report.features[chosen])
    right = _wrong(report).max(1) == 0
    return Map(
        variance=variance,
        x=tuple(np.round(spots[:, 0], 4).tolist()),
        y=tuple(np.round(spots[:, 1], 4).tolist()),
        label=tuple(report.examples[place].label for place in chosen),
        predicted=tuple(said[place] for place in chosen),
        right=tuple(right[chosen].tolist()),
    )


def project(features: "NDArray[np.float32]") -> "tuple[NDArray[np.float64], tuple[float, float]]":
    """Features [items, dim] on their first two principal axes [items, 2], and each axis's share of the variance.

    By subspace iteration from a fixed start (Halko et al., https://arxiv.org/abs/0909.4061, algorithm 4.4), which takes
    a small part of a whole SVD's time. The axes point where their largest part is positive.
    """
    import numpy as np

    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    total = float((centred**2).sum())
    start = np.random.default_rng(0).normal(size=(centred.shape[1], SUBSPACE))
    basis = np.linalg.qr(centred @ start)[0]
    for _ in range(ITERATIONS):
        basis = np.linalg.qr(centred @ np.linalg.qr(centred.T @ basis)[0])[0]
    _, values, rows = np.linalg.svd(basis.T @ centred, full_matrices=False)
    axes, shares = np.zeros((2, centred.shape[1])), [0.0, 0.0]
    for index, value in enumerate(values[:2].tolist()):
        # Below the resolution of the sum there is no such axis: all items lie on the ones before.
        if value**2 > 1e-9 * total:
            shares[index] = value**2 / total
            axes[index] = rows[index] * np.sign(rows[index][np.abs(rows[index]).argmax()])
    return centred @ axes.T, (shares[0], shares[1])
