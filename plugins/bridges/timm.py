"""timm/NAME: any image encoder of timm, with the preprocessing of its repository.

Architectures and configurations come from the library (https://github.com/huggingface/pytorch-image-models), weights
from the Hub. Only architectures that the installed timm knows by name are built.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from zoo.backbone import Backbone
from zoo.bridge import Bridge
from zoo.errors import IntegrityError, NotFoundError, UsageError
from zoo.extras import require
from zoo.hookspecs import hookimpl
from zoo.schema import Entry, ImagePreprocess, PretrainedHead
from zoo.torchkit import TorchBackbone, described_by_config, load_state

if TYPE_CHECKING:
    import torch

    from zoo.hub import Repository

#: Names of checkpoints in order of preference; a pickle is converted in a child process.
CHECKPOINTS = ("model.safetensors", "pytorch_model.bin")
#: Buffers in older checkpoints that the architecture computes itself.
COMPUTED = ("relative_position_index", "attn_mask")


class TimmConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The `config.json` of timm. Before 2023 the keys of `pretrained_cfg` were beside `architecture`."""

    architecture: str
    model_args: dict[str, Any] = {}
    pretrained_cfg: dict[str, Any]
    num_classes: Annotated[int, msgspec.Meta(ge=0, le=1 << 24)] | None = None
    label_names: tuple[str, ...] | None = None
    label_descriptions: dict[str, str] | None = None

    @property
    def classes(self) -> int:
        """The number of scores of the classifier in the weights; 0 if there is none."""
        stated = self.num_classes
        if stated is None:
            stated = self.model_args.get("num_classes", self.pretrained_cfg.get("num_classes", 1000))
        return stated if isinstance(stated, int) else 0


class TimmBridge(Bridge):
    """The bridge of `timm/NAME`, the Hub repository timm/NAME. A NAME without a tag means timm's default weights."""

    prefix = "timm"

    def entry(self, name: str, revision: str | None) -> Entry:
        """The entry of a timm model. Raises MissingExtraError, UsageError for its preprocessing, and Hub errors."""
        _require()
        from zoo.hub import open_repository

        try:
            repository = open_repository(_hub_name(name), revision)
        except NotFoundError as error:
            error.hint = _nearest(name) or error.hint
            raise
        config = parse_config(repository.read("config.json"))
        _check_architecture(config.architecture)
        checkpoint = next((path for path in CHECKPOINTS if path in repository.sizes), None)
        if checkpoint is None:
            raise UsageError(
                f"{repository.origin} has none of {', '.join(CHECKPOINTS)}", hint="choose a repository with one file"
            )
        dim, counted = _measure(config)
        head = head_of(config)
        license = config.pretrained_cfg.get("license") or "unknown"
        return Entry(
            name=f"{self.prefix}/{name}".lower(),
            family="timm",
            task="image-features",
            description=f"{config.architecture}, by timm",
            license=repository.license if repository.license != "unknown" else license,
            params=repository.parameters or counted,
            dim=dim,
            preprocess=preprocess_of(config, repository),
            files=(repository.file("config.json"), repository.file(checkpoint)),
            config={"arch": config.architecture},
            head=head,
            no_head=None if head else "timm lists no classifier for these weights",
            origin=repository.origin,
        )


class Timm(TorchBackbone):
    """The family `timm`: the architecture that the row's `config.json` describes, and its classifier."""

    family = "timm"

    def build(self) -> "torch.nn.Module":
        """The network with its weights loaded. Raises MissingExtraError, IntegrityError for a wrong configuration."""
        config = self._config()
        # This is a name, or a list of names if there are several classifiers.
        named = config.pretrained_cfg.get("classifier") or ()
        return self._load(create(config), tuple(f"{head}." for head in ([named] if isinstance(named, str) else named)))

    def with_head(self) -> "torch.nn.Module":
        """The network with its classifier. Raises the errors of `build`.

        The classifier reads the features of nearly all architectures; the others compute both from the pixels.
        """
        import torch

        config = self._config()
        plain, network = self.module, self._load(create(config, config.classes), ())
        whole = _with_head(network)
        side = self.entry.preprocess.crop  # type: ignore[union-attr]  # timm has only images
        example = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode(), suppress(Exception):
            # Methods and shapes differ between architectures, and so do the errors of those that differ.
            found = zip(whole(example), (plain(example), network(example)), strict=True)
            if all(torch.allclose(given, wanted, rtol=1e-4, atol=1e-5) for given, wanted in found):
                return whole
        return _side_by_side(plain, network)

    def _config(self) -> TimmConfig:
        _require()
        config = parse_config((self.weights / "config.json").read_bytes())
        if config.architecture != self.entry.config.get("arch"):
            raise IntegrityError(f"config.json describes {config.architecture}", hint="pull the model again")
        return config

    def _load(self, network: "torch.nn.Module", dropped: tuple[str, ...]) -> "torch.nn.Module":
        checkpoint = next(file.path for file in self.entry.files if file.path in CHECKPOINTS)
        return load_state(
            self.weights / checkpoint,
            network,
            lambda name: None if name.startswith(dropped) or name.endswith(COMPUTED) else name,
        )


