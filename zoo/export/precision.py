"""A graph in another precision: half floats for GPUs, eight-bit integers (static QDQ) for CPUs.

Only the backbone between the preprocessing and the features changes; what is before and after it, which is exact and
cheap, stays as it is. Conversion is onnxruntime's own (onnxruntime.transformers.float16, onnxruntime.quantization).
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.data.items import Skip
from zoo.export import precision_images, precision_texts
from zoo.graph import edit, fuse, pooling
from zoo.runtime.device import onnxruntime
from zoo.runtime.ort import create_session
from zoo.schema import FEATURES, IMAGE, PIXELS, SCORES

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from zoo.backbone import TensorMap

#: What quantises well and is much of a CNN's work; the rest stays in float where it stands alone.
QUANTISED = (
    *("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "AveragePool", "MaxPool", "GlobalAveragePool", "Concat"),
)
#: What has weights, and may be left in float.
LAYERS = ("Conv", "Gemm", "MatMul")
#: The input that says which layers are rounded.
SWITCHES = "switches"
#: Batches over which the errors of rounded weights are averaged.
CORRECTED = 32


class Pieces(NamedTuple):
    """A model in three: images to pixels, pixels (or token ids) to features, features to scores."""

    prefix: "onnx.ModelProto | None"
    body: "onnx.ModelProto"
    head: "onnx.ModelProto | None"


def pieces(model: "onnx.ModelProto") -> Pieces:
    """Cut a model where its preprocessing ends and where its head begins."""
    inputs = [item.name for item in model.graph.input]
    outputs = [item.name for item in model.graph.output]
    prefix = edit.extract(model, [IMAGE], [PIXELS]) if IMAGE in inputs else None
    taken = [PIXELS] if prefix is not None else inputs
    body = edit.extract(model, taken, [FEATURES])
    head = edit.extract(model, [FEATURES], [SCORES]) if SCORES in outputs else None
    return Pieces(prefix, body, head)


def whole(parts: Pieces, metadata: "dict[str, str]") -> "onnx.ModelProto":
    """The model of these pieces, with `metadata`."""
    model = parts.body
    if parts.prefix is not None:
        cut = parts.prefix.graph.output[0]
        model = edit.join(parts.prefix, model)
        model.graph.value_info.append(cut)
    if parts.head is not None:
        model = edit.join(model, parts.head, keep=[FEATURES])
    edit.describe(model, metadata)
    return model


def fp16(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The body in half floats; its inputs and outputs stay single floats."""
    onnxruntime()
    with _quiet():
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        parts = pieces(model)
        body = convert_float_to_float16(parts.body, keep_io_types=True)
        # It writes the cast of an input behind the nodes that take it.
        OnnxModel(body).topological_sort()
    return whole(parts._replace(body=_adopted(body, parts.body)), facts(model))


def fused(model: "onnx.ModelProto", family: str) -> "onnx.ModelProto":
    """The body, an encoder of texts by `family`, in ONNX Runtime's own operators (zoo.graph.fuse)."""
    parts = pieces(model)
    return whole(parts._replace(body=_adopted(fuse.fuse(parts.body, family).model, parts.body)), facts(model))


def int8(model: "onnx.ModelProto", batches: "Sequence[TensorMap]", exclude: Sequence[str] = ()) -> "onnx.ModelProto":
    """The body in eight bits; the nodes `exclude` stay in float.

    Of pictures each weight's channel and each activation has a scale of its own, and `batches` give the `pixels` from
    which the activations' ranges are read. Of texts nothing is read: each row finds its scale
    (zoo.export.precision_texts). The file says the same on processors with and without VNNI. Raises UsageError for a
    model without large layers.
    """
    parts = pieces(model)
    if parts.prefix is None:
        return whole(
            parts._replace(body=_adopted(precision_texts.rowwise(parts.body, exclude), parts.body)), facts(model)
        )
    converted = parts._replace(prefix=_apart(parts.prefix), body=int8_body(parts.body, batches, exclude))
    return whole(converted, facts(model))


