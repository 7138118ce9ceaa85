"""Other precisions of a bundle: what fp16 and int8 keep, what is refused, and that the guard cannot be fooled."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from tests.test_chain import write_pictures
from tests.test_cli import fails, parsed, zoo
from zoo import GateError, UsageError, Variant, Zoo, graph, precision
from zoo.bundle import Bundle


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pictures"
    write_pictures(folder, 24)
    return folder


@pytest.fixture
def tuned(shelf: Path, data: Path, tmp_path: Path) -> Path:
    zoo("finetune", "tiny-lite", data, "-o", tmp_path / "tuned")
    return tmp_path / "tuned"


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_half_precision(tuned: Path, data: Path, tmp_path: Path) -> None:
    said = parsed(zoo("export", tuned, "-o", tmp_path / "half", "--precision", "fp16", "--json"))["export"]
    assert said["precision"] == "fp16"
    assert {check["bound"] for check in said["parity"]["checks"]} >= {2e-2, 1e-4, 3e-2}
    model = onnx.load(tmp_path / "half" / "model.onnx")
    kinds = {tensor.data_type for tensor in model.graph.initializer if "converted" in tensor.name}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert onnx.TensorProto.FLOAT not in kinds
    # Inputs and outputs are what they were, the head and the preprocessing too.
    exact = Bundle.open(tuned).manifest
    half = Bundle.open(tmp_path / "half").manifest
    assert (half.inputs, half.outputs, half.labels) == (exact.inputs, exact.outputs, exact.labels)
    pictures = sorted(data.rglob("*.png"))
    near, right = (Zoo().session(str(path), "cpu").scores(pictures) for path in (tmp_path / "half", tuned))
    np.testing.assert_allclose(near, right, atol=3e-2)
    assert (near != right).any()
    weights = [path.stat().st_size for path in (tmp_path / "half" / "model.onnx", tuned / "model.onnx")]
    assert weights[0] < 0.8 * weights[1]


def test_eight_bits(tuned: Path, data: Path, tmp_path: Path) -> None:
    done = zoo("export", tuned, "-o", tmp_path / "small", "--precision", "int8", "--calibrate", data)
    assert " before, " in done.stderr
    bundle = Bundle.open(tmp_path / "small")
    guard = bundle.manifest.guard
    assert guard is not None
    held = json.loads((tuned / "report.json").read_text())["metrics"]["n"]
    assert guard.n == held
    assert guard.before - guard.after <= guard.allowed
    assert guard.items == f"what was held out of {data}"
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators(bundle.model)
    # Standard operators only: any runtime of opset 20 loads it.
    assert {node.domain for node in onnx.load(bundle.model).graph.node} == {""}
    found = parsed(zoo("evaluate", tmp_path / "small", data, "--held-out", "--json"))["evaluation"]["metrics"]
    assert found["accuracy"] == pytest.approx(guard.after)
    assert bundle.manifest.metrics is not None
    assert bundle.manifest.metrics.accuracy == pytest.approx(guard.after)
    assert zoo("verify", tmp_path / "small").returncode == 0


def test_a_row_does_not_depend_on_its_neighbours(tuned: Path, data: Path, tmp_path: Path) -> None:
    """Scales are fixed: a loud picture beside it changes nothing of a quiet one's answer."""
    zoo("export", tuned, "-o", tmp_path / "small", "--precision", "int8", "--calibrate", data)
    session = onnxruntime.InferenceSession(tmp_path / "small" / "model.onnx", providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    quiet = random.integers(120, 130, (1, 70, 60, 3), dtype=np.uint8)
    loud = random.choice(np.array([0, 255], np.uint8), (6, 70, 60, 3))
    alone = session.run(None, {"image": quiet})
    beside = session.run(None, {"image": np.concatenate([quiet, loud])})
    for one, many in zip(alone, beside, strict=True):
        np.testing.assert_allclose(many[:1], one, atol=1e-5)


def test_bad_calibration_is_refused(tuned: Path, data: Path, tmp_path: Path) -> None:
    """Ranges read from black pictures clip everything else: the guard sees it on what was held out, and says so."""
    bad = tmp_path / "bad"
    shutil.copytree(data, bad)
    split = {row["digest"]: row for row in map(json.loads, (tuned / "split.jsonl").read_text().splitlines())}
    from zoo.examples import digest_of

    for path in bad.rglob("*.png"):
        if not split[digest_of(path)]["held_out"]:
            # No two are the same file, and all of them are black.
            Image.fromarray(np.zeros((64, 64 + len(split) % 3, 3), np.uint8)).save(
                path, compress_level=len(path.name) % 9
            )
    out = tmp_path / "small"
    done = zoo("export", tuned, "-o", out, "--precision", "int8", "--calibrate", bad, "--json")
    assert done.returncode == 6
    error = json.loads(done.stdout)["error"]
    assert "int8 loses too much" in error["message"]
    assert "the layers that lose most: " in error["message"]
    assert f"n = {error['report']['n']}" in error["message"]
    assert error["report"]["before"] - error["report"]["after"] > error["report"]["allowed"]
    assert not out.exists()


def test_a_features_bundle_is_calibrated_and_gated(shelf: Path, data: Path, tmp_path: Path) -> None:
    zoo("export", "tiny-lite", "-o", tmp_path / "small", "--precision", "int8", "--calibrate", data)
    manifest = Bundle.open(tmp_path / "small").manifest
    assert (manifest.precision, manifest.guard) == ("int8", None)
    assert manifest.parity.passed


def test_what_makes_no_sense(tuned: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export = ("export", tuned, "-o", out, "--precision")
    fails(2, "the precision int4 is not known", *export, "int4")
    fails(2, "int8 needs data to read ranges from", *export, "int8")
    fails(2, "only int8 is calibrated", *export, "fp16", "--calibrate", data)
    fails(2, "--max-drop 7.0 is not a fraction", *export, "int8", "--calibrate", data, "--max-drop", 7)
    texts = tmp_path / "texts.csv"
    texts.write_text("text,label\nhello,a\n")
    assert zoo(*export, "int8", "--calibrate", texts).returncode in (1, 2, 3)
    fails(2, "nowhere: no such file", *export, "int8", "--calibrate", tmp_path / "nowhere")
    assert not out.exists()
    zoo("export", tuned, "-o", out, "--precision", "fp16")
    fails(2, "is fp16 already", "export", out, "-o", tmp_path / "again", "--precision", "int8", "--calibrate", data)


def test_an_older_export_stays(tuned: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo("export", tuned, "-o", tmp_path / "out", "--precision", "fp16")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(precision, "fp16", lambda model: broken(model))
    with pytest.raises((GateError, UsageError)):
        Zoo().export(str(tuned), tmp_path / "out", Variant(precision="fp16"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def broken(model: onnx.ModelProto) -> onnx.ModelProto:
    """One weight of a model is another."""
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    array = onnx.numpy_helper.to_array(largest).copy()
    array.flat[np.abs(array).argmax()] *= -30
    largest.CopyFrom(onnx.numpy_helper.from_array(array, largest.name))
    return model


def test_pieces_make_the_whole_again(tuned: Path) -> None:
    model = onnx.load(tuned / "model.onnx")
    again = precision.whole(precision.pieces(model), precision.facts(model))
    assert sorted(node.name for node in again.graph.node) == sorted(node.name for node in model.graph.node)
    assert graph.tensor_specs(again) == graph.tensor_specs(model)
    assert precision.facts(again) == precision.facts(model)
