"""Small graphs, and functions that run or count them."""

from typing import Any

import numpy as np
import onnx

from zoo.runtime.ort import create_session

ARCHITECTURES = ["bert", "distilbert", "roberta", "mpnet"]


def answers(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    found: np.ndarray = create_session(model.SerializeToString(), "cpu").run(None, feeds)[0]
    return found


def operators(model: onnx.ModelProto, kind: str) -> int:
    return sum(node.op_type == kind for node in model.graph.node)


def weights(*shapes: tuple[int, int], **changed: Any) -> onnx.ModelProto:
    """A chain of matrix products with seeded random weights, and a GELU between each two."""
    from onnx import TensorProto, helper, numpy_helper

    random, nodes, constants, value = np.random.default_rng(0), [], [], "x"
    for index, shape in enumerate(shapes):
        weight = random.normal(size=shape).astype(np.float32) / np.float32(shape[0] ** 0.5)
        constants.append(numpy_helper.from_array(changed.get(f"w{index}", lambda w: w)(weight), f"w{index}"))
        out = "y" if index == len(shapes) - 1 else f"v{index}"
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [out], name=f"layer{index}"))
        value = out
        if out != "y":
            value = f"g{index}"
            nodes.append(helper.make_node("Gelu", [out], [value], name=value))
    body = helper.make_graph(
        nodes, "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", shapes[0][0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", shapes[-1][1]])],
        constants,
    )  # fmt: skip
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
