"""Solves the linear head of many items on a quarter of them, then on half, and so on, each from the solution before.

This takes a fraction of the time of a solution from the start, and every solution is a point of the learning curve.
"""

from typing import TYPE_CHECKING

from msgspec import Struct

from zoo.results import LearningPoint
from zoo.system.interrupt import Interrupt
from zoo.training.axes import Axes
from zoo.training.convex import ConvexLoss
from zoo.training.learning_curve import FRACTIONS
from zoo.training.solver import Fit, Heads
from zoo.training.strength_path import TOLERANCE, StrengthPath

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.training.problem import Problem

#: Tolerances: of solutions that are only measured and continued, and of the last one. With so many items the loss is
#: known less exactly than that.
GROWING, LAST = 40 * TOLERANCE, 5 * TOLERANCE


class Chosen(Struct, frozen=True):
    """The start of the last solution, whose strength is chosen, on all items: `rows` is their order in `axes`.

    `measured` has heads that did not learn some of its items. `tolerance` is for the last solution.
    """

    axes: Axes
    rows: "NDArray[np.int64]"
    start: Heads
    measured: StrengthPath
    learning: tuple[LearningPoint, ...]
    tolerance: float = TOLERANCE


def grown(problem: "Problem", path: StrengthPath, members: "NDArray[np.bool_]", stop: Interrupt) -> Chosen:
    """The start of the solution for all items, from heads that learned the items `members`.

    `path` has heads for some of the items, at the chosen strength. If `stop` is asked, heads and curve are unfinished.
    """
    import numpy as np
    import torch

    # Random, so that the first items are a sample of all; those left out are the last.
    order = np.random.default_rng([problem.options.seed, 1]).permutation(len(members))
    rows = np.concatenate([order[members[order]], order[~members[order]]])
    count, strength = int(members.sum()), path.strengths[path.epoch - 1]
    axes = Axes(problem.features[rows], path.axes.scaling, is_rough=True)
    heads, points = path.heads_in(axes).mean(1), []
    left = slice(count, len(rows))
    measured = StrengthPath(problem, axes.part(left), rows[left], np.zeros((1, len(rows) - count), bool), [strength])
    measured.epoch = 1
    for fraction in (*FRACTIONS, 1.0):
        learned = round(fraction * count)
        loss = ConvexLoss(problem.objective, problem.targets[rows[:learned]])
        fit = Fit(axes.part(slice(learned)), loss, torch.ones(1, learned))
        found = fit.solve(strength, heads, GROWING, stop)
        if found is None:
            break
        measured.heads = heads = found
        points.append(LearningPoint(learned, *measured.validate()))
    return Chosen(axes, rows, heads, measured, tuple(points), LAST)
