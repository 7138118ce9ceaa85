"""External data must be a plain file with the digest in the manifest; anything else is refused before it is opened."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from zoo_plugins.backbones.word2vec import mean_graph

from tests.kit.word_tables import WORDS, binary, row, vectors, write_registry
from zoo import IntegrityError, Zoo
from zoo.bundle import Bundle, describe_files, write_manifest
from zoo.graph import external_data
from zoo.runtime.ort import create_session
from zoo.runtime.session import Session
from zoo.schema import ExportOptions
from zoo.training.item_cache import cache_key

DIM = 8


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A features bundle of word vectors."""
    folder = tmp_path_factory.mktemp("external")
    (folder / "v.bin").write_bytes(binary(WORDS, vectors(len(WORDS), DIM)))
    registry = write_registry(folder / "registry.json", {"bin": row(folder / "v.bin", None, DIM)})
    return Zoo(home=folder / "home", registry=registry).graph("bin").path


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """A copy of `built`."""
    shutil.copytree(built, tmp_path / "bundle")
    return tmp_path / "bundle"


def table(model: onnx.ModelProto) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.external_data)


def say(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    """Set one entry of the table's external data."""

    def change(model: onnx.ModelProto) -> None:
        facts = {entry.key: entry.value for entry in table(model).external_data} | {key: value}
        del table(model).external_data[:]
        for name, each in facts.items():
            tensor = next(t for t in model.graph.initializer if t.name == "word2vec/vectors")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key=name, value=each)

    return change


def in_a_node(model: onnx.ModelProto) -> None:
    """A constant whose tensor lies outside of the model file."""
    tensor = TensorProto(name="inner", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="vectors.bin")
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))


def in_a_subgraph(model: onnx.ModelProto) -> None:
    """Such a constant in the branch of an If."""
    branch = onnx.GraphProto(name="branch")
    branch.initializer.add(name="deep", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    branch.initializer[0].external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))


def forge(bundle: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change the model and write a manifest that matches it, as in a hostile bundle."""
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    change(model)
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    manifest = Bundle.open(bundle).manifest
    import msgspec

    write_manifest(bundle, msgspec.structs.replace(manifest, files=describe_files(bundle)))


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were opened through os.open or passed to the runtime by their path."""
    seen: list[str] = []
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **more: seen.append(os.fspath(path)) or real(path, *rest, **more)
    )
    return seen


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (say("location", "/etc/passwd"), "not a plain file name"),
        (say("location", "../../../etc/passwd"), "not a plain file name"),
        (say("location", "a/../../b"), "not a plain file name"),
        (say("location", "folder/vectors.bin"), "not a plain file name"),
        (say("location", "..\\vectors.bin"), "not a plain file name"),
        (say("location", ".hidden"), "not a plain file name"),
        (say("location", ""), "not a plain file name"),
        (say("location", "vectors.bin\n"), "not a plain file name"),
        (say("location", "*/_ORT_MEM_ADDR_/*"), "not a plain file name"),
        (say("location", "passwd"), "does not list passwd"),
        (say("offset", "-1"), "no valid offset and length"),
        (say("offset", "4"), "ends before"),
        (say("offset", str(1 << 63)), "ends before"),
        (say("length", "1"), "no valid offset and length"),
        (say("length", str(1 << 63)), "no valid offset and length"),
        (lambda model: table(model).dims.__setitem__(0, 1 << 50), "no valid offset and length|ends before"),
        (lambda model: setattr(table(model), "data_type", TensorProto.STRING), "has a type"),
        (lambda model: setattr(table(model), "data_type", 12345), "has a type"),
        (in_a_node, "inside the model's nodes"),
        (in_a_subgraph, "inside the model's nodes"),
    ],
)
def test_what_a_strangers_bundle_may_not_name(
    bundle: Path, change: Callable[[onnx.ModelProto], None], problem: str, unopened: list[str]
) -> None:
    forge(bundle, change)
    unopened.clear()
    with pytest.raises(IntegrityError, match=problem) as caught:
        Session(Bundle.open(bundle), "cpu")
    assert caught.value.hint
    assert [path for path in unopened if Path(path).name != "vectors.bin"] == []


@pytest.mark.parametrize("harm", ["link", "hard", "changed", "cut", "gone", "folder", "fifo"])
def test_a_table_that_is_not_the_manifests(bundle: Path, harm: str) -> None:
    path, aside = bundle / "vectors.bin", bundle.parent / "aside"
    path.rename(aside)
    if harm == "link":
        path.symlink_to(aside)
    elif harm == "hard":
        path.hardlink_to(aside)
        with aside.open("r+b") as file:
            file.write(b"\0\0\0\1")
    elif harm in ("changed", "cut"):
        data = aside.read_bytes()
        path.write_bytes(data[:-4] if harm == "cut" else data[4:] + data[:4])
    elif harm == "folder":
        path.mkdir()
    elif harm == "fifo":
        os.mkfifo(path)
    with pytest.raises(IntegrityError, match=r"vectors\.bin is not the file"):
        Session(Bundle.open(bundle), "cpu")
    if harm != "fifo":
        states = {file.path: is_same for file, is_same in Bundle.open(bundle).verify()}
        assert not states["vectors.bin"]


def test_a_model_with_a_table_outside_needs_it_given(bundle: Path) -> None:
    model = Bundle.open(bundle).read_model()
    with pytest.raises(IntegrityError, match=r"needs the file vectors\.bin, which was not given"):
        create_session(model, "cpu")
    assert external_data.references(b"no model at all") == []
    with pytest.raises(IntegrityError, match="not ONNX"):
        external_data.references(b"\xff location")


def test_the_table_is_a_part_of_the_feature_caches_key(bundle: Path) -> None:
    before = cache_key(Session(Bundle.open(bundle), "cpu"))
    data = np.fromfile(bundle / "vectors.bin", np.float32)
    (2 * data).tofile(bundle / "vectors.bin")
    forge(bundle, lambda model: None)
    assert cache_key(Session(Bundle.open(bundle), "cpu")) != before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_table_is_not_copied(tmp_path: Path) -> None:
    def private() -> float:
        """The megabytes of this process that are not mapped from files."""
        facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(facts["RssAnon"].split()[0]) / 1024

    count, width = 1_000_000, 32
    table = np.memmap(tmp_path / "vectors.bin", mode="w+", dtype=np.float32, shape=(count, width))
    table[-1] = 3
    table.flush()
    model = mean_graph(count, width, ExportOptions(), counts_unknown=False).SerializeToString()
    before = private()
    session = create_session(model, "cpu", tables=external_data.files(model, external_data.beside(tmp_path)))
    feeds = {"input_ids": np.array([[count - 1, count]]), "attention_mask": np.ones((1, 2), np.int64)}
    np.testing.assert_array_equal(session.run(None, feeds)[0], np.full((1, width), 3))
    # The table is 128 MB.
    assert private() - before < 40


def test_the_runtime_computes_on_the_mapped_table(bundle: Path) -> None:
    """The runtime uses the verified bytes: later changes of the file are not read."""
    session = Session(Bundle.open(bundle), "cpu")
    before = session.features(["the card"])
    (bundle / "vectors.bin").unlink()
    (bundle / "vectors.bin").write_bytes(b"\0" * 10)
    np.testing.assert_array_equal(session.features(["the card"]), before)
