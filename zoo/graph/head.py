"""The head of a model as arrays: as an ONNX graph, as numpy arithmetic and as a safetensors file.

`zoo.training.head` is the torch module that is trained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from zoo.graph.edit import GraphBuilder, floats
from zoo.schema import FEATURES, SCORES

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]
    #: (weight [out, in], bias [out]), torch's own layout.
    Layer: TypeAlias = tuple[Floats, Floats]


def apply(layers: "Sequence[Layer]", features: "Floats", activation: str = "softmax") -> "Floats":
    """Scores [items, outputs] of features, computed with numpy, to compare the exported head with."""
    import numpy as np

    # NaN and infinity are kept: the caller's comparison reports them.
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
    # Not save_file of safetensors, which writes a file that only this user may read.
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


def as_graph(layers: "Sequence[Layer]", activation: str) -> "onnx.ModelProto":
    """`features` [batch, dim] -> `scores` [batch, outputs]: Gemm, (ReLU, Gemm)*, then softmax, sigmoid or identity."""
    graph, value = GraphBuilder(), FEATURES
    for index, (weight, bias) in enumerate(layers):
        constants = graph.constant(f"weight_{index}", weight), graph.constant(f"bias_{index}", bias)
        if index:
            value = graph.add("Relu", [value], f"hidden_{index}")
        value = graph.add("Gemm", [value, *constants], f"linear_{index}", transB=1)
    extra: dict[str, Any] = {"axis": -1} if activation == "softmax" else {}
    graph.add(activation.capitalize(), [value], SCORES, **extra)
    inputs, outputs = layers[0][0].shape[1], layers[-1][0].shape[0]
    return graph.model("head", [floats(FEATURES, ["batch", inputs])], [floats(SCORES, ["batch", outputs])])
