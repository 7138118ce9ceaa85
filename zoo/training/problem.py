"""The training items of a head: features, targets, and the inner split that chooses hyperparameters and epochs."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from zoo.options import FinetuneOptions
from zoo.schema import Task
from zoo.training.folds import cross_validation
from zoo.training.objective import Objective, best_thresholds

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from zoo.graph.head import Floats
    from zoo.training.objective import Targets

    #: Masks of the items to learn, and of those left out.
    Split: TypeAlias = tuple[NDArray[np.bool_], NDArray[np.bool_]]

#: Fraction of the training items in the inner split.
INNER = 0.15
#: With fewer training items, hyperparameters are chosen by cross-validation.
FEW = 1000


class Problem:
    """The training items: their features [items, dim], targets, and the inner split.

    `views` are features of random views of the same items; they are trained on and never used for the inner loss.
    Items with the same number in `groups` [items] have equal features; by default all items differ.
    """

    def __init__(
        self,
        features: "Floats",
        targets: "Targets",
        outputs: int,
        options: FinetuneOptions,
        views: "Sequence[Floats]" = (),
        groups: "NDArray[np.int64] | None" = None,
    ) -> None:
        import numpy as np

        self.features = features
        self.targets = targets
        self.options = options
        self.views = views
        self.groups = np.arange(len(targets)) if groups is None else groups
        self.objective = Objective(options, targets, outputs)
        self.fit, self.inner = _inner_split(options.task, targets, options.seed)
        #: The inner loss of a constant guess.
        self.chance = self.objective.chance(targets[self.inner])

    @property
    def head_weights(self) -> int:
        """The number of weights of the head, which is also the number of multiplications for one item."""
        widths: tuple[int, ...] = (self.features.shape[1], *self.options.hidden, self.objective.outputs)
        return sum(a * b for a, b in pairwise(widths))

    @property
    def splits(self) -> "list[Split]":
        """Masks (fit, inner) of the splits that choose hyperparameters: several if the items are few."""
        if len(self.targets) >= FEW:
            return [(self.fit, self.inner)]
        masks = cross_validation(self.options.task, self.targets, self.groups, self.options.seed, repeats=1)
        return [(mask, ~mask if not mask.all() else mask) for mask in masks]

    def rows(self, chosen: "NDArray[np.bool_]") -> "tuple[Floats, Targets]":
        """Returns the features and the targets of the chosen items and of their views."""
        import numpy as np

        together = [each[chosen] for each in (self.features, *self.views)]
        return np.concatenate(together), np.concatenate([self.targets[chosen]] * len(together))

    def thresholds(self, logits: "torch.Tensor", wanted: "torch.Tensor") -> tuple[float, ...]:
        """The threshold of each label, chosen on these logits; empty unless the task is multi-label."""
        if self.options.task is not Task.MULTI_LABEL:
            return ()
        return best_thresholds(logits.sigmoid().cpu().numpy(), wanted.cpu().numpy())


def _inner_split(task: Task, targets: "Targets", seed: int) -> "Split":
    """Returns masks of the items to fit and of the inner items, a random fraction INNER (of each class, if any)."""
    import numpy as np

    random = np.random.default_rng(seed)
    chosen = np.zeros(len(targets), bool)
    groups = [np.flatnonzero(targets == value) for value in np.unique(targets)] if task is Task.SINGLE_LABEL else []
    for group in groups or [np.arange(len(targets))]:
        members = random.permutation(group)
        chosen[members[: min(max(1, round(INNER * len(members))), len(members) - 1)]] = True
    # If no item can be spared, as with one item in each class, all training items are also the inner items.
    return (~chosen, chosen) if chosen.any() else (~chosen, ~chosen)
