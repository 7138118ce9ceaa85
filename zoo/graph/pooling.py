"""An exact rewrite of a features graph: average pooling moved behind the 1x1 convolution that reads it.

Both operations are linear and commute. The average is then taken over the convolution's few output channels, which is
faster than over its many input channels. The average is written as a depthwise convolution, because ONNX Runtime has
fast int8 kernels for convolutions and none for average pooling, which took a third of Inception v3's time.
"""

from collections import Counter
from typing import TYPE_CHECKING

from zoo.graph.edit import attributes, copied

if TYPE_CHECKING:
    import onnx


def convolve_before_pooling(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """`model` with every AveragePool -> 1x1 Conv replaced by 1x1 Conv -> depthwise Conv.

    A pair is replaced only if the result stays equal at the borders: the padding's zeros must count in the average.
    The convolution's bias is added after the average.
    """
    changed = copied(model)
    for pool, convolution in _pairs(changed):
        _swap(changed, pool, convolution)
    return changed


def _pairs(model: "onnx.ModelProto") -> "list[tuple[onnx.NodeProto, onnx.NodeProto]]":
    """Pairs of an average pooling and a 1x1 convolution that commute; the convolution is the pooling's only reader."""
    graph = model.graph
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    pools = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "AveragePool" and readers[node.output[0]] == 1 and _is_plain(node)
    }
    return [
        (pools[node.input[0]], node)
        for node in graph.node
        if node.op_type == "Conv" and node.input[0] in pools and _is_pointwise(node, weights.get(node.input[1]))
    ]


def _is_plain(pool: "onnx.NodeProto") -> bool:
    """Whether a pooling has two axes and stride 1, and divides by the window's whole size everywhere."""
    facts = attributes(pool)
    return (
        len(facts["kernel_shape"]) == 2
        and set(facts.get("strides", (1, 1))) == {1}
        and set(facts.get("dilations", (1, 1))) == {1}
        and facts.get("auto_pad", b"NOTSET") == b"NOTSET"
        and not facts.get("ceil_mode", 0)
        and (facts.get("count_include_pad", 0) or not any(facts.get("pads", ())))
    )


def _is_pointwise(convolution: "onnx.NodeProto", weight: "onnx.TensorProto | None") -> bool:
    facts = attributes(convolution)
    return (
        weight is not None
        and list(weight.dims[2:]) == [1, 1]
        and facts.get("group", 1) == 1
        and set(facts.get("strides", (1, 1))) == {1}
        and not any(facts.get("pads", ()))
        and facts.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    )


def _swap(model: "onnx.ModelProto", pool: "onnx.NodeProto", convolution: "onnx.NodeProto") -> None:
    """Make the convolution read the pooling's input, and a depthwise convolution average the convolution's output."""
    import numpy as np
    from onnx import helper, numpy_helper

    facts, constants = attributes(pool), model.graph.initializer
    height, width = facts["kernel_shape"]
    [channels] = [tensor.dims[0] for tensor in constants if tensor.name == convolution.input[1]]
    name = f"{pool.name or pool.output[0]}/average"
    share = np.full((channels, 1, height, width), 1 / (height * width), np.float32)
    constants.append(numpy_helper.from_array(share, name))
    average = helper.make_node(
        "Conv", [pool.output[0], name, *convolution.input[2:]], list(convolution.output), name=pool.name,
        kernel_shape=[height, width], pads=facts.get("pads", [0, 0, 0, 0]), group=channels,
    )  # fmt: skip
    convolution.input[:] = [pool.input[0], convolution.input[1]]
    convolution.output[:] = [pool.output[0]]
    # Nodes are sorted topologically, so the convolution must come before the average: the two change places.
    moved = copied(convolution)
    convolution.CopyFrom(average)
    pool.CopyFrom(moved)
