"""The base class of families written in torch: a family implements `build`, the base class exports and runs it.

torch is imported inside the methods, so a plugin that subclasses TorchBackbone can be imported without it.
"""

import gc
import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from inspect import Parameter, signature
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.backbone import Backbone
from zoo.checkpoint import (
    SHARD_INDEX,
    check_scores,
    checkpoint_paths,
    load_linear,
    load_state,
    parse_shards,
    tensor_names,
)
from zoo.data.labels import count_outputs, imagenet
from zoo.errors import IntegrityError, PluginError, UsageError, ZooError, brief
from zoo.extras import TRAINING, require
from zoo.schema import FEATURES, SCORES, Activation, Entry, ExportOptions, TensorSpec

if TYPE_CHECKING:
    import torch

    from zoo.backbone import TensorMap

__all__ = [
    "SHARD_INDEX", "TorchBackbone", "activated", "as_stage", "chain", "check_cut", "check_scores", "checkpoint_paths",
    "cut", "described_by_config", "export_module", "head_shape", "imagenet", "load_linear", "load_state",
    "parse_shards", "positional", "run_stages", "tensor_names", "tensors_at", "threads",
]  # fmt: skip

#: Example lengths of dynamic axes; torch.export would make the lengths 0 and 1 constants of the graph.
EXAMPLE_AXES = {"batch": 2, "sequence": 9}
#: Lengths of a second example: an axis of a tensor whose length changes between the examples is a dynamic axis.
LONGER_AXES = {"batch": 3, "sequence": 11}
#: A reference with fewer parameters runs on one thread. Parity needs about ten images: a second thread gains little on
#: an idle machine, and on a busy one two threads that synchronise at every layer take ten times as long as one.
ONE_THREAD_PARAMS = 100_000_000


@contextmanager
def threads(count: int) -> Iterator[None]:
    """A context in which torch computes on `count` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TorchBackbone(Backbone):
    """A backbone written in torch: subclasses set `family` and write `build`."""

    @abstractmethod
    def build(self) -> "torch.nn.Module":
        """The module with the original weights, in eval mode and float32.

        Its forward takes the tensors `entry.inputs`, by name and order, and returns features [batch, dim].
        """

    def build_head(self) -> "torch.nn.Module":
        """The head that `entry.head` describes: takes features [batch, dim], returns logits [batch, outputs].

        Called only if `entry.head` is set. See `load_linear`.
        """
        raise PluginError(
            f"the row {self.entry.name} has a head, but the family has no build_head()",
            plugin=self.family,
            hint="remove `head` from the row, or write build_head()",
        )

    def with_head(self) -> "torch.nn.Module":
        """The module that takes the tensors `entry.inputs` and returns features and logits.

        A family overrides this method if the head reads other tensors than the features.
        """
        return _then_head(self.module, self.build_head())

    @cached_property
    def module(self) -> "torch.nn.Module":
        """The built module, kept for repeated reference runs."""
        require(f"the family {self.family}", *TRAINING)
        return self.build()

    @cached_property
    def whole(self) -> "torch.nn.Module":
        """The module with its head and activation: takes the tensors `entry.inputs`, returns features and scores."""
        require(f"the family {self.family}", *TRAINING)
        assert self.entry.head is not None
        return activated(self.with_head(), self.entry.head.activation).eval().requires_grad_(False)

    def load(self) -> bool:
        """Build the module. Returns True: only building draws numbers from torch's shared random generator."""
        return (self.module if self.entry.head is None else self.whole) is not None

    def stages(self) -> "Sequence[torch.nn.Module]":
        """The module as consecutive stages, earliest first; `--unfreeze N` trains the last N of them.

        Each stage maps a dict of named tensors [batch, ...] to another. The first takes `entry.inputs`, the last
        returns `features`, and run in order they compute the same as the module. Tensors that only later stages need,
        such as a text's attention mask, are passed on in the dict. Stages share the module's parameters. By default
        the whole module is one stage, and only a head can be trained.
        """
        return [as_stage(self.module, [spec.name for spec in self.entry.inputs], output="features")]

    def reference(self, feeds: "TensorMap") -> "TensorMap":
        """Features of the module in torch, and the scores of its head if any, for numpy inputs named as in the row."""
        import numpy as np
        import torch

        arguments = [torch.from_numpy(np.ascontiguousarray(feeds[spec.name])) for spec in self.entry.inputs]
        with torch.inference_mode(), threads(1 if self.entry.params < ONE_THREAD_PARAMS else torch.get_num_threads()):
            if self.entry.head is None:
                return {FEATURES: self.module(*arguments).numpy()}
            features, scores = self.whole(*arguments)
            return {FEATURES: features.numpy(), SCORES: scores.numpy()}

    def export(self, path: Path, options: ExportOptions) -> None:
        """Write the module with torch's dynamo exporter, weights inside the file, axes named as in `entry.inputs`.

        With `options.cut` only that number of first stages is exported. The graph's outputs are the tensors that the
        next stage takes, without inputs that are passed on unchanged. With `options.head` the scores of the head are
        the second output. Raises UsageError for an impossible cut.
        """
        module, outputs = (self.whole, [FEATURES, SCORES]) if options.head else (self.module, [FEATURES])
        if options.cut is not None:
            names = [spec.name for spec in self.entry.inputs]
            outputs = [spec.name for spec in tensors_at(self, options.cut) if spec.name not in names]
            module = positional(self.stages()[: options.cut], names, outputs)
        export_module(module, path, self.entry.inputs, outputs, options)


