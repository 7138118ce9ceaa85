"""Folds of cross-validation: which items the head of each fold learns."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.schema import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.training.objective import Targets

FOLDS = 5
#: With few items the folds are drawn several times, until this number of items is held out or the limit is reached.
DRAWN, REPEATS = 600, 8


def cross_validation(
    task: Task, targets: "Targets", groups: "NDArray[np.int64]", seed: int, *, repeats: int | None = None
) -> "NDArray[np.bool_]":
    """Masks [heads, items]: the items that each head learns. Every item is left out by one head in each repetition.

    Classes are divided evenly. Items with the same number in `groups`, such as copies, are left out together. Without
    two groups nothing can be left out, and the only head learns all items.
    """
    import numpy as np

    names, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    count = min(FOLDS, len(names))
    if count < 2:
        return np.ones((1, len(targets)), bool)
    if repeats is None:
        repeats = min(REPEATS, max(1, round(DRAWN / len(names))))
    random = np.random.default_rng(seed)
    kinds = targets[first] if task is Task.SINGLE_LABEL else np.zeros(len(names), np.int64)
    masks = []
    for _ in range(repeats):
        fold = np.empty(len(names), np.int64)
        # Each class begins where the one before ended, so that the folds are of equal size.
        order = random.permutation(len(names))
        order = order[np.argsort(kinds[order], kind="stable")]
        fold[order] = np.arange(len(names)) % count
        masks += [fold[inverse] != number for number in range(count)]
    return np.array(masks)


def held_back(groups: "NDArray[np.int64]", fraction: float, seed: int) -> "NDArray[np.bool_]":
    """A mask [1, items] of the items to learn: all but a random `fraction`, whole groups together."""
    import numpy as np

    names, inverse = np.unique(groups, return_inverse=True)
    out = np.random.default_rng(seed).permutation(len(names))[: round(fraction * len(names))]
    is_out = np.zeros(len(names), bool)
    is_out[out] = True
    return ~is_out[inverse][None]


def group_numbers(names: "Sequence[str]") -> "NDArray[np.int64]":
    """A number for each name; equal names have equal numbers."""
    import numpy as np

    return np.unique(np.asarray(names), return_inverse=True)[1].astype(np.int64)
