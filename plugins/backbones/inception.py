"""Inception v3, and Inception v1 (GoogLeNet) with batch norm; features are the pooled last block.

Architectures: Szegedy et al., "Rethinking the Inception Architecture", https://arxiv.org/abs/1512.00567, and "Going
Deeper with Convolutions", https://arxiv.org/abs/1409.4842, both as in torchvision/models/inception.py and googlenet.py.
Tensor names are those of torchvision and timm. The auxiliary heads, used only in training, are dropped.

The weights expect pixels normalised with mean and standard deviation 0.5. With `config.transform_input: true`, as in
torchvision, the input is normalised with ImageNet's statistics and the network converts it. With `false`, as in timm,
the input is already normalised with 0.5. A wrong value raises no error: it only lowers the accuracy.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.backbone import Backbone
from zoo.errors import RegistryError
from zoo.hookspecs import hookimpl
from zoo.schema import Entry
from zoo.torchkit import TorchBackbone, chain, cut, head_shape, load_linear, load_state

if TYPE_CHECKING:
    import torch
    from torch import nn

#: TensorFlow's batch-norm epsilon, which these weights were trained with.
EPSILON = 1e-3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEADS = ("fc.", "AuxLogits.", "aux1.", "aux2.")


class Inception(TorchBackbone):
    """The family `inception`; `config.arch` names the network, and `config.transform_input` is true or false."""

    family = "inception"

    def __init__(self, entry: Entry, weights: Path) -> None:
        super().__init__(entry, weights)
        arch, renormalise = entry.config.get("arch"), entry.config.get("transform_input")
        if not isinstance(arch, str) or arch not in ARCHITECTURES:
            raise RegistryError(f"{entry.name}: config.arch is {arch!r}", hint=f"known: {', '.join(ARCHITECTURES)}")
        if not isinstance(renormalise, bool):
            raise RegistryError(
                f"{entry.name}: config.transform_input is {renormalise!r}",
                hint="true for ImageNet mean and std, as torchvision's files want; false for 0.5, as timm's do",
            )
        self.parts, self.cuts = ARCHITECTURES[arch]
        self.renormalise = renormalise

    def build(self) -> "nn.Sequential":
        """The network with the checkpoint loaded, without the classifier and the auxiliary heads."""
        from torch import nn

        first = {"transform": _renormalisation()} if self.renormalise else {}
        pooling = {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
        network = nn.Sequential(OrderedDict(first | self.parts() | pooling))
        load_state(self.weights / self.entry.files[0].path, network, rename)
        return network

    def build_head(self) -> "nn.Linear":
        """The main classifier, over the pooled features."""
        return load_linear(self.weights / self.entry.files[0].path, "fc", head_shape(self.entry))

    def stages(self) -> "Sequence[torch.nn.Module]":
        """The network cut where its feature maps shrink; the pooling belongs to the last stage."""
        return chain(cut(self.module, self.cuts))


def rename(name: str) -> str | None:
    """The same name as in torchvision and timm; None for the classifier and the auxiliary heads."""
    return None if name.startswith(HEADS) else name


def _renormalisation() -> "nn.Module":
    """Converts pixels [batch, 3, ...] normalised with ImageNet's mean and std to mean 0.5 and std 0.5."""
    import torch
    from torch import nn

    class Renormalise(nn.Module):
        scale: torch.Tensor
        shift: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            scale = [std / 0.5 for std in IMAGENET_STD]
            shift = [(mean - 0.5) / 0.5 for mean in IMAGENET_MEAN]
            self.register_buffer("scale", torch.tensor(scale).reshape(1, 3, 1, 1), persistent=False)
            self.register_buffer("shift", torch.tensor(shift).reshape(1, 3, 1, 1), persistent=False)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            scaled: torch.Tensor = pixels * self.scale + self.shift
            return scaled

    return Renormalise()


