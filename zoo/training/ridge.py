"""Ridge regression in closed form, for every strength at once, with exact leave-one-out errors.

Hoerl and Kennard 1970; the leave-one-out error is the residual / (1 - leverage) (Golub, Heath and Wahba, Generalized
cross-validation, 1979).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from zoo.training.axes import CHUNK, Axes

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

#: Strengths for each item, strongest first: quarter decades.
STRENGTHS = tuple(10 ** (1 - 0.25 * step) for step in range(41))
#: The leverage of an item is kept below 1 by this much.
LEAST = 1e-6


class Ridges(Struct, frozen=True):
    """Ridge solutions: `weights` [axes, strengths], and the `fitted` and `left_out` predictions [items, strengths].

    A left-out prediction is that of a regression without the item.
    """

    weights: "torch.Tensor"
    fitted: "torch.Tensor"
    left_out: "torch.Tensor"


def ridges(axes: Axes, wanted: "torch.Tensor", groups: "NDArray[np.int64]", strengths: Sequence[float]) -> Ridges:
    """The solutions of all `strengths` for the numbers `wanted` [items], whose mean is 0.

    Items of one group have equal features, and are left out together.
    """
    import torch

    # A double of many items would take too much memory.
    items = axes.items.double() if len(axes.items) <= CHUNK else axes.items
    power, wanted = axes.power.to(items.dtype), wanted.to(items.dtype).unsqueeze(1)
    gains = 1 / (power.unsqueeze(1) + torch.tensor(strengths, dtype=items.dtype))
    weights = (items.T @ wanted) * gains
    fitted = items @ weights
    leverage = torch.cat([part.square() @ gains for part in items.split(CHUNK)]) + 1 / len(items)
    residual = wanted - fitted
    number = torch.from_numpy(groups)
    sums = torch.zeros(int(number.max()) + 1, len(strengths), dtype=items.dtype)
    together = sums.index_add(0, number, residual)[number]
    copies = torch.bincount(number)[number].unsqueeze(1)
    # With the rows of a group equal, the inverse of (I - hat) on the group has this form.
    error = residual + leverage * together / (1 - copies * leverage).clamp(min=LEAST)
    return Ridges(weights, fitted, wanted - error)
