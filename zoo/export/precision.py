"""Converts a model to another precision: fp16 for GPUs, int8 for CPUs (static QDQ for images).

Only the backbone, from the prepared input to the features, is converted. Preprocessing and head are cheap and stay
exact. onnxruntime's own converters are used (onnxruntime.transformers.float16, onnxruntime.quantization).
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from zoo.data.items import Skip
from zoo.export import precision_images, precision_texts
from zoo.graph import edit, fuse, pooling
from zoo.runtime.device import onnxruntime
from zoo.runtime.ort import create_session
from zoo.schema import FEATURES, IMAGE, PIXELS, SCORES

if TYPE_CHECKING:
    from zoo.backbone import TensorMap

#: Operators that are quantised: they lose little accuracy and do most of a CNN's work.
QUANTISED = ["Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "AveragePool", "MaxPool", "GlobalAveragePool", "Concat"]
#: Operators with weights, whose nodes may be left in float.
LAYERS = ("Conv", "Gemm", "MatMul")
#: The input of the graph of `_with_switches` that selects the quantised layers.
SWITCHES = "switches"
#: Batches over which the errors of rounded weights are averaged.
CORRECTED = 32


class Parts(NamedTuple):
    """A model cut in three: images to pixels, pixels (or token ids) to features, features to scores.

    A head that came with the weights may read other tensors than the features; it then belongs to the body.
    """

    prefix: onnx.ModelProto | None
    body: onnx.ModelProto
    head: onnx.ModelProto | None


def split_parts(model: onnx.ModelProto) -> Parts:
    """The model cut at the end of its preprocessing and at the start of its head."""
    inputs = [item.name for item in model.graph.input]
    outputs = [item.name for item in model.graph.output]
    prefix = edit.extract(model, [IMAGE], [PIXELS]) if IMAGE in inputs else None
    starts = [PIXELS] if prefix is not None else inputs
    if SCORES in outputs and edit.sources(model, SCORES, [FEATURES, *starts]) != {FEATURES}:
        return Parts(prefix, edit.extract(model, starts, [FEATURES, SCORES]), None)
    head = edit.extract(model, [FEATURES], [SCORES]) if SCORES in outputs else None
    return Parts(prefix, edit.extract(model, starts, [FEATURES]), head)


def head_nodes(body: onnx.ModelProto) -> list[str]:
    """Names of the nodes of a body that only compute scores; they stay in single precision."""
    needed = {node.name for node in edit.extract(body, [item.name for item in body.graph.input], [FEATURES]).graph.node}
    return [node.name for node in body.graph.node if node.name not in needed]


def join_parts(parts: Parts, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The model of these parts, with `metadata`."""
    model = parts.body
    if parts.prefix is not None:
        pixels = parts.prefix.graph.output[0]
        model = edit.join(parts.prefix, model)
        model.graph.value_info.append(pixels)
    if parts.head is not None:
        model = edit.join(model, parts.head, keep=[FEATURES])
    edit.describe(model, metadata)
    return model


def fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its body in half precision; inputs and outputs stay single precision."""
    onnxruntime()
    with _quiet():
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        parts = split_parts(model)
        body = convert_float_to_float16(parts.body, keep_io_types=True, node_block_list=head_nodes(parts.body))
        # The converter puts an input's Cast after the nodes that read it, so the nodes are sorted again.
        OnnxModel(body).topological_sort()
    return _with_body(model, parts, body)


def fused(model: onnx.ModelProto, family: str) -> onnx.ModelProto:
    """The model with its body, a text encoder of `family`, in ONNX Runtime's fused operators (zoo.graph.fuse)."""
    parts = split_parts(model)
    return _with_body(model, parts, fuse.fuse(parts.body, family))


