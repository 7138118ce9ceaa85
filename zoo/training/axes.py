"""Scaled features in their principal axes, where a solver of linear heads needs few iterations.

A rotation changes no L2 penalty, so the best head is the same in any axes. In the principal axes the features are
uncorrelated, and a diagonal matrix is a good estimate of the loss's curvature. With fewer items than features there are
at most as many axes as items.
"""

from copy import copy
from typing import TYPE_CHECKING

from zoo.training import head

if TYPE_CHECKING:
    import torch

    from zoo.graph.head import Floats, Layer

#: Axes with less than this fraction of the largest variance are rounding errors of float32.
LEAST = 1e-7
#: Items that are scaled and rotated together, which limits the memory for temporary arrays.
CHUNK = 8192
#: With `is_rough`, items for each feature that the axes are found from.
ROUGH = 8


class Axes:
    """The principal axes of scaled features [items, dim]. The variances of all axes sum to 1, for every model.

    `items` float32 [items, axes] are the features in these axes, `power` [axes] their sums of squares. `scaled` is the
    result of `zoo.training.head.affine`, with the norm included in the scale.

    Args:
        is_rough: find the axes of many items from some of them. `power` is then an estimate.
    """

    def __init__(self, features: "Floats", scaling: str, *, is_rough: bool = False) -> None:
        import torch

        self.scaling, self.scaled = scaling, head.affine(features, scaling)
        few = len(features) < features.shape[1]
        rows = self._scaled(features) if few else None
        gram = rows @ rows.T if rows is not None else self._covariance(features, is_rough=is_rough)
        size = (gram.diagonal().sum() / len(features)).sqrt().item() or 1.0
        self.scaled = self.scaled[0], self.scaled[1] * size
        values, vectors = torch.linalg.eigh(gram / size**2)
        if is_rough:
            # A feature that is rarely in use may be constant in the items that the axes were found from.
            values = values.clamp(min=2 * LEAST * float(values[-1]))
        kept = (values > LEAST * values[-1]).nonzero().flatten().flip(0)
        self.power, vectors = values[kept], vectors[:, kept].contiguous()
        if rows is not None:
            root = self.power.sqrt()
            self._basis, self.items = (rows / size).T @ (vectors / root), vectors * root
        else:
            self._basis = vectors
            self.items = torch.empty(len(features), len(kept))
            for part, rotated in zip(self._chunks(features), self.items.split(CHUNK), strict=True):
                torch.mm(self._scaled(part), vectors, out=rotated)

    def part(self, rows: slice) -> "Axes":
        """The same axes with some of the items; `power` is estimated from the number of items."""
        found = copy(self)
        found.items = self.items[rows]
        found.power = self.power * (len(found.items) / len(self.items))
        return found

    def layer(self, weights: "torch.Tensor", biases: "torch.Tensor") -> "Layer":
        """The layer (weight [outputs, dim], bias [outputs]) that reads raw features, from `weights` [axes, outputs]."""
        import numpy as np

        mean, scale = (side.astype(np.float64) for side in self.scaled)
        weight = (self._basis @ weights.float()).double().numpy().T / scale
        bias = biases.double().numpy() - weight @ mean
        return np.ascontiguousarray(weight, np.float32), np.ascontiguousarray(bias, np.float32)

    def weights(self, layer: "Layer") -> "tuple[torch.Tensor, torch.Tensor]":
        """Returns the weights [axes, outputs] and biases [outputs] of a layer that reads raw features.

        What the layer computes from directions in which the items do not differ is lost.
        """
        import numpy as np
        import torch

        mean, scale = (side.astype(np.float64) for side in self.scaled)
        weight, bias = (side.astype(np.float64) for side in layer)
        weights, biases = (torch.from_numpy(side).float() for side in (weight * scale, bias + weight @ mean))
        return self._basis.T @ weights.T, biases

    def _chunks(self, features: "Floats") -> "list[Floats]":
        return [features[start : start + CHUNK] for start in range(0, len(features), CHUNK)]

    def _scaled(self, features: "Floats") -> "torch.Tensor":
        import torch

        mean, scale = self.scaled
        return torch.from_numpy((features - mean) / scale)

    def _covariance(self, features: "Floats", *, is_rough: bool) -> "torch.Tensor":
        """The sum [dim, dim] of the products of all items; with `is_rough`, estimated from some of them."""
        import torch

        wide = features.shape[1]
        some = features[:: max(1, len(features) // (ROUGH * wide))] if is_rough else features
        total = torch.zeros(wide, wide)
        for part in self._chunks(some):
            rows = self._scaled(part)
            total.addmm_(rows.T, rows)
        return total * (len(features) / len(some))
