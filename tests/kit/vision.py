"""The shipped image families on the weights of tests.kit.upstream."""

from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from zoo_plugins.backbones.efficientnet import EfficientNet
from zoo_plugins.backbones.inception import Inception
from zoo_plugins.backbones.resnet import ResNet

from tests.kit.upstream import Upstream
from zoo.registry.registry import load_registry
from zoo.schema import Entry, ImagePreprocess
from zoo.torchkit import TorchBackbone

FAMILIES: dict[str, type[TorchBackbone]] = {"resnet": ResNet, "inception": Inception, "efficientnet": EfficientNet}


def ours(upstream: Upstream, name: str) -> TorchBackbone:
    """The row's backbone with the files that the real command pulled."""
    folder = upstream.pull(name)
    entry = load_registry([upstream.registry]).entry(name)
    return FAMILIES[entry.family](entry, folder)


def with_config(entry: Entry, path: str, **config: Any) -> Entry:
    """The row with one file of another name and with changes to its config; None removes a key."""
    changed = {key: value for key, value in {**entry.config, **config}.items() if value is not None}
    files = (msgspec.structs.replace(entry.files[0], path=path),)
    return msgspec.structs.replace(entry, config=changed, files=files)


def torchvision_levels(image: np.ndarray, preprocess: ImagePreprocess, *, as_image: bool = True) -> np.ndarray:
    """Grey levels uint8 [3, crop, crop] by torchvision: its PIL path, or its own uint8 tensor kernels."""
    mode = v2.InterpolationMode(preprocess.interpolation)
    size = [preprocess.resize] * (2 if preprocess.squash else 1)
    steps = v2.Compose([v2.Resize(size, mode, antialias=True), v2.CenterCrop(preprocess.crop)])
    if as_image:
        return np.asarray(steps(Image.fromarray(image))).transpose(2, 0, 1)
    return steps(torch.from_numpy(image.transpose(2, 0, 1).copy())).numpy()
