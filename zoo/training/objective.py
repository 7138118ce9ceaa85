"""The objective of each task: loss, score, activation, and the scale of the answers.

Single-label: softmax and cross-entropy, with optional class weights and label smoothing. Multi-label: a sigmoid and
binary cross-entropy for each label. Regression: squared error of the standardised target; the standardisation is folded
into the last layer.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from zoo.options import FinetuneOptions
from zoo.schema import Task

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from zoo.graph.head import Floats, Layer

    Targets: TypeAlias = NDArray[Any]

#: The operator behind the last layer in the exported graph.
ACTIVATIONS = {Task.SINGLE_LABEL: "softmax", Task.MULTI_LABEL: "sigmoid", Task.REGRESSION: "identity"}


class Objective:
    """The objective of a task on given training items; class weights and the target's mean and spread come from them.

    `targets` are those of the training items: int64 [items] in 0..outputs-1, or float32 [items, outputs].
    """

    def __init__(self, options: FinetuneOptions, targets: "Targets", outputs: int) -> None:
        import numpy as np

        self.task = options.task
        self.outputs = outputs
        self.smoothing = options.label_smoothing
        self.activation = ACTIVATIONS[self.task]
        self.weights: NDArray[np.float32] | None = None
        self.mean, self.scale = np.float32(0), np.float32(1)
        if options.class_weights:
            counts = np.bincount(targets, minlength=outputs)
            # Inverse frequency with a mean of 1 over the items (King and Zeng 2001; scikit-learn's "balanced").
            self.weights = (len(targets) / (outputs * np.maximum(counts, 1))).astype(np.float32)
        if self.task is Task.REGRESSION:
            self.mean = targets.mean(dtype=np.float64).astype(np.float32)
            self.scale = np.maximum(targets.std(dtype=np.float64), 1e-12).astype(np.float32)

    @property
    def class_weights(self) -> tuple[float, ...]:
        """The weight of each class in the loss; empty without class weights."""
        return () if self.weights is None else tuple(self.weights.tolist())

    def tensor(self, targets: "Targets") -> "torch.Tensor":
        """The tensor of `targets` that `loss` takes."""
        import torch

        return torch.from_numpy((targets - self.mean) / self.scale if self.task is Task.REGRESSION else targets)

    def loss(self, logits: "torch.Tensor", wanted: "torch.Tensor", *, smooth: bool = False) -> "torch.Tensor":
        """Mean loss of logits [items, outputs]; `smooth` applies label smoothing, for training only."""
        from torch.nn import functional

        if self.task is Task.SINGLE_LABEL:
            import torch

            weight = None if self.weights is None else torch.from_numpy(self.weights).to(logits.device)
            return functional.cross_entropy(logits, wanted, weight, label_smoothing=self.smoothing if smooth else 0.0)
        if self.task is Task.MULTI_LABEL:
            return functional.binary_cross_entropy_with_logits(logits, wanted)
        return functional.mse_loss(logits, wanted)

    def chance(self, targets: "Targets") -> float:
        """The loss of a model whose logits are all zero, on these targets."""
        import torch

        return self.loss(torch.zeros(len(targets), self.outputs), self.tensor(targets)).item()

    def loss_and_score(self, logits: "torch.Tensor", wanted: "torch.Tensor") -> tuple[float, float]:
        """Returns the loss and the score."""
        return self.loss(logits, wanted).item(), self.score(logits, wanted)

    def score(self, logits: "torch.Tensor", wanted: "torch.Tensor") -> float:
        """Accuracy; macro-F1 over the labels that occur, each at its best threshold; R squared."""
        import torch

        if self.task is Task.SINGLE_LABEL:
            return (logits.argmax(1) == wanted).double().mean().item()
        if self.task is Task.MULTI_LABEL:
            scores, truth = logits.sigmoid(), wanted > 0.5
            chosen = scores >= torch.tensor(best_thresholds(scores.cpu().numpy(), wanted.cpu().numpy())).to(scores)
            hits, all_of_both = (chosen & truth).sum(0).double(), (chosen.sum(0) + truth.sum(0)).double()
            occurring = all_of_both > 0
            return (2 * hits[occurring] / all_of_both[occurring]).mean().item() if occurring.any() else 1.0
        spread = (wanted - wanted.mean()).square().mean().item()
        return 1 - (logits - wanted).square().mean().item() / max(spread, 1e-12)

    def scores(self, logits: "torch.Tensor") -> "Floats":
        """The scores of these logits [items, outputs]: probabilities without class weights, numbers in their unit."""
        import torch

        if self.task is Task.REGRESSION:
            found: Floats = (logits * float(self.scale) + float(self.mean)).numpy()
            return found
        if self.weights is not None:
            # A loss with class weights is least at probabilities w * p.
            logits = logits - torch.from_numpy(self.weights).log()
        found = (logits.softmax(1) if self.task is Task.SINGLE_LABEL else logits.sigmoid()).numpy()
        return found

    def finish(self, layers: "Sequence[Layer]") -> "list[Layer]":
        """The layers, with the last one changed so that a regression answers in the target's unit."""
        *before, (weight, bias) = layers
        return [*before, (weight * self.scale, bias * self.scale + self.mean)]


def best_thresholds(scores: "Floats", truth: "Floats") -> tuple[float, ...]:
    """The threshold of each label on its score that gives the best F1 on these items [items, labels].

    A threshold lies half way between two scores; of equally good thresholds the nearest to 0.5 is taken. A label that
    never or always occurs gets 0.5.
    """
    import numpy as np

    found = []
    for column, wanted in zip(scores.T.astype(np.float64), truth.T > 0.5, strict=True):
        if not 0 < wanted.sum() < len(wanted):
            found.append(0.5)
            continue
        order = np.argsort(-column, kind="stable")
        hits = np.cumsum(wanted[order])
        f1 = 2 * hits / (np.arange(1, len(order) + 1) + wanted.sum())
        following = np.append(column[order][1:], 0.0)
        # Items with equal scores cannot be separated, so thresholds only lie between different scores.
        cuts = np.where(following < column[order], (column[order] + following) / 2, np.nan)
        f1[np.isnan(cuts)] = -1
        best = cuts[f1 == f1.max()]
        found.append(float(best[np.argmin(np.abs(best - 0.5))]))
    return tuple(found)
