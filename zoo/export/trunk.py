"""A backbone cut in two for fine-tuning its last stages: the frozen trunk, and the tail, which is trained in torch.

The trunk holds the first stages. `zoo.export.build` builds it like a features graph: one checked ONNX file with the
preprocessing in front. Its outputs are the inputs of the tail. The tail is a copy of the remaining stages, so training
does not change the trunk, even if trunk and tail share parameters.
"""

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zoo.backbone import Backbone
from zoo.bundle import Bundle
from zoo.data.labels import count_outputs
from zoo.errors import PluginError
from zoo.graph import edit, external_data
from zoo.schema import FEATURES, PIXELS, PRETRAINED, SCORES, Entry, ExportOptions, TensorSpec
from zoo.torchkit import check_cut, export_module, load_state, positional, run_stages, tensors_at

if TYPE_CHECKING:
    import onnx
    import torch

    from zoo.backbone import TensorMap
    from zoo.export.reference import Reference


#: The file of a bundle with the parameters of the trained stages.
TAIL_FILE = "tail.safetensors"
#: Names of the two graphs. Inner names of a graph begin with its name, so names do not clash when graphs are joined.
NAME, TAIL_NAME = "trunk", "tail"


def cut_at(backbone: Backbone, unfreeze: int) -> int:
    """The number of stages that stay frozen when the last `unfreeze` are trained. Raises UsageError for too many."""
    stages = len(backbone.stages())
    check_cut(backbone.entry.family, stages, stages - unfreeze)
    return stages - unfreeze


def tail(backbone: Backbone, cut: int) -> "torch.nn.ModuleList":
    """A copy of the stages from `cut` on, in eval mode, with parameters ready to be trained.

    Parameters that stages of the tail share stay shared in the copy; those shared with the trunk do not.
    """
    from torch import nn

    stages = backbone.stages()
    check_cut(backbone.entry.family, len(stages), cut)
    return copy.deepcopy(nn.ModuleList(stages[cut:])).requires_grad_(True)


def output_specs(backbone: Backbone, cut: int) -> tuple[TensorSpec, ...]:
    """The outputs of a trunk: the tensors that stage `cut` takes, without those that are inputs of the model.

    Raises PluginError if stage `cut` takes the pixels, which are too large for the activation cache.
    """
    inputs = {spec.name for spec in backbone.entry.inputs}
    specs = tensors_at(backbone, cut)
    if PIXELS in {spec.name for spec in specs}:
        raise PluginError(
            "a stage after the cut reads the pixels: an earlier stage must compute the tensors that it needs",
            plugin=backbone.entry.family,
        )
    return tuple(spec for spec in specs if spec.name not in inputs)


def reference(backbone: Backbone, cut: int) -> "Reference":
    """A function that runs the frozen stages in torch, for the parity check of the trunk's graph."""
    frozen = backbone.stages()[:cut]
    return lambda feeds: {name: array for name, array in _run(frozen, feeds).items() if name not in feeds}


def tuned_reference(backbone: Backbone, stages: "Sequence[torch.nn.Module]") -> "Reference":
    """A function that computes features in torch, by the frozen and then the tuned `stages`, for the parity check.

    `stages` are the last of the backbone. They are copied to the CPU in their present state, in eval mode.
    """
    together = [*backbone.stages()[: len(backbone.stages()) - len(stages)], *_frozen_copy(stages)]
    return lambda feeds: {FEATURES: _run(together, feeds)[FEATURES]}


def reference_of(bundle: Bundle, backbone: Backbone) -> "Reference":
    """The reference of a bundle in torch: the family's own code, with the bundle's tuned stages if it has any."""
    if bundle.manifest.head == PRETRAINED:
        return backbone.reference
    if not bundle.manifest.unfrozen:
        return only_features(backbone.reference)
    bundle.check(TAIL_FILE)
    stages = list(tail(backbone, cut_at(backbone, bundle.manifest.unfrozen)))
    load_tail(bundle.path / TAIL_FILE, stages)
    return tuned_reference(backbone, stages)


def only_features(reference: "Reference") -> "Reference":
    """A function that computes the features of `reference`, without the scores of the original model's head."""
    return lambda feeds: {FEATURES: reference(feeds)[FEATURES]}


