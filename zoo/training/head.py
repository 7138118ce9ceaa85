"""The head as a torch module: a few dense layers on a backbone's features.

The head scales its input; for export the scaling is folded into the first layer. `zoo.graph.head` has the exported
head.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from zoo.graph.head import Floats, Layer

SCALINGS = ("global", "per-feature")
#: A feature's std is raised to at least this fraction of the mean std; otherwise near-constant features would dominate.
STD_FLOOR = 0.1
#: A spread below this fraction of the mean is a float32 rounding error.
NOISE = 1e-6
#: Items whose spread is computed together.
CHUNK = 8192
DROPOUT = 0.2


def affine(features: "Floats", scaling: str) -> "tuple[Floats, Floats]":
    """The mean [dim] and scale [dim] of features: one scale for all, or each feature's own std with a floor."""
    import numpy as np

    mean = features.mean(0, dtype=np.float64)
    # In parts, because numpy makes a copy in float64.
    squares = [np.square(part - mean).sum(0) for part in np.array_split(features, -(-len(features) // CHUNK))]
    std = np.sqrt(np.sum(squares, 0) / len(features))
    # Dividing by a spread that is only rounding error would amplify the error.
    size = np.sqrt(np.mean(mean**2))
    if np.sqrt(np.mean(std**2)) <= NOISE * size:
        std = np.full_like(std, max(size, 1.0))
    typical = np.sqrt(np.mean(std**2))
    scale = np.full_like(std, typical) if scaling == "global" else np.maximum(std, STD_FLOOR * std.mean())
    return mean.astype(np.float32), scale.astype(np.float32)


def build(
    scaled: "tuple[Floats, Floats]", hidden: Sequence[int], biases: "torch.Tensor", seed: int
) -> "torch.nn.Module":
    """A head from raw features [batch, dim] to logits [batch, outputs], initialised from `seed`.

    `scaled` is the result of `affine`; `biases` [outputs] are those of the last layer, such as the log-odds. The head's
    method `scaled` only scales features; its `net` is the dense layers.
    """
    import torch
    from torch import nn

    mean, scale = scaled

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.from_numpy(mean))
            self.register_buffer("scale", torch.from_numpy(scale))
            modules: list[nn.Module] = []
            for index, (wide_in, wide_out) in enumerate(pairwise((len(mean), *hidden, len(biases)))):
                modules += [nn.ReLU(), nn.Dropout(DROPOUT)] if index else []
                modules.append(nn.Linear(wide_in, wide_out))
            self.net = nn.Sequential(*modules)
            with torch.no_grad():
                modules[-1].bias.copy_(biases)  # type: ignore[operator]

        def forward(self, features: "torch.Tensor") -> "torch.Tensor":
            answer: torch.Tensor = self.net(self.scaled(features))
            return answer

        def scaled(self, features: "torch.Tensor") -> "torch.Tensor":
            return (features - self.get_buffer("mean")) / self.get_buffer("scale")

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Head()


def sharpen(module: "torch.nn.Module", factor: float) -> None:
    """Multiply the logits of a head, without their biases, by `factor`."""
    import torch

    with torch.no_grad():
        module.net[-1].weight.mul_(factor)  # type: ignore[index,union-attr]


def of_layer(scaled: "tuple[Floats, Floats]", layer: "Layer") -> "torch.nn.Module":
    """A linear head with the input scaling `scaled` that computes what `layer` computes from raw features."""
    import numpy as np
    import torch

    weight, bias = (side.astype(np.float64) for side in layer)
    mean, scale = (side.astype(np.float64) for side in scaled)
    module = build(scaled, (), torch.from_numpy(bias + weight @ mean), seed=0)
    with torch.no_grad():
        module.net[0].weight.copy_(torch.from_numpy(weight * scale))  # type: ignore[index,union-attr]
    return module


def folded(module: "torch.nn.Module") -> "list[Layer]":
    """The layers of a head made by `build`, with the input scaling folded into the first: they read raw features."""
    import numpy as np
    from torch import nn

    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    layers = [(m.weight.detach().cpu().double().numpy(), m.bias.detach().cpu().double().numpy()) for m in linear]
    buffers = dict(module.named_buffers())
    weight, bias = layers[0]
    weight = weight / buffers["scale"].cpu().numpy()
    layers[0] = (weight, bias - weight @ buffers["mean"].cpu().numpy())
    return [(np.ascontiguousarray(w, np.float32), np.ascontiguousarray(b, np.float32)) for w, b in layers]
