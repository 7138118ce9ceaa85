"""More faults that the parity check must refuse, each with its report, beside those of test_parity_refuses.py."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from zoo_plugins.backbones.efficientnet import EfficientNet

from tests.kit.faults import behind, check_parity, frozen_input, reversed_channels
from tests.kit.heads import train
from tests.kit.models import SIDE
from zoo import GateError, Zoo
from zoo.data.samples import bundled
from zoo.export import parity
from zoo.export.build import encoder
from zoo.export.reference import expect
from zoo.graph import edit, head
from zoo.options import FinetuneOptions


def nan_features(model: onnx.ModelProto) -> None:
    """0 / 0 in every feature."""
    zero = helper.make_node("Sub", ["true", "true"], ["zero"])
    behind(model, "features", zero, helper.make_node("Div", ["zero", "zero"], ["features"]))


def nan_pixels(model: onnx.ModelProto) -> None:
    """0 / 0 in every pixel; the reference gets the same pixels and answers NaN, too."""
    zero = helper.make_node("Sub", ["true", "true"], ["zero"])
    behind(model, "pixels", zero, helper.make_node("Div", ["zero", "zero"], ["pixels"]))


def frozen_features(model: onnx.ModelProto) -> None:
    """A batch axis of 1: the runtime itself refuses more."""
    width = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    node = helper.make_node("Reshape", ["true", "frozen"], ["features"])
    behind(model, "features", node, frozen=np.array([1, width], np.int64))


def frozen_pixels(model: onnx.ModelProto) -> None:
    """A preprocessing that takes only one image at a time."""
    node = helper.make_node("Reshape", ["true", "frozen"], ["pixels"])
    behind(model, "pixels", node, frozen=np.array([1, 3, SIDE, SIDE], np.int64))


def shifted_crop(model: onnx.ModelProto) -> None:
    """The crop lies two pixels too far to the right."""
    node = helper.make_node("Concat", ["right", "left"], ["pixels"], axis=3)
    left = helper.make_node("Slice", ["true", "zero", "two", "three"], ["left"])
    right = helper.make_node("Slice", ["true", "two", "all", "three"], ["right"])
    ends = {name: np.array([value], np.int64) for name, value in (("zero", 0), ("two", 2), ("three", 3), ("all", 999))}
    behind(model, "pixels", left, right, node, **ends)


def darker(model: onnx.ModelProto) -> None:
    """Every pixel is darker by two and a half grey levels."""
    node = helper.make_node("Sub", ["true", "dark"], ["pixels"])
    behind(model, "pixels", node, dark=np.array(2.5 / 128, np.float32))


def rounded_only_at_the_end(model: onnx.ModelProto) -> None:
    """The grey levels are not rounded between the two passes: one in six values differs by one level."""
    floor = next(node for node in model.graph.node if node.name.endswith("columns_rounded"))
    floor.op_type = "Sub"
    floor.input.append("preprocess/half")


def leaking_rows(model: onnx.ModelProto) -> None:
    """A little of the batch's mean is added to each row."""
    mean = helper.make_node("ReduceMean", ["true", "first"], ["mean"])
    nodes = [
        mean,
        helper.make_node("Mul", ["mean", "bit"], ["leak"]),
        helper.make_node("Add", ["true", "leak"], ["features"]),
    ]
    behind(model, "features", *nodes, first=np.array([0], np.int64), bit=np.array(0.01, np.float32))


@pytest.mark.parametrize(
    ("name", "change", "failing"),
    [
        ("tiny-bert", nan_features, "features"),
        ("tiny-lite", nan_features, "features"),
        ("tiny-lite", nan_pixels, "preprocessing"),
        ("tiny-bert", frozen_features, "features"),
        ("tiny-lite", frozen_features, "features"),
        ("tiny-lite", frozen_pixels, "preprocessing"),
        ("tiny-bert", frozen_input, "features"),
        ("tiny-lite", frozen_input, "preprocessing"),
        ("tiny-lite", reversed_channels, "preprocessing"),
        ("tiny-lite", shifted_crop, "preprocessing"),
        ("tiny-lite", darker, "preprocessing"),
        ("tiny-lite", rounded_only_at_the_end, "preprocessing (fraction"),
        ("tiny-bert", leaking_rows, "each row alone"),
    ],
)
def test_a_wrong_graph_is_refused(
    shelf: Path, name: str, change: Callable[[onnx.ModelProto], None], failing: str
) -> None:
    with pytest.raises(GateError, match=r"parity: .* nothing was written") as caught:
        check_parity(Zoo(), name, change)
    report = caught.value.report
    assert isinstance(report, parity.Parity)
    assert not report.passed
    assert any(check.name.startswith(failing) for check in report.checks if not check.passed)
    assert not any(np.isnan(check.value) for check in report.checks)


def test_a_wrong_head_is_refused(shelf: Path, tmp_path: Path) -> None:
    zoo = Zoo()
    bundle, entry = zoo.graph("tiny-lite"), zoo.entry("tiny-lite")
    samples, origin = bundled(bundle.manifest.preprocess)
    features = zoo.session("tiny-lite", "cpu").features(samples)
    targets = np.arange(len(samples)) % 2
    right = train(features, targets, 2, FinetuneOptions(epochs=20, lr=0.01)).layers
    swapped = [*right[:-1], tuple(array[::-1].copy() for array in right[-1])]
    backbone = EfficientNet(entry, zoo.pull("tiny-lite"))
    body = onnx.load_from_string(bundle.read_model())
    cut = list(body.graph.value_info)
    for layers in (right, swapped):
        whole = edit.join(body, head.as_graph(layers, "softmax"), keep=["features"])
        whole.graph.value_info.extend(cut)
        try:
            reader = encoder(bundle.manifest.preprocess, bundle.path)
            expected = expect(backbone.reference, samples, origin, reader)
            onnx.save(whole, tmp_path / "model.onnx")
            report = parity.check(tmp_path / "model.onnx", expected, top=parity.Top(right, "softmax"))
        except GateError as error:
            report = error.report
        assert report.passed == (layers is right)
        wrong = {check.name for check in report.checks if not check.passed}
        assert not wrong or "top-1 (rows that differ)" in wrong


def test_the_bounds_are_tight_enough_to_notice_and_loose_enough_to_pass() -> None:
    random = np.random.default_rng(0)
    wanted = random.normal(size=(4, 64)).astype(np.float32)
    for error, passes in ((1e-6, True), (1e-3, False)):
        difference = parity._difference(wanted + np.float32(error), wanted)
        assert (difference <= parity.EXACT.features) == passes
    assert parity._angle(wanted * 2, wanted) <= parity.EXACT.cosine
    assert parity._angle(np.roll(wanted, 1, axis=1), wanted) > parity.EXACT.cosine
    for function in (parity._difference, parity._angle, lambda got, right: parity._moved(got, right, 1e-4)):
        assert function(wanted[:1], wanted) == function(None, wanted) == float("inf")
