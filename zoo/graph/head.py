"""The head of a model as arrays: as an ONNX graph, as numpy arithmetic and as a safetensors file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from zoo.graph.edit import new_model, prefix_names
from zoo.schema import FEATURES, SCORES

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]
    Layer: TypeAlias = tuple[Floats, Floats]


def apply(layers: "Sequence[Layer]", features: "Floats", activation: str = "softmax") -> "Floats":
    """Scores [items, outputs] of features by numpy's arithmetic: what the exported head must equal."""
    import numpy as np

    # What is no number stays none, and the caller's comparison says so.
    with np.errstate(over="ignore", invalid="ignore"):
        value = features
        for index, (weight, bias) in enumerate(layers):
            value = (np.maximum(value, 0) if index else value) @ weight.T + bias
        if activation == "softmax":
            value = np.exp(value - value.max(1, keepdims=True))
            value /= value.sum(1, keepdims=True)
        elif activation == "sigmoid":
            value = (1 / (1 + np.exp(-value))).astype(np.float32)
    return value


def save(layers: "Sequence[Layer]", path: Path) -> None:
    """Write the layers as safetensors: `0.weight` [out, in], `0.bias` [out], ..."""
    # The library's own file would be readable by its writer alone.
    from safetensors.numpy import save as to_bytes

    tensors: dict[str, NDArray[np.float32]] = {}
    for index, (weight, bias) in enumerate(layers):
        tensors |= {f"{index}.weight": weight, f"{index}.bias": bias}
    path.write_bytes(to_bytes(tensors))


def load(path: Path) -> "list[Layer]":
    """The layers that `save` wrote."""
    from safetensors.numpy import load_file

    tensors = load_file(path)
    return [(tensors[f"{index}.weight"], tensors[f"{index}.bias"]) for index in range(len(tensors) // 2)]


def as_graph(
    layers: Sequence[tuple["NDArray[np.float32]", "NDArray[np.float32]"]], activation: str
) -> "onnx.ModelProto":
    """`features` [batch, dim] -> `scores` [batch, outputs]: Gemm, (ReLU, Gemm)*, then softmax, sigmoid or identity.

    Each layer is (weight [out, in], bias [out]), torch's own layout.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, value = [], [], FEATURES
    for index, (weight, bias) in enumerate(layers):
        names = f"weight_{index}", f"bias_{index}"
        constants += [numpy_helper.from_array(array, name) for array, name in zip((weight, bias), names, strict=True)]
        if index:
            nodes.append(helper.make_node("Relu", [value], [f"hidden_{index}"]))
            value = f"hidden_{index}"
        nodes.append(helper.make_node("Gemm", [value, *names], [f"linear_{index}"], transB=1))
        value = f"linear_{index}"
    extra: dict[str, Any] = {"axis": -1} if activation == "softmax" else {}
    nodes.append(helper.make_node(activation.capitalize(), [value], [SCORES], **extra))
    inputs = [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", layers[0][0].shape[1]])]
    outputs = [helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["batch", layers[-1][0].shape[0]])]
    graph = helper.make_graph(nodes, "head", inputs, outputs, constants)
    prefix_names(graph)
    return new_model(graph)