def _convolution(
    entering: int, out: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | None = None
) -> "nn.Module":
    """Convolution, batch norm and ReLU. The default padding keeps the size, or is 0 if the stride is above 1."""
    from torch import nn

    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    usual = (height // 2, width // 2) if stride == 1 else 0
    convolution = nn.Conv2d(
        entering, out, (height, width), stride=stride, padding=usual if padding is None else padding, bias=False
    )
    return nn.Sequential(OrderedDict(conv=convolution, bn=nn.BatchNorm2d(out, eps=EPSILON), relu=nn.ReLU()))


def _block(parts: "dict[str, nn.Module]", *branches: str) -> "nn.Module":
    """A block that concatenates its branches. A branch names parts to run in order; `a|b` concatenates two parts."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                self.add_module(name, part)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answers = []
            for branch in branches:
                value = x
                for step in branch.split():
                    value = torch.cat([getattr(self, name)(value) for name in step.split("|")], 1)
                answers.append(value)
            return torch.cat(answers, 1)

    return Block()


def _v3_a(entering: int, pooled: int) -> "nn.Module":
    """Inception v3's block at 35x35: 1x1, 5x5, two 3x3 and an average pooling."""
    from torch import nn

    return _block(
        {
            "branch1x1": _convolution(entering, 64, 1),
            "branch5x5_1": _convolution(entering, 48, 1),
            "branch5x5_2": _convolution(48, 64, 5),
            "branch3x3dbl_1": _convolution(entering, 64, 1),
            "branch3x3dbl_2": _convolution(64, 96, 3),
            "branch3x3dbl_3": _convolution(96, 96, 3),
            "pool": nn.AvgPool2d(3, stride=1, padding=1),
            "branch_pool": _convolution(entering, pooled, 1),
        },
        "branch1x1",
        "branch5x5_1 branch5x5_2",
        "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
        "pool branch_pool",
    )


def _v3_b(entering: int) -> "nn.Module":
    """The block from 35x35 to 17x17."""
    from torch import nn

    return _block(
        {
            "branch3x3": _convolution(entering, 384, 3, stride=2),
            "branch3x3dbl_1": _convolution(entering, 64, 1),
            "branch3x3dbl_2": _convolution(64, 96, 3),
            "branch3x3dbl_3": _convolution(96, 96, 3, stride=2),
            "pool": nn.MaxPool2d(3, stride=2),
        },
        "branch3x3",
        "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
        "pool",
    )


def _v3_c(entering: int, inner: int) -> "nn.Module":
    """The block at 17x17: 1x1, one and two 7x7, each split into 1x7 and 7x1, and an average pooling."""
    from torch import nn

    return _block(
        {
            "branch1x1": _convolution(entering, 192, 1),
            "branch7x7_1": _convolution(entering, inner, 1),
            "branch7x7_2": _convolution(inner, inner, (1, 7)),
            "branch7x7_3": _convolution(inner, 192, (7, 1)),
            "branch7x7dbl_1": _convolution(entering, inner, 1),
            "branch7x7dbl_2": _convolution(inner, inner, (7, 1)),
            "branch7x7dbl_3": _convolution(inner, inner, (1, 7)),
            "branch7x7dbl_4": _convolution(inner, inner, (7, 1)),
            "branch7x7dbl_5": _convolution(inner, 192, (1, 7)),
            "pool": nn.AvgPool2d(3, stride=1, padding=1),
            "branch_pool": _convolution(entering, 192, 1),
        },
        "branch1x1",
        "branch7x7_1 branch7x7_2 branch7x7_3",
        "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5",
        "pool branch_pool",
    )


def _v3_d(entering: int) -> "nn.Module":
    """The block from 17x17 to 8x8."""
    from torch import nn

    return _block(
        {
            "branch3x3_1": _convolution(entering, 192, 1),
            "branch3x3_2": _convolution(192, 320, 3, stride=2),
            "branch7x7x3_1": _convolution(entering, 192, 1),
            "branch7x7x3_2": _convolution(192, 192, (1, 7)),
            "branch7x7x3_3": _convolution(192, 192, (7, 1)),
            "branch7x7x3_4": _convolution(192, 192, 3, stride=2),
            "pool": nn.MaxPool2d(3, stride=2),
        },
        "branch3x3_1 branch3x3_2",
        "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4",
        "pool",
    )


def _v3_e(entering: int) -> "nn.Module":
    """The block at 8x8, whose 3x3 convolutions fork into 1x3 and 3x1."""
    from torch import nn

    return _block(
        {
            "branch1x1": _convolution(entering, 320, 1),
            "branch3x3_1": _convolution(entering, 384, 1),
            "branch3x3_2a": _convolution(384, 384, (1, 3)),
            "branch3x3_2b": _convolution(384, 384, (3, 1)),
            "branch3x3dbl_1": _convolution(entering, 448, 1),
            "branch3x3dbl_2": _convolution(448, 384, 3),
            "branch3x3dbl_3a": _convolution(384, 384, (1, 3)),
            "branch3x3dbl_3b": _convolution(384, 384, (3, 1)),
            "pool": nn.AvgPool2d(3, stride=1, padding=1),
            "branch_pool": _convolution(entering, 192, 1),
        },
        "branch1x1",
        "branch3x3_1 branch3x3_2a|branch3x3_2b",
        "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a|branch3x3dbl_3b",
        "pool branch_pool",
    )


def _inception_v3() -> "dict[str, nn.Module]":
    from torch import nn

    return {
        "Conv2d_1a_3x3": _convolution(3, 32, 3, stride=2),
        "Conv2d_2a_3x3": _convolution(32, 32, 3, padding=0),
        "Conv2d_2b_3x3": _convolution(32, 64, 3),
        "maxpool1": nn.MaxPool2d(3, stride=2),
        "Conv2d_3b_1x1": _convolution(64, 80, 1),
        "Conv2d_4a_3x3": _convolution(80, 192, 3, padding=0),
        "maxpool2": nn.MaxPool2d(3, stride=2),
        "Mixed_5b": _v3_a(192, 32),
        "Mixed_5c": _v3_a(256, 64),
        "Mixed_5d": _v3_a(288, 64),
        "Mixed_6a": _v3_b(288),
        "Mixed_6b": _v3_c(768, 128),
        "Mixed_6c": _v3_c(768, 160),
        "Mixed_6d": _v3_c(768, 160),
        "Mixed_6e": _v3_c(768, 192),
        "Mixed_7a": _v3_d(768),
        "Mixed_7b": _v3_e(1280),
        "Mixed_7c": _v3_e(2048),
    }


def _v1(entering: int, direct: int, three: tuple[int, int], five: tuple[int, int], pooled: int) -> "nn.Module":
    """GoogLeNet's block: 1x1, 3x3, the paper's 5x5 and a max pooling; pairs are widths (reduced, out)."""
    from torch import nn

    def spatial(inner: int, out: int) -> nn.Module:
        return nn.Sequential(_convolution(entering, inner, 1), _convolution(inner, out, 3))

    return _block(
        {
            "branch1": _convolution(entering, direct, 1),
            "branch2": spatial(*three),
            # These weights have 3x3 where the paper has 5x5: https://github.com/pytorch/vision/issues/906
            "branch3": spatial(*five),
            "branch4": nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), _convolution(entering, pooled, 1)),
        },
        *("branch1", "branch2", "branch3", "branch4"),
    )


