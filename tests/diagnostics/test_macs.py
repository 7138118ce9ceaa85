"""Multiply-adds of graphs: published numbers, counts by hand, and graphs with operators that are not counted."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from zoo.diagnostics import macs
from zoo.schema import ExportOptions, TensorSpec
from zoo.torchkit import export_module

FLOAT = TensorProto.FLOAT


def model(nodes: list[onnx.NodeProto], given: dict[str, list[object]], made: str = "y") -> onnx.ModelProto:
    """A graph of these nodes, with float inputs of these shapes."""
    inputs = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in given.items()]
    body = helper.make_graph(nodes, "g", inputs, [helper.make_empty_tensor_value_info(made)])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(body, opset_imports=opsets, ir_version=10)


def counted(nodes: list[onnx.NodeProto], **shapes: tuple[int, ...]) -> int | None:
    feeds = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return macs.count(model(nodes, {name: list(shape) for name, shape in shapes.items()}), feeds)


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_what_torchvision_publishes(name: str, tmp_path: Path) -> None:
    from torchvision import models

    network = models.get_model(name, weights=None).eval()
    pixels = TensorSpec(name="pixels", dtype="float32", shape=("batch", 3, 224, 224))
    export_module(network, tmp_path / "m.onnx", [pixels], ["y"], ExportOptions())
    found = macs.count(onnx.load(tmp_path / "m.onnx"), {"pixels": np.zeros((1, 3, 224, 224), np.float32)})
    assert found is not None
    assert round(found / 1e9, 3) == models.get_model_weights(name).DEFAULT.meta["_ops"]


def test_convolutions_of_groups_and_strides() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 2], pads=[1, 1, 1, 1])
    # 6 filters at 4 x 4 positions, each of 2 channels x 3 x 3.
    assert counted([node], x=(1, 4, 8, 8), w=(6, 2, 3, 3)) == 6 * 16 * 2 * 9


def test_products() -> None:
    assert counted([helper.make_node("MatMul", ["a", "b"], ["y"])], a=(3, 5, 7), b=(7, 2)) == 3 * 5 * 7 * 2
    assert counted([helper.make_node("Gemm", ["a", "b"], ["y"], transA=1)], a=(7, 5), b=(7, 2)) == 5 * 7 * 2
    two = [helper.make_node("MatMul", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    assert counted(two, a=(5, 7), b=(7, 2)) == 70


def test_attention_counts_as_the_products_that_it_stands_for() -> None:
    names = {"domain": "com.microsoft", "num_heads": 2}
    node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], **names)
    shape = (2, 6, 8)
    scores, mixed = 2 * 6 * 6 * 8, 2 * 6 * 6 * 8
    assert counted([node], q=shape, k=shape, v=shape) == scores + mixed
    whole = helper.make_node("Attention", ["x", "w", "b"], ["y"], **names)
    assert counted([whole], x=shape, w=(8, 24), b=(24,)) == 2 * 6 * 8 * 24 + scores + mixed


def test_int8_has_as_many_multiplications(tmp_path: Path) -> None:
    # Imported after zoo, which switches onnxruntime's telemetry off.
    from onnxruntime import quantization  # noqa: TID251

    class Once(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter([feeds])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rest, None)

    draw = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(draw.standard_normal((4, 3, 3, 3)).astype(np.float32), "w"),
        onnx.numpy_helper.from_array(np.array([-1, 4], np.int64), "flat"),
        onnx.numpy_helper.from_array(draw.standard_normal((4, 5)).astype(np.float32), "v"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Reshape", ["p", "flat"], ["r"], name="flatten"),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="product"),
    ]
    exact = model(nodes, {"x": [1, 3, 8, 8]})
    exact.graph.initializer.extend(weights)
    feeds = {"x": draw.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    assert macs.count(exact, feeds) == 4 * 36 * 27 + 20
    del exact.graph.output[:]
    exact.graph.output.append(helper.make_tensor_value_info("y", FLOAT, [1, 5]))
    given = str(tmp_path / "exact.onnx")
    onnx.save(exact, given)
    quantization.quantize_dynamic(given, str(tmp_path / "dynamic.onnx"))
    quantization.quantize_static(given, str(tmp_path / "static.onnx"), Once(), per_channel=True)
    operator = quantization.QuantFormat.QOperator
    quantization.quantize_static(given, str(tmp_path / "operator.onnx"), Once(), quant_format=operator)
    for name in ("dynamic", "static", "operator"):
        small = onnx.load(tmp_path / f"{name}.onnx")
        assert {node.op_type for node in small.graph.node} != {node.op_type for node in nodes}
        assert macs.count(small, feeds) == 4 * 36 * 27 + 20


def test_a_graph_that_does_other_work_has_no_number() -> None:
    einsum = helper.make_node("Einsum", ["a", "b"], ["y"], equation="ij,jk->ik")
    assert counted([einsum], a=(2, 3), b=(3, 4)) is None
    foreign = helper.make_node("Secret", ["a"], ["y"], domain="com.example")
    assert macs.count(model([foreign], {"a": [2]}), {}) is None
    assert counted([helper.make_node("Relu", ["a"], ["y"])], a=(2, 3)) == 0
