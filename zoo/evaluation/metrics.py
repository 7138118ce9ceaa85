"""Metrics of predictions with one label for each item, several labels, or a number. They need numpy, but no model."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from zoo.runtime.answers import decide
from zoo.schema import Metrics, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from zoo.runtime.answers import Floats

#: Bins of the calibration error; fewer if a bin would hold less than ten items.
BINS = 15
#: The least likelihood of a label.
LEAST = 1e-12
#: The k of the top-k accuracy.
TOP = 5


class Bin(Struct, frozen=True, kw_only=True):
    """A group of items with similar confidence: their number, mean confidence and accuracy."""

    n: int
    confidence: float
    accuracy: float


def measure(
    task: Task,
    scores: "Floats",
    targets: "ArrayLike",
    labels: Sequence[str],
    *,
    thresholds: Sequence[float] = (),
    class_weights: Sequence[float] = (),
) -> Metrics:
    """The metrics of scores [items, labels].

    Args:
        targets: indices into `labels` [items], 0/1 [items, labels], or numbers, depending on the task.
        thresholds: the score from which each of several labels is chosen; 0.5 by default.
        class_weights: the weights of the classes in the loss, for the calibration error.

    Means leave out a class that neither occurs nor is predicted; 0/0 is 0. R squared of equal targets is 1 if every
    prediction is exact, else 0, as in scikit-learn.
    """
    import numpy as np

    truth = np.asarray(targets)
    if task is Task.REGRESSION:
        return _regression(scores, truth)
    decided = decide(task, scores, thresholds)
    if task is Task.MULTI_LABEL:
        wanted = truth > 0
        metrics = _labels(labels, wanted, decided, reliability(task, scores, wanted))
        likelihoods = np.where(wanted, scores, 1 - scores.astype(np.float64))
        for index, facts in enumerate(metrics.per_class.values()):
            facts["average_precision"] = _average_precision(scores[:, index], wanted[:, index])
        micro_f1 = _ratio(2 * (wanted & decided).sum(), wanted.sum() + decided.sum())
        return structs.replace(metrics, micro_f1=micro_f1, nll=_nll(likelihoods))
    one_hot, confusion = np.eye(len(labels), dtype=bool), np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (truth, decided), 1)
    return structs.replace(
        _labels(labels, one_hot[truth], one_hot[decided], reliability(task, scores, truth, class_weights)),
        confusion=tuple(map(tuple, confusion.tolist())),
        top5=_top(scores, truth) if len(labels) > TOP else None,
        nll=_nll(corrected(scores, class_weights)[np.arange(len(truth)), truth]),
    )


def only_seen(metrics: Metrics) -> Metrics:
    """`metrics` without the classes that neither occur nor are predicted, for a model of many more classes."""
    labels = list(metrics.per_class)
    claimed = [sum(column) for column in zip(*metrics.confusion, strict=True)] or [1] * len(labels)
    kept = [i for i, label in enumerate(labels) if metrics.per_class[label]["n"] or claimed[i]]
    return structs.replace(
        metrics,
        per_class={labels[i]: metrics.per_class[labels[i]] for i in kept},
        confusion=tuple(tuple(metrics.confusion[i][j] for j in kept) for i in kept) if metrics.confusion else (),
    )


def corrected(scores: "Floats", class_weights: Sequence[float] = ()) -> "NDArray[np.float64]":
    """Class probabilities [items, classes] without the effect of class weights in the loss: p / w, scaled to sum to 1.

    A loss with class weights w has its minimum at probabilities proportional to w * p.
    """
    import numpy as np

    plain = scores.astype(np.float64)
    if not class_weights:
        return plain
    # Subtract logarithms, because a quotient by a tiny weight would overflow.
    with np.errstate(divide="ignore"):
        logs = np.log(plain) - np.log(np.asarray(class_weights, np.float64))
    powers = np.exp(logs - logs.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def reliability(
    task: Task, scores: "Floats", targets: "ArrayLike", class_weights: Sequence[float] = ()
) -> tuple[Bin, ...]:
    """Bins with equally many items, least confident first.

    With one label, the confidence is the corrected probability of the predicted label, and the accuracy is the share of
    right predictions. With several labels, the confidence is the score of a label for an item, and the accuracy is the
    share of items that have the label. Method: Guo et al., https://arxiv.org/abs/1706.04599; bins of equal mass:
    Nixon et al., https://arxiv.org/abs/1904.01685.
    """
    import numpy as np

    truth = np.asarray(targets)
    if task is Task.MULTI_LABEL:
        return _bins(scores.astype(np.float64).ravel(), truth.astype(np.float64).ravel())
    predicted = scores.argmax(1)
    confidence = corrected(scores, class_weights)[np.arange(len(scores)), predicted]
    return _bins(confidence, (predicted == truth).astype(np.float64))


def expected_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: the mean difference of confidence and accuracy, weighted by bin size."""
    return sum(each.n * abs(each.confidence - each.accuracy) for each in bins) / sum(each.n for each in bins)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson, JASA 22, 1927), also valid for small n and near 0 and 1."""
    z = 1.959964
    share, z2 = hits / n, z * z
    centre = share + z2 / (2 * n)
    margin = z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = ((centre + sign * margin) / (1 + z2 / n) for sign in (-1, 1))
    # Exactly 0 without hits, and exactly 1 without misses: rounding must not change these ends.
    return (low if hits else 0.0), (high if hits < n else 1.0)


def _labels(
    labels: Sequence[str], wanted: "NDArray[np.bool_]", predicted: "NDArray[np.bool_]", bins: Sequence[Bin]
) -> Metrics:
    """The metrics of a classification, from the labels that items have and are predicted to have [items, labels]."""
    hits, claimed, present = (wanted & predicted).sum(0), predicted.sum(0), wanted.sum(0)
    right, n = int((wanted == predicted).all(1).sum()), len(wanted)
    per_class = {
        label: {
            "precision": _ratio(hits[index], claimed[index]),
            "recall": _ratio(hits[index], present[index]),
            "f1": _ratio(2 * hits[index], claimed[index] + present[index]),
            "n": float(present[index]),
        }
        for index, label in enumerate(labels)
    }
    scored = [facts["f1"] for facts, seen in zip(per_class.values(), claimed + present, strict=True) if seen]
    return Metrics(
        n=n,
        accuracy=_ratio(right, n),
        accuracy_interval=wilson(right, n),
        macro_f1=_ratio(sum(scored), len(scored)),
        per_class=per_class,
        calibration_error=expected_error(bins),
    )


def _regression(scores: "Floats", truth: "NDArray[Any]") -> Metrics:
    import numpy as np

    wanted = truth.astype(np.float64).ravel()
    errors = scores.astype(np.float64).ravel() - wanted
    # The spread of equal numbers is 0, but their mean may differ from them in the last bit.
    spread = float(((wanted - wanted.mean()) ** 2).sum()) if np.ptp(wanted) else 0.0
    squares = float((errors**2).sum())
    return Metrics(
        n=len(wanted),
        mae=float(np.abs(errors).mean()),
        rmse=math.sqrt(squares / len(wanted)),
        r2=1 - squares / spread if spread else float(squares == 0),
    )


def _nll(likelihoods: "NDArray[np.float64]") -> float:
    """The mean negative logarithm. A score of 0, to which float32 rounds tiny ones, counts as LEAST."""
    import numpy as np

    return float(np.log(1 / np.maximum(likelihoods, LEAST)).mean())


def _top(scores: "Floats", truth: "NDArray[Any]") -> float:
    """The share of items whose class is among the best five; of equal scores that of the first class counts."""
    import numpy as np

    best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    return float((best == truth[:, None]).any(1).mean())


def _average_precision(scores: "Floats", truth: "NDArray[np.bool_]") -> float:
    """The area under the precision-recall step function, with one step for equal scores, as in scikit-learn."""
    import numpy as np

    if not truth.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = truth[order].cumsum()[ends]
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float((gained * hits / (ends + 1)).sum())


def _bins(confidence: "NDArray[np.float64]", right: "NDArray[np.float64]") -> tuple[Bin, ...]:
    import numpy as np

    # Items of equal confidence each get their mean accuracy, so that the order of the data does not matter.
    values, inverse, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    shares = np.bincount(inverse, right, len(values)) / counts
    groups = np.array_split(np.repeat(np.arange(len(values)), counts), min(BINS, max(1, len(confidence) // 10)))
    return tuple(
        Bin(n=len(group), confidence=float(values[group].mean()), accuracy=float(shares[group].mean()))
        for group in groups
    )


def _ratio(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else 0.0
