"""The numbers of a training report: everything that the page and its plots show, and that `report.json` holds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from zoo.data.items import Example
from zoo.evaluation.metrics import Bin, reliability
from zoo.results import Epoch, LearningPoint, Suspect
from zoo.runtime.answers import decide, predicted_labels
from zoo.schema import Metrics, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class _Training(Struct, frozen=True, kw_only=True):
    """The facts of a training that are copied into `report.json`; `notes` are lines about the data."""

    schema_version: int = 1
    name: str
    backbone: str
    data: str
    task: Task
    labels: tuple[str, ...]
    trained_on: int
    metrics: Metrics
    best_epoch: int
    curve: tuple[Epoch, ...]
    thresholds: tuple[float, ...] = ()
    class_weights: tuple[float, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    #: The most suspicious of the `doubtful` training items, which are probably mislabelled.
    suspects: tuple[Suspect, ...] = ()
    doubtful: int = 0
    learning: tuple[LearningPoint, ...] = ()


class ReportInputs(_Training, frozen=True, kw_only=True):
    """The facts of a training and its results on the held-out items `examples`.

    `trained` are the training items, in the order of the places of `suspects`. `scores` is float32 [items, labels],
    `features` float32 [items, dim]; `targets` are as for `metrics.measure`.
    """

    examples: tuple[Example, ...]
    trained: tuple[Example, ...] = ()
    scores: "NDArray[np.float32]"
    targets: "NDArray[Any]"
    features: "NDArray[np.float32]"


class Mistake(Struct, frozen=True, kw_only=True):
    """A wrong prediction for the held-out item with index `place`; `score` is the score of the wrong label `about`.

    With several labels, `about` is the label whose score is furthest on the wrong side of its threshold. In a
    regression, `score` is the error.
    """

    place: int
    name: str
    label: str
    predicted: str
    about: str
    score: float


class Pair(Struct, frozen=True, kw_only=True):
    """`n` items of the class `label` are predicted as the class `predicted`."""

    label: str
    predicted: str
    n: int


class Map(Struct, frozen=True, kw_only=True):
    """Items on the first two principal axes of their features; `variance` is each axis's share of the variance."""

    variance: tuple[float, float]
    x: tuple[float, ...]
    y: tuple[float, ...]
    label: tuple[str, ...]
    predicted: tuple[str, ...]
    right: tuple[bool, ...]


class Facts(_Training, frozen=True, kw_only=True):
    """`report.json`: every number that the page and its plots show."""

    calibration: tuple[Bin, ...]
    confused: tuple[Pair, ...]
    #: For each label, the number of items for which it is predicted and not true.
    wrongly_given: dict[str, int]
    mistakes: tuple[Mistake, ...]
    map: Map


def gather(report: ReportInputs) -> Facts:
    """The numbers of a report, computed from the results of the training."""
    is_number = report.task is Task.REGRESSION
    predicted = predicted_labels(report.task, report.scores, report.labels, report.thresholds)
    wrong = _wrong(report)
    return Facts(
        **{name: getattr(report, name) for name in _Training.__struct_fields__},
        calibration=() if is_number else reliability(report.task, report.scores, report.targets, report.class_weights),
        confused=confused(report.metrics.confusion, report.labels),
        wrongly_given={} if is_number else _wrongly_given(report, wrong),
        mistakes=tuple(_mistakes(report, predicted, wrong)),
        map=_map(report, predicted, wrong.max(1) == 0),
    )


def confused(confusion: Sequence[Sequence[int]], labels: Sequence[str], limit: int = 20) -> tuple[Pair, ...]:
    """The pairs of classes that are confused most often, worst first."""
    pairs = [
        Pair(label=labels[true], predicted=labels[answer], n=count)
        for true, row in enumerate(confusion)
        for answer, count in enumerate(row)
        if count and true != answer
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.n, pair.label, pair.predicted))[:limit])


