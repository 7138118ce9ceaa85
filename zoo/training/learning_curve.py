"""Would more data help? Scores on items left out, when heads learn a quarter of the items, half, and so on.

The items that are measured, the strength of regularisation and the number of epochs are the same for every point.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from zoo.results import LearningPoint
from zoo.schema import Task
from zoo.system.interrupt import Interrupt
from zoo.training.axes import Axes
from zoo.training.folded_training import FoldedTraining
from zoo.training.folds import cross_validation, held_back
from zoo.training.strength_path import StrengthPath

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from zoo.training.folded_training import Start
    from zoo.training.objective import Targets
    from zoo.training.problem import Problem

FRACTIONS = (0.25, 0.5, 0.75)
#: With more multiplications for one solution than this, ridge regressions are measured on one part of the items.
WORK, HELD_BACK = 3e9, 0.1


def of_path(path: StrengthPath, stop: Interrupt) -> tuple[LearningPoint, ...]:
    """The curve of the linear heads of `path`, which is at its chosen strength.

    It is empty if nothing is left out, or if `stop` is asked. The strength is a prior on the weights, so it is the same
    for fewer items.
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
        part.out, part.heads = path.out, path.heads
        if part.train_epoch(stop) is None:
            return ()
        points.append(LearningPoint(round(members.sum(1).mean().item()), *part.validate()))
    return (*points, LearningPoint(round(path.members.sum(1).mean().item()), *path.validate()))


def of_regression(problem: "Problem", axes: Axes, strength: float) -> tuple[LearningPoint, ...]:
    """The curve of ridge regressions on all items in `axes`; empty if nothing can be left out."""
    import torch

    options, objective = problem.options, problem.objective
    masks = cross_validation(options.task, problem.targets, problem.groups, options.seed, repeats=1)
    if axes.items.shape[0] * axes.items.shape[1] ** 2 > WORK:
        masks = held_back(problem.groups, HELD_BACK, options.seed)
    if masks.all():
        return ()
    wanted = objective.tensor(problem.targets)
    places = quantiles(options.task, problem.targets, options.seed)
    points = []
    for fraction in (*FRACTIONS, 1.0):
        members = masks & (places < fraction)
        parts = [_ridge(axes.items, wanted, *each, strength) for each in zip(members, ~masks, strict=True)]
        truth = torch.cat([wanted[torch.from_numpy(~mask)] for mask in masks])
        points.append(LearningPoint(round(members.sum(1).mean()), *objective.loss_and_score(torch.cat(parts), truth)))
    return tuple(points)


def of_training(
    whole: FoldedTraining, start: "Start", epochs: int, stop: Interrupt, advance: Callable[[], None]
) -> tuple[LearningPoint, ...]:
    """The curve of trained heads that `start` makes; the heads of `whole` have learned all items for `epochs` epochs.

    It is empty if nothing is left out, or if `stop` is asked. `advance` is called after every epoch.
    """
    problem = whole.problem
    if not whole.left_out().is_honest or not epochs:
        return ()
    places = quantiles(problem.options.task, problem.targets, problem.options.seed)
    points = []
    for fraction in FRACTIONS:
        splits = [(fit & (places < fraction), left) for fit, left in whole.splits]
        part = FoldedTraining(problem, start, splits)
        for _ in range(epochs):
            if part.train_epoch(stop) is None:
                return ()
            advance()
        points.append(_point(part))
    return (*points, _point(whole))


def quantiles(task: Task, targets: "Targets", seed: int) -> "NDArray[np.float64]":
    """A number in [0, 1) for each item: below q are the random fraction q of the items (of each class, if any)."""
    import numpy as np

    # Another stream than that of the splits: the fractions must not depend on what is left out.
    random = np.random.default_rng([seed, 1])
    found = np.empty(len(targets))
    kinds = targets if task is Task.SINGLE_LABEL else np.zeros(len(targets), np.int64)
    for kind in np.unique(kinds):
        members = random.permutation(np.flatnonzero(kinds == kind))
        found[members] = np.arange(len(members)) / len(members)
    return found


def _ridge(
    items: "torch.Tensor",
    wanted: "torch.Tensor",
    learned: "NDArray[np.bool_]",
    left: "NDArray[np.bool_]",
    strength: float,
) -> "torch.Tensor":
    """The predictions for the items `left` by the ridge regression of the items `learned`."""
    import torch

    rows, targets = items[torch.from_numpy(learned)].double(), wanted[torch.from_numpy(learned)].double()
    middle, mean = rows.mean(0), targets.mean(0)
    rows = rows - middle
    gram = rows.T @ rows
    gram.diagonal().add_(strength)
    weights = torch.linalg.solve(gram, rows.T @ (targets - mean))
    found: torch.Tensor = ((items[torch.from_numpy(left)].double() - middle) @ weights + mean).float()
    return found


def _point(training: FoldedTraining) -> LearningPoint:
    """The calibrated loss and the score of the items left out."""
    problem, found = training.problem, training.left_out()
    wanted = problem.objective.tensor(problem.targets[found.rows])
    learned = [int(fit.sum()) for fit, _ in training.splits]
    return LearningPoint(round(sum(learned) / len(learned)), *problem.objective.loss_and_score(found.logits, wanted))
