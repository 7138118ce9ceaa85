"""The record of a fitted head: one that `zoo.training.fit_linear` solved, or that `zoo.training.fit_head` trained."""

from typing import TYPE_CHECKING

from msgspec import Struct

from zoo.results import Epoch, LearningPoint
from zoo.training.hyperparameters import Choice

if TYPE_CHECKING:
    import torch

    from zoo.graph.head import Floats, Layer


class TrainedHead(Struct, frozen=True, kw_only=True):
    """The layers of a head, (weight [out, in], bias [out]), that read raw features, and the record of their training.

    `left_out` [items, outputs] are the scores of the training items by heads that did not learn them (numbers are in
    the target's unit), with rows of NaN for items that were never left out. `modules` are two heads in torch: one
    fitted without the inner split, one fitted to all training items.
    """

    layers: "list[Layer]"
    modules: "tuple[torch.nn.Module, torch.nn.Module]"
    activation: str
    choice: Choice
    best_epoch: int
    curve: tuple[Epoch, ...]
    thresholds: tuple[float, ...] = ()
    class_weights: tuple[float, ...] = ()
    left_out: "Floats | None" = None
    learning: tuple[LearningPoint, ...] = ()