def int8(model: onnx.ModelProto, batches: "Sequence[TensorMap]", exclude: Sequence[str] = ()) -> onnx.ModelProto:
    """The model with its body in int8, except the nodes `exclude`; results are equal with and without VNNI.

    Images: every channel of a weight and every activation has its own scale; the ranges of activations are read from
    the `pixels` of `batches`. Texts: every row of an activation has its own scale, computed at run time, and `batches`
    are not used (zoo.export.precision_texts). Raises UsageError for a text model without large layers.
    """
    parts = split_parts(model)
    if parts.prefix is None:
        kept = [*exclude, *head_nodes(parts.body)]
        return _with_body(model, parts, precision_texts.quantise_encoder(parts.body, kept))
    prefix = _with_final_reshape(parts.prefix)
    return _with_body(model, parts._replace(prefix=prefix), quantise_cnn(parts.body, batches, exclude)[1])


def quantise_cnn(
    body: onnx.ModelProto, batches: "Sequence[TensorMap]", exclude: Sequence[str] = ()
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Returns the graph from `pixels` to `features` before quantisation, and in int8 except the nodes `exclude`."""
    onnxruntime()
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(batches)

        def get_next(self) -> "TensorMap | None":
            return next(self.rest, None)

    with tempfile.TemporaryDirectory(prefix="zoo-") as folder, _quiet():
        original, ready, corrected, quantised = (
            Path(folder, f"{name}.onnx") for name in ("original", "ready", "corrected", "quantised")
        )
        original.write_bytes(pooling.convolve_before_pooling(body).SerializeToString())
        quant_pre_process(str(original), str(ready), skip_symbolic_shape=True)
        exact = edit.load(ready)
        ranges = precision_images.weight_ranges(exact)
        rounded = precision_images.correct_biases(exact, ranges, batches[:CORRECTED], exclude)
        corrected.write_bytes(rounded.SerializeToString())
        quantization.quantize_static(
            str(corrected),
            str(quantised),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            per_channel=True,
            # Seven bits for weights of other operators than convolutions: the sum of two products then fits 16 bits.
            reduce_range=True,
            extra_options={"TensorQuantOverrides": precision_images.overrides(ranges)},
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(exclude),
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        return exact, edit.load(quantised)


def worst_layers(model: onnx.ModelProto, batches: "Sequence[TensorMap]") -> list[str]:
    """Names of the layers with weights; first those that change the features on `batches` most when quantised alone."""
    parts = split_parts(model)
    if parts.prefix is None:
        return precision_texts.worst_layers(parts.body, batches)
    names, probe = _with_switches(*quantise_cnn(parts.body, batches))
    session = create_session(probe.SerializeToString(), "cpu")
    together = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def features(switches: NDArray[np.float32]) -> NDArray[np.float64]:
        [found] = session.run(None, {**together, SWITCHES: switches})
        return np.asarray(found, np.float64)

    right = features(np.zeros(len(names), np.float32))
    cost = [float(np.square(features(switches) - right).sum()) for switches in np.eye(len(names), dtype=np.float32)]
    return [names[index] for index in np.argsort(-np.array(cost), kind="stable")]


def _with_switches(exact: onnx.ModelProto, quantised: onnx.ModelProto) -> tuple[list[str], onnx.ModelProto]:
    """Returns the quantised layers and a copy of the float model with a switch for each of them.

    The copy has one more input, SWITCHES [layers]: if switch i is 1, the inputs of layer i are quantised. One session
    for all layers is faster than one for each.
    """
    probe = edit.copied(exact)
    producers = {node.output[0]: node for node in quantised.graph.node if node.op_type == "DequantizeLinear"}
    rounded = {node.name: [producers.get(name) for name in node.input] for node in quantised.graph.node}
    writer = _SwitchWriter(probe.graph, quantised.graph)
    names: list[str] = []
    for node in probe.graph.node:
        sources = rounded.get(node.name, [])
        if node.op_type in LAYERS and any(sources):
            prefix = f"switched/{len(names)}"
            layer = writer.constant(f"{prefix}/layer", len(names), "int64")
            switch = writer.add("Gather", [SWITCHES, layer], f"{prefix}/switch")
            names.append(node.name)
            # The quantised layer may have a bias where the exact one has none.
            inputs = zip([*node.input, *[""] * (len(sources) - len(node.input))], sources, strict=True)
            node.input[:] = [
                given if source is None else writer.switched(f"{prefix}/{index}", given, source, switch)
                for index, (given, source) in enumerate(inputs)
            ]
        writer.nodes.append(node)
    writer.replace(probe)
    probe.graph.input.append(edit.floats(SWITCHES, [len(names)]))
    return names, probe


class _SwitchWriter(edit.GraphBuilder):
    """Writes `given + switch * (quantised - given)` for the inputs of layers."""

    def __init__(self, exact: onnx.GraphProto, quantised: onnx.GraphProto) -> None:
        super().__init__(exact)
        self.quantised = {tensor.name: tensor for tensor in quantised.initializer}

    def switched(self, name: str, given: str, source: onnx.NodeProto, switch: str) -> str:
        """The tensor `given` if the switch is 0, the output of the DequantizeLinear node `source` if it is 1.

        An empty `given` stands for zeros: quantisation added a bias to a layer that has none.
        """
        levels, *scale = source.input
        self.constants.update((each, self.quantised[each]) for each in source.input if each in self.quantised)
        if levels not in self.quantised:
            levels = self.add("QuantizeLinear", [given, *scale], f"{name}/levels")
        rounded = self.add("DequantizeLinear", [levels, *scale], f"{name}/rounded", **edit.attributes(source))
        if not given:
            return self.add("Mul", [rounded, switch], f"{name}/switched")
        error = self.add("Sub", [rounded, given], f"{name}/error")
        part = self.add("Mul", [error, switch], f"{name}/part")
        return self.add("Add", [given, part], f"{name}/switched")


def _with_final_reshape(prefix: onnx.ModelProto) -> onnx.ModelProto:
    """The preprocessing with a Reshape at its end that does not change the shape.

    int8 convolutions need channels last. ONNX Runtime 1.31 moves the Transpose for that up into the preprocessing,
    where it breaks a Resize of some axes ("Number of elements of input 'sizes' (0) does not match the number of axes
    (1)"). It moves no Transpose through a Reshape, and this Reshape costs nothing.
    """
    changed = edit.copied(prefix)
    body = changed.graph
    shape = [axis.dim_value for axis in body.output[0].type.tensor_type.shape.dim]
    before, name = f"{body.name}/pixels", f"{body.name}/pixels_shape"
    for node in body.node:
        node.output[:] = [before if output == PIXELS else output for output in node.output]
    # 0 keeps the size of the batch axis.
    body.initializer.append(numpy_helper.from_array(np.array([0, *shape[1:]], np.int64), name))
    body.node.append(helper.make_node("Reshape", [before, name], [PIXELS], name=f"{body.name}/apart"))
    return changed


def _with_body(model: onnx.ModelProto, parts: Parts, body: onnx.ModelProto) -> onnx.ModelProto:
    """The `parts` of `model` joined again with a converted `body`, which gets the old inputs and outputs."""
    before = parts.body.graph
    for ours, theirs in ((before.input, body.graph.input), (before.output, body.graph.output)):
        del theirs[:]
        theirs.extend(ours)
    clean = edit.clean(body, f"{before.name}/converted")
    return join_parts(parts._replace(body=clean), edit.metadata_of(model))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the converters' warnings and log messages."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.root.setLevel(level)


def calibration(session: Any, items: Sequence[object], skip: Skip | None = None) -> "Iterator[TensorMap]":
    """The inputs of the body for each of `items`, one item at a time; `skip` as in `Session.stream`."""
    is_text = session.manifest.cut is None
    taken = [spec.name for spec in session.manifest.inputs] if is_text else [PIXELS]
    # FEATURES is requested because ONNX Runtime computes every output if none is requested.
    for _, arrays in session.stream(items, [*taken, FEATURES], skip):
        for row in range(len(arrays[taken[0]])):
            yield {name: arrays[name][row : row + 1] for name in taken}
