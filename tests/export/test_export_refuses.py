"""`zoo export` refuses bad requests with one line, a hint and an exit code, and leaves an older export unchanged."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx
import pytest

from tests.kit.cli import fails
from tests.kit.cli import zoo as command
from tests.kit.faults import frozen_batch, frozen_input, one_weight, reversed_channels, swapped_sides
from tests.kit.installed import Site
from tests.kit.items import write_images, write_texts
from tests.kit.word_tables import WORDS, binary, row, vectors, write_registry
from zoo import FinetuneOptions, GateError, Variant, Zoo
from zoo.bundle import Bundle, describe_files, write_manifest

Change = Callable[[onnx.ModelProto], None]
#: A family whose graph has too new an opset and IR version: channel means of the pixels.
TOO_NEW = """
import numpy as np, onnx
from onnx import TensorProto, helper
from zoo.backbone import Backbone
from zoo.hookspecs import hookimpl

class New(Backbone):
    family = "{name}"
    packages = ()
    def export(self, path, options):
        shapes = (("pixels", ["batch", 3, 8, 8]), ("features", ["batch", 3]))
        given, found = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes)
        axes = onnx.numpy_helper.from_array(np.array([2, 3]), "axes")
        node = helper.make_node("ReduceMean", ["pixels", "axes"], ["features"], keepdims=0)
        graph = helper.make_graph([node], "means", [given], [found], [axes])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 26)], ir_version=14), path)
    def reference(self, feeds):
        return {"features": feeds["pixels"].mean((2, 3))}

@hookimpl
def zoo_register_backbones():
    return [New]
"""
NO_ROOM = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
runpy.run_module("zoo_cli", run_name="__main__")
"""


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def forged(source: Path, target: Path, change: Change) -> Path:
    """A copy of a bundle with a changed graph and a manifest that matches it."""
    shutil.copytree(source, target)
    model = onnx.load(target / "model.onnx", load_external_data=False)
    change(model)
    (target / "model.onnx").write_bytes(model.SerializeToString())
    manifest = Bundle.open(target).manifest
    write_manifest(target, msgspec.structs.replace(manifest, files=describe_files(target)))
    return target


def nothing_happened(out: Path, before: dict[str, bytes]) -> None:
    """`out` is unchanged, and no partial file lies beside it."""
    assert files(out) == before
    assert not [path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}.")]


@pytest.fixture
def older(shelf: Path, tmp_path: Path) -> Path:
    """A bundle of `tiny-bert` in the folder to which the tests export."""
    return Path(shutil.copytree(Zoo().graph("tiny-bert").path, tmp_path / "older"))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    ("name", "change", "failing"),
    [
        ("tiny-bert", one_weight, "features"),
        ("tiny-bert", frozen_batch, "features"),
        ("tiny-bert", frozen_input, "features"),
        ("tiny-lite", one_weight, "features"),
        ("tiny-lite", swapped_sides, "preprocessing"),
        ("tiny-lite", reversed_channels, "preprocessing"),
        ("tiny-lite", frozen_batch, "features"),
    ],
)
def test_a_wrong_graph_is_not_exported(
    older: Path, tmp_path: Path, name: str, change: Change, failing: str, precision: str
) -> None:
    """The wide bounds of fp16 and int8 hide no wrong graph, because the float graph is checked first."""
    before = files(older)
    zoo = Zoo()
    data = write_texts(tmp_path / "texts.csv", 4) if name == "tiny-bert" else write_images(tmp_path / "images", 2)
    variant = Variant(precision=precision, calibrate=str(data) if precision == "int8" else None)
    wrong = forged(zoo.graph(name).path, tmp_path / "wrong", change)
    with pytest.raises(GateError, match="nothing was written") as caught:
        zoo.export(str(wrong), older, variant)
    assert caught.value.exit_code == 6
    assert failing in {check.name.partition(" (")[0] for check in caught.value.report.checks if not check.passed}
    nothing_happened(older, before)


@pytest.mark.parametrize("raw", [[], ["--raw"]], ids=["whole", "raw"])
def test_exit_6(older: Path, tmp_path: Path, raw: list[str]) -> None:
    before = files(older)
    wrong = forged(Zoo().graph("tiny-lite").path, tmp_path / "wrong", one_weight)
    fails(6, "parity: features", "export", wrong, "-o", older, *raw)
    nothing_happened(older, before)
    # A target that did not exist is not created.
    done = command("export", wrong, "-o", tmp_path / "new", *raw, "--json")
    assert done.returncode == 6
    assert [check for check in json.loads(done.stdout)["error"]["report"]["checks"] if not check["passed"]]
    assert not (tmp_path / "new").exists()


