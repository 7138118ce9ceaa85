"""Average pools are moved behind 1x1 convolutions: all nine of Inception v3, and only where the numbers stay."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.kit.upstream import ROWS, Upstream, pixels
from zoo import Zoo
from zoo.export import precision
from zoo.graph import edit, pooling
from zoo.runtime.ort import create_session
from zoo.schema import PIXELS

#: Inception v3 pools and convolves in its three blocks at 35x35, four at 17x17 and two at 8x8.
POOLS = 3 + 4 + 2
WHOLE = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1], "count_include_pad": 1}


def pooled(pool: dict[str, Any], convolution: dict[str, Any], *, kernel: int = 1, bias: bool = True) -> onnx.ModelProto:
    """pixels [batch, 6, 9, 9] -> AveragePool -> Conv -> features."""
    random = np.random.default_rng(0)
    constants = [numpy_helper.from_array(random.normal(size=(4, 6, kernel, kernel)).astype(np.float32), "w")]
    constants += [numpy_helper.from_array(random.normal(size=4).astype(np.float32), "b")] * bias
    nodes = [
        helper.make_node("AveragePool", ["pixels"], ["mean"], name="pool", **pool),
        helper.make_node(
            "Conv", ["mean", *(each.name for each in constants)], ["features"], name="conv", **convolution
        ),
    ]
    made = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 6, 9, 9])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 4, "height", "width"])],
        constants,
    )
    opset = helper.make_opsetid("", edit.OPSET)
    return helper.make_model(made, opset_imports=[opset], ir_version=edit.IR_VERSION)


def run(model: onnx.ModelProto, feed: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    answer: np.ndarray = create_session(model.SerializeToString(), "cpu").run(None, {"pixels": feed})[0]
    return answer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "pool",
    [
        WHOLE,
        {**WHOLE, "pads": [0, 0, 0, 0]},
        {"kernel_shape": [3, 3]},
        {**WHOLE, "kernel_shape": [5, 3], "pads": [2, 1, 2, 0]},
    ],
)
def test_the_numbers_stay(pool: dict[str, Any], bias: bool) -> None:
    feed = np.random.default_rng(1).normal(3, 1, (2, 6, 9, 9)).astype(np.float32)
    before = pooled(pool, {}, bias=bias)
    after = pooling.convolve_before_pooling(before)
    assert [node.op_type for node in after.graph.node] == ["Conv", "Conv"]
    assert [node.op_type for node in before.graph.node] == ["AveragePool", "Conv"]
    np.testing.assert_allclose(run(after, feed), run(before, feed), atol=1e-5)


@pytest.mark.parametrize(
    ("pool", "convolution", "kernel"),
    [
        ({**WHOLE, "count_include_pad": 0}, {}, 1),
        ({**WHOLE, "strides": [2, 2]}, {}, 1),
        ({**WHOLE, "ceil_mode": 1}, {}, 1),
        ({**WHOLE, "dilations": [2, 2]}, {}, 1),
        (WHOLE, {"pads": [1, 1, 1, 1]}, 1),
        (WHOLE, {"strides": [2, 2]}, 1),
        (WHOLE, {"pads": [1, 1, 1, 1]}, 3),
    ],
)
def test_what_would_differ_stays(pool: dict[str, Any], convolution: dict[str, Any], kernel: int) -> None:
    before = pooled(pool, convolution, kernel=kernel)
    assert pooling.convolve_before_pooling(before) == before


def test_an_average_that_others_read_stays() -> None:
    before = pooled(WHOLE, {})
    before.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", 6, 9, 9]))
    assert pooling.convolve_before_pooling(before) == before


@pytest.mark.slow
def test_all_of_inception(upstream: Upstream) -> None:
    """This test fails if the exporter writes pools in another way, which no other test would notice."""
    name = "inception_v3.tv_in1k"
    upstream.pull(name)
    bundle = Zoo(home=upstream.home, registry=upstream.registry).graph(name)
    model = precision.split_parts(edit.load(bundle.model)).body
    changed = pooling.convolve_before_pooling(model)
    assert [node.op_type for node in model.graph.node].count("AveragePool") == POOLS
    assert "AveragePool" not in {node.op_type for node in changed.graph.node}
    feed = pixels(ROWS[name], 2).numpy()
    features = run(model, feed)
    np.testing.assert_allclose(run(changed, feed), features, atol=1e-5 * np.abs(features).max())
    # The int8 graph has no average pool either, and all its convolutions are in int8.
    _, small = precision.quantise_cnn(model, [{PIXELS: feed[:1]}])
    kinds = [node.op_type for node in small.graph.node]
    assert "AveragePool" not in kinds
    assert kinds.count("Conv") == 94 + POOLS
