"""L-BFGS for several linear heads at once: the fits of a cross-validation share each matrix product.

Method: Liu and Nocedal, On the limited memory BFGS method for large scale optimization (1989), with a diagonal start
for the curvature, which is close to the true one in principal axes. A step is halved until the loss falls.
"""

from typing import TYPE_CHECKING

from msgspec import Struct

from zoo.system.interrupt import Interrupt
from zoo.training.axes import Axes
from zoo.training.convex import ConvexLoss

if TYPE_CHECKING:
    import torch

#: Pairs of steps and gradient changes that estimate the curvature.
MEMORY = 8
#: The most iterations of one fit, and halvings of one step.
ITERATIONS, HALVINGS = 200, 20
#: A step is taken if the loss falls by this fraction of what the slope promises, or if the slope at its end is not
#: steeper upwards than this fraction of the slope at its beginning.
ENOUGH, OVERSHOT = 1e-4, 0.8


class Heads(Struct, frozen=True):
    """Linear heads: `weights` [heads, axes, outputs] and `biases` [heads, outputs]."""

    weights: "torch.Tensor"
    biases: "torch.Tensor"

    def mean(self, count: int) -> "Heads":
        """The mean of all heads, `count` times."""
        sides = (self.weights, self.biases)
        return Heads(*(side.mean(0).expand(count, *side.shape[1:]).clone() for side in sides))


class Fit:
    """The fit of several heads to the items of `axes`: `members` [heads, items] is 1 for the items that a head learns.

    A head minimises the sum of its items' losses plus strength / 2 times the sum of its squared weights. Biases are not
    penalised.
    """

    def __init__(self, axes: Axes, loss: ConvexLoss, members: "torch.Tensor") -> None:
        self.axes, self.loss, self.members = axes, loss, members
        self._columns = members.T.unsqueeze(-1)
        self._sizes = members.sum(1)

    def start(self) -> Heads:
        """Heads without weights, whose biases are the log-odds of the labels."""
        import torch

        shape = len(self.members), self.axes.items.shape[1], self.loss.outputs
        return Heads(torch.zeros(shape), self.loss.biases(self.members))

    def solve(self, strength: float, heads: Heads, tolerance: float, stop: Interrupt) -> Heads | None:
        """The best heads, searched from `heads`; None if `stop` asked to end.

        The search ends when the mean loss of each head is estimated to be above the least by at most `tolerance`, a
        fraction of the loss of a constant guess.
        """
        import torch

        point = torch.cat([heads.weights, heads.biases.unsqueeze(1)], 1)
        inverse = 1 / self._curvature(strength)
        goal, memory = tolerance * self.loss.chance * self._sizes.double(), _Memory(inverse)
        loss, slope = self._evaluate(point, strength)
        for _ in range(ITERATIONS):
            if stop.is_asked:
                return None
            if bool((_dot(slope * inverse, slope) <= goal).all()):
                break
            following, lower, steeper = self._step(point, loss, slope, memory.direction(slope), strength)
            memory.add(following - point, steeper - slope)
            is_stuck = torch.equal(following, point)
            point, loss, slope = following, lower, steeper
            if is_stuck:
                break
        return Heads(point[:, :-1], point[:, -1])

    def logits(self, heads: Heads) -> "torch.Tensor":
        """The logits [items, heads, outputs] of all items without the biases."""
        count, width, outputs = heads.weights.shape
        # Narrow products are two to five times faster with the weights, and the slopes below, as rows.
        rows = heads.weights.transpose(1, 2).reshape(count * outputs, width)
        logits: torch.Tensor = (self.axes.items @ rows.T).view(-1, count, outputs)
        return logits

    def _curvature(self, strength: float) -> "torch.Tensor":
        """An estimate of the second derivatives [heads, axes + 1, outputs]."""
        import torch

        of_outputs = self.loss.curvatures(self.members).unsqueeze(1)
        shares = (self._sizes / self.members.shape[1]).view(-1, 1, 1)
        weights = self.axes.power.view(1, -1, 1) * shares * of_outputs + strength
        return torch.cat([weights, of_outputs * self._sizes.view(-1, 1, 1)], 1)

    def _evaluate(self, point: "torch.Tensor", strength: float) -> "tuple[torch.Tensor, torch.Tensor]":
        """Returns the loss [heads] (float64) and its slope [heads, axes + 1, outputs]."""
        import torch

        weights, items = point[:, :-1], self.axes.items
        losses, slopes = self.loss.values(self.logits(Heads(weights, point[:, -1])).add_(point[:, -1]))
        slopes *= self._columns
        loss = (losses * self._columns[..., 0]).sum(0, dtype=torch.float64) + strength / 2 * _dot(weights, weights)
        products = (slopes.flatten(1).T @ items).view(*slopes.shape[1:], -1)
        by_weight = products.transpose(1, 2) + strength * weights
        return loss, torch.cat([by_weight, slopes.sum(0).unsqueeze(1)], 1)

    def _step(
        self,
        point: "torch.Tensor",
        loss: "torch.Tensor",
        slope: "torch.Tensor",
        direction: "torch.Tensor",
        strength: float,
    ) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """Returns the point after a step along `direction`, its loss and slope; a head whose loss cannot fall stays."""
        import torch

        promised, size = _dot(direction, slope), torch.ones_like(loss)
        for attempt in range(HALVINGS):
            following = point + size.float().view(-1, 1, 1) * direction
            lower, steeper = self._evaluate(following, strength)
            is_lower = lower <= loss + ENOUGH * size * promised
            # Near the best point the loss falls by less than float32 can show, and only slopes can be compared: the
            # approximate Wolfe condition (Hager and Zhang 2005, https://doi.org/10.1137/030601880).
            is_good = is_lower | (_dot(direction, steeper) <= OVERSHOT * promised.abs())
            if bool(is_good.all()):
                break
            size = torch.where(is_good, size, size / 2 if attempt < HALVINGS - 2 else 0.0)
        return following, lower, steeper


