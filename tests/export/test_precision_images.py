"""int8 weights: every processor sums them alike, and their rounding moves no mean."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from zoo.export import precision_images
from zoo.graph import edit
from zoo.runtime.ort import create_session


def convolution(weight: np.ndarray, bias: np.ndarray | None, **attributes: object) -> onnx.ModelProto:
    """pixels [batch, in, 9, 9] -> features, one convolution."""
    constants = [numpy_helper.from_array(weight, "w")]
    constants += [] if bias is None else [numpy_helper.from_array(bias, "b")]
    names = [tensor.name for tensor in constants]
    entering = weight.shape[1] * int(attributes.get("group", 1))  # type: ignore[call-overload]
    made = helper.make_graph(
        [helper.make_node("Conv", ["pixels", *names], ["features"], name="layer", **attributes)],
        "one",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", entering, 9, 9])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", len(weight), "height", "width"])],
        constants,
    )
    opset = helper.make_opsetid("", edit.OPSET)
    return helper.make_model(made, opset_imports=[opset], ir_version=edit.IR_VERSION)


@pytest.mark.parametrize("shape", [(16, 33, 1, 1), (8, 5, 3, 3), (8, 6, 1, 7), (12, 1, 3, 3)])
def test_two_neighbours_fit_sixteen_bits(shape: tuple[int, ...]) -> None:
    """255 times two neighbouring weights does not overflow, whatever the memory layout of a kernel."""
    random = np.random.default_rng(0)
    weight = random.standard_t(3, shape).astype(np.float32)
    weight[0] = 1
    weight[1] = 0
    [(name, ranges)] = precision_images.weight_ranges(convolution(weight, None)).items()
    assert name == "w"
    steps = np.round(weight / (ranges.reshape(-1, 1, 1, 1) / 127))
    assert np.abs(steps).max() <= 127
    for order in (steps, steps.transpose(0, 2, 3, 1)):
        rows = order.reshape(len(order), -1)
        rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
        for sign in (1, -1):
            assert 255 * np.maximum(sign * rows, 0).sum(2).max() <= 32767
    # Most channels use more than the seven bits that are always safe.
    assert np.median(np.abs(steps[2:]).reshape(len(steps) - 2, -1).max(1)) > 70


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("group", [1, 6])
def test_rounding_moves_no_mean(has_bias: bool, group: int) -> None:
    random = np.random.default_rng(1)
    weight = random.standard_t(2, (12, 6 // group, 3, 3)).astype(np.float32)
    bias = random.normal(size=12).astype(np.float32) if has_bias else None
    model = convolution(weight, bias, pads=[1, 1, 1, 1], group=group)
    # Positive inputs, as after a ReLU: with a mean of zero the errors of the weights would average out anyway.
    batches = [{"pixels": random.uniform(0, 6, (1, 6, 9, 9)).astype(np.float32)} for _ in range(5)]
    ranges = precision_images.weight_ranges(model)
    corrected = precision_images.correct_biases(model, ranges, batches)
    exact, plain, mended = (mean(each, batches) for each in (model, coarse(model, ranges), coarse(corrected, ranges)))
    assert np.abs(plain - exact).max() > 1e-2
    np.testing.assert_allclose(mended, exact, atol=1e-4)
    assert precision_images.correct_biases(model, ranges, batches, ["layer"]) == model


def coarse(model: onnx.ModelProto, ranges: "precision_images.Ranges") -> onnx.ModelProto:
    """The model with its weights in 255 levels."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    [tensor] = [each for each in changed.graph.initializer if each.name == "w"]
    scale = ranges["w"].reshape(-1, 1, 1, 1) / 127
    steps = np.clip(np.round(numpy_helper.to_array(tensor) / scale), -127, 127)
    tensor.CopyFrom(numpy_helper.from_array((steps * scale).astype(np.float32), "w"))
    return changed


def mean(model: onnx.ModelProto, batches: list[dict[str, np.ndarray]]) -> np.ndarray:
    session = create_session(model.SerializeToString(), "cpu")
    found: np.ndarray = np.mean([session.run(None, batch)[0].mean((0, 2, 3)) for batch in batches], axis=0)
    return found
