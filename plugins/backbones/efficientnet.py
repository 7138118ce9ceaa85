"""EfficientNet-Lite: MBConv blocks without squeeze-and-excitation, ReLU6, fixed stem and head.

Architecture: Tan and Le, "EfficientNet", https://arxiv.org/abs/1905.11946, in the Lite form of
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. Tensor names are those of the
checkpoints of the package efficientnet-lite-pytorch. Features are the pooled output of the head convolution.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo.backbone import Backbone
from zoo.errors import RegistryError
from zoo.hookspecs import hookimpl
from zoo.schema import Entry
from zoo.torchkit import TorchBackbone, chain, cut, head_shape, load_linear, load_state

if TYPE_CHECKING:
    import torch
    from torch import nn


class BlockSpec(NamedTuple):
    """A group of MBConv blocks. Only the first block has the stride and changes the width."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    out: int


LITE0 = (
    BlockSpec(1, 3, 1, 1, 16),
    BlockSpec(2, 3, 2, 6, 24),
    BlockSpec(2, 5, 2, 6, 40),
    BlockSpec(3, 3, 2, 6, 80),
    BlockSpec(3, 5, 1, 6, 112),
    BlockSpec(4, 5, 2, 6, 192),
    BlockSpec(1, 3, 1, 6, 320),
)
VARIANTS = {"lite0": LITE0}
STEM, HEAD = 32, 1280
#: TensorFlow's batch-norm epsilon, with which these weights were trained.
EPSILON = 1e-3


class EfficientNet(TorchBackbone):
    """The family `efficientnet`; `config.variant` names the table of blocks."""

    family = "efficientnet"

    def __init__(self, entry: Entry, weights: Path) -> None:
        super().__init__(entry, weights)
        variant = entry.config.get("variant")
        if variant not in VARIANTS:
            raise RegistryError(f"{entry.name}: config.variant is {variant!r}", hint=f"known: {', '.join(VARIANTS)}")
        self.blocks = VARIANTS[variant]

    def build(self) -> "nn.Sequential":
        """The variant's network with the checkpoint loaded, without the classifier."""
        network = _network(self.blocks)
        path = self.weights / self.entry.files[0].path
        load_state(path, network, lambda name: None if name.startswith("_fc.") else name)
        return network

    def build_head(self) -> "nn.Linear":
        """The classifier over the pooled features."""
        return load_linear(self.weights / self.entry.files[0].path, "_fc", head_shape(self.entry))

    def stages(self) -> "Sequence[torch.nn.Module]":
        """The stem, each group of blocks, and the head with the pooling."""
        from torch import nn

        stem, blocks, head = cut(self.module, ("_blocks", "_conv_head"))
        [run] = blocks.children()
        assert isinstance(run, nn.Sequential)
        ends = list(accumulate(spec.repeats for spec in self.blocks))
        return chain([stem, *(run[first:end] for first, end in pairwise([0, *ends])), head])


def _convolution(entering: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> "nn.Module":
    """A convolution without bias and with TensorFlow's SAME padding."""
    import torch
    from torch import nn

    class SameConv2d(nn.Conv2d):
        """A convolution that pads for even sizes: a stride of 2 pads one pixel more at the end than at the start."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # Inputs are square and of even size wherever the stride is 2 (224, 112, 56, 28, 14).
            total = kernel - stride if stride > 1 else kernel - 1
            x = nn.functional.pad(x, (total // 2, total - total // 2) * 2)
            return super().forward(x)

    return SameConv2d(entering, out, kernel, stride=stride, groups=groups, bias=False)


def _block(width: int, spec: BlockSpec) -> "nn.Module":
    """One MBConv block: expand, convolve each channel, project; its input is added if the shape stays the same."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = width * spec.expand
            self.expands = spec.expand != 1
            self.is_residual = spec.stride == 1 and width == spec.out
            if self.expands:
                self._expand_conv = _convolution(width, inner, 1)
                self._bn0 = nn.BatchNorm2d(inner, eps=EPSILON)
            self._depthwise_conv = _convolution(inner, inner, spec.kernel, spec.stride, groups=inner)
            self._bn1 = nn.BatchNorm2d(inner, eps=EPSILON)
            self._project_conv = _convolution(inner, spec.out, 1)
            self._bn2 = nn.BatchNorm2d(spec.out, eps=EPSILON)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
            y = nn.functional.relu6(self._bn1(self._depthwise_conv(y)))
            y = self._bn2(self._project_conv(y))
            return x + y if self.is_residual else y

    return Block()


def _network(blocks: Iterable[BlockSpec]) -> "nn.Sequential":
    """Stem, blocks and head, with random weights and without the classifier."""
    import torch
    from torch import nn

    class Pool(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3))

    layers: list[nn.Module] = []
    width = STEM
    for spec in blocks:
        for repeat in range(spec.repeats):
            layers.append(_block(width, spec if repeat == 0 else spec._replace(stride=1)))
            width = spec.out
    parts = {
        "_conv_stem": _convolution(3, STEM, 3, 2),
        "_bn0": nn.BatchNorm2d(STEM, eps=EPSILON),
        "stem_relu": nn.ReLU6(),
        "_blocks": nn.Sequential(*layers),
        "_conv_head": _convolution(width, HEAD, 1),
        "_bn1": nn.BatchNorm2d(HEAD, eps=EPSILON),
        "head_relu": nn.ReLU6(),
        "pool": Pool(),
    }
    return nn.Sequential(OrderedDict(parts))


@hookimpl
def zoo_register_backbones() -> Iterable[type[Backbone]]:
    """The family of this module."""
    return [EfficientNet]
