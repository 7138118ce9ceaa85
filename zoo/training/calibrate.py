"""Calibration: how sharp a head's scores should be, found on items that the head was not fitted to.

One factor multiplies the logits without their biases (temperature scaling of Guo et al.,
https://arxiv.org/abs/1706.04599, which leaves the base rates as they are). The labels are smoothed as in Platt's method
(Platt 1999; Lin et al., https://doi.org/10.1007/s10994-007-5018-6), so that few items, all of them right, do not make a
head certain.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from zoo.schema import Task
from zoo.training.convex import ConvexLoss

if TYPE_CHECKING:
    import torch

    from zoo.training.objective import Objective, Targets

#: The factors that are tried give logits of at least the first and at most the second standard deviation.
NARROWEST, WIDEST = 0.05, 30.0
#: Steps of the golden-section search: the factor is exact to 0.1 %.
STEPS = 20
#: The most items that the factor is chosen on.
ITEMS = 8192


class Sharpness(Struct, frozen=True):
    """The factor on the logits without biases, and the mean loss with it: in nats for each item and label."""

    factor: float
    loss: float


def sharpness(logits: "torch.Tensor", biases: "torch.Tensor", wanted: "torch.Tensor", *, is_softmax: bool) -> Sharpness:
    """The factor with which factor * `logits` + `biases` has the least loss; all arguments are [items, outputs].

    `logits` are those of heads that did not learn these items; `wanted` are the true probabilities.
    """
    import torch

    logits, biases = logits[:ITEMS].double(), biases[:ITEMS].double()
    target = smoothed(wanted[:ITEMS].double(), is_softmax=is_softmax)

    def loss(size: float) -> float:
        found = logits * math.exp(size) + biases
        if is_softmax:
            return -(found.log_softmax(1) * target).sum(1).mean().item()
        return torch.nn.functional.binary_cross_entropy_with_logits(found, target).item()

    spread = logits.square().mean().sqrt().item()
    if not 0 < spread < math.inf:
        return Sharpness(1.0, loss(0.0))
    return Sharpness(*_lowest(loss, math.log(NARROWEST / spread), math.log(WIDEST / spread)))


def sharpness_of(
    objective: "Objective", targets: "Targets", evidence: "torch.Tensor", biases: "torch.Tensor"
) -> Sharpness:
    """The calibration of a trained head: `evidence` are its logits without its `biases`, both [items, outputs].

    It is found on items that the head did not learn; a regression is not calibrated.
    """
    if objective.task is Task.REGRESSION:
        return Sharpness(1.0, math.nan)
    loss = ConvexLoss(objective, targets)
    return sharpness(evidence.cpu(), biases.cpu() - loss.shift, loss.wanted, is_softmax=loss.is_softmax)


def smoothed(wanted: "torch.Tensor", *, is_softmax: bool) -> "torch.Tensor":
    """The probabilities [items, outputs] that calibration aims at: Platt's, instead of 0 and 1."""
    items, outputs = wanted.shape
    if is_softmax:
        # Two classes of equal size get exactly Platt's (n / 2 + 1) / (n / 2 + 2).
        doubt = 2 / (items + 4)
        return wanted * (1 - doubt) + (1 - wanted) * doubt / max(outputs - 1, 1)
    present = wanted.sum(0)
    return wanted * (1 - 1 / (present + 2)) + (1 - wanted) / (items - present + 2)


def _lowest(loss: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """Returns exp(x) and loss(x) of the least loss between two ends, by golden-section search."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(STEPS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    best, lowest = min(((left, at_left), (right, at_right)), key=lambda pair: pair[1])
    return math.exp(best), lowest