def int8_body(
    body: "onnx.ModelProto", batches: "Sequence[TensorMap]", exclude: Sequence[str] = ()
) -> "onnx.ModelProto":
    """`int8` of a graph that takes `pixels` and gives `features`."""
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder, _quiet():
        converted = edit.load(_quantised(body, batches, exclude, Path(folder))[1])
    return _adopted(converted, body)


def worst_layers(model: "onnx.ModelProto", batches: "Sequence[TensorMap]", exclude: Sequence[str] = ()) -> list[str]:
    """Names of the layers with weights, those first that alone move the features furthest when they are rounded.

    On `batches`, from which the ranges are read here, too; `exclude` are those that stay in float already.
    """
    import numpy as np

    parts = pieces(model)
    if parts.prefix is None:
        return precision_texts.worst_layers(parts.body, batches, exclude)
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder, _quiet():
        ready, done = _quantised(parts.body, batches, exclude, Path(folder))
        names, probe = _switched(edit.load(ready), edit.load(done))
    session = create_session(probe.SerializeToString(), "cpu")
    together = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def features(switches: "NDArray[np.float32]") -> "NDArray[np.float64]":
        [found] = session.run(None, {**together, SWITCHES: switches})
        return np.asarray(found, np.float64)

    exact = features(np.zeros(len(names), np.float32))
    cost = [float(np.square(features(switches) - exact).sum()) for switches in np.eye(len(names), dtype=np.float32)]
    return [names[number] for number in np.argsort(-np.array(cost), kind="stable")]


