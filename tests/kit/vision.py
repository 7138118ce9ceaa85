"""The shipped image families on the weights of tests.kit.upstream."""

from typing import Any

import msgspec
from zoo_plugins.backbones.efficientnet import EfficientNet
from zoo_plugins.backbones.inception import Inception
from zoo_plugins.backbones.resnet import ResNet

from tests.kit.upstream import Upstream
from zoo.registry.registry import load_registry
from zoo.schema import Entry
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
