"""Convolution weights in int8, scaled so that every processor computes the same sums, with corrected biases.

Processors without VNNI add the products of two neighbouring weights in sixteen bits, and 255 * (127 + 127) saturates.
Seven-bit weights always fit, but are twice as coarse. Here only a channel whose neighbours would saturate gets a
coarser scale.

Rounding the weights shifts the mean of each channel. The channel's bias corrects the shift at no cost: Nagel et al.
2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2,
https://arxiv.org/abs/1906.04721, here with means over images.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from zoo.graph import edit
from zoo.runtime.ort import create_session

if TYPE_CHECKING:
    from zoo.backbone import TensorMap

    Ranges = Mapping[str, NDArray[np.float32]]

#: The largest weight, and the largest sum of two neighbours of one sign. If rounding makes it 128, 255 * 128 still fits
#: sixteen bits.
LEVELS = 127


def weight_ranges(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """The range of each convolution's weight, by name: the value [out] per channel that is quantised to LEVELS."""
    graph = edit.GraphBuilder(model.graph)
    ranges: dict[str, NDArray[np.float32]] = {}
    for node in _convolutions(model):
        weight = graph.array(node.input[1])
        # The bias is stored in 32 bits, in steps that are proportional to the weights' scale.
        least = np.maximum(1e-4 * np.abs(_bias(graph, node)), np.finfo(np.float32).tiny * LEVELS)
        # Depthwise convolutions do not add in pairs, but the coarser scale costs them little accuracy.
        found = np.maximum(fitting_range(weight), least).astype(np.float32)
        ranges[node.input[1]] = np.maximum(found, ranges.get(node.input[1], found))
    return ranges


def overrides(ranges: "Ranges") -> dict[str, list[dict[str, Any]]]:
    """The ranges as onnxruntime.quantization wants them (TensorQuantOverrides)."""
    return {
        name: [{"axis": 0, "symmetric": True, "reduce_range": False, "rmin": -each, "rmax": each} for each in channels]
        for name, channels in ranges.items()
    }


def correct_biases(
    model: onnx.ModelProto, ranges: "Ranges", batches: "Sequence[TensorMap]", exclude: Sequence[str] = ()
) -> onnx.ModelProto:
    """`model` with biases that correct the rounding of its weights: each channel keeps its mean over `batches`.

    The weights stay exact. Every convolution that is not in `exclude` then has a bias that no other node reads.
    """
    if not _convolutions(model, exclude):
        return model
    shifts = _mean_shifts(model, ranges, batches, exclude)
    corrected = edit.copied(model)
    graph = edit.GraphBuilder(corrected.graph)
    for index, (node, shift) in enumerate(zip(_convolutions(corrected, exclude), shifts, strict=True)):
        node.input[2:] = [graph.constant(f"rounding/bias_{index}", _bias(graph, node) - shift)]
    graph.nodes.extend(corrected.graph.node)
    graph.replace(corrected)
    return corrected


def _bias(graph: edit.GraphBuilder, convolution: onnx.NodeProto) -> NDArray[np.floating]:
    """The bias of a convolution [out]; zeros if it has none."""
    _, weight, *bias = convolution.input
    return graph.array(bias[0]) if bias else np.zeros(len(graph.array(weight)))


def _mean_shifts(
    model: onnx.ModelProto, ranges: "Ranges", batches: "Sequence[TensorMap]", exclude: Sequence[str]
) -> list[NDArray[np.float64]]:
    """The change [out] of each channel's mean over `batches` that rounding the weights causes, per convolution."""
    probe = edit.copied(model)
    del probe.graph.output[:]
    builder = edit.GraphBuilder(probe.graph)
    builder.nodes.extend(probe.graph.node)
    axes = builder.constant("rounding/axes", [0, 2, 3], "int64")
    for index, node in enumerate(_convolutions(model, exclude)):
        # A convolution of the exact input with the rounding errors of the weights gives the change of the output.
        weight = builder.array(node.input[1])
        levels, scale = rounded(weight, ranges[node.input[1]].reshape(-1, 1, 1, 1))
        error = builder.constant(f"rounding/error_{index}", levels * scale - weight)
        shift = builder.add("Conv", [node.input[0], error], f"rounding/shift_{index}", **edit.attributes(node))
        mean = builder.add("ReduceMean", [shift, axes], f"rounding/mean_{index}", keepdims=0)
        probe.graph.output.append(edit.floats(mean, [len(weight)]))
    builder.replace(probe)
    session = create_session(probe.SerializeToString(), "cpu", spins=False)
    shifts = [np.zeros(output.shape) for output in session.get_outputs()]
    for batch in batches:
        for total, found in zip(shifts, session.run(None, dict(batch)), strict=True):
            total += found / len(batches)
    return shifts


def _convolutions(model: onnx.ModelProto, exclude: Sequence[str] = ()) -> list[onnx.NodeProto]:
    """The two-axis convolutions with constant weights, in the order of the graph, without the nodes `exclude`."""
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type == "Conv"
        and node.name not in exclude
        and all(name in known for name in node.input[1:])
        and len(known[node.input[1]].dims) == 4
    ]


def fitting_range(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The value that is quantised to LEVELS in each channel of `weight` [out, in, height, width]: float32 [out].

    It is the largest weight, or the largest sum of two neighbours of one sign if the sum is larger.
    """
    found: NDArray[np.float32] = np.abs(weight).reshape(len(weight), -1).max(1)
    # Some kernels store a window channels first, others channels last, so different weights are neighbours.
    for order in (weight, weight.transpose(0, 2, 3, 1)):
        row = order.reshape(len(weight), -1)
        pairs = np.pad(row, ((0, 0), (0, row.shape[1] % 2))).reshape(len(weight), -1, 2)
        for sign in (1, -1):
            found = np.maximum(found, np.maximum(sign * pairs, 0).sum(2).max(1))
    return found


def rounded(weight: NDArray[np.float32], ranges: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Returns the weight in levels and the scale of a level; a weight as large as its range gets LEVELS."""
    scale: NDArray[np.float32] = (ranges / LEVELS).astype(np.float32)
    return np.clip(np.rint(weight / scale), -LEVELS, LEVELS).astype(np.int8), scale
