"""The content of an exported file is as docs/export.md says: facts, operators, inputs and outputs."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.kit.docs import ROOT, snippet
from tests.kit.items import TOPICS, write_images, write_texts
from tests.kit.word_tables import WORDS, binary, row, vectors, write_registry
from zoo import FinetuneOptions, Variant, Zoo
from zoo.bundle import Bundle
from zoo.export import parity
from zoo.runtime.device import onnxruntime
from zoo.schema import Precision

PAGE = ROOT / "docs/export.md"
#: Triton's names for numpy's types.
TYPES = {"uint8": "TYPE_UINT8", "int64": "TYPE_INT64", "float32": "TYPE_FP32"}
CASES = [
    *(("images", "fp32"), ("images", "fp16"), ("images", "int8")),
    *(("texts", "fp32"), ("texts", "fp16")),
    *(("words", "fp32"), ("words", "fp16"), ("words", "int8")),
]


@pytest.fixture(scope="module")
def tuned(shelf_file: Path, kept_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fine-tuned bundles `images`, `texts` and `words` beside their data `*.data`."""
    folder = tmp_path_factory.mktemp("surface")
    write_images(folder / "images.data", 8)
    (folder / "v.bin").write_bytes(binary(WORDS, vectors(len(WORDS), 16)))
    words = write_registry(folder / "words.json", {"words": row(folder / "v.bin", None, 16)})
    for name in ("texts", "words"):
        write_texts(folder / f"{name}.csv").rename(folder / f"{name}.data.csv")
    for name, model, registry in (
        ("images", "tiny-lite", shelf_file),
        ("texts", "tiny-bert", shelf_file),
        ("words", "words", words),
    ):
        data = folder / ("images.data" if name == "images" else f"{name}.data.csv")
        Zoo(home=kept_home, registry=registry).finetune(model, data, folder / name, FinetuneOptions(epochs=5))
    return folder


def export(tuned: Path, name: str, precision: Precision, out: Path, *, raw: bool = False) -> Bundle:
    data = tuned / "images.data" if name == "images" and precision == "int8" else None
    variant = Variant(precision=precision, raw=raw)
    if data:
        variant = Variant(precision=precision, raw=raw, calibrate=str(data), max_drop=0.5)
    return Zoo().export(str(tuned / name), out, variant)


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_every_file_says_what_it_is(
    tuned: Path, kept_shelf: Path, tmp_path: Path, name: str, precision: Precision
) -> None:
    bundle = export(tuned, name, precision, tmp_path / "out")
    manifest = bundle.manifest
    session = onnxruntime().InferenceSession(str(bundle.model), providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["zoo.labels"]) == sorted(TOPICS if name != "images" else ("red", "green", "blue"))
    assert json.loads(facts["zoo.preprocess"])["kind"] == ("image" if name == "images" else "text")
    assert facts["zoo.license"] == manifest.license == manifest.lineage.entry.license
    digests = {file.path: file.sha256 for file in manifest.lineage.entry.files}
    assert json.loads(facts["zoo.weights_sha256"]) == digests
    assert "onnx" in json.loads(facts["zoo.versions"])
    assert {key for key in facts if key not in PAGE.read_text()} == set()
    model = onnx.load(bundle.model, load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 20)]
    assert model.ir_version == 10
    # Runtime, manifest and documentation agree: the batch axis is the first, and of any length.
    for ours, theirs in ((manifest.inputs, session.get_inputs()), (manifest.outputs, session.get_outputs())):
        assert [spec.name for spec in ours] == [value.name for value in theirs]
        for spec, value in zip(ours, theirs, strict=True):
            assert list(spec.shape) == value.shape
            assert value.shape[0] == "batch"
            assert f"`{spec.name}`" in PAGE.read_text()
    shapes = {"images": (50, 70, 3)}.get(name, (9,))
    for batch in (1, 3):
        feeds = {spec.name: np.ones((batch, *shapes), spec.dtype) for spec in manifest.inputs}
        assert {len(array) for array in session.run(None, feeds)} == {batch}


def test_the_configuration_for_triton(tuned: Path, kept_shelf: Path, tmp_path: Path) -> None:
    manifest = export(tuned, "images", "fp32", tmp_path / "out").manifest
    found = re.findall(r'name: "(\w+)" data_type: (\w+) dims: \[ (.+?) \]', snippet(PAGE, "triton"))
    wanted = [
        (spec.name, TYPES[spec.dtype], ", ".join("-1" if isinstance(axis, str) else str(axis) for axis in axes))
        for spec in (*manifest.inputs, *manifest.outputs)
        for axes in [spec.shape[1:]]
    ]
    assert found == wanted


def test_the_bounds_are_those_of_the_page() -> None:
    table = re.search(r"\| limit \|.*?\n\n", PAGE.read_text(), re.DOTALL)
    assert table is not None
    columns = [*parity.BOUNDS.values(), parity.TEXTS["int8"], parity.WORD_BOUNDS["fp16"], parity.WORD_BOUNDS["int8"]]
    lines = table[0].strip().splitlines()[2:]
    for line, field in zip(lines, ("features", "cosine", "scores", "alone", "moved"), strict=True):
        shown = [float(cell) for cell in line.strip("| ").split("|")[1:]]
        assert shown == [getattr(bounds, field) for bounds in columns]
