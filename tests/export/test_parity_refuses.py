"""The parity check passes the real graph and refuses wrong ones; the promises of every exported file."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from tests.kit.faults import check_parity, frozen_batch, one_weight, swapped_sides
from zoo import GateError, IntegrityError, Zoo
from zoo.export import parity


def nothing(model: onnx.ModelProto) -> None:
    """The graph is not changed."""


def swapped_channels(model: onnx.ModelProto) -> None:
    """The mean is added instead of subtracted."""
    mean = next(tensor for tensor in model.graph.initializer if tensor.name == "preprocess/mean")
    mean.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(mean), mean.name))


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-lite"])
def test_the_graph_as_it_is_passes(shelf: Path, name: str) -> None:
    report = check_parity(Zoo(), name, nothing)
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
        check_parity(Zoo(), name, change)
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
