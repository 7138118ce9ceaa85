"""Deeper fine-tuning: a frozen trunk, the last stages tuned in torch, and one graph of both in the end.

A trunk is the first stages of a backbone, built by `zoo.export.build` as features graphs are: one gated ONNX file with
the preprocessing in front, whose outputs are the tensors that the tail takes. The tail, the remaining stages, is a copy
that may be trained; the trunk, and whatever parameters both share, stay what they were.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.backbone import Backbone
from zoo.bundle import Bundle
from zoo.errors import PluginError
from zoo.export import trunk
from zoo.graph import edit, external_data
from zoo.schema import FEATURES, PIXELS, Entry, ExportOptions, TensorSpec
from zoo.torchkit import check_cut, export_module, load_state, positional, run_stages, tensors_at

if TYPE_CHECKING:
    import onnx
    import torch

    from zoo.backbone import TensorMap
    from zoo.export.reference import Reference


#: A bundle's file with the parameters of the stages that were trained.
TAIL_FILE = "tail.safetensors"
#: What the inner names of the graphs begin with: unlike any other part's, so that they can be joined.
NAME, TAIL_NAME = "trunk", "tail"


def cut_at(backbone: Backbone, unfreeze: int) -> int:
    """How many stages stay frozen when the last `unfreeze` are trained.

    Raises UsageError, with the number that is possible, where so many cannot be.
    """
    stages = len(backbone.stages())
    check_cut(backbone.entry.family, stages, stages - unfreeze)
    return stages - unfreeze


def tail(backbone: Backbone, cut: int) -> "torch.nn.ModuleList":
    """A copy of the stages from `cut` on, in eval mode, its parameters ready to be trained.

    Parameters that several stages of the tail share are shared in the copy; what they share with the trunk is not.
    """
    import copy

    from torch import nn

    stages = backbone.stages()
    check_cut(backbone.entry.family, len(stages), cut)
    return copy.deepcopy(nn.ModuleList(stages[cut:])).requires_grad_(True)


def computed(backbone: Backbone, cut: int) -> tuple[TensorSpec, ...]:
    """What a trunk gives: the tensors that stage `cut` takes, but for those that are inputs.

    Raises PluginError where pictures travel along: they are far too large to be kept beside activations.
    """
    inputs = {spec.name for spec in backbone.entry.inputs}
    specs = tensors_at(backbone, cut)
    if PIXELS in {spec.name for spec in specs}:
        family = backbone.entry.family
        raise PluginError("a later stage takes the pixels: what it needs of them is an activation", plugin=family)
    return tuple(spec for spec in specs if spec.name not in inputs)


def reference(backbone: Backbone, cut: int) -> "Reference":
    """The frozen stages in torch, for the gate of the trunk's graph."""

    def run(feeds: "TensorMap") -> "TensorMap":
        import torch

        with torch.inference_mode():
            tensors = run_stages(backbone.stages()[:cut], _tensors(feeds))
        return {name: tensor.numpy() for name, tensor in tensors.items() if name not in feeds}

    return run


def tuned_reference(backbone: Backbone, stages: "Sequence[torch.nn.Module]") -> "Reference":
    """Features by the frozen stages and then the tuned ones, the last of the backbone, in torch: for the gate.

    They are copied to the CPU as they are now, in eval mode.
    """
    frozen = backbone.stages()[: len(backbone.stages()) - len(stages)]
    tuned = _settled(stages)

    def run(feeds: "TensorMap") -> "TensorMap":
        import torch

        with torch.inference_mode():
            tensors = run_stages([*frozen, *tuned], _tensors(feeds))
        return {FEATURES: tensors[FEATURES].numpy()}

    return run


def export_tail(
    path: Path,
    stages: "Sequence[torch.nn.Module]",
    backbone: Backbone,
    options: ExportOptions | None = None,
) -> None:
    """Write the last stages of a backbone as ONNX, from the tensors that the first of them takes to `features`.

    They are copied to the CPU as they are now, in eval mode. Raises PluginError when the graph breaks its contract.
    """
    entry, options = backbone.entry, options or ExportOptions()
    inputs = tensors_at(backbone, len(backbone.stages()) - len(stages))
    module = positional(list(_settled(stages)), [spec.name for spec in inputs], [FEATURES])
    export_module(module.eval(), path, inputs, [FEATURES], options)
    body = edit.clean(edit.load(path), TAIL_NAME)
    check_contract(body, entry, inputs, (TensorSpec(name=FEATURES, dtype="float32", shape=("batch", entry.dim)),))
    edit.save(body, path)


