"""The loss of a linear head as a convex function: values, gradients, starting biases and curvatures, without autograd.

A linear head with an L2 penalty on its weights has one best answer. `zoo.training.solver` finds it; this file says what
is minimised. Several heads (one for each fold) are computed at once: arrays have an axis `heads`.
"""

import math
from typing import TYPE_CHECKING

from zoo.schema import Task
from zoo.training.objective import Objective

if TYPE_CHECKING:
    import torch

    from zoo.training.objective import Targets

#: Added to every count of a class or label, so that one that never occurs has a finite log-odds.
PSEUDO_COUNT = 0.5


class ConvexLoss:
    """The cross-entropy (softmax, or a sigmoid for each label) of logits for the items with these targets."""

    def __init__(self, objective: Objective, targets: "Targets") -> None:
        import torch

        self.outputs = objective.outputs
        self.is_softmax = objective.task is Task.SINGLE_LABEL
        index = torch.from_numpy(targets)
        #: The wanted probabilities [items, outputs].
        self.wanted = index.float() if not self.is_softmax else torch.eye(self.outputs)[index]
        #: The weight of each item [items], with class weights.
        self.weights = torch.ones(len(index))
        #: What class weights add to the logits [outputs]: their loss is least at probabilities w * p.
        self.shift = torch.zeros(self.outputs)
        #: The loss of an item if all outputs get equal scores.
        self.chance = math.log(self.outputs) if self.is_softmax else self.outputs * math.log(2)
        if self.is_softmax:
            smoothing = objective.smoothing
            self.wanted = self.wanted * (1 - smoothing) + smoothing / self.outputs
            if objective.weights is not None:
                weights = torch.from_numpy(objective.weights)
                self.weights, self.shift = weights[index], weights.log()

    def values(self, logits: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """Returns the losses [items, heads] and their gradients, of logits [items, heads, outputs]."""
        import torch

        wanted, weights = self.wanted.unsqueeze(1), self.weights.unsqueeze(1)
        if self.is_softmax:
            total = logits.logsumexp(-1, keepdim=True)
            losses = total.squeeze(-1) - (logits * wanted).sum(-1)
            slopes = (logits - total).exp_() - wanted
        else:
            losses = (torch.nn.functional.softplus(logits) - logits * wanted).sum(-1)
            slopes = logits.sigmoid() - wanted
        return losses * weights, slopes * weights.unsqueeze(-1)

    def shares(self, members: "torch.Tensor") -> "torch.Tensor":
        """The share of each output [heads, outputs] among the items of `members` [heads, items] (0 or 1)."""
        counts = (members * self.weights) @ self.wanted + PSEUDO_COUNT
        if self.is_softmax:
            return counts / counts.sum(1, keepdim=True)
        return counts / (members.sum(1, keepdim=True) + 2 * PSEUDO_COUNT)

    def biases(self, members: "torch.Tensor") -> "torch.Tensor":
        """The biases [heads, outputs] of heads without weights that fit the items of `members` best: log-odds."""
        shares = self.shares(members)
        return shares.log() if self.is_softmax else (shares / (1 - shares)).log()

    def curvatures(self, members: "torch.Tensor") -> "torch.Tensor":
        """The second derivative of the mean loss by each bias [heads, outputs], at `biases`."""
        shares = self.shares(members)
        return shares * (1 - shares)


def log_odds(objective: Objective, targets: "Targets") -> "torch.Tensor":
    """The biases [outputs] of a head without weights that fits these targets best; 0 for a number."""
    import torch

    if objective.task is Task.REGRESSION:
        return torch.zeros(objective.outputs)
    return ConvexLoss(objective, targets).biases(torch.ones(1, len(targets)))[0]
