"""The bare backbone: inputs and outputs of its graph in every precision, and the verbs on such a bundle."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.kit.cli import fails, parsed
from tests.kit.cli import zoo as command
from tests.kit.items import write_images, write_texts
from tests.kit.models import SIDE, WORDS
from tests.kit.word_tables import WORDS as LISTED
from tests.kit.word_tables import binary, row, vectors, write_registry
from zoo import FinetuneOptions, Variant, Zoo
from zoo.bundle import Bundle
from zoo.graph import edit
from zoo.graph.prefix import image_prefix
from zoo.runtime.device import onnxruntime
from zoo.runtime.ort import create_session
from zoo.schema import Task, input_specs

IMAGES = list(np.random.default_rng(0).integers(0, 255, (3, 90, 131, 3), dtype=np.uint8))
RAW = Variant(raw=True)


def bare(bundle: Bundle, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The only output of the file, opened by its path in a plain runtime."""
    session = onnxruntime().InferenceSession(str(bundle.model), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == list(feeds)
    assert [value.name for value in session.get_outputs()] == ["features"]
    [features] = session.run(None, feeds)
    return features


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_images(shelf: Path, tmp_path: Path, precision: str) -> None:
    said = parsed(command("export", "tiny-lite", "-o", tmp_path / "raw", "--raw", "--precision", precision, "--json"))[
        "export"
    ]
    assert {check["name"].partition(" (")[0] for check in said["parity"]["checks"]} == {"features", "each row alone"}
    assert {check["batch"] for check in said["parity"]["checks"]} == {1, 2, 7}
    bundle = Bundle.open(tmp_path / "raw")
    manifest = bundle.manifest
    assert manifest.inputs == input_specs(manifest.preprocess)
    assert [spec.name for spec in manifest.outputs] == ["features"]
    assert {file.path for file in manifest.files} == {"model.onnx"}
    model = onnx.load(bundle.model)
    assert not {"Resize", "Round"} & {node.op_type for node in model.graph.node}
    facts = {item.key: item.value for item in model.metadata_props}
    assert json.loads(facts["zoo.preprocess"])["crop"] == SIDE
    zoo = Zoo()
    whole = zoo.export("tiny-lite", tmp_path / "whole", Variant(precision=precision))
    prefix = create_session(image_prefix(manifest.preprocess).SerializeToString(), "cpu")
    [pixels] = prefix.run(None, {"image": np.stack(IMAGES)})
    wanted = create_session(whole.read_model(), "cpu").run(["features"], {"image": np.stack(IMAGES)})[0]
    np.testing.assert_allclose(bare(bundle, {"pixels": pixels}), wanted, atol=1e-4)
    # A session prepares the images of both in the same way.
    by_session = zoo.session(str(whole.path), "cpu").features(IMAGES)
    np.testing.assert_allclose(zoo.session(str(bundle.path), "cpu").features(IMAGES), by_session, atol=1e-4)
    assert command("verify", bundle.path).returncode == 0


def test_of_a_fine_tuned_bundle_nothing_of_the_head_is_left(shelf: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", 6)
    zoo = Zoo()
    zoo.finetune("tiny-lite", data, tmp_path / "tuned", FinetuneOptions(epochs=3))
    bundle = zoo.export(str(tmp_path / "tuned"), tmp_path / "raw", RAW)
    manifest = bundle.manifest
    assert (manifest.task, manifest.labels, manifest.head, manifest.metrics) == (Task.EMBEDDING, (), None, None)
    assert {path.name for path in bundle.path.iterdir()} == {"model.onnx", "zoo.json"}
    assert "zoo.labels" not in {item.key for item in onnx.load(bundle.model).metadata_props}
    session, whole = (zoo.session(str(tmp_path / name), "cpu") for name in ("raw", "tuned"))
    np.testing.assert_allclose(session.features(IMAGES), whole.features(IMAGES), atol=1e-5)
    int8 = zoo.export(
        str(tmp_path / "tuned"), tmp_path / "int8", Variant(raw=True, precision="int8", calibrate=str(data))
    )
    assert {path.name for path in int8.path.iterdir()} == {"model.onnx", "zoo.json"}
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(int8.model).graph.node}
    assert bare(int8, {"pixels": np.zeros((2, 3, SIDE, SIDE), np.float32)}).shape == (2, 1280)
    fails(2, "has no labels", "evaluate", bundle.path, data)
    # Exported again the bundle stays bare, and it cannot be converted further.
    again = zoo.export(str(bundle.path), tmp_path / "again")
    assert again.model.read_bytes() == bundle.model.read_bytes()
    assert again.manifest.parity.checks == manifest.parity.checks
    hint = fails(2, "a bare backbone", "export", bundle.path, "-o", tmp_path / "half", "--precision", "fp16")
    assert "--raw --precision fp16" in hint


def test_tuned_stages_are_a_part_of_it(deep_shelf: Path, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "tickets.csv")
    zoo = Zoo()
    zoo.finetune("tiny-bert", data, tmp_path / "tuned", FinetuneOptions(epochs=1, unfreeze=1))
    bundle = zoo.export(str(tmp_path / "tuned"), tmp_path / "raw", RAW)
    assert {file.path for file in bundle.manifest.files} == {"model.onnx", "tokenizer.json", "tail.safetensors"}
    texts = [" ".join(WORDS[3:9]), "card money"]
    session, whole = (zoo.session(str(tmp_path / name), "cpu") for name in ("raw", "tuned"))
    np.testing.assert_allclose(session.features(texts), whole.features(texts), atol=1e-5)
    assert np.abs(session.features(texts) - zoo.session("tiny-bert", "cpu").features(texts)).max() > 1e-4
    assert zoo.export(str(bundle.path), tmp_path / "again").manifest.parity.passed


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    (tmp_path / "v.bin").write_bytes(binary(LISTED, vectors(len(LISTED), 16)))
    registry = write_registry(tmp_path / "registry.json", {"words": row(tmp_path / "v.bin", None, 16)})
    zoo, data = Zoo(registry=registry), write_texts(tmp_path / "tickets.csv")
    zoo.finetune("words", data, tmp_path / "tuned", FinetuneOptions(epochs=1))
    variant = Variant(raw=True, precision=precision, calibrate=str(data) if precision == "int8" else None)
    bundle = zoo.export(str(tmp_path / "tuned"), tmp_path / "raw", variant)
    tables = {"vectors.bin", *(["scales.bin"] if precision == "int8" else [])}
    assert {file.path for file in bundle.manifest.files} == {"model.onnx", "tokenizer.json", *tables}
    feeds = {"input_ids": np.array([[3, 4, 9]]), "attention_mask": np.ones((1, 3), np.int64)}
    assert bare(bundle, feeds).shape == (1, 16)
    # The guard judged it with the head that was cut off.
    assert (bundle.manifest.guard is not None) == (precision == "int8")
    assert edit.tensor_specs(onnx.load(bundle.model, load_external_data=False))[0] == bundle.manifest.inputs
