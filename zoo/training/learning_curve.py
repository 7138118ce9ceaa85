"""Would more data help? Scores on items left out, when a linear head learns a quarter of the items, half, and so on."""

from typing import TYPE_CHECKING

from zoo.results import LearningPoint
from zoo.schema import Task
from zoo.system.interrupt import Interrupt
from zoo.training.strength_path import StrengthPath

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.training.objective import Targets

FRACTIONS = (0.25, 0.5, 0.75)


def learning_curve(path: StrengthPath, stop: Interrupt) -> tuple[LearningPoint, ...]:
    """A point for each fraction of the items, and one for all; empty if nothing is left out, or if `stop` is asked.

    `path` is at its chosen strength. The strength is a prior on the weights, so it is the same for fewer items. The
    items that are measured are the same for every point.
    """
    import torch

    problem = path.problem
    if not bool(path.out.any()):
        return ()
    places = torch.from_numpy(quantiles(problem.options.task, problem.targets[path.rows], problem.options.seed))
    strength, points = path.strengths[path.epoch - 1], []
    for fraction in FRACTIONS:
        members = path.members * (places < fraction)
        part = StrengthPath(problem, path.axes, path.rows, members.numpy() > 0, [strength])
        part.out = path.out
        if part.train_epoch(stop) is None:
            return ()
        points.append(_point(part))
    return (*points, _point(path))


def quantiles(task: Task, targets: "Targets", seed: int) -> "NDArray[np.float64]":
    """A number in [0, 1) for each item: below q are the random fraction q of the items (of each class, if any)."""
    import numpy as np

    random = np.random.default_rng(seed)
    found = np.empty(len(targets))
    kinds = targets if task is Task.SINGLE_LABEL else np.zeros(len(targets), np.int64)
    for kind in np.unique(kinds):
        members = random.permutation(np.flatnonzero(kinds == kind))
        found[members] = np.arange(len(members)) / len(members)
    return found


def _point(path: StrengthPath) -> LearningPoint:
    loss, score = path.validate()
    return LearningPoint(items=round(path.members.sum(1).mean().item()), loss=loss, score=score)