def activated(module: "torch.nn.Module", activation: Activation) -> "torch.nn.Module":
    """`module`, which returns features and logits, with `activation` over the last axis of the logits."""
    import torch
    from torch import nn

    class Activated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features, logits = self.inner(*inputs)
            functions = {"softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid, "identity": torch.clone}
            return features, functions[activation](logits)

    return Activated()


def head_shape(entry: Entry) -> tuple[int, int]:
    """The lengths of the features and of the scores of a row with a head: the shape of a linear classifier."""
    assert entry.head is not None
    return entry.dim, count_outputs(entry.head)


def _then_head(body: "torch.nn.Module", head: "torch.nn.Module") -> "torch.nn.Module":
    """The module that returns the features of `body` and the logits that `head` computes from them."""
    import torch
    from torch import nn

    class WithHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = body, head

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features = self.body(*inputs)
            return features, self.head(features)

    return WithHead()


def tensors_at(backbone: Backbone, cut: int) -> tuple[TensorSpec, ...]:
    """The tensors between stage `cut` - 1 and stage `cut`, which are cached when the first `cut` stages are frozen.

    Raises UsageError for an impossible cut, PluginError for a tensor without a batch axis and for a stage that returns
    another tensor under the name of an input.
    """
    import torch

    stages, inputs = backbone.stages(), backbone.entry.inputs
    check_cut(backbone.entry.family, len(stages), cut)
    answers: list[dict[str, torch.Tensor]] = []
    for axes in (EXAMPLE_AXES, LONGER_AXES):
        given = {spec.name: _example(spec, axes) for spec in inputs}
        with torch.inference_mode():
            answers.append(run_stages(stages[:cut], given))
        if changed := [name for name, tensor in answers[-1].items() if name in given and tensor is not given[name]]:
            raise PluginError(
                f"a stage changes the input {changed[0]}",
                plugin=backbone.entry.family,
                hint="let the stage return a new tensor",
            )
    first, second = answers
    return tuple(_named_axes(name, first[name], second[name], backbone.entry.family) for name in first)


def check_cut(family: str, stages: int, cut: int) -> None:
    """Raise UsageError unless at least one stage lies on either side of `cut`; the hint has the largest number."""
    if 0 < cut < stages:
        return
    if stages < 2:
        raise UsageError(f"the family {family} has no stages: only a head can be trained on it", hint="--unfreeze 0")
    raise UsageError(
        f"{stages - cut} of {stages} stages cannot be unfrozen: at least one must be trained and one frozen",
        hint=f"--unfreeze {stages - 1} or less",
    )


def run_stages(stages: "Iterable[torch.nn.Module]", tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The tensors that the last stage returns when all stages run in order, the first one on `tensors`."""
    for stage in stages:
        tensors = stage(tensors)
    return tensors


def positional(stages: "Sequence[torch.nn.Module]", inputs: Sequence[str], outputs: Sequence[str]) -> "torch.nn.Module":
    """Consecutive stages as one module that takes the tensors `inputs` and returns `outputs`, both in that order."""
    import torch
    from torch import nn

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList(stages)

        def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
            tensors = run_stages(self.stages, dict(zip(inputs, arguments, strict=True)))
            return tuple(tensors[name] for name in outputs)

    return Chain()


def export_module(
    module: "torch.nn.Module", path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[str], options: ExportOptions
) -> None:
    """Write `module`, which takes the tensors `inputs` in that order, as one ONNX file with dynamic axes."""
    import torch

    arguments = tuple(_example(spec, EXAMPLE_AXES) for spec in inputs)
    axes: tuple[object, ...] = tuple(
        {index: axis for index, axis in enumerate(spec.shape) if isinstance(axis, str)} for spec in inputs
    )
    kinds = [parameter.kind for parameter in signature(module.forward).parameters.values()]
    if Parameter.VAR_POSITIONAL in kinds:
        # Arguments that are taken as *rest are one argument with several parts.
        first = kinds.index(Parameter.VAR_POSITIONAL)
        axes = (*axes[:first], axes[first:]) if axes[first:] else axes
    with _exporter_settings(), torch.inference_mode():
        program = torch.onnx.export(
            module,
            arguments,
            input_names=[spec.name for spec in inputs],
            # "embedding" is not possible: the exporter gives that name to values of aten.embedding.
            output_names=list(outputs),
            dynamic_shapes=axes,
            opset_version=options.opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)


@contextmanager
def described_by_config(library: str) -> Iterator[None]:
    """A context that turns every error of `library`, which builds a network from a config.json, into IntegrityError."""
    try:
        yield
    except (ZooError, ImportError, MemoryError):
        raise
    except Exception as error:
        # Libraries raise all kinds of errors for a wrong number.
        reason = f"{type(error).__name__}: {brief(str(error))}"
        raise IntegrityError(
            f"config.json does not describe a network that {library} can build: {reason}", hint="choose another model"
        ) from error


def as_stage(
    module: "torch.nn.Module", inputs: Sequence[str], *, output: str, keep: Sequence[str] = ()
) -> "torch.nn.Module":
    """`module` as a stage, which passes the tensors `inputs` to the module and names its result `output`.

    The tensors `keep` are passed on unchanged and all others dropped, so that no unneeded tensor is cached.
    """
    from torch import nn

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
            kept = {name: tensors[name] for name in keep}
            return {**kept, output: self.inner(*(tensors[name] for name in inputs))}

    return Stage()


def cut(network: "torch.nn.Module", starts: Sequence[str]) -> "list[torch.nn.Module]":
    """A Sequential as consecutive parts: the children named `starts` begin the second and later parts."""
    from torch import nn

    assert isinstance(network, nn.Sequential)
    names = [name for name, _ in network.named_children()]
    bounds = [0, *(names.index(start) for start in starts), len(names)]
    return [network[first:end] for first, end in pairwise(bounds)]


def chain(parts: "Sequence[torch.nn.Module]") -> "list[torch.nn.Module]":
    """Consecutive parts of an image network as stages, from `pixels` by way of `activations` to `features`."""
    names = ["pixels", *["activations"] * (len(parts) - 1), "features"]
    return [as_stage(part, [takes], output=gives) for part, (takes, gives) in zip(parts, pairwise(names), strict=True)]


def _named_axes(name: str, one: "torch.Tensor", other: "torch.Tensor", family: str) -> TensorSpec:
    """The spec of a tensor from its values for the two examples: an axis that grew is a dynamic axis."""
    names = {(EXAMPLE_AXES[axis], LONGER_AXES[axis]): axis for axis in EXAMPLE_AXES}
    pairs = list(zip(one.shape, other.shape, strict=True))
    shape = tuple(pair[0] if pair[0] == pair[1] else names.get(pair, "?") for pair in pairs)
    if shape[:1] != ("batch",) or "?" in shape or shape.count("sequence") > 1:
        expected = "the first must be the batch, and of the others at most one the sequence"
        raise PluginError(
            f"a stage gives {name} the axes {list(shape)}: {expected}",
            plugin=family,
            hint="see stages() in docs/plugins.md",
        )
    return TensorSpec(name=name, dtype=str(one.dtype).removeprefix("torch."), shape=shape)


def _example(spec: TensorSpec, axes: Mapping[str, int]) -> "torch.Tensor":
    import torch

    shape = [axes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return torch.ones(shape, dtype=dtype)


@contextmanager
def _exporter_settings() -> Iterator[None]:
    """A context without warnings of torch's exporter about its own code, and without garbage collection.

    A trace makes millions of small objects that stay alive until its end. Searching them for garbage takes a sixth of
    the time of an export.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    is_collecting = gc.isenabled()
    gc.disable()
    with warnings.catch_warnings(action="ignore"):
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
            if is_collecting:
                gc.enable()
