"""Optimised graphs are kept for the next start: they give the same answers, are never stale, and may be missing."""

import os
import shutil
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.kit.cli import parsed, zoo
from zoo import Bundle, IntegrityError, Zoo
from zoo.runtime import optimised_graphs
from zoo.runtime.optimised_graphs import RECORD, KeptGraph, OptimisedGraphs
from zoo.runtime.ort import BODY, NUMBERS
from zoo.runtime.session import Session
from zoo.store import caches

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 60, 50, 3), dtype=np.uint8)
TEXTS = ["late parcel", "my card is locked and the door is late", "refund"]


@pytest.fixture(autouse=True)
def kept_at_once(zoo_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of every size are kept, and without the usual delay."""
    monkeypatch.setattr(optimised_graphs, "SMALLEST", 0)
    monkeypatch.setattr(optimised_graphs, "AFTER", 0.0)


def loaded(model: str | Path, **options: object) -> Session:
    """A session, returned after its graph was kept."""
    session = Zoo().session(str(model), "cpu", **options)  # type: ignore[arg-type]
    for thread in threading.enumerate():
        if thread.name == "zoo-keep":
            thread.join()
    return session


def kept(home: Path) -> Path:
    """The folder of the only kept graph."""
    [record] = home.glob(f"optimised/*/{RECORD}")
    return record.parent


@pytest.mark.parametrize(("name", "items"), [("tiny-lite", IMAGES), ("tiny-bert", TEXTS)])
def test_the_next_session_has_the_same_answers_and_reads_no_model(
    shelf: Path, zoo_home: Path, name: str, items: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loaded(name)
    wanted = first.features(items)
    folder = kept(zoo_home)
    assert {BODY, NUMBERS, RECORD} <= {path.name for path in folder.iterdir()}

    def refuse(bundle: Bundle) -> bytes:
        raise AssertionError(f"{bundle.path} was read")

    monkeypatch.setattr(Bundle, "read_model", refuse)
    second = loaded(name)
    np.testing.assert_array_equal(second.features(items), wanted)
    assert second.placement.nodes.keys() == {"CPU"}
    assert second._pipeline.facts == first._pipeline.facts


def test_a_damaged_one_is_made_again(shelf: Path, zoo_home: Path) -> None:
    wanted = loaded("tiny-bert").features(TEXTS)
    numbers = kept(zoo_home) / NUMBERS
    good = numbers.read_bytes()
    for bad in (good[:-1], bytes([good[0] ^ 1]) + good[1:], b""):
        numbers.write_bytes(bad)
        np.testing.assert_array_equal(loaded("tiny-bert").features(TEXTS), wanted)
        assert numbers.read_bytes() == good
    numbers.unlink()
    np.testing.assert_array_equal(loaded("tiny-bert").features(TEXTS), wanted)
    assert numbers.read_bytes() == good
    for bad in (b"", b"{}", b"\xff"):
        record = kept(zoo_home) / RECORD
        record.write_bytes(bad)
        np.testing.assert_array_equal(loaded("tiny-bert").features(TEXTS), wanted)
        assert msgspec.json.decode(record.read_bytes(), type=KeptGraph).files


def test_one_that_the_runtime_refuses_is_made_again(shelf: Path, zoo_home: Path) -> None:
    """The digests are right but the runtime cannot load the graph, as if two runtimes had the same cache key."""
    wanted = loaded("tiny-bert").features(TEXTS)
    folder = kept(zoo_home)
    (folder / BODY).write_bytes(b"not a graph")
    record = msgspec.json.decode((folder / RECORD).read_bytes(), type=KeptGraph)
    files = tuple(
        msgspec.structs.replace(file, sha256=optimised_graphs.sha256_file(folder / BODY), size=11)
        if file.path == BODY
        else file
        for file in record.files
    )
    (folder / RECORD).write_bytes(msgspec.json.encode(msgspec.structs.replace(record, files=files)))
    np.testing.assert_array_equal(loaded("tiny-bert").features(TEXTS), wanted)
    assert not folder.exists()
    np.testing.assert_array_equal(loaded("tiny-bert").features(TEXTS), wanted)
    assert (folder / BODY).stat().st_size > 11


def test_a_bundle_that_was_changed_is_refused_and_a_copy_is_not(shelf: Path, zoo_home: Path, tmp_path: Path) -> None:
    bundle = Zoo().graph("tiny-bert")
    wanted = loaded("tiny-bert").features(TEXTS)
    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy, copy_function=shutil.copyfile)
    np.testing.assert_array_equal(loaded(copy).features(TEXTS), wanted)
    record = kept(zoo_home) / RECORD
    known = msgspec.json.decode(record.read_bytes(), type=KeptGraph)
    assert known.model_mtime_ns == (copy / "model.onnx").stat().st_mtime_ns
    data = bytearray((copy / "model.onnx").read_bytes())
    data[-100] ^= 1
    (copy / "model.onnx").write_bytes(data)
    with pytest.raises(IntegrityError, match="is not the file"):
        loaded(copy)
    (copy / "model.onnx").unlink()
    with pytest.raises(IntegrityError, match=r"has no model\.onnx"):
        loaded(copy)


def test_each_processor_runtime_and_device_has_its_own(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, folder = Zoo().graph("tiny-bert"), Path("kept")
    keys = {OptimisedGraphs(folder, bundle, device).key for device in ("cpu", "cuda:0")}
    assert OptimisedGraphs(folder, bundle, "cuda:1").key in keys
    assert "flags" in optimised_graphs._processor() or not Path("/proc/cpuinfo").exists()
    assert "package_name" in optimised_graphs.build_note()
    for name in ("_processor", "build_note"):
        with monkeypatch.context() as patch:
            patch.setattr(optimised_graphs, name, lambda: "another")
            keys.add(OptimisedGraphs(folder, bundle, "cpu").key)
    keys.add(OptimisedGraphs(folder, Zoo().graph("tiny-lite"), "cpu").key)
    assert len(keys) == 5
    assert OptimisedGraphs(folder, bundle, "tensorrt:0").folder is None


def test_where_nothing_can_be_kept(shelf: Path, zoo_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = loaded("tiny-bert").features(TEXTS)
    shutil.rmtree(zoo_home / "optimised")
    (zoo_home / "optimised").write_text("in the way")
    np.testing.assert_array_equal(loaded("tiny-bert").features(TEXTS), wanted)
    (zoo_home / "optimised").unlink()
    monkeypatch.setenv("ZOO_CACHE_LIMIT", "1KB")
    np.testing.assert_array_equal(loaded("tiny-bert").features(TEXTS), wanted)
    assert not (zoo_home / "optimised").exists()


def test_the_oldest_goes_when_there_are_too_many(shelf: Path, zoo_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded("tiny-bert")
    first = kept(zoo_home)
    for path in (*first.iterdir(), first.with_name(first.name + ".lock")):
        os.utime(path, (1, 1))
    loaded("tiny-lite")
    assert first.exists()
    size = sum(cache.size for cache in caches.caches(zoo_home / "optimised"))
    monkeypatch.setenv("ZOO_CACHE_LIMIT", str(size))
    loaded("tiny-bert-cls")
    assert not first.exists()
    assert len(caches.caches(zoo_home / "optimised")) == 2


def test_the_command_keeps_it_and_prune_removes_it(shelf: Path, zoo_home: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    said = [zoo("run", "tiny-lite", str(tmp_path / "a.png"), "--json") for _ in range(2)]
    assert [each.returncode for each in said] == [0, 0]
    results = [parsed(each)["run"]["results"] for each in said]
    assert results[0] == results[1]
    folder = kept(zoo_home)
    rows = parsed(zoo("prune", "-y", "--json"))["pruned"]["items"]
    assert [(row["kind"], row["name"], row["state"]) for row in rows] == [("optimised", folder.name, "removed")]
    assert not folder.exists()


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "items"), [("tiny-lite", IMAGES), ("tiny-bert", TEXTS)])
def test_on_cuda(shelf: Path, zoo_home: Path, name: str, items: list[object]) -> None:
    first, second = (Zoo().session(name, "cuda") for _ in range(2))
    assert (kept(zoo_home) / BODY).is_file()
    np.testing.assert_allclose(second.features(items), first.features(items), atol=1e-5)
    assert second.placement.nodes["CUDA"] > 0