class _Memory:
    """The latest steps and gradient changes; `direction` multiplies a gradient by the inverse curvature they show."""

    def __init__(self, inverse: "torch.Tensor") -> None:
        self._inverse = inverse
        self._pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(self, step: "torch.Tensor", change: "torch.Tensor") -> None:
        import torch

        product = _dot(step, change)
        # A head that stood still, or saw no curvature because of rounding, has a factor of 0: the pair has no effect.
        factor = torch.where(product > 1e-14, 1 / product, 0.0)
        self._pairs = [*self._pairs[1 - MEMORY :], (step, change, factor)]

    def direction(self, slope: "torch.Tensor") -> "torch.Tensor":
        """The two-loop recursion (Nocedal and Wright, Numerical Optimization, algorithm 7.4)."""
        import torch

        found, used = slope, []
        for step, change, factor in reversed(self._pairs):
            amount = _wide(factor * _dot(step, found))
            used.append(amount)
            found = found - amount * change
        size = torch.ones(len(slope), dtype=torch.float64)
        if self._pairs:
            step, change, factor = self._pairs[-1]
            ratio = 1 / (factor * _dot(change * self._inverse, change))
            size = torch.where(factor > 0, ratio.clamp(0.01, 100.0), size)
        found = found * self._inverse * _wide(size)
        for (step, change, factor), amount in zip(self._pairs, reversed(used), strict=True):
            found = found + step * (amount - _wide(factor * _dot(change, found)))
        return -found


def _dot(left: "torch.Tensor", right: "torch.Tensor") -> "torch.Tensor":
    """The scalar product of each head, in float64."""
    import torch

    return (left * right).sum((1, 2), dtype=torch.float64)


def _wide(numbers: "torch.Tensor") -> "torch.Tensor":
    return numbers.float().view(-1, 1, 1)
