"""Exact rewrites of a features graph: the same numbers by cheaper operators.

Averaging a window and convolving with 1x1 are both linear and commute, so the average may be taken of the convolution's
few channels in place of the many that it reads. As a convolution of its own it also runs on the fast kernels of eight
bits: ONNX Runtime's average pooling has none, and takes a third of Inception v3's time.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import onnx


class Site(NamedTuple):
    """An average pooling that keeps the size, and the 1x1 convolution that alone reads it."""

    pool: "onnx.NodeProto"
    convolution: "onnx.NodeProto"
    kernel: tuple[int, int]
    pads: tuple[int, ...]


def pools_after(model: "onnx.ModelProto") -> tuple["onnx.ModelProto", int]:
    """(`model` with every AveragePool -> 1x1 Conv as 1x1 Conv -> depthwise Conv, how many there were).

    Only where the two are equal at the borders too: zeros that pad count in the average, and the convolution's bias is
    added behind it.
    """
    import onnx

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    sites = _sites(changed)
    for site in sites:
        _swap(changed, site)
    return changed, len(sites)


def _sites(model: "onnx.ModelProto") -> list[Site]:
    graph = model.graph
    readers = Counter(name for node in graph.node for name in node.input)
    public = {value.name for value in graph.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    pools = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "AveragePool" and readers[node.output[0]] == 1 and node.output[0] not in public
    }
    found = []
    for node in graph.node:
        if node.op_type != "Conv" or node.input[0] not in pools or node.input[1] not in weights:
            continue
        pool = pools[node.input[0]]
        kernel = _window(pool)
        if kernel is not None and _is_pointwise(node, weights[node.input[1]]):
            found.append(Site(pool, node, kernel, tuple(_attributes(pool).get("pads", (0, 0, 0, 0)))))
    return found


def _window(pool: "onnx.NodeProto") -> tuple[int, int] | None:
    """The window of a pooling of two axes that divides by all of it everywhere and moves by one; else None."""
    facts = _attributes(pool)
    kernel, pads = tuple(facts["kernel_shape"]), facts.get("pads", (0, 0, 0, 0))
    plain = (
        len(kernel) == 2
        and set(facts.get("strides", (1, 1))) == {1}
        and set(facts.get("dilations", (1, 1))) == {1}
        and facts.get("auto_pad", b"NOTSET") == b"NOTSET"
        and not facts.get("ceil_mode", 0)
        and (facts.get("count_include_pad", 0) or not any(pads))
    )
    return (kernel[0], kernel[1]) if plain else None


def _is_pointwise(convolution: "onnx.NodeProto", weight: "onnx.TensorProto") -> bool:
    facts = _attributes(convolution)
    return (
        list(weight.dims[2:]) == [1, 1]
        and facts.get("group", 1) == 1
        and set(facts.get("strides", (1, 1))) == {1}
        and not any(facts.get("pads", ()))
        and facts.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    )


def _swap(model: "onnx.ModelProto", site: Site) -> None:
    """Let the convolution read what the pooling read; the pooling's node becomes the average behind it."""
    import numpy as np
    from onnx import helper, numpy_helper

    graph, pool, convolution = model.graph, site.pool, site.convolution
    [channels] = [tensor.dims[0] for tensor in graph.initializer if tensor.name == convolution.input[1]]
    name = f"{pool.name or pool.output[0]}/average"
    share = np.full((channels, 1, *site.kernel), 1 / (site.kernel[0] * site.kernel[1]), np.float32)
    graph.initializer.append(numpy_helper.from_array(share, name))
    average = helper.make_node(
        "Conv", [pool.output[0], name, *convolution.input[2:]], list(convolution.output), name=pool.name,
        kernel_shape=site.kernel, pads=site.pads, group=channels,
    )  # fmt: skip
    convolution.input[:] = [pool.input[0], convolution.input[1]]
    convolution.output[:] = [pool.output[0]]
    # The list is sorted by who reads whom: the average takes the convolution's place, and that the pooling's.
    moved = type(convolution)()
    moved.CopyFrom(convolution)
    convolution.CopyFrom(average)
    pool.CopyFrom(moved)


def _attributes(node: "onnx.NodeProto") -> dict[str, Any]:
    from onnx import helper

    return {item.name: helper.get_attribute_value(item) for item in node.attribute}
