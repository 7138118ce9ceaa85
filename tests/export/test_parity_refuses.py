"""The parity gate: passes the real graph, refuses a wrong one. And what every exported file promises."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from zoo_plugins.backbones.bert import Bert
from zoo_plugins.backbones.efficientnet import EfficientNet

from zoo import GateError, IntegrityError, Zoo
from zoo.data.samples import bundled
from zoo.export import parity
from zoo.export.build import encoder
from zoo.export.reference import expect


def gate(zoo: Zoo, name: str, change: Callable[[onnx.ModelProto], None]) -> parity.Parity:
    """The gate on the built bundle of `name` after `change` was made to its graph."""
    bundle = zoo.graph(name)
    model = onnx.load_from_string(bundle.read_model())
    change(model)
    family = {"bert": Bert, "efficientnet": EfficientNet}[zoo.entry(name).family]
    backbone = family(zoo.entry(name), zoo.pull(name))
    preprocess = bundle.manifest.preprocess
    expected = expect(backbone.reference, *bundled(preprocess), encoder(preprocess, bundle.path))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return parity.check(path, expected)


def nothing(model: onnx.ModelProto) -> None:
    """The graph as it is."""


def one_weight(model: onnx.ModelProto) -> None:
    """One number of the largest weight is off."""
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    array = numpy_helper.to_array(largest).copy()
    array.flat[np.abs(array).argmax()] *= -3
    largest.CopyFrom(numpy_helper.from_array(array, largest.name))


def swapped_sides(model: onnx.ModelProto) -> None:
    """Height and width change places on the way in."""
    node = next(node for node in model.graph.node if node.op_type == "Transpose")
    next(attribute for attribute in node.attribute if attribute.name == "perm").ints[:] = [0, 3, 2, 1]


def swapped_channels(model: onnx.ModelProto) -> None:
    """The mean is added instead of subtracted."""
    mean = next(tensor for tensor in model.graph.initializer if tensor.name == "preprocess/mean")
    mean.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(mean), mean.name))


def frozen_batch(model: onnx.ModelProto) -> None:
    """Only the first item of a batch is computed, and repeated."""
    first = onnx.helper.make_node("Slice", ["whole", "zero", "one", "zero"], ["first"])
    shape = onnx.helper.make_node("Shape", ["whole"], ["shape"])
    spread = onnx.helper.make_node("Expand", ["first", "shape"], ["features"])
    for node in model.graph.node:
        node.output[:] = ["whole" if name == "features" else name for name in node.output]
    for name, value in (("zero", [0]), ("one", [1])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    model.graph.node.extend([first, shape, spread])


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-lite"])
def test_the_graph_as_it_is_passes(shelf: Path, name: str) -> None:
    report = gate(Zoo(), name, nothing)
    assert report.passed
    assert {check.batch for check in report.checks} == {1, 2, 7}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tiny-bert", one_weight),
        ("tiny-lite", one_weight),
        ("tiny-lite", swapped_sides),
        ("tiny-lite", swapped_channels),
        ("tiny-bert", frozen_batch),
        ("tiny-lite", frozen_batch),
    ],
)
def test_a_wrong_graph_is_refused(shelf: Path, name: str, change: Callable[[onnx.ModelProto], None]) -> None:
    with pytest.raises(GateError) as caught:
        gate(Zoo(), name, change)
    assert isinstance(caught.value.report, parity.Parity)
    assert not caught.value.report.passed
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-lite"])
def test_what_every_exported_file_promises(shelf: Path, name: str) -> None:
    bundle = Zoo().graph(name)
    model = onnx.load_from_string(bundle.read_model())
    assert model.ir_version == 10
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 20)]
    onnx.checker.check_model(model, full_check=True)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not [node.name for node in model.graph.node if node.doc_string or node.metadata_props]
    raw = bundle.read_model()
    for trace in (b"site-packages", str(Path(__file__).parents[2]).encode(), b".py"):
        assert trace not in raw
    facts = {item.key: item.value for item in model.metadata_props}
    assert facts["zoo.license"] == "CC0-1.0"
    assert facts["zoo.entry"] == name


def test_a_file_that_is_no_model_or_too_new_is_refused(tmp_path: Path) -> None:
    from zoo.graph import edit

    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\xff not onnx at all")
    with pytest.raises(IntegrityError, match="not an ONNX model"):
        edit.load(path)
    onnx.save(onnx.helper.make_model(onnx.GraphProto(name="empty"), ir_version=13), path)
    with pytest.raises(IntegrityError, match="at most IR 10"):
        edit.load(path)
