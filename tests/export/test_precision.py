"""fp16 and int8 bundles: their differences from fp32, refused options, and the items that the guard uses."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.kit.cli import fails, parsed, zoo
from tests.kit.items import write_images
from tests.kit.models import SIDE, write_hostile_registry
from zoo import GateError, UsageError, Variant, Zoo
from zoo.bundle import Bundle
from zoo.data.dataset import load
from zoo.export import accuracy_guard, parity, precision
from zoo.export.reference import expect
from zoo.graph import edit, head
from zoo.runtime.ort import create_session
from zoo.runtime.session import Session
from zoo.schema import ImagePreprocess
from zoo.system.files import sha256_file
from zoo.training.refit import refit_head


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "images"
    write_images(folder, 24)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, kept_home: Path, shelf_file: Path) -> Path:
    """A bundle fine-tuned on `data`, which no test changes."""
    out = data.parent / "tuned"
    zoo("finetune", "tiny-lite", data, "-o", out, ZOO_HOME=str(kept_home), ZOO_REGISTRY=str(shelf_file))
    return out


@pytest.fixture
def tuned(kept_shelf: Path, trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "tuned")


@pytest.fixture(scope="module")
def small(trained: Path, data: Path, kept_home: Path, shelf_file: Path) -> tuple[Path, str]:
    """The int8 export of `trained`, calibrated with `data`, and the stderr of the command; no test changes it."""
    out = data.parent / "small"
    done = zoo(
        "export", trained, "-o", out, "--precision", "int8", "--calibrate", data,
        ZOO_HOME=str(kept_home), ZOO_REGISTRY=str(shelf_file),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, done.stderr


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("asked", [(), ("--precision", "fp16")])
def test_an_export_has_no_report_with_copies_of_the_data(
    tuned: Path, data: Path, tmp_path: Path, asked: tuple[str, ...]
) -> None:
    assert {path.name for path in tuned.glob("report*")} >= {"report.html", "report.json", "report-map.png"}
    out = tmp_path / "out"
    assert zoo("export", tuned, "-o", out, *asked).returncode == 0
    # What evaluate --held-out and a later int8 export need is kept.
    kept = {"model.onnx", "zoo.json", "head.safetensors", "split.jsonl", "training.json"}
    assert {path.name for path in out.iterdir()} == kept
    assert {file.path for file in Bundle.open(out).manifest.files} == kept - {"zoo.json"}
    assert zoo("verify", out).returncode == 0
    measured = [
        parsed(zoo("evaluate", path, data, "--held-out", "--json"))["evaluation"]["metrics"]["n"]
        for path in (tuned, out)
    ]
    assert measured[0] == measured[1] > 0


def test_half_precision(tuned: Path, data: Path, tmp_path: Path) -> None:
    said = parsed(zoo("export", tuned, "-o", tmp_path / "half", "--precision", "fp16", "--json"))["export"]
    assert said["precision"] == "fp16"
    assert {check["bound"] for check in said["parity"]["checks"]} >= {2e-2, 1e-4, 3e-2}
    model = onnx.load(tmp_path / "half" / "model.onnx")
    kinds = {tensor.data_type for tensor in model.graph.initializer if "converted" in tensor.name}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert onnx.TensorProto.FLOAT not in kinds
    # Inputs, outputs, head and preprocessing do not change.
    exact = Bundle.open(tuned).manifest
    half = Bundle.open(tmp_path / "half").manifest
    assert (half.inputs, half.outputs, half.labels) == (exact.inputs, exact.outputs, exact.labels)
    images = sorted(data.rglob("*.png"))
    near, right = (Zoo().session(str(path), "cpu").scores(images) for path in (tmp_path / "half", tuned))
    np.testing.assert_allclose(near, right, atol=3e-2)
    assert (near != right).any()
    weights = [path.stat().st_size for path in (tmp_path / "half" / "model.onnx", tuned / "model.onnx")]
    assert weights[0] < 0.8 * weights[1]


def test_int8(kept_shelf: Path, trained: Path, small: tuple[Path, str], data: Path) -> None:
    out, stderr = small
    assert " before, " in stderr
    bundle = Bundle.open(out)
    found = bundle.manifest.guard
    assert found is not None
    held = json.loads((trained / "report.json").read_text())["metrics"]["n"]
    assert found.n == held
    assert found.before - found.after <= found.allowed
    assert found.items == f"held-out items of {data}"
    assert bundle.manifest.parity.samples == "8 of the held-out items"
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators(bundle.model)
    # Standard operators only: any runtime of opset 20 loads it.
    assert {node.domain for node in onnx.load(bundle.model).graph.node} == {""}
    judged = parsed(zoo("evaluate", out, data, "--held-out", "--json"))["evaluation"]["metrics"]
    assert judged["accuracy"] == pytest.approx(found.after)
    assert bundle.manifest.metrics is not None
    assert bundle.manifest.metrics.accuracy == pytest.approx(found.after)
    assert zoo("verify", out).returncode == 0


def test_a_row_does_not_depend_on_its_neighbours(small: tuple[Path, str]) -> None:
    """Scales are fixed: an image of high contrast does not change the answer for one of low contrast beside it."""
    session = create_session((small[0] / "model.onnx").read_bytes(), "cpu")
    random = np.random.default_rng(0)
    quiet = random.integers(120, 130, (1, 70, 60, 3), dtype=np.uint8)
    loud = random.choice(np.array([0, 255], np.uint8), (6, 70, 60, 3))
    alone = session.run(None, {"image": quiet})
    beside = session.run(None, {"image": np.concatenate([quiet, loud])})
    for one, many in zip(alone, beside, strict=True):
        np.testing.assert_allclose(many[:1], one, atol=1e-5)


def write_light_images(folder: Path, count: int = 16, *, black: bool = False) -> Path:
    """Different images in light red, green and blue; with `black` all are black instead."""
    random = np.random.default_rng(1 + black)
    for channel, label in enumerate(("red", "green", "blue")):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            image = random.integers(150, 200, (64, 64 + number, 3), dtype=np.uint8)
            image[:, :, channel] += 55
            # Black images of the same size would have the same digest.
            Image.fromarray(0 * image[: 64 - channel] if black else image).save(folder / label / f"{number:02d}.png")
    return folder


@pytest.mark.slow
def test_bad_calibration_is_refused(shelf: Path, tmp_path: Path) -> None:
    """Ranges read from black images clip all light values; the guard notices the loss on the held-out items."""
    good = write_light_images(tmp_path / "light")
    zoo("finetune", "tiny-lite", good, "-o", tmp_path / "tuned")
    split = {
        row["digest"]: row for row in map(json.loads, (tmp_path / "tuned" / "split.jsonl").read_text().splitlines())
    }
    bad = write_light_images(tmp_path / "bad", black=True)
    for path in good.rglob("*.png"):
        if split[sha256_file(path)]["held_out"]:
            shutil.copyfile(path, bad / path.relative_to(good).parent / f"held-{path.name}")
    out = tmp_path / "small"
    done = zoo("export", tmp_path / "tuned", "-o", out, "--precision", "int8", "--calibrate", bad, "--json")
    assert done.returncode == 6
    error = json.loads(done.stdout)["error"]
    assert "int8 loses too much" in error["message"]
    assert "the layers that lose most: efficientnet/" in error["message"]
    assert f"n = {error['report']['n']} (held-out items of {bad})" in error["message"]
    assert error["report"]["before"] - error["report"]["after"] > error["report"]["allowed"]
    assert not out.exists()
    # The calibration was the cause: with the model's own data the export succeeds.
    assert zoo("export", tmp_path / "tuned", "-o", out, "--precision", "int8", "--calibrate", good).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["project", "expand", "depthwise"])
def test_leaving_layers_in_float_saves_it(
    layer: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that int8 represents badly is the first that is left in float, wherever it lies."""
    monkeypatch.setenv("ZOO_REGISTRY", str(write_hostile_registry(tmp_path / "registry", 1e4, layer)))
    zoo("finetune", "hostile", data, "-o", tmp_path / "tuned")
    done = zoo("export", tmp_path / "tuned", "-o", tmp_path / "small", "--precision", "int8", "--calibrate", data)
    assert done.returncode == 0, done.stderr
    exact = onnx.load(tmp_path / "tuned" / "model.onnx")
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in exact.graph.initializer}
    [worst] = [
        node.name
        for node in exact.graph.node
        if node.op_type == "Conv"
        and np.abs(weights[node.input[1]]).max() > 1e3 * np.median(np.abs(weights[node.input[1]]))
    ]
    bundle = Bundle.open(tmp_path / "small")
    found = bundle.manifest.guard
    assert found is not None
    assert found.excluded[0] == worst
    assert found.before - found.after <= found.allowed
    assert found.items.startswith(f"held-out items of {data}; they also chose ")
    assert found.items.endswith("the layers left in float")
    # The layer's weights are still in single precision, most others are not.
    kept = float_weights(onnx.load(bundle.model))
    assert any(np.abs(weight).max() > 1e3 * np.median(np.abs(weight)) for weight in kept)
    assert 0 < len(kept) < len(float_weights(exact)) / 2