def merge(
    base: Bundle,
    tail: Path | None,
    path: Path,
    *,
    head: "onnx.ModelProto | None" = None,
    facts: Mapping[str, str],
) -> "onnx.ModelProto":
    """Write the whole chain at `path` and return it: the trunk `base`, what `export_tail` wrote at `tail`, the `head`.

    Without `tail` `base` is a features bundle. `facts` become the model's metadata. Files of external data are copied
    beside `path`. The outputs are `features`, and the head's; the cut after the preprocessing stays declared.
    """
    import onnx

    data = base.read_model()
    external_data.copy(data, base.path, path.parent)
    whole = onnx.load_from_string(data)
    if tail is not None:
        whole = edit.join(whole, edit.load(tail))
    if head is not None:
        whole = edit.join(whole, head, keep=[FEATURES])
    edit.describe(whole, facts)
    edit.save(whole, path)
    return whole


def save_tail(stages: "Sequence[torch.nn.Module]", path: Path) -> None:
    """Write every parameter and buffer of the stages as safetensors: `0.inner.weight`, ... by the stage's place."""
    from safetensors.torch import save as to_bytes
    from torch import nn

    state = nn.ModuleList(stages).state_dict()
    # What two stages share is stored for each of them: the format has no references.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    path.write_bytes(to_bytes(tensors))


def load_tail(path: Path, stages: "Sequence[torch.nn.Module]") -> None:
    """Fill the stages with what `save_tail` wrote, on the device where they are; modes and gradients stay as they are.

    Raises IntegrityError for a file that is none, and for tensors that are missing, too many, of another type or shape,
    or not finite.
    """
    from torch import nn

    module = nn.ModuleList(stages)
    modes = [(part, part.training) for part in module.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        load_state(path, module)
    finally:
        for part, training in modes:
            part.training = training
        for parameter, gradient in wanted:
            parameter.requires_grad_(gradient)


def check_contract(
    body: "onnx.ModelProto", entry: Entry, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Raise PluginError unless the graph's inputs and outputs are these, whatever it calls axes of any length."""
    given = edit.tensor_specs(body)
    for what, declared, found in zip(("inputs", "outputs"), (inputs, outputs), given, strict=True):
        if [(spec.name, spec.dtype, _kinds(spec)) for spec in declared] != [
            (spec.name, spec.dtype, _kinds(spec)) for spec in found
        ]:
            shown = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in found)
            raise PluginError(
                f"the family {entry.family} exported the {what} {shown}, the row {entry.name} declares others",
                plugin=entry.family,
            )


def _kinds(spec: TensorSpec) -> tuple[int | None, ...]:
    """Fixed sizes as they are, None for an axis of any length, whatever it is called."""
    return tuple(axis if isinstance(axis, int) else None for axis in spec.shape)


def _tensors(feeds: "TensorMap") -> "dict[str, torch.Tensor]":
    import numpy as np
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}


def _settled(stages: "Sequence[torch.nn.Module]") -> "torch.nn.ModuleList":
    import copy

    from torch import nn

    return copy.deepcopy(nn.ModuleList(stages)).cpu().float().eval().requires_grad_(False)


def reference_of(bundle: Bundle, backbone: Backbone) -> "Reference":
    """The arithmetic that a bundle must equal: the family's own, with the stages that the bundle has tuned."""
    if not bundle.manifest.unfrozen:
        return backbone.reference
    bundle.check(trunk.TAIL_FILE)
    stages = list(trunk.tail(backbone, trunk.cut_at(backbone, bundle.manifest.unfrozen)))
    trunk.load_tail(bundle.path / trunk.TAIL_FILE, stages)
    return tuned_reference(backbone, stages)