def _wrongly_given(report: ReportInputs, wrong: "NDArray[np.float64]") -> dict[str, int]:
    given = wrong > 0
    if report.task is Task.MULTI_LABEL:
        # `wrong` marks missed labels too: count only those that were predicted.
        given &= decide(report.task, report.scores, report.thresholds)
    return dict(zip(report.labels, given.sum(0).tolist(), strict=True))


def _wrong(report: ReportInputs) -> "NDArray[np.float64]":
    """The error of each label of each item [items, labels]: 0 if right, at most 1; for a number its absolute error."""
    import numpy as np

    scores = report.scores.astype(np.float64)
    decided = decide(report.task, report.scores, report.thresholds)
    if report.task is Task.REGRESSION:
        return np.asarray(np.abs(scores - report.targets))
    if report.task is Task.MULTI_LABEL:
        edges = np.asarray(report.thresholds or [0.5] * scores.shape[1], np.float64)
        # A threshold may be 0 or 1: 1e-6 avoids a division by 0. 1e-9 keeps the error of a wrong label above 0.
        room = np.maximum(np.where(decided, 1 - edges, edges), 1e-6)
        return np.asarray(np.where(decided != (report.targets > 0), np.abs(scores - edges) / room + 1e-9, 0.0))
    wrong = np.zeros(scores.shape)
    rows = np.flatnonzero(decided != report.targets)
    wrong[rows, decided[rows]] = scores[rows, decided[rows]]
    return wrong


def _mistakes(report: ReportInputs, predicted: Sequence[str], wrong: "NDArray[np.float64]") -> list[Mistake]:
    """The twelve worst mistakes, worst first."""
    worst, about = wrong.max(1).tolist(), wrong.argmax(1).tolist()
    order = sorted(range(len(worst)), key=lambda index: (-worst[index], report.examples[index].name))
    is_number = report.task is Task.REGRESSION
    return [
        Mistake(
            place=index,
            name=report.examples[index].name,
            label=report.examples[index].label,
            predicted=predicted[index],
            about="" if is_number else report.labels[about[index]],
            score=worst[index] if is_number else float(report.scores[index, about[index]]),
        )
        for index in order[:12]
        if worst[index] > 0
    ]


def _map(report: ReportInputs, predicted: Sequence[str], right: "NDArray[np.bool_]") -> Map:
    """The map of at most 2,000 items, evenly chosen."""
    import numpy as np

    count = len(report.features)
    chosen = np.unique(np.linspace(0, count - 1, min(count, 2000)).round().astype(int))
    spots, variance = project(report.features[chosen])
    return Map(
        variance=variance,
        x=tuple(np.round(spots[:, 0], 4).tolist()),
        y=tuple(np.round(spots[:, 1], 4).tolist()),
        label=tuple(report.examples[index].label for index in chosen),
        predicted=tuple(predicted[index] for index in chosen),
        right=tuple(right[chosen].tolist()),
    )


def project(features: "NDArray[np.float32]") -> "tuple[NDArray[np.float64], tuple[float, float]]":
    """Features [items, dim] on their first two principal axes [items, 2], and each axis's share of the variance.

    Subspace iteration from a fixed start (Halko et al., https://arxiv.org/abs/0909.4061, algorithm 4.4) takes a small
    part of the time of a full SVD. The largest component of each axis is positive.
    """
    import numpy as np

    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    total = float((centred**2).sum())
    start = np.random.default_rng(0).normal(size=(centred.shape[1], 16))
    basis = np.linalg.qr(centred @ start)[0]
    for _ in range(8):
        basis = np.linalg.qr(centred @ np.linalg.qr(centred.T @ basis)[0])[0]
    _, values, rows = np.linalg.svd(basis.T @ centred, full_matrices=False)
    axes, shares = np.zeros((2, centred.shape[1])), [0.0, 0.0]
    for index, value in enumerate(values[:2].tolist()):
        # A smaller value is a rounding error: the items do not vary along this axis, so it stays 0.
        if value**2 > 1e-9 * total:
            shares[index] = value**2 / total
            axes[index] = rows[index] * np.sign(rows[index][np.abs(rows[index]).argmax()])
    return centred @ axes.T, (shares[0], shares[1])