def export_tail(path: Path, stages: "Sequence[torch.nn.Module]", backbone: Backbone) -> None:
    """Write `stages`, the last of a backbone, as ONNX: from the tensors that the first stage takes to `features`.

    The stages are copied to the CPU in their present state, in eval mode. Raises PluginError for a graph with other
    inputs or outputs.
    """
    entry = backbone.entry
    inputs = tensors_at(backbone, len(backbone.stages()) - len(stages))
    module = positional(list(_frozen_copy(stages)), [spec.name for spec in inputs], [FEATURES])
    export_module(module.eval(), path, inputs, [FEATURES], ExportOptions())
    body = edit.clean(edit.load(path), TAIL_NAME)
    check_contract(body, entry, inputs, (features_spec(entry),))
    edit.save(body, path)


def merge(
    base: Bundle, tail: Path | None, path: Path, *, head: "onnx.ModelProto", facts: Mapping[str, str]
) -> "onnx.ModelProto":
    """Write the whole model at `path` and return it: `base`, then the file of `export_tail` at `tail`, then the `head`.

    `base` is a trunk; without `tail` it is a features bundle, whose own head is left out. `facts` become the model's
    metadata. Files of external data are copied beside `path`. The outputs are `features` and those of the head.
    """
    import onnx

    data = base.read_model()
    for name in external_data.file_names(data):
        shutil.copyfile(base.path / name, path.with_name(name), follow_symlinks=False)
    whole = without_scores(onnx.load_from_string(data))
    if tail is not None:
        whole = edit.join(whole, edit.load(tail))
    whole = edit.join(whole, head, keep=[FEATURES])
    edit.describe(whole, facts)
    edit.save(whole, path)
    return whole


def without_scores(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The model without the head that came with the weights."""
    if SCORES not in {item.name for item in model.graph.output}:
        return model
    inputs = [item.name for item in model.graph.input]
    kept = edit.extract(model, inputs, [item.name for item in model.graph.output if item.name != SCORES])
    # A later cut needs the declared shapes of inner tensors.
    kept.graph.value_info.extend(model.graph.value_info)
    return kept


def save_tail(stages: "Sequence[torch.nn.Module]", path: Path) -> None:
    """Write every parameter and buffer of the stages as safetensors; names begin with the stage's index (`0.bias`)."""
    from safetensors.torch import save as to_bytes
    from torch import nn

    state = nn.ModuleList(stages).state_dict()
    # A shared tensor is stored once for each of its names, because the format has no references.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    path.write_bytes(to_bytes(tensors))


def load_tail(path: Path, stages: "Sequence[torch.nn.Module]") -> None:
    """Load the file that `save_tail` wrote into the stages, on their device; modes and gradients do not change.

    Raises IntegrityError for a file that is not safetensors, and for tensors that are missing, superfluous, not finite,
    or of another type or shape.
    """
    from torch import nn

    module = nn.ModuleList(stages)
    module.load_state_dict(load_state(path, copy.deepcopy(module)).state_dict())


def check_contract(
    body: "onnx.ModelProto", entry: Entry, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Raise PluginError unless the graph has these inputs and outputs; names of dynamic axes may differ."""
    given = edit.tensor_specs(body)
    for what, declared, found in zip(("inputs", "outputs"), (inputs, outputs), given, strict=True):
        if list(map(_fixed, declared)) != list(map(_fixed, found)):
            shown = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in found)
            raise PluginError(
                f"the family {entry.family} exported the {what} {shown}, but the row {entry.name} declares others",
                plugin=entry.family,
            )


def features_spec(entry: Entry) -> TensorSpec:
    """The specification of a row's features."""
    return TensorSpec(name=FEATURES, dtype="float32", shape=("batch", entry.dim))


def answer_specs(entry: Entry) -> tuple[TensorSpec, ...]:
    """The outputs of a row's whole graph: features, and the scores of its head if it has one."""
    if entry.head is None:
        return (features_spec(entry),)
    return features_spec(entry), TensorSpec(name=SCORES, dtype="float32", shape=("batch", count_outputs(entry.head)))


def _fixed(spec: TensorSpec) -> TensorSpec:
    """`spec` without the names of dynamic axes."""
    return msgspec.structs.replace(spec, shape=tuple(axis if isinstance(axis, int) else "" for axis in spec.shape))


def _run(stages: "Sequence[torch.nn.Module]", feeds: "TensorMap") -> "TensorMap":
    import numpy as np
    import torch

    with torch.inference_mode():
        inputs = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}
        return {name: tensor.numpy() for name, tensor in run_stages(stages, inputs).items()}


def _frozen_copy(stages: "Sequence[torch.nn.Module]") -> "torch.nn.ModuleList":
    from torch import nn

    return copy.deepcopy(nn.ModuleList(stages)).cpu().float().eval().requires_grad_(False)
