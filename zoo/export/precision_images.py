"""Weights of convolutions in eight bits: rounded so that every processor sums them alike, and made up for in the bias.

Processors without VNNI add the products of two neighbours in sixteen bits, which saturate: 255 * (127 + 127) does not
fit. Seven-bit weights always do, and are twice as coarse; here a channel is only made coarser where two neighbours of
its own would not fit. What rounding the weights does to the mean of each channel is taken from its bias, which costs
nothing: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2,
https://arxiv.org/abs/1906.04721, with means over pictures where they have none.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoo.runtime.ort import create_session

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from zoo.backbone import TensorMap

    Ranges = Mapping[str, "NDArray[np.float32]"]

#: The largest weight, and sum of two neighbours of one sign. Each may be rounded up: 255 * 128 is within sixteen bits.
LEVELS = 127
#: A channel's range is at least this part of its bias: in steps of the weights' scale that has to fit 32 bits.
OF_BIAS = 1e-4


def weight_ranges(model: "onnx.ModelProto") -> "dict[str, NDArray[np.float32]]":
    """The name of each convolution's weight, and what becomes LEVELS in each of its output channels: float32 [out]."""
    import numpy as np
    from onnx import numpy_helper

    values = {tensor.name: tensor for tensor in model.graph.initializer}
    ranges: dict[str, NDArray[np.float32]] = {}
    for node in _convolutions(model):
        weight = numpy_helper.to_array(values[node.input[1]])
        bias = numpy_helper.to_array(values[node.input[2]]) if len(node.input) > 2 else np.zeros(len(weight))
        least = np.maximum(OF_BIAS * np.abs(bias), np.finfo(np.float32).tiny * LEVELS)
        # Depthwise convolutions do not sum in pairs, but it would cost them little: nine weights a channel.
        found = np.maximum(fitting_range(weight), least).astype(np.float32)
        ranges[node.input[1]] = np.maximum(found, ranges.get(node.input[1], found))
    return ranges


def overrides(ranges: "Ranges") -> dict[str, list[dict[str, Any]]]:
    """The ranges as onnxruntime.quantization takes them (TensorQuantOverrides)."""
    return {
        name: [{"axis": 0, "symmetric": True, "reduce_range": False, "rmin": -each, "rmax": each} for each in channels]
        for name, channels in ranges.items()
    }


def correct_biases(
    model: "onnx.ModelProto", ranges: "Ranges", batches: "Sequence[TensorMap]", exclude: Sequence[str] = ()
) -> "onnx.ModelProto":
    """`model` with the mean over `batches` of what rounding its weights adds to each channel taken from the biases.

    It still is in single precision, with its exact weights. Every convolution that is not in `exclude` has a bias of
    its own afterwards.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    if not _convolutions(model, exclude):
        return model
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    probe, corrected = onnx.ModelProto(), onnx.ModelProto()
    probe.CopyFrom(model)
    corrected.CopyFrom(model)
    del probe.graph.output[:]
    graph = probe.graph
    graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3], np.int64), "rounding/axes"))
    for number, node in enumerate(_convolutions(model, exclude)):
        # The same convolution with nothing but the weights' errors, of the exact input.
        weight = numpy_helper.to_array(values[node.input[1]])
        error, shift, mean = (f"rounding/{part}_{number}" for part in ("error", "shift", "mean"))
        graph.initializer.append(numpy_helper.from_array(_rounded(weight, ranges[node.input[1]]) - weight, error))
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.name, twin.input[:], twin.output[:] = shift, [node.input[0], error], [shift]
        graph.node.extend([twin, helper.make_node("ReduceMean", [shift, "rounding/axes"], [mean], keepdims=0)])
        graph.output.append(helper.make_tensor_value_info(mean, onnx.TensorProto.FLOAT, [len(weight)]))
    session = create_session(probe.SerializeToString(), "cpu", spins=False)
    shifts = [np.zeros(output.shape) for output in session.get_outputs()]
    for batch in batches:
        for total, found in zip(shifts, session.run(None, dict(batch)), strict=True):
            total += found / len(batches)
    for number, (node, moved) in enumerate(zip(_convolutions(corrected, exclude), shifts, strict=True)):
        bias = numpy_helper.to_array(values[node.input[2]]) if len(node.input) > 2 else np.zeros(len(moved))
        name = f"rounding/bias_{number}"
        corrected.graph.initializer.append(numpy_helper.from_array((bias - moved).astype(np.float32), name))
        node.input[2:] = [name]
    used = {name for node in corrected.graph.node for name in node.input}
    kept = [tensor for tensor in corrected.graph.initializer if tensor.name in used]
    del corrected.graph.initializer[:]
    corrected.graph.initializer.extend(kept)
    return corrected


def _convolutions(model: "onnx.ModelProto", exclude: Sequence[str] = ()) -> "list[onnx.NodeProto]":
    """The convolutions of two axes whose weights are constants, in the order of the graph, but for `exclude`."""
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.name not in exclude
        and all(name in known for name in node.input[1:])
        and len(known[node.input[1]].dims) == 4
    ]


def fitting_range(weight: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """What LEVELS stands for in each channel of `weight` [out, in, height, width]: float32 [out].

    The largest weight, or more where two neighbours would not fit.
    """
    import numpy as np

    found: NDArray[np.float32] = np.abs(weight).reshape(len(weight), -1).max(1)
    # Kernels lay a window out channels first or channels last.
    for order in (weight, weight.transpose(0, 2, 3, 1)):
        row = order.reshape(len(weight), -1)
        pairs = np.pad(row, ((0, 0), (0, row.shape[1] % 2))).reshape(len(weight), -1, 2)
        for sign in (1, -1):
            sums = np.maximum(sign * pairs, 0).sum(2).max(1)
            found = np.maximum(found, sums)
    return found


def _rounded(weight: "NDArray[np.float32]", ranges: "NDArray[np.float32]") -> "NDArray[np.float32]":
    import numpy as np

    scale = (ranges / LEVELS).reshape(-1, 1, 1, 1)
    rounded: NDArray[np.float32] = (np.clip(np.round(weight / scale), -LEVELS, LEVELS) * scale).astype(np.float32)
    return rounded
