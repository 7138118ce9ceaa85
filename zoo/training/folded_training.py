"""Trainings of one head for each split, run together: with few items they choose the epoch by cross-validation."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from zoo.errors import DivergedError
from zoo.system.interrupt import Interrupt
from zoo.training.calibrate import sharpness_of
from zoo.training.loop import Training

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from zoo.graph.head import Floats
    from zoo.training.problem import Problem, Split

    Start = Callable[[NDArray[np.bool_]], Training]


class LeftOut(Struct, frozen=True):
    """Logits of the items `rows` by heads that did not learn them: `evidence` without the biases, and `biases`.

    `factor` calibrates the evidence. `is_honest` is False if the heads did learn the items, because they are too few.
    """

    rows: "NDArray[np.int64]"
    evidence: "torch.Tensor"
    biases: "torch.Tensor"
    factor: float
    is_honest: bool

    @property
    def logits(self) -> "torch.Tensor":
        """The calibrated logits [rows, outputs]."""
        return self.factor * self.evidence + self.biases

    def scores(self, problem: "Problem") -> "Floats | None":
        """The scores [items, outputs] of all items of the problem, in rows of NaN for those not left out."""
        import numpy as np

        if not self.is_honest:
            return None
        objective = problem.objective
        found = np.full((len(problem.targets), objective.outputs), np.nan, np.float32)
        found[self.rows] = objective.scores(self.logits)
        return found


class FoldedTraining:
    """One training for each split of the problem's items; an epoch is one epoch of each.

    `zoo.training.loop.Phase` trains it, measures it on the items that were left out, and saves it.

    Args:
        start: returns the training of a head on the chosen items.
        splits: other splits than those of the problem.
    """

    def __init__(self, problem: "Problem", start: "Start", splits: "Sequence[Split] | None" = None) -> None:
        self.problem, self.splits = problem, problem.splits if splits is None else splits
        self.trainings = [start(fit) for fit, _ in self.splits]
        self.epoch, self.batch = 0, self.trainings[0].batch
        #: The losses of the trainings that have finished the current epoch.
        self.losses: list[float] = []

    @property
    def strength(self) -> None:
        """All epochs have the same weight decay."""
        return None

    def train_epoch(self, stop: Interrupt) -> float | None:
        """Train one epoch, or the rest of a stopped one, and return its mean loss; None if `stop` ended it early.

        Raises DivergedError for a loss that is not finite.
        """
        for training in self.trainings[len(self.losses) :]:
            loss = training.train_epoch(stop)
            if loss is None:
                return None
            self.losses.append(loss)
        mean = sum(self.losses) / len(self.losses)
        self.epoch, self.losses = self.epoch + 1, []
        return mean

    def left_out(self) -> "LeftOut":
        """The logits of the items that were left out, and their calibration."""
        import numpy as np
        import torch

        rows, evidence, biases = [], [], []
        with torch.inference_mode():
            for (_, left), training in zip(self.splits, self.trainings, strict=True):
                bias = training.model.eval().net[-1].bias.detach()  # type: ignore[index,union-attr]
                logits = training.model(torch.from_numpy(self.problem.features[left]))
                rows.append(np.flatnonzero(left))
                evidence.append(logits - bias)
                biases.append(bias.expand_as(logits))
        found = np.concatenate(rows), torch.cat(evidence), torch.cat(biases)
        if any((fit & left).any() for fit, left in self.splits):
            # No item could be spared from the training, so nothing can be calibrated.
            return LeftOut(*found, factor=1.0, is_honest=False)
        targets = self.problem.targets[found[0]]
        return LeftOut(*found, factor=sharpness_of(self.problem.objective, targets, *found[1:]).factor, is_honest=True)

    def validate(self) -> tuple[float, float]:
        """Returns the loss and the score of the items that were left out."""
        found, objective = self.left_out(), self.problem.objective
        logits = found.evidence + found.biases
        return objective.loss_and_score(logits, objective.tensor(self.problem.targets[found.rows]))

    def diverged(self) -> DivergedError:
        """The error to raise when a loss is not finite."""
        return self.trainings[len(self.losses) % len(self.trainings)].diverged()

    def weights(self) -> "dict[str, torch.Tensor]":
        """Copies of every tensor of the heads, by name."""
        return _numbered(training.weights() for training in self.trainings)

    def load_weights(self, tensors: "Mapping[str, torch.Tensor]") -> None:
        """Restore what `weights` returned."""
        for index, training in enumerate(self.trainings):
            training.load_weights(_of(index, tensors))

    def state(self) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
        """Returns the tensors and facts from which `restore` continues."""
        states = [training.state() for training in self.trainings]
        facts = {"epoch": self.epoch, "batch": self.batch, "losses": self.losses}
        return _numbered(tensors for tensors, _ in states), {**facts, "trainings": [each for _, each in states]}

    def restore(self, tensors: "Mapping[str, torch.Tensor]", facts: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        for index, training in enumerate(self.trainings):
            training.restore(_of(index, tensors), facts["trainings"][index])
        self.epoch, self.losses = facts["epoch"], list(facts["losses"])


def _numbered(each: "Iterable[dict[str, torch.Tensor]]") -> "dict[str, torch.Tensor]":
    """One dictionary of several, with the number of each before its names."""
    return {f"{index}.{name}": tensor for index, tensors in enumerate(each) for name, tensor in tensors.items()}


def _of(index: int, tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    prefix = f"{index}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