def _switched(exact: "onnx.ModelProto", done: "onnx.ModelProto") -> "tuple[list[str], onnx.ModelProto]":
    """(the layers in eight bits, `exact` with an input SWITCHES [layers]: 1 rounds what a layer takes as `done` does).

    One graph for all of them: a session for each would take longer to make than to run.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    probe = onnx.ModelProto()
    probe.CopyFrom(exact)
    body = probe.graph
    values = {tensor.name: tensor for tensor in body.initializer}
    known = {tensor.name: tensor for tensor in done.graph.initializer}
    rounded = {node.output[0]: node for node in done.graph.node if node.op_type == "DequantizeLinear"}
    takes = {node.name: [rounded.get(name) for name in node.input] for node in done.graph.node}
    nodes: list[onnx.NodeProto] = []

    def add(kind: str, inputs: "Sequence[str]", output: str) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [output], name=output))
        return output

    def constant(array: Any, name: str) -> str:
        body.initializer.append(numpy_helper.from_array(array, name))
        return name

    names: list[str] = []
    for node in body.node:
        sources = takes.get(node.name, [])
        if node.op_type in LAYERS and any(sources):
            own = f"switched/{len(names)}"
            switch = add(
                "Gather", [SWITCHES, constant(np.array(len(names), np.int64), f"{own}/place")], f"{own}/switch"
            )
            names.append(node.name)
            for place, source in enumerate(sources):
                if source is None:
                    continue
                end = f"{own}/{place}"
                given = node.input[place] if place < len(node.input) else ""
                if source.input[0] in known:
                    whole = _dequantised(source, known)
                    # Where there was no bias one was added, for what rounding adds.
                    exact_ = numpy_helper.to_array(values[given]) if given else np.zeros_like(whole)
                    error = constant(whole - exact_, f"{end}/error")
                    given = given or constant(exact_, f"{end}/none")
                else:
                    scale, zero = (
                        constant(numpy_helper.to_array(known[name]), f"{end}/{name}") for name in source.input[1:3]
                    )
                    bytes_ = add("QuantizeLinear", [given, scale, zero], f"{end}/bytes")
                    error = add(
                        "Sub", [add("DequantizeLinear", [bytes_, scale, zero], f"{end}/whole"), given], f"{end}/error"
                    )
                taken = add("Add", [given, add("Mul", [error, switch], f"{end}/part")], f"{end}/taken")
                node.input[place : place + 1] = [taken]
        nodes.append(node)
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del body.node[:]
    body.node.extend(ordered)
    body.input.append(helper.make_tensor_value_info(SWITCHES, onnx.TensorProto.FLOAT, [len(names)]))
    return names, probe


def _dequantised(node: "onnx.NodeProto", known: "Mapping[str, onnx.TensorProto]") -> "NDArray[np.float32]":
    """What a DequantizeLinear of constants gives."""
    import numpy as np
    from onnx import numpy_helper

    whole, scale, *zero = (numpy_helper.to_array(known[name]) for name in node.input)
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    shape = [-1 if place == axis % whole.ndim else 1 for place in range(whole.ndim)] if scale.size > 1 else []
    origin = zero[0].astype(np.int64).reshape(shape) if zero else 0
    found: NDArray[np.float32] = ((whole.astype(np.int64) - origin) * scale.reshape(shape)).astype(np.float32)
    return found


def _quantised(
    body: "onnx.ModelProto", batches: "Sequence[TensorMap]", exclude: Sequence[str], folder: Path
) -> tuple[Path, Path]:
    """(the body made ready, the body quantised), as files in `folder`."""
    onnxruntime()
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(batches)

        def get_next(self) -> "TensorMap | None":
            return next(self.rest, None)

    given, ready, mended, done = (folder / f"{name}.onnx" for name in ("given", "ready", "mended", "int8"))
    given.write_bytes(pooling.pools_after(body)[0].SerializeToString())
    quant_pre_process(str(given), str(ready), skip_symbolic_shape=True)
    exact = edit.load(ready)
    ranges = precision_images.weight_ranges(exact)
    mended.write_bytes(precision_images.correct_biases(exact, ranges, batches[:CORRECTED], exclude).SerializeToString())
    quantize_static(
        str(mended),
        str(done),
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(QUANTISED),
        per_channel=True,
        # Weights of what is no convolution have seven bits, which no sum of two products overflows.
        reduce_range=True,
        extra_options={"TensorQuantOverrides": precision_images.overrides(ranges)},
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=list(exclude),
        calibrate_method=CalibrationMethod.MinMax,
    )
    return ready, done


def _apart(prefix: "onnx.ModelProto") -> "onnx.ModelProto":
    """The preprocessing, its last tensor reshaped to the shape that it has.

    Eight-bit convolutions want channels last, and ONNX Runtime 1.31 moves the transposition that this takes up through
    the preprocessing, where it breaks a Resize of some axes ("Number of elements of input 'sizes' (0) does not match
    the number of axes (1)"). It moves none through a Reshape, which costs nothing.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    apart = onnx.ModelProto()
    apart.CopyFrom(prefix)
    body = apart.graph
    shape = [axis.dim_value for axis in body.output[0].type.tensor_type.shape.dim]
    loose, name = f"{body.name}/pixels", f"{body.name}/pixels_shape"
    for node in body.node:
        node.output[:] = [loose if output == PIXELS else output for output in node.output]
    # 0 keeps the axis as it is: the batch.
    body.initializer.append(numpy_helper.from_array(np.array([0, *shape[1:]], np.int64), name))
    body.node.append(helper.make_node("Reshape", [loose, name], [PIXELS], name=f"{body.name}/apart"))
    return apart


def _adopted(body: "onnx.ModelProto", before: "onnx.ModelProto") -> "onnx.ModelProto":
    """A converter's model as we ship it, under the names and with the inputs and outputs that it had before."""
    for ours, theirs in ((before.graph.input, body.graph.input), (before.graph.output, body.graph.output)):
        del theirs[:]
        theirs.extend(ours)
    return edit.clean(body, f"{before.graph.name}/converted")


def facts(model: "onnx.ModelProto") -> dict[str, str]:
    """The metadata of a model."""
    return {item.key: item.value for item in model.metadata_props}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the converters say of themselves."""
    import warnings

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)


def calibration(session: Any, items: Sequence[object], skip: Skip | None = None) -> "Iterator[TensorMap]":
    """The body's inputs for each of `items`, one at a time, as the runtime itself makes them; `skip` as it takes it."""
    is_text = session.manifest.cut is None
    taken = [spec.name for spec in session.manifest.inputs] if is_text else [PIXELS]
    # Asked for nothing that it computes, the runtime would answer with everything.
    for _, arrays in session.stream(items, [*taken, FEATURES], skip):
        for row in range(len(arrays[taken[0]])):
            yield {name: arrays[name][row : row + 1] for name in taken}