def test_a_head_is_fitted_to_the_new_features(tuned: Path, data: Path, tmp_path: Path) -> None:
    """The refitted head differs, the file's scores are those of this head, and the accuracy stays high."""
    source = Bundle.open(tuned)
    examples = load(data, source.manifest.preprocess)
    batches = list(precision.calibration(Zoo().session(str(tuned), "cpu"), examples.items[::3]))
    model = precision.int8(onnx.load(source.model), batches)
    (tmp_path / "candidate").mkdir()
    candidate = accuracy_guard.save_bundle(model, source.manifest, tmp_path / "candidate")
    fitted = refit_head(candidate, source, examples, accuracy_guard.Unreadable([], len(examples.items), 0))
    assert (fitted.layers[0][0] != head.load(tuned / "head.safetensors")[0][0]).any()
    again = accuracy_guard.save_bundle(
        accuracy_guard._with_head(model, fitted.layers, source.manifest), source.manifest, tmp_path / "candidate"
    )
    answers = Session(again, "cpu").infer(examples.items, ["features", "scores"])
    np.testing.assert_allclose(
        answers["scores"],
        head.apply(fitted.layers, answers["features"], source.manifest.activation or "softmax"),
        atol=1e-5,
    )
    right = answers["scores"].argmax(1) == examples.targets(source.manifest.labels)
    assert right.mean() > 0.9


