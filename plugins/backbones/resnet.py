"""ResNet 18 to 152 with weights of torchvision, timm or Microsoft; features are the pooled last layer.

Architecture: He et al., "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385, with the
bottleneck's stride in its 3x3 convolution ("v1.5"), as in all of these weights. Tensor names are those of torchvision
(torchvision/models/resnet.py) and timm; `config.layout: transformers` reads the names of
transformers/models/resnet/modeling_resnet.py.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from zoo.backbone import Backbone
from zoo.errors import RegistryError
from zoo.hookspecs import hookimpl
from zoo.schema import Entry
from zoo.torchkit import TorchBackbone, chain, cut, head_shape, load_linear, load_state

if TYPE_CHECKING:
    import torch
    from torch import nn


T = TypeVar("T")


class Depth(NamedTuple):
    """The number of blocks in each of the four layers, and whether they are bottlenecks."""

    blocks: tuple[int, int, int, int]
    is_bottleneck: bool


ARCHITECTURES = {
    "resnet18": Depth((2, 2, 2, 2), False),
    "resnet34": Depth((3, 4, 6, 3), False),
    "resnet50": Depth((3, 4, 6, 3), True),
    "resnet101": Depth((3, 4, 23, 3), True),
    "resnet152": Depth((3, 8, 36, 3), True),
}
WIDTHS = (64, 128, 256, 512)
#: The first part of each stage, except the first stage, which is the stem.
CUTS = ("layer1", "layer2", "layer3", "layer4")

#: Tensor names of transformers, whose layers and stages count from 0; torchvision's count from 1.
STEM = re.compile(r"embedder\.embedder\.(convolution|normalization)\.(\w+)")
SHORTCUT = re.compile(r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.(convolution|normalization)\.(\w+)")
BLOCK = re.compile(r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.(convolution|normalization)\.(\w+)")
KINDS = {"convolution": "conv", "normalization": "bn"}


class ResNet(TorchBackbone):
    """The family `resnet`; `config.arch` names the depth, `config.layout` the scheme of the file's tensor names."""

    family = "resnet"

    def __init__(self, entry: Entry, weights: Path) -> None:
        super().__init__(entry, weights)
        self.depth = _choice(entry, "arch", ARCHITECTURES)
        self.rename, self.classifier = _choice(entry, "layout", LAYOUTS, "torchvision")

    def build(self) -> "nn.Sequential":
        """The network with the checkpoint loaded, without the classifier."""
        network = _network(self.depth)
        load_state(self.weights / self.entry.files[0].path, network, self.rename)
        return network

    def build_head(self) -> "nn.Linear":
        """The classifier over the pooled features."""
        return load_linear(self.weights / self.entry.files[0].path, self.classifier, head_shape(self.entry))

    def stages(self) -> "Sequence[torch.nn.Module]":
        """The stem and the four layers, the last with the pooling."""
        return chain(cut(self.module, CUTS))


def _choice(entry: Entry, key: str, known: Mapping[str, T], default: str | None = None) -> T:
    value = entry.config.get(key, default)
    if not isinstance(value, str) or value not in known:
        raise RegistryError(f"{entry.name}: config.{key} is {value!r}", hint=f"known: {', '.join(known)}")
    return known[value]


def from_torchvision(name: str) -> str | None:
    """The same name as in torchvision and timm; None for the classifier `fc`."""
    return None if name.startswith("fc.") else name


def from_transformers(name: str) -> str | None:
    """The name in torchvision of a transformers tensor (prefix `resnet.` optional); None for the classifier."""
    bare = name.removeprefix("resnet.")
    if bare.startswith("classifier."):
        return None
    if match := STEM.fullmatch(bare):
        return f"{KINDS[match[1]]}1.{match[2]}"
    if match := SHORTCUT.fullmatch(bare):
        return f"layer{int(match[1]) + 1}.{match[2]}.downsample.{list(KINDS).index(match[3])}.{match[4]}"
    if match := BLOCK.fullmatch(bare):
        return f"layer{int(match[1]) + 1}.{match[2]}.{KINDS[match[4]]}{int(match[3]) + 1}.{match[5]}"
    return name


#: By scheme of tensor names: the function that renames a tensor, and the name of the classifier.
LAYOUTS = {"torchvision": (from_torchvision, "fc"), "transformers": (from_transformers, "classifier.1")}


def _network(depth: Depth) -> "nn.Sequential":
    from torch import nn

    expansion = 4 if depth.is_bottleneck else 1
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        "bn1": nn.BatchNorm2d(64),
        "relu": nn.ReLU(),
        "maxpool": nn.MaxPool2d(3, stride=2, padding=1),
    }
    entering = 64
    for number, (width, repeats) in enumerate(zip(WIDTHS, depth.blocks, strict=True), start=1):
        blocks = []
        for repeat in range(repeats):
            stride = 2 if number > 1 and repeat == 0 else 1
            blocks.append(_block(entering, width, stride, depth.is_bottleneck))
            entering = width * expansion
        parts[f"layer{number}"] = nn.Sequential(*blocks)
    parts["avgpool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    return nn.Sequential(OrderedDict(parts))


def _block(entering: int, width: int, stride: int, is_bottleneck: bool) -> "nn.Module":
    import torch
    from torch import nn

    # (kernel, stride, channels out) of each convolution: the stride is in the first 3x3.
    plain = [(3, stride, width), (3, 1, width)]
    convolutions = [(1, 1, width), (3, stride, width), (1, 1, 4 * width)] if is_bottleneck else plain

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            channels = entering
            for number, (kernel, step, out) in enumerate(convolutions, start=1):
                convolution = nn.Conv2d(channels, out, kernel, stride=step, padding=kernel // 2, bias=False)
                self.add_module(f"conv{number}", convolution)
                self.add_module(f"bn{number}", nn.BatchNorm2d(out))
                channels = out
            self.downsample: nn.Module | None = None
            if stride != 1 or entering != channels:
                projection = nn.Conv2d(entering, channels, 1, stride=stride, bias=False)
                self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x
            for number in range(1, len(convolutions) + 1):
                y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
                if number < len(convolutions):
                    y = nn.functional.relu(y)
            return nn.functional.relu(y + (x if self.downsample is None else self.downsample(x)))

    return Block()


@hookimpl
def zoo_register_backbones() -> Iterable[type[Backbone]]:
    """The family of this module."""
    return [ResNet]
