"""Images behind hf/ORG/NAME: encoders and classifiers of transformers, and the vision towers of CLIP and SigLIP.

The library (https://github.com/huggingface/transformers) builds the network from `config.json`, and renames the tensors
of older files. Code of a repository is never run: no configuration that names code reaches the library.

Features are the vector that the checkpoint's own classifier reads. Without a classifier they are the library's pooled
output; if the pooling has weights and the file lacks them, they are the normalised CLS token.
"""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo_plugins.bridges.hf.files import checkpoint_of, count_scores, parse_json
from zoo_plugins.bridges.hf.labels import head_of
from zoo_plugins.bridges.hf.library import HINT, Config, check_architecture, require_library, without_code
from zoo_plugins.bridges.hf.pixels import PROCESSORS, image_preprocess

from zoo.backbone import Backbone
from zoo.errors import IntegrityError, UsageError, quote
from zoo.hookspecs import hookimpl
from zoo.schema import Entry, ImagePreprocess
from zoo.torchkit import (
    TorchBackbone,
    check_scores,
    checkpoint_paths,
    described_by_config,
    head_shape,
    load_state,
    tensor_names,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoo.hub import Repository

#: Models of images and texts whose vision tower zoo uses.
COMBINED = frozenset({"altclip", "chinese_clip", "clip", "metaclip_2", "siglip"})
CLASSIFIER = "ForImageClassification"


class Network(NamedTuple):
    """A network with its weights: pixels -> features, and features -> logits if it has a classifier."""

    body: "nn.Module"
    head: "nn.Linear | None"


def is_of_images(config: Config, repository: "Repository") -> bool:
    """Whether a repository of transformers seems to hold a model of images rather than of texts."""
    return (
        any(key in config for key in ("image_size", "vision_config"))
        or any(path in repository.sizes for path in PROCESSORS)
        or _architecture(config).endswith(CLASSIFIER)
    )


def image_entry(name: str, repository: "Repository", config: Config) -> Entry:
    """The entry `name` of a model of images.

    Raises MissingExtraError, NotFoundError for an unknown architecture, UsageError for one that zoo does not support,
    and IntegrityError for a wrong configuration.
    """
    model_type = str(config.get("model_type"))
    _check_model_type(model_type, config, repository)
    preprocess = image_preprocess(repository, model_type)
    dim, params = _measure(config, preprocess.crop)
    is_classifier = _has_classifier(config)
    return Entry(
        name=name,
        family="transformers-images",
        task="image-features",
        description=f"{model_type} image {'classifier' if is_classifier else 'encoder'}, by transformers",
        license=repository.license,
        params=params,
        dim=dim,
        preprocess=preprocess,
        files=(repository.file("config.json"), *checkpoint_of(repository)),
        config={"arch": model_type},
        head=head_of(config, repository.origin, outputs=count_scores(repository)) if is_classifier else None,
        no_head=None if is_classifier else _no_head(config),
        origin=repository.origin,
    )


class TransformersImages(TorchBackbone):
    """The family `transformers-images`: the network that the row's `config.json` describes, and its classifier."""

    family = "transformers-images"

    @cached_property
    def network(self) -> Network:
        """The network with its weights. Raises MissingExtraError, IntegrityError for a wrong configuration or file."""
        require_library(self.family)
        config = parse_json((self.weights / "config.json").read_bytes(), "config.json", dict[str, Any])
        if config.get("model_type") != self.entry.config.get("arch"):
            raise IntegrityError(f"config.json describes {config.get('model_type')}", hint="pull the model again")
        paths = checkpoint_paths(self.entry, self.weights)
        model = create(config)
        rename = renaming(model)
        found = {rename(name) for name in tensor_names(paths)}
        _without_missing_pooler(model, found)
        wanted = set(model.state_dict())
        for name in _classifiers(model) if self.entry.head else ():
            # The layer has a score for each label of the configuration; the file may have another number.
            width = model.get_submodule(name).in_features
            check_scores(paths, name, (int(width), head_shape(self.entry)[1]))  # type: ignore[arg-type]
        load_state(paths, model, lambda name: each if (each := rename(name)) in wanted else None)
        assert isinstance(self.entry.preprocess, ImagePreprocess)
        return _split(model, self.entry.preprocess.crop)

    def build(self) -> "torch.nn.Module":
        """The network without its classifier."""
        return self.network.body

    def build_head(self) -> "torch.nn.Module":
        """The classifier, which is linear."""
        head = self.network.head
        assert self.entry.head is not None
        if head is None:
            raise IntegrityError("config.json describes a network without classifier", hint="pull the model again")
        return head


def create(config: Config) -> "torch.nn.Module":
    """The network of transformers with random weights: a classifier, an encoder, or the vision tower of a combined one.

    Keys of `config` that can name code are dropped.
    """
    from transformers import CONFIG_MAPPING, AutoModel, AutoModelForImageClassification

    plain = without_code(config)
    with described_by_config("transformers"):
        shape = CONFIG_MAPPING[plain["model_type"]].from_dict(plain)
        kind: Any = AutoModelForImageClassification if _has_classifier(config) else AutoModel
        if kind is AutoModel and plain["model_type"] in COMBINED:
            shape = shape.vision_config
        # Eager attention exports exactly.
        model: torch.nn.Module = kind.from_config(shape, attn_implementation="eager")
    return model.float().eval()


def renaming(model: "torch.nn.Module") -> Callable[[str], str]:
    """The function from a tensor's name in a file to its name in `model`, by transformers' own table of older names.

    Raises UsageError if transformers also changes tensors while it loads them.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    state: dict[str, Any] = model.state_dict()
    steps = get_model_conversion_mapping(model)  # type: ignore[arg-type]
    renames = [step for step in steps if isinstance(step, WeightRenaming)]
    others: list[Any] = [step for step in steps if not isinstance(step, WeightRenaming)]

    def rename(name: str) -> str:
        new, changes = rename_source_key(name, renames, others, model.base_model_prefix, state)  # type: ignore[arg-type]
        if changes is not None:
            raise UsageError(f"transformers changes the tensor {name} while it loads it; zoo does not", hint=HINT)
        return new

    return rename


def _split(model: "torch.nn.Module", side: int) -> Network:
    """The loaded model as a body and its linear classifier, which together give the logits of the model.

    Raises IntegrityError if they do not, because the installed transformers computes logits in another way.
    """
    import torch
    from torch import nn

    names = _classifiers(model)
    if not names:
        return Network(_pooled(model), None)
    pixels = torch.linspace(-1, 1, 3 * side * side).reshape(1, 3, side, side)
    with torch.inference_mode():
        wanted = model(pixel_values=pixels).logits
    layers: list[Any] = [model.get_submodule(name) for name in names]
    head = nn.Linear(sum(layer.in_features for layer in layers), layers[0].out_features)
    with torch.no_grad():
        # transformers takes the mean of two classifiers (that of a distilled DeiT, and its teacher's).
        head.weight.copy_(torch.cat([layer.weight for layer in layers], 1) / len(layers))
        biases = [layer.bias for layer in layers if layer.bias is not None]
        head.bias.copy_(sum(biases, torch.zeros(head.out_features)) / len(layers))
    body = _without_classifiers(model)
    with torch.inference_mode():
        gap = float((head(body(pixels)) - wanted).abs().max())
    if not gap <= 1e-4 * max(1.0, float(wanted.abs().max())):
        raise IntegrityError(f"the classifier {names[0]} is not the last layer of the network", hint=HINT)
    return Network(body, head.eval().requires_grad_(False))


def _without_classifiers(model: "torch.nn.Module") -> "nn.Module":
    """The classifier `model` with placeholders in place of its linear layers: pixels -> the vectors that they read."""
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

    names = _classifiers(model)
    widths = [int(model.get_submodule(name).in_features) for name in names]  # type: ignore[arg-type]

    class Placeholder(nn.Module):
        """The placeholder of one classifier: its input, between zeros in the places of the other classifiers' inputs.

        transformers takes the mean over classifiers. Each input is multiplied by their number, so that the mean is the
        inputs joined to one vector.
        """

        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            self.sides = before, after

        def forward(self, vector: torch.Tensor) -> torch.Tensor:
            return vector if self.sides == (0, 0) else len(names) * F.pad(vector, self.sides)

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.model(pixel_values=pixels).logits
            return features

    for index, name in enumerate(names):
        model.set_submodule(name, Placeholder(sum(widths[:index]), sum(widths[index + 1 :])))
    return Body().eval()


def _pooled(model: "torch.nn.Module") -> "nn.Module":
    """The encoder `model` with one vector for each image: its pooled output, else its CLS token."""
    import torch
    from torch import nn

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            output = self.model(pixel_values=pixels)
            pooled: torch.Tensor | None = getattr(output, "pooler_output", None)
            if pooled is not None:
                return pooled.flatten(1)
            # Without a CLS token these are features of many places, which no caller accepts.
            hidden: torch.Tensor = output.last_hidden_state
            return hidden[:, 0] if has_cls else hidden

    has_cls = any(name.endswith(("cls_token", "class_embedding")) for name in model.state_dict())
    return Pooled().eval()


def _classifiers(model: "torch.nn.Module") -> list[str]:
    """The names of the linear layers outside of the encoder: one, or two of which transformers takes the mean."""
    from torch import nn
    from transformers import PreTrainedModel

    def walk(module: nn.Module, prefix: str) -> Iterable[str]:
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                yield prefix + name
            elif not isinstance(child, PreTrainedModel):
                yield from walk(child, f"{prefix}{name}.")

    return list(walk(model, "")) if type(model).__name__.removesuffix("WithTeacher").endswith(CLASSIFIER) else []


def _without_missing_pooler(model: "torch.nn.Module", found: set[str]) -> None:
    """Remove the pooler of an encoder if the checkpoint has no weights for it."""
    pooler = getattr(model, "pooler", None)
    names = [f"pooler.{name}" for name in pooler.state_dict()] if pooler is not None else []
    if names and not any(name in found for name in names):
        model.pooler = None  # type: ignore[assignment]


def _measure(config: Config, side: int) -> tuple[int, int]:
    """Returns the length of the feature vector and the number of parameters, from a run on the meta device."""
    import torch

    with described_by_config("transformers"), torch.device("meta"), torch.inference_mode():
        model = create(config)
        params = sum(parameter.numel() for parameter in model.parameters())
        body = _without_classifiers(model) if _classifiers(model) else _pooled(model)
        _empty_caches(model)
        shape = body(torch.empty(2, 3, side, side)).shape
        _empty_caches(model)
    if len(shape) != 2:
        raise UsageError(f"{config['model_type']} gives no single vector for each image", hint=HINT)
    return shape[1], params


def _empty_caches(model: "torch.nn.Module") -> None:
    """Empty the caches of the network's classes: BEiT keeps tensors, which have no values on the meta device."""
    for kind in {type(module) for module in model.modules()}:
        for member in vars(kind).values():
            for cell in getattr(getattr(member, "__func__", member), "__closure__", None) or ():
                if hasattr(cell.cell_contents, "cache_clear"):
                    cell.cell_contents.cache_clear()


def _architecture(config: Config) -> str:
    """The class of the model that was saved, "" if it is not known."""
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""


def _has_classifier(config: Config) -> bool:
    """Whether the checkpoint has an image classifier that the installed transformers knows."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSES

    known = CLASSES.get(str(config.get("model_type")), ())
    return _architecture(config) in ((known,) if isinstance(known, str) else known)


def _no_head(config: Config) -> str:
    """The reason why an entry has no head."""
    architecture = _architecture(config)
    if "For" not in architecture:
        return "the weights are an encoder without a classifier"
    return f"zoo does not export the head of {architecture}"


def _check_model_type(model_type: str, config: Config, repository: "Repository") -> None:
    """Raise an error of one line unless the installed transformers can build the image encoder."""
    if model_type == "timm_wrapper":
        raise UsageError(f"{repository.origin} is a model of timm", hint="zoo pull timm/NAME")
    if model_type == "vit_mae":
        raise UsageError(f"{repository.origin}: vit_mae leaves out random parts of every image", hint=HINT)
    check_architecture(model_type, config, repository, TransformersImages.family)
    if "vision_config" in config and model_type not in COMBINED:
        raise UsageError(f"{repository.origin}: zoo has no images of the architecture {quote(model_type)}", hint=HINT)


@hookimpl
def zoo_register_backbones() -> Iterable[type[Backbone]]:
    """The family of this module."""
    return [TransformersImages]