def _with_head(network: "torch.nn.Module") -> "torch.nn.Module":
    """`network`, which has a classifier, as a module that returns features and logits."""
    import torch
    from torch import nn

    class WithHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            maps = self.network.forward_features(pixels)  # type: ignore[operator]  # timm's common interface
            head: Any = self.network.forward_head
            return head(maps, pre_logits=True), head(maps)

    return WithHead()


def _side_by_side(plain: "torch.nn.Module", network: "torch.nn.Module") -> "torch.nn.Module":
    """A module that returns the features of `plain` and the logits of `network`."""
    import torch
    from torch import nn

    class SideBySide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.network = plain, network

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.plain(pixels), self.network(pixels)

    return SideBySide()


def head_of(config: TimmConfig) -> PretrainedHead | None:
    """The classifier in a model's weights, with the labels of its repository or of an ImageNet list; None without one.

    timm knows the lists by their number of classes (timm/data/imagenet_info.py). A label that occurs twice gets its
    WordNet id. Other classifiers get the labels LABEL_0, LABEL_1, ..., as in transformers. Raises IntegrityError if the
    number of the repository's labels is not that of the classes.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    count, names = config.classes, config.label_names
    if not count:
        return None
    if names is not None:
        if len(names) != count or len(set(names)) != count:
            problem = f"{len(names)} labels for {count} classes" if len(names) != count else "a label twice"
            raise IntegrityError(f"config.json lists {problem}", hint="choose another model, or ask its publisher")
        return (
            _described(names, config.label_descriptions) if config.label_descriptions else PretrainedHead(labels=names)
        )
    if count == 1000:
        return PretrainedHead(labels="imagenet-1k")
    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return PretrainedHead(labels=tuple(f"LABEL_{index}" for index in range(count)))
    info = ImageNetInfo(subset)
    return _described(info.label_names(), info.label_descriptions(as_dict=True))


def _described(ids: Sequence[str], descriptions: Mapping[str, str]) -> PretrainedHead:
    """The head whose labels are the descriptions of `ids`; two equal descriptions get their ids."""
    texts = [descriptions.get(key, key) for key in ids]
    twice = Counter(texts)
    labels = (f"{text} ({key})" if twice[text] > 1 else text for key, text in zip(ids, texts, strict=True))
    return PretrainedHead(labels=tuple(labels), ids=tuple(ids))


def parse_config(data: bytes) -> TimmConfig:
    """The configuration in `data`. Raises IntegrityError if it is not one of timm."""
    try:
        content = msgspec.json.decode(data, type=dict[str, Any])
        if "pretrained_cfg" not in content:
            content = {"architecture": content.get("architecture"), "pretrained_cfg": content}
        return msgspec.convert(content, TimmConfig)
    except msgspec.MsgspecError as error:
        raise IntegrityError(
            f"config.json is not a timm configuration: {error}", hint="hf/ORG/NAME is for models of transformers"
        ) from error


def create(config: TimmConfig, classes: int = 0) -> "torch.nn.Module":
    """The architecture with random weights and, by default, no classifier.

    Nothing in `config` can name a file or an address.
    """
    import inspect
    from dataclasses import fields

    import timm
    from timm.models import PretrainedCfg

    _check_architecture(config.architecture)
    for name, value in config.model_args.items():
        # Only arguments of the network are passed: arguments of create_model itself could load other weights.
        is_plain = isinstance(value, bool | int | float | str) or (
            isinstance(value, list) and all(isinstance(each, bool | int | float | str) for each in value)
        )
        if name in inspect.signature(timm.create_model).parameters or not is_plain:
            raise IntegrityError(
                f"config.json sets {name}, which is not an argument of the network", hint="do not use it"
            )
    if config.model_args.get("features_only") or config.model_args.get("in_chans", 3) != 3:
        raise IntegrityError(
            "config.json asks for feature maps, or for images without three channels: zoo needs one vector",
            hint="choose another model",
        )
    known = {field.name for field in fields(PretrainedCfg)} - {"url", "file", "state_dict", "source", "custom_load"}
    known -= {"hf_hub_id", "hf_hub_filename", "architecture"}
    shape = {key: value for key, value in config.pretrained_cfg.items() if key in known}
    with described_by_config("timm"):
        network: torch.nn.Module = timm.create_model(
            config.architecture, pretrained=False, pretrained_cfg=shape, **{**config.model_args, "num_classes": classes}
        )
    return network.eval()


def preprocess_of(config: TimmConfig, repository: "Repository") -> ImagePreprocess:
    """The preprocessing of timm's evaluation transform. Raises UsageError for an unsupported one."""
    from timm.data import resolve_data_config

    with described_by_config("timm"):
        data = resolve_data_config(pretrained_cfg=config.pretrained_cfg)
        channels, height, width = map(int, data["input_size"])
        data["crop_pct"] = float(data["crop_pct"])
    problem = (
        f"{channels} channels" if channels != 3
        else f"{height}x{width} pixels, which is not square" if height != width
        else f"crop mode {data['crop_mode']}" if data["crop_mode"] not in ("center", "squash")
        else f"{data['interpolation']} interpolation" if data["interpolation"] not in ("bilinear", "bicubic")
        else f"crop_pct {data['crop_pct']}" if not 0 < data["crop_pct"] <= 1
        else None
    )  # fmt: skip
    if problem:
        raise UsageError(
            f"{repository.origin} needs {problem}, which zoo does not support",
            hint="choose a variant with a square input, not padded, bilinear or bicubic",
        )
    return ImagePreprocess(
        resize=math.floor(height / data["crop_pct"]),
        crop=height,
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        squash=data["crop_mode"] == "squash",
    )


