"""Multiply-adds of a graph, computed from the shapes of its tensors in a run."""

from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

from zoo.runtime.ort import create_session

if TYPE_CHECKING:
    import onnx

    from zoo.backbone import TensorMap
    from zoo.graph.external_data import Bytes

    Shape: TypeAlias = tuple[int, ...]

#: Convolutions, and the index of their weight among the inputs.
CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "FusedConv": 1, "NhwcFusedConv": 1, "QLinearConv": 3}
PRODUCTS = (
    *("MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    "Gemm",
)
ATTENTIONS = ("Attention", "MultiHeadAttention")
COUNTED = frozenset({*CONVOLUTIONS, *PRODUCTS, *ATTENTIONS})
#: Standard operators whose many multiply-adds are not counted here; a graph with one of them gets no number.
UNCOUNTED = frozenset({"Attention", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN", "If", "Loop", "Scan"})
#: ONNX Runtime's own operators with only a few operations for each element.
CHEAP = frozenset(
    {
        *("BiasAdd", "BiasGelu", "FastGelu", "Gelu", "QuickGelu", "EmbedLayerNormalization", "SkipLayerNormalization"),
        *("QuantizeLinear", "DequantizeLinear", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearAveragePool"),
        *("QLinearGlobalAveragePool", "QLinearSigmoid", "QLinearSoftmax", "QLinearLeakyRelu"),
    }
)


def count(model: "onnx.ModelProto", feeds: "TensorMap", tables: "Mapping[str, Bytes] | None" = None) -> int | None:
    """Multiply-adds of convolutions, matrix products and attention for `feeds`; None if it has uncounted operators.

    `tables` are the contents of its external data files, by name. The graph runs once, on the CPU.
    """
    import onnx
    from onnx import helper

    if any(map(_is_unknown, model.graph.node)):
        return None
    nodes = [node for node in model.graph.node if node.op_type in COUNTED]
    known: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    known |= {name: array.shape for name, array in feeds.items()}
    used = {name for node in nodes for name in (*node.input, *node.output[:1]) if name}
    wanted = sorted(used - known.keys())
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    present = {value.name for value in shown.graph.output}
    shown.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted if name not in present)
    if wanted:
        session = create_session(shown.SerializeToString(), "cpu", tables=tables, spins=False)
        known |= {name: array.shape for name, array in zip(wanted, session.run(wanted, dict(feeds)), strict=True)}
    return sum(_products(node, known.__getitem__) for node in nodes)


def _is_unknown(node: "onnx.NodeProto") -> bool:
    if node.domain in ("", "ai.onnx"):
        return node.op_type in UNCOUNTED
    return node.domain != "com.microsoft" or node.op_type not in COUNTED | CHEAP


def _products(node: "onnx.NodeProto", shape: "Callable[[str], Shape]") -> int:
    options: dict[str, Any] = {each.name: each.i for each in node.attribute}
    first, result = shape(node.input[0]), shape(node.output[0])
    if node.op_type in CONVOLUTIONS:
        # Each output element is a sum over one filter [channels of a group, height, width].
        return prod(result) * prod(shape(node.input[CONVOLUTIONS[node.op_type]])[1:])
    if node.op_type in PRODUCTS:
        return prod(result) * first[-2 if options.get("transA") else -1]
    batch, queries, width = result
    if node.op_type == "MultiHeadAttention":
        keys = shape(node.input[1])[-2]
        return 2 * batch * queries * keys * width
    # Attention includes the projections to queries, keys and values.
    projected = batch * queries * prod(shape(node.input[1]))
    return projected + 2 * batch * queries * queries * width
