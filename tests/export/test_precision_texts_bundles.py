"""Text bundles exported by the real command in int8 with the guard, fused, and both; refused combinations."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.kit.cli import fails, parsed, zoo
from tests.kit.items import write_texts
from zoo import Zoo
from zoo.bundle import Bundle

FUSED = {"MultiHeadAttention": 2, "EmbedLayerNormalization": 1, "SkipLayerNormalization": 4, "BiasGelu": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts") / "tickets.csv")


@pytest.fixture
def tuned(shelf: Path, data: Path, tmp_path: Path) -> Path:
    zoo("finetune", "tiny-bert", data, "-o", tmp_path / "tuned", "--val", "0.3")
    return tmp_path / "tuned"


def kinds(path: Path) -> dict[str, int]:
    nodes = onnx.load(path / "model.onnx").graph.node
    return {kind: sum(node.op_type == kind for node in nodes) for kind in {node.op_type for node in nodes}}


def test_int8_is_judged_by_the_held_out_items(tuned: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    done = zoo("export", tuned, "-o", out, "--precision", "int8", "--calibrate", data)
    assert " before, " in done.stderr
    manifest = Bundle.open(out).manifest
    guard, metrics = manifest.guard, Bundle.open(tuned).manifest.metrics
    assert guard is not None
    assert metrics is not None
    assert (guard.n, guard.before) == (metrics.n, metrics.accuracy)
    assert guard.before - guard.after <= guard.allowed
    assert manifest.parity.samples.endswith("of the held-out items")
    named = {check.name: check.bound for check in manifest.parity.checks}
    assert named["scores of its features (max difference)"] == 1e-4
    assert named["top-1 (rows that differ)"] == 1.5
    found = kinds(out)
    assert found["QuantizeLinear"] == 4 * 2
    assert {node.domain for node in onnx.load(out / "model.onnx").graph.node} == {""}
    evaluated = parsed(zoo("evaluate", out, data, "--held-out", "--json"))["evaluation"]["metrics"]
    assert evaluated["accuracy"] == pytest.approx(guard.after)
    assert (out / "model.onnx").stat().st_size < 0.8 * (tuned / "model.onnx").stat().st_size
    texts = ["my card was charged twice", "the parcel is late"]
    near, right = (Zoo().session(str(path), "cpu").scores(texts) for path in (out, tuned))
    np.testing.assert_allclose(near, right, atol=0.1)
    assert (near != right).any()


def test_a_registry_row_needs_no_data(shelf: Path, tmp_path: Path) -> None:
    said = parsed(zoo("export", "tiny-bert", "-o", tmp_path / "small", "--precision", "int8", "--json"))["export"]
    assert (said["precision"], said["guard"]) == ("int8", None)
    assert {check["bound"] for check in said["parity"]["checks"]} == {0.25, 2e-2, 1e-4}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_fused(tuned: Path, data: Path, tmp_path: Path, precision: str) -> None:
    out = tmp_path / "fused"
    calibrate = ("--calibrate", data) if precision == "int8" else ()
    done = zoo("export", tuned, "-o", out, "--fuse", "--precision", precision, *calibrate)
    assert f"{precision}, fused, " in done.stderr
    found = kinds(out)
    assert {kind: found[kind] for kind in FUSED} == FUSED
    assert "Softmax" in found, "the head's own"
    assert Bundle.open(out).manifest.fused
    assert zoo("verify", out).returncode == 0
    texts = ["my card was charged twice", "the parcel is late"]
    near, right = (Zoo().session(str(path), "cpu").scores(texts) for path in (out, tuned))
    np.testing.assert_allclose(near, right, atol={"fp32": 1e-5, "fp16": 1e-2, "int8": 0.1}[precision])


def test_what_was_trained_deeper_is_fused_too(deep_shelf: Path, data: Path, tmp_path: Path) -> None:
    zoo("finetune", "tiny-bert", data, "-o", tmp_path / "deep", "--unfreeze", "1", "--epochs", "2")
    zoo("export", tmp_path / "deep", "-o", tmp_path / "fused", "--fuse")
    found = kinds(tmp_path / "fused")
    assert {kind: found[kind] for kind in FUSED} == FUSED


def test_what_is_refused(tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fails(2, "int8 needs data to measure its accuracy on", "export", tuned, "-o", out, "--precision", "int8")
    fails(2, "there is no attention to fuse in tiny-lite", "export", "tiny-lite", "-o", out, "--fuse")
    zoo("export", tuned, "-o", out, "--fuse")
    fails(2, "is fused already", "export", out, "-o", tmp_path / "again", "--precision", "fp16")


def test_what_is_exported_again_stays_as_it_is(tuned: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    zoo("export", tuned, "-o", out, "--precision", "int8", "--calibrate", data)
    assert not list(out.glob("report*")), "a report on another model"
    zoo("export", out, "-o", tmp_path / "again")
    assert (tmp_path / "again/model.onnx").read_bytes() == (out / "model.onnx").read_bytes()
    assert Bundle.open(tmp_path / "again").manifest.guard == Bundle.open(out).manifest.guard
    same = ("export", out, "-o", tmp_path / "third", "--precision", "int8")
    assert zoo(*same).returncode == 0
    fails(2, "is int8 already", *same, "--calibrate", data)
    fails(2, "is int8 already", "export", out, "-o", tmp_path / "third", "--precision", "fp32")


@pytest.mark.gpu
def test_fused_half_floats_on_cuda(tuned: Path, tmp_path: Path) -> None:
    zoo("export", tuned, "-o", tmp_path / "fast", "--fuse", "--precision", "fp16")
    texts = ["my card was charged twice", "the parcel is late"] * 20
    near, right = Zoo().session(str(tmp_path / "fast"), "cuda"), Zoo().session(str(tuned), "cpu")
    np.testing.assert_allclose(near.scores(texts), right.scores(texts), atol=2e-2)