def test_words_of_the_command_that_make_no_sense(older: Path, tmp_path: Path) -> None:
    before = files(older)
    out = ("-o", older)
    hint = fails(2, "unknown --precision int4", "export", "tiny-lite", *out, "--precision", "int4")
    assert hint == "hint: --precision fp32, fp16, int8"
    assert "--calibrate" in fails(2, "int8 needs data", "export", "tiny-lite", *out, "--precision", "int8")
    nothing_happened(older, before)


def test_calibration_data_of_the_wrong_kind(older: Path, tmp_path: Path) -> None:
    before = files(older)
    texts, images = write_texts(tmp_path / "tickets.csv", 4), write_images(tmp_path / "images", 2)
    int8 = ("-o", older, "--precision", "int8", "--calibrate")
    assert "--image" in fails(2, "this model reads images", "export", "tiny-lite", *int8, texts)
    fails(2, "this model reads text", "export", "tiny-bert", *int8, images)
    (tmp_path / "v.bin").write_bytes(binary(WORDS, vectors(len(WORDS), 8)))
    registry = write_registry(tmp_path / "words.json", {"words": row(tmp_path / "v.bin", None, 8)})
    Zoo(registry=registry).finetune("words", texts, tmp_path / "tuned", FinetuneOptions(epochs=1))
    fails(2, "this model reads text", "export", tmp_path / "tuned", *int8, images)
    nothing_happened(older, before)


def test_a_graph_that_is_too_new(older: Path, tmp_path: Path) -> None:
    before = files(older)
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site")
    site.family("zoo-new", "newest", TOO_NEW)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"none")
    grey = {"mean": [0.5] * 3, "std": [0.5] * 3}
    facts = row(weights, None, 3) | {
        "family": "newest",
        "task": "image-features",
        "preprocess": {"kind": "image", "resize": 8, "crop": 8, "interpolation": "bilinear", **grey},
    }
    registry = write_registry(tmp_path / "new.json", {"new": facts})
    done = site.zoo("export", "new", "-o", older, ZOO_REGISTRY=str(registry))
    assert done.returncode == 5, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
    assert len(said) == 2
    assert "is IR 14, opset 26; at most IR 10, opset 20 is supported" in said[0]
    assert said[1] == "hint: export it with opset 20"
    nothing_happened(older, before)


def test_a_bundle_that_is_too_new(older: Path, tmp_path: Path) -> None:
    """The file's IR version is newer than ONNX Runtime reads, as another tool may have written it."""

    def newest(model: onnx.ModelProto) -> None:
        model.ir_version = 99

    before = files(older)
    wrong = forged(Zoo().graph("tiny-bert").path, tmp_path / "wrong", newest)
    for precision in ("fp32", "fp16"):
        hint = fails(5, "is IR 99, opset 20; at most IR 10", "export", wrong, "-o", older, "--precision", precision)
        assert "opset 20" in hint
    nothing_happened(older, before)


def test_no_room_for_a_file(older: Path) -> None:
    before = files(older)
    command = [sys.executable, "-c", NO_ROOM, "export", "tiny-lite", "-o", str(older)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 8, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
    assert errors == [f"error: cannot write {older}: File too large", "hint: free some space, or choose another -o"]
    nothing_happened(older, before)


def test_a_disk_that_fills(older: Path, tmp_path: Path) -> None:
    """An export of 16 MB does not fit into a real file system of 2 MB in its own mount namespace."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    script = (
        'mount -t tmpfs -o size=2m none "$1" || exit 99; cp -r "$2" "$1/out"; '
        '"$4" -m zoo_cli export tiny-lite -o "$1/out"; code=$?; cp -r "$1" "$3"; exit $code'
    )
    arguments = [str(each) for each in (disk, older, kept, sys.executable)]
    try:
        done = subprocess.run(
            ["unshare", "-Urm", "sh", "-c", script, "sh", *arguments],
            env=os.environ, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("needs unshare, of Linux")
    if "unshare" in done.stderr or done.returncode == 99:
        pytest.skip("needs a mount namespace, which is not allowed here")
    assert done.returncode == 8, done.stderr
    assert f"error: cannot write {disk / 'out'}: No space left on device" in done.stderr
    assert [path.name for path in kept.iterdir()] == ["out"]
    assert files(kept / "out") == files(older)
