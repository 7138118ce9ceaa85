"""Intervals of scores, and whether two models' scores on the same items differ by more than chance.

Every score (`Metrics.score`) is a function of sums over the items: of right answers, of true positives, of squared
errors. So a resampled score needs no more than a matrix product.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.evaluation.metrics import wilson
from zoo.runtime.answers import decide
from zoo.schema import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from zoo.runtime.answers import Floats

    Terms = NDArray[np.float64]

#: Resamples of an interval, and exchanges of a test. One more than the exchanges is a round number.
RESAMPLES, EXCHANGES = 1000, 1999
#: Items times exchanges that are in memory at once.
BLOCK = 4_000_000


def terms(task: Task, scores: "Floats", targets: "ArrayLike", thresholds: Sequence[float] = ()) -> "Terms":
    """The terms [items, terms] of each item in the sums from which `score_of` computes the score.

    The arguments are those of `zoo.evaluation.metrics.measure`.
    """
    import numpy as np

    truth, decided = np.asarray(targets), decide(task, scores, thresholds)
    if task is Task.REGRESSION:
        wanted = truth.astype(np.float64).ravel()
        # The mean is subtracted first: the difference of two large sums of squares would lose digits.
        centred = wanted - wanted.mean() if np.ptp(wanted) else np.zeros(len(wanted))
        errors = decided.astype(np.float64).ravel() - wanted
        return np.stack([errors**2, centred, centred**2, np.ones(len(wanted))], 1)
    if task is Task.MULTI_LABEL:
        present = truth > 0
        # An F1 is twice the true positives over the labels that items have and those that are predicted.
        return np.concatenate([2.0 * (present & decided), 1.0 * present + decided], 1)
    return np.stack([truth == decided, np.ones(len(truth))], 1).astype(np.float64)


def score_of(task: Task, sums: "Terms") -> "Terms":
    """The scores [...] for sums [..., terms] of `terms`: accuracy, macro-F1 or R squared."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        if task is Task.REGRESSION:
            squares, first, second, count = np.moveaxis(sums, -1, 0)
            spread = second - first**2 / count
            # The spread of equal numbers may differ from 0 in the last bits.
            has_spread = spread > 1e-12 * second
            return np.asarray(np.where(has_spread, 1 - squares / spread, squares == 0), np.float64)
        if task is Task.MULTI_LABEL:
            hits, both = np.split(sums, 2, -1)
            seen = both > 0
            f1 = np.where(seen, hits / both, 0.0).sum(-1)
            return np.asarray(f1 / np.maximum(seen.sum(-1), 1))
        return np.asarray(sums[..., 0] / sums[..., 1])


def interval(task: Task, items: "Terms") -> tuple[float, float]:
    """The 95 % interval of the score of `items` [items, terms]: Wilson's of an accuracy, else by the bootstrap.

    Method: the percentile bootstrap (Efron and Tibshirani 1993, chapter 13), with a fixed seed.
    """
    import numpy as np

    count = len(items)
    if task is Task.SINGLE_LABEL:
        return wilson(int(items[:, 0].sum()), count)
    random = np.random.default_rng(0)
    sums = [np.bincount(random.integers(count, size=count), minlength=count) @ items for _ in range(RESAMPLES)]
    low, high = np.quantile(score_of(task, np.array(sums)), (0.025, 0.975))
    return float(low), float(high)


def p_value(task: Task, first: "Terms", second: "Terms") -> float:
    """The chance that two equally good models differ at least as much as these two do on the same items.

    `first` and `second` are the `terms` of the two models. Method: approximate randomisation (Noreen 1989; Yeh 2000,
    https://aclanthology.org/C00-2137): the answers of the two models are exchanged for a random half of the items. For
    accuracies this is McNemar's test. The seed is fixed.
    """
    import numpy as np

    random, differs = np.random.default_rng(0), (first != second).any(1)
    total, change = first.sum(0), (second - first)[differs]
    found = abs(_gap(task, total, second.sum(0)))
    extreme, left, rows = 1, EXCHANGES, max(1, BLOCK // max(1, len(change)))
    while left:
        drawn = min(rows, left)
        moved = random.integers(2, size=(drawn, len(change)), dtype=np.int8).astype(np.float64) @ change
        # Exchanging an item adds its change to one model and takes it from the other.
        gaps = _gap(task, total + moved, second.sum(0) - moved)
        extreme += int((abs(gaps) >= found - 1e-12).sum())
        left -= drawn
    return extreme / (EXCHANGES + 1)


def _gap(task: Task, first: "Terms", second: "Terms") -> "Terms":
    return score_of(task, first) - score_of(task, second)