def _measure(config: TimmConfig) -> tuple[int, int]:
    """Returns the length of the feature vector and the number of parameters, from a run on the meta device."""
    import torch

    # A configuration whose shapes do not fit together only fails in a run.
    with described_by_config("timm"), torch.device("meta"), torch.inference_mode():
        network = create(config)
        size = config.pretrained_cfg.get("input_size") or (3, 224, 224)
        shape = network(torch.empty(2, *size)).shape
    if len(shape) != 2:
        raise UsageError(
            f"{config.architecture} gives {list(shape)}, not one vector for each image", hint="choose another"
        )
    return shape[1], sum(parameter.numel() for parameter in network.parameters())


def _require() -> None:
    require("the bridge timm/", "timm", "torch", "torchvision")


def _hub_name(name: str) -> str:
    """The repository of a model. Raises NotFoundError, with the nearest names, for an architecture unknown to timm."""
    from timm.models import get_pretrained_cfg, is_model

    if "/" in name:
        return name
    architecture, _, tag = name.partition(".")
    _check_architecture(architecture.lower())
    if not tag and is_model(architecture.lower()):
        default = get_pretrained_cfg(architecture.lower())
        if default is None or not default.hf_hub_id:
            raise NotFoundError(f"timm has no weights of {architecture} on the Hub", hint="choose another model")
        return str(default.hf_hub_id)
    return f"timm/{name}"


def _nearest(name: str) -> str | None:
    """A hint with the names of weights of timm that are nearest to `name`."""
    import difflib

    import timm

    known = timm.list_pretrained()
    near = [] if name.lower() in known else difflib.get_close_matches(name.lower(), known, n=3)
    return f"did you mean {' or '.join(f'timm/{each}' for each in near)}?" if near else None


def _check_architecture(name: str) -> None:
    """Raise NotFoundError unless timm has this architecture. A name with a colon would load a model from elsewhere."""
    import difflib

    import timm

    if timm.is_model(name):
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "python -c 'import timm; print(timm.list_models())'"
    raise NotFoundError(f"timm {timm.__version__} has no architecture '{name}'", hint=hint)


@hookimpl
def zoo_register_bridges() -> Iterable[type[Bridge]]:
    """The prefix of this module."""
    return [TimmBridge]


@hookimpl
def zoo_register_backbones() -> Iterable[type[Backbone]]:
    """The family of this module."""
    return [Timm]