def _googlenet() -> "dict[str, nn.Module]":
    from torch import nn

    return {
        "conv1": _convolution(3, 64, 7, stride=2, padding=3),
        "maxpool1": nn.MaxPool2d(3, stride=2, ceil_mode=True),
        "conv2": _convolution(64, 64, 1),
        "conv3": _convolution(64, 192, 3),
        "maxpool2": nn.MaxPool2d(3, stride=2, ceil_mode=True),
        "inception3a": _v1(192, 64, (96, 128), (16, 32), 32),
        "inception3b": _v1(256, 128, (128, 192), (32, 96), 64),
        "maxpool3": nn.MaxPool2d(3, stride=2, ceil_mode=True),
        "inception4a": _v1(480, 192, (96, 208), (16, 48), 64),
        "inception4b": _v1(512, 160, (112, 224), (24, 64), 64),
        "inception4c": _v1(512, 128, (128, 256), (24, 64), 64),
        "inception4d": _v1(512, 112, (144, 288), (32, 64), 64),
        "inception4e": _v1(528, 256, (160, 320), (32, 128), 128),
        "maxpool4": nn.MaxPool2d(2, stride=2, ceil_mode=True),
        "inception5a": _v1(832, 256, (160, 320), (32, 128), 128),
        "inception5b": _v1(832, 384, (192, 384), (48, 128), 128),
    }


#: By architecture: a function that makes the parts in their order, and the first part of each stage but the first.
ARCHITECTURES: "dict[str, tuple[Callable[[], dict[str, nn.Module]], tuple[str, ...]]]" = {
    "inception_v3": (_inception_v3, ("Conv2d_3b_1x1", "Mixed_5b", "Mixed_6a", "Mixed_7a")),
    "googlenet": (_googlenet, ("conv2", "inception3a", "inception4a", "inception5a")),
}


@hookimpl
def zoo_register_backbones() -> Iterable[type[Backbone]]:
    """The family of this module."""
    return [Inception]
