"""The path of a linear head: heads of all folds, solved for one strength of regularisation after the other.

The path goes from the strongest regularisation to the weakest, each solution beginning at the one before. The chosen
strength is the one whose logits, calibrated, have the least loss on the items that the heads did not learn. Choosing
after calibration matters: strong regularisation ranks the classes best, and is only too cautious.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from zoo.errors import DivergedError
from zoo.system.interrupt import Interrupt
from zoo.training.axes import Axes
from zoo.training.calibrate import Sharpness, sharpness
from zoo.training.convex import ConvexLoss
from zoo.training.solver import Fit, Heads

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from zoo.training.problem import Problem

#: Strengths for each item, strongest first: half decades.
STRENGTHS = tuple(10 ** (-0.5 * step) for step in range(1, 14))
#: The mean loss may be above its least by this fraction of the loss of a constant guess.
TOLERANCE = 1.5e-5


class OutOfFold(Struct, frozen=True):
    """Logits [items, outputs] by heads that did not learn the items: `evidence` without the biases, and `biases`.

    `seen` [items] is False for the items that every head learned.
    """

    evidence: "torch.Tensor"
    biases: "torch.Tensor"
    seen: "NDArray[np.bool_]"


class StrengthPath:
    """Heads on the items of `axes`, solved for one strength after the other: an epoch of a linear head is a strength.

    `zoo.training.loop.Phase` trains it, measures it after every strength, and saves it.
    """

    def __init__(
        self,
        problem: "Problem",
        axes: Axes,
        rows: "NDArray[np.int64]",
        members: "NDArray[np.bool_]",
        strengths: Sequence[float],
    ) -> None:
        import torch

        self.problem, self.axes, self.rows, self.strengths = problem, axes, rows, strengths
        self.loss = ConvexLoss(problem.objective, problem.targets[rows])
        self.members = torch.from_numpy(members).float()
        self.fit = Fit(axes, self.loss, self.members)
        #: 1 where a head [heads, items] is measured on an item.
        self.out = 1 - self.members
        self._logits: torch.Tensor | None = None
        self._found: OutOfFold | None = None
        self._sharpness: Sharpness | None = None
        self.heads = self.fit.start()
        self.epoch, self.batch = 0, 0

    @property
    def strength(self) -> float | None:
        """The strength of the current heads for each item; None before the first."""
        return self.strengths[self.epoch - 1] / len(self.rows) if self.epoch else None

    def train_epoch(self, stop: Interrupt) -> float | None:
        """Solve the next strength; returns the mean calibrated loss of the learned items, None if `stop` ended it."""
        found = self.fit.solve(self.strengths[self.epoch], self.heads, TOLERANCE, stop)
        if found is None:
            return None
        self.heads, self.epoch = found, self.epoch + 1
        losses, _ = self.loss.values(self.sharpness().factor * self.logits() + found.biases)
        return ((losses * self.members.T).sum() / self.members.sum()).item()

    def heads_in(self, axes: Axes) -> Heads:
        """The current heads in other axes."""
        import torch

        layers = [self.axes.layer(*each) for each in zip(self.heads.weights, self.heads.biases, strict=True)]
        weights, biases = zip(*map(axes.weights, layers), strict=True)
        return Heads(torch.stack(weights), torch.stack(biases))

    @property
    def heads(self) -> Heads:
        """The current heads."""
        return self._heads

    @heads.setter
    def heads(self, heads: Heads) -> None:
        self._heads = heads
        self._logits = self._found = self._sharpness = None

    def logits(self) -> "torch.Tensor":
        """The logits [items, heads, outputs] of all items without the biases."""
        if self._logits is None:
            self._logits = self.fit.logits(self.heads)
        return self._logits

    def out_of_fold(self) -> OutOfFold:
        """The mean logits of each item by the heads that did not learn it (by all heads, if all learned it)."""
        if self._found is None:
            out = self.out.T
            seen = out.sum(1) > 0
            out = out.where(seen.unsqueeze(1), 1.0)
            out = (out / out.sum(1, keepdim=True)).unsqueeze(-1)
            biases = (out * (self.heads.biases - self.loss.shift)).sum(1)
            self._found = OutOfFold((self.logits() * out).sum(1), biases, seen.numpy())
        return self._found

    def sharpness(self) -> Sharpness:
        """The calibration of the current heads."""
        if self._sharpness is None:
            found = self.out_of_fold()
            rows = self._measured(found)
            wanted, is_softmax = self.loss.wanted[rows], self.loss.is_softmax
            self._sharpness = sharpness(found.evidence[rows], found.biases[rows], wanted, is_softmax=is_softmax)
        return self._sharpness

    def validate(self) -> tuple[float, float]:
        """Returns the calibrated loss and the score of the items that were left out.

        With class weights the loss is 1 - macro-F1 instead: the weights are there for the decisions about rare classes,
        which are worst where the probabilities are best.
        """
        found, calibrated, objective = self.out_of_fold(), self.sharpness(), self.problem.objective
        rows = self._measured(found)
        logits = calibrated.factor * found.evidence[rows] + found.biases[rows] + self.loss.shift
        wanted = objective.tensor(self.problem.targets[self.rows][rows.numpy()])
        loss = 1 - _macro_f1(logits, wanted) if objective.class_weights else calibrated.loss
        return loss, objective.score(logits, wanted)

    def _measured(self, found: OutOfFold) -> "torch.Tensor":
        import torch

        seen = torch.from_numpy(found.seen)
        return (seen if bool(seen.any()) else ~seen).nonzero().flatten()

    def diverged(self) -> DivergedError:
        """The error to raise when a loss is not finite."""
        hint = "the features are not finite: choose another model"
        return DivergedError("the loss of the head is not finite", epoch=self.epoch, hint=hint)

    def weights(self) -> "dict[str, torch.Tensor]":
        """The heads of all folds."""
        return {"weights": self.heads.weights.clone(), "biases": self.heads.biases.clone()}

    def load_weights(self, tensors: "Mapping[str, torch.Tensor]") -> None:
        """Restore what `weights` returned."""
        self.heads = Heads(tensors["weights"], tensors["biases"])

    def state(self) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
        """Returns the tensors and facts from which `restore` continues."""
        return self.weights(), {"epoch": self.epoch, "batch": self.batch}

    def restore(self, tensors: "Mapping[str, torch.Tensor]", facts: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.load_weights(tensors)
        self.epoch = facts["epoch"]


def _macro_f1(logits: "torch.Tensor", wanted: "torch.Tensor") -> float:
    """The mean F1 of the classes that occur."""
    import torch

    outputs = logits.shape[1]
    decided = logits.argmax(1)
    hits = torch.bincount(wanted[decided == wanted], minlength=outputs)
    both = torch.bincount(wanted, minlength=outputs) + torch.bincount(decided, minlength=outputs)
    return (2 * hits / both)[both > 0].double().mean().item()
