"""Encoders in int8 with one scale for each row: accuracy, independence of the neighbours, and the worst layer."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.kit.berts import exported, tokens
from tests.kit.graphs import ARCHITECTURES, answers, operators, weights
from zoo import UsageError
from zoo.export import precision_texts
from zoo.graph import edit, fuse
from zoo.runtime.ort import create_session


@pytest.fixture(scope="module", params=ARCHITECTURES)
def body(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return edit.clean(edit.load(exported(tmp_path_factory, request.param) / "model.onnx"), "bert")


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    found: np.ndarray = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return found


def test_it_stays_near(body: onnx.ModelProto) -> None:
    small = precision_texts.quantise_encoder(body)
    onnx.checker.check_model(small)
    # Three layers with six weight products each; the table of words is in bytes, too.
    assert operators(small, "QuantizeLinear") == 4 * 3
    kinds = {tensor.dims[0]: tensor.data_type for tensor in small.graph.initializer if tensor.name.endswith("/bytes")}
    assert kinds[200] == onnx.TensorProto.INT8
    assert {node.domain for node in small.graph.node} == {""}
    for batch, length in ((1, 3), (2, 40), (7, 150)):
        feeds = tokens(batch, length)
        assert cosines(answers(small, feeds), answers(body, feeds)).min() > 0.999


def test_the_file_is_a_quarter(tmp_path: Path) -> None:
    model = weights((512, 512), (512, 512))
    assert len(precision_texts.quantise_encoder(model).SerializeToString()) < 0.3 * len(model.SerializeToString())


def test_a_loud_neighbour_changes_nothing(body: onnx.ModelProto) -> None:
    """A text has the same features alone, beside another one, and beside one with activations 100 times as large."""
    loud = onnx.ModelProto()
    loud.CopyFrom(body)
    table = max(loud.graph.initializer, key=lambda tensor: tensor.dims[0] if len(tensor.dims) == 2 else 0)
    rows = onnx.numpy_helper.to_array(table).copy()
    rows[150:] *= 100
    table.CopyFrom(onnx.numpy_helper.from_array(rows, table.name))
    small = precision_texts.quantise_encoder(loud)
    quiet, other = tokens(1, 24), tokens(1, 24)
    quiet["input_ids"] %= 150
    other["input_ids"] = np.where(other["attention_mask"] > 0, 150 + other["input_ids"] % 50, 0)
    session = create_session(small.SerializeToString(), "cpu")
    alone = session.run(None, quiet)[0]
    beside = session.run(None, {name: np.concatenate([quiet[name], other[name]]) for name in quiet})[0]
    np.testing.assert_allclose(beside[:1], alone, atol=1e-6)
    assert np.abs(beside[1] - beside[0]).max() > 1e-3


def test_fused_graphs_too(body: onnx.ModelProto) -> None:
    fused = fuse.fuse(body)
    small = precision_texts.quantise_encoder(fused)
    assert operators(small, "QuantizeLinear") == 4 * 3
    feeds = tokens(7, 40)
    assert cosines(answers(small, feeds), answers(body, feeds)).min() > 0.999


def test_rows_of_zeros_and_of_any_size_are_right() -> None:
    """Each row's own scale fits rows of zeros, tiny and huge numbers. After a GELU the shift is undone exactly."""
    model = weights((64, 96), (96, 32))
    small = precision_texts.quantise_encoder(model)
    rows = np.random.default_rng(1).normal(size=(1, 4, 64)).astype(np.float32)
    rows *= np.array([0, 1e-6, 1, 1e6], np.float32)[None, :, None]
    exact, near = answers(model, {"x": rows}), answers(small, {"x": rows})
    assert np.isfinite(near).all()
    for token in (0, 1, 2, 3):
        size = max(np.abs(exact[0, token]).max(), 0.05)
        assert np.abs(near[0, token] - exact[0, token]).max() < 0.03 * size


def test_excluded_layers_stay(body: onnx.ModelProto) -> None:
    names = [node.name for node in precision_texts.quantisable_layers(body)]
    assert len(names) == 6 * 3
    small = precision_texts.quantise_encoder(body, names)
    assert operators(small, "QuantizeLinear") == 0
    np.testing.assert_allclose(answers(small, tokens(2, 40)), answers(body, tokens(2, 40)), atol=0.02)


def test_the_worst_layer_is_found() -> None:
    """One weight that is far larger than its column leaves few levels for the others."""

    def spoiled(weight: np.ndarray) -> np.ndarray:
        weight[0] *= 100
        return weight

    model = weights((64, 64), (64, 64), (64, 64), w1=spoiled)
    random = np.random.default_rng(3)
    batches = [{"x": random.normal(size=(1, 5, 64)).astype(np.float32)} for _ in range(3)]
    assert precision_texts.worst_layers(model, batches)[0] == "layer1"


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(UsageError, match="no layers that int8 would speed up"):
        precision_texts.quantise_encoder(weights((4, 4)))