def float_weights(model: onnx.ModelProto) -> list[np.ndarray]:
    tensors = [each for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT]
    return [onnx.numpy_helper.to_array(each) for each in tensors if len(each.dims) == 4]


def test_a_features_bundle_is_calibrated_and_checked(shelf: Path, data: Path, tmp_path: Path) -> None:
    zoo("export", "tiny-lite", "-o", tmp_path / "small", "--precision", "int8", "--calibrate", data)
    manifest = Bundle.open(tmp_path / "small").manifest
    assert (manifest.precision, manifest.guard) == ("int8", None)
    assert manifest.parity.samples == "8 of the items that did not calibrate"
    assert {check.batch for check in manifest.parity.checks} == {1, 2, 7}
    assert {check.bound for check in manifest.parity.checks if "cosine" in check.name} == {0.1}
    assert manifest.parity.passed


def test_the_parity_check_stops_features_of_another_direction(shelf: Path, tmp_path: Path) -> None:
    """Without labels there is no guard; the parity check finds wrong ranges by the features of the items."""
    bundle = Zoo().export("tiny-lite", tmp_path / "exact")
    model, black = onnx.load(bundle.model), {"pixels": np.full((1, 3, SIDE, SIDE), -1, np.float32)}
    edit.save(precision.int8(model, [black]), tmp_path / "model.onnx")
    light = sorted(write_light_images(tmp_path / "light").rglob("*.png"))
    backbone = Zoo().plugins.make(bundle.manifest.lineage.entry, Zoo().pull("tiny-lite"))
    preprocess = bundle.manifest.preprocess
    assert isinstance(preprocess, ImagePreprocess)
    with pytest.raises(GateError, match=r"1 - cosine.*above 0\.1"):
        parity.check(
            tmp_path / "model.onnx",
            expect(backbone.reference, light[:8], "light", preprocess),
            bounds=parity.BOUNDS["int8"],
        )


def test_the_validation_data_of_fine_tuning_judges(shelf: Path, data: Path, tmp_path: Path) -> None:
    """The guard finds the images of --val, which --calibrate does not name, in the folder that fine-tuning read."""
    train, val = tmp_path / "train", tmp_path / "val"
    shutil.copytree(data, train)
    for path in sorted(train.rglob("0[0-3].png")):
        (val / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(val / path.parent.name / path.name)
    zoo("finetune", "tiny-lite", train, "--val", val, "-o", tmp_path / "tuned")
    zoo("export", tmp_path / "tuned", "-o", tmp_path / "small", "--precision", "int8", "--calibrate", train)
    found = Bundle.open(tmp_path / "small").manifest.guard
    assert found is not None
    assert (found.n, found.items) == (12, f"held-out items of {val}")


def test_what_makes_no_sense(tuned: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export = ("export", tuned, "-o", out, "--precision")
    fails(2, "unknown --precision int4", *export, "int4")
    fails(2, "int8 needs data to read ranges from", *export, "int8")
    fails(2, "--calibrate needs --precision int8", *export, "fp16", "--calibrate", data)
    fails(2, "--max-drop must be in [0, 1), got 7.0", *export, "int8", "--calibrate", data, "--max-drop", 7)
    fails(2, "--max-drop needs --precision int8", "export", tuned, "-o", out, "--max-drop", 0.5)
    fails(2, "--max-drop needs --precision int8", *export, "fp16", "--max-drop", 0.5)
    fails(2, "--max-drop needs --calibrate", *export, "int8", "--max-drop", 0.5)
    for option in ("--text", "--image", "--label"):
        fails(2, f"{option} needs --calibrate", *export, "fp16", option, "column")
    fails(2, "--max-bad needs --calibrate", *export, "fp16", "--max-bad", 0.5)
    texts = tmp_path / "texts.csv"
    texts.write_text("text,label\nhello,a\n")
    assert zoo(*export, "int8", "--calibrate", texts).returncode in (1, 2, 3)
    fails(3, "nowhere: no such file", *export, "int8", "--calibrate", tmp_path / "nowhere")
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
    """The model with one wrong weight."""
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    array = onnx.numpy_helper.to_array(largest).copy()
    array.flat[np.abs(array).argmax()] *= -30
    largest.CopyFrom(onnx.numpy_helper.from_array(array, largest.name))
    return model


def test_joined_parts_are_the_model_again(tuned: Path) -> None:
    model = onnx.load(tuned / "model.onnx")
    again = precision.join_parts(precision.split_parts(model), edit.metadata_of(model))
    assert sorted(node.name for node in again.graph.node) == sorted(node.name for node in model.graph.node)
    assert edit.tensor_specs(again) == edit.tensor_specs(model)
    assert edit.metadata_of(again) == edit.metadata_of(model)
