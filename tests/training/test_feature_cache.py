"""The feature cache computes only new items, has a key of all that affects features, and survives damaged files."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.items import MANY, TEXTS, examples
from zoo import AccessError, DataError, Zoo
from zoo.bundle import Bundle, describe_files, write_manifest
from zoo.data.items import Example
from zoo.runtime.pipeline import Skip
from zoo.runtime.session import Session
from zoo.training.feature_cache import FeatureCache
from zoo.training.item_cache import cache_key


@pytest.fixture
def cache(shelf: Path, tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "features", Zoo().session("tiny-bert", "cpu"))


def test_only_new_items_are_computed(cache: FeatureCache) -> None:
    first = cache.features(examples(TEXTS))
    assert cache.computed == 40
    np.testing.assert_allclose(first, cache.session.features(TEXTS), atol=1e-6)
    again = cache.features(examples(TEXTS[::-1], label="another"))
    assert cache.computed == 0
    np.testing.assert_array_equal(again, first[::-1])
    more = cache.features(examples([*TEXTS, "late parcel", "late parcel", "late parcel"]))
    assert cache.computed == 1
    np.testing.assert_array_equal(more[:40], first)
    np.testing.assert_array_equal(more[-1], more[-2])


def test_another_process_finds_them(cache: FeatureCache) -> None:
    cache.features(examples(TEXTS))
    code = (
        "import sys; from pathlib import Path; from zoo import Zoo; "
        "from zoo.training.feature_cache import FeatureCache; "
        "from tests.kit.items import TEXTS, examples; "
        f"cache = FeatureCache(Path({str(cache.path.parent)!r}), Zoo().session('tiny-bert', 'cpu')); "
        "cache.features(examples(TEXTS)); print(cache.computed)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "0"


def copy_of(bundle: Bundle, folder: Path, change: str) -> Bundle:
    """A copy of a bundle in which one file is a little longer."""
    shutil.copytree(bundle.path, folder)
    with (folder / change).open("ab") as file:
        file.write(b"\n")
    import msgspec

    return write_manifest(folder, msgspec.structs.replace(bundle.manifest, files=describe_files(folder)))


def test_the_key_is_all_that_matters(cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime  # noqa: TID251 - the version it reports is part of the key

    session = cache.session
    keys = {cache_key(session)}
    session.bundle = copy_of(session.bundle, tmp_path / "tokenizer", "tokenizer.json")
    keys.add(cache_key(session))
    other = Zoo().session("tiny-bert-cls", "cpu")
    keys.add(cache_key(other))
    monkeypatch.setattr(onnxruntime, "__version__", "9.9.9")
    keys.add(cache_key(other))
    monkeypatch.setattr("zoo.data.images.VERSION", 99)
    keys.add(cache_key(other))
    other.device = "cuda:0"
    keys.add(cache_key(other))
    assert len(keys) == 6
    # Neither the index of the GPU nor the folder of the bundle is a part of the key.
    other.device = "cuda:1"
    assert cache_key(other) in keys
    shutil.copytree(other.bundle.path, tmp_path / "elsewhere")
    other.bundle = Bundle.open(tmp_path / "elsewhere")
    assert cache_key(other) in keys


def test_an_unreadable_item_does_not_cost_those_before_it(cache: FeatureCache) -> None:
    with pytest.raises(DataError):
        cache.features(examples([*TEXTS, " "]))
    session = Session(Zoo().graph("tiny-lite"), "cpu")
    images = FeatureCache(cache.path.parent, session)
    good = sorted((Path(__file__).parents[2] / "zoo/assets").glob("*.jpg")) * 2
    rows = [Example(str(n), path, "a", f"{n:064x}") for n, path in enumerate(good)]
    broken = Example("broken", Path(__file__), "a", "f" * 64)
    with pytest.raises(DataError, match="test_feature_cache"):
        images.features([*rows, broken])
    images.features(rows)
    assert images.computed < len(rows)


@pytest.mark.parametrize("damage", ["replaced", "emptied", "cut", "middle", "index", "no index"])
def test_what_is_damaged_is_computed_again(cache: FeatureCache, damage: str) -> None:
    first = cache.features(examples(MANY))
    data, index = ((cache.path / name).read_bytes() for name in ("data", "index"))
    half = len(data) // 2
    name, changed, damaged = {
        "replaced": ("data", b"other bytes, for sure..." * (len(data) // 24 + 1), 1000),
        "emptied": ("data", b"", 1000),
        "cut": ("data", data[: half + 1], 500),
        "middle": ("data", data[:1280] + b"x" * 1280 + data[2560:], 10),
        "index": ("index", index[:480] + b"x" * 48 + index[528:], 990),
        "no index": ("index", b"", 1000),
    }[damage]
    (cache.path / name).write_bytes(changed)
    for computed in (damaged, 0):
        again = cache.features(examples(MANY))
        np.testing.assert_allclose(again, first, atol=1e-6)
        assert cache.computed == computed


def test_more_items_than_are_written_at_once(cache: FeatureCache) -> None:
    first = cache.features(examples(MANY))
    assert (cache.computed, first.shape) == (len(MANY), (len(MANY), 32))
    again = cache.features(examples([*MANY[::-1], *TEXTS]))
    np.testing.assert_array_equal(again[: len(MANY)], first[::-1])
    assert cache.computed == len(TEXTS)
    # The head passes the array to torch, which warns about read-only memory.
    assert again.flags.writeable
    assert cache.features([]).shape == (0, 32)


class Meanwhile(Session):
    """A session that calls a function after each batch."""

    happens: Callable[[], object]

    def stream(
        self, items: Sequence[Any], outputs: Sequence[str], skip: Skip | None = None
    ) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        for batch in super().stream(items, outputs, skip):
            yield batch
            self.happens()


def test_a_slow_computation_locks_nobody_out(cache: FeatureCache) -> None:
    slow = Meanwhile(cache.session.bundle, "cpu")
    slow.happens = lambda: cache.features(examples([f"parcel {len(slow.batches_run)}"]))
    FeatureCache(cache.path.parent, slow).features(examples([f"{n} card" * 12 for n in range(100)]))
    assert len(slow.batches_run) > 2
    cache.features(examples([f"parcel {n + 1}" for n in range(len(slow.batches_run))]))
    assert cache.computed == 0


def test_processes_at_once(cache: FeatureCache) -> None:
    code = (
        "import sys; from pathlib import Path; from zoo import Zoo; "
        "from zoo.training.feature_cache import FeatureCache; "
        "from tests.kit.items import MANY, examples; "
        f"cache = FeatureCache(Path({str(cache.path.parent)!r}), Zoo().session('tiny-bert', 'cpu')); "
        "print('ready', flush=True); sys.stdin.readline(); cache.features(examples(MANY)); print(cache.computed)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [
        subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2], **pipes) for _ in range(4)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0] * 4, answers
    assert all(0 <= int(out) <= len(MANY) for out, _ in answers)
    np.testing.assert_allclose(cache.features(examples(MANY)), cache.session.features(MANY), atol=1e-6)
    assert cache.computed == 0


def test_a_cache_that_cannot_be_written(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    session = Zoo().session("tiny-bert", "cpu")
    taken = FeatureCache(tmp_path / "folder", session)
    taken.folder.mkdir()
    taken.path.touch()
    for cache in (
        FeatureCache(tmp_path / "file" / "features", session),
        FeatureCache(tmp_path / "file", session),
        taken,
    ):
        with pytest.raises(AccessError, match="cannot be used") as caught:
            cache.features(examples(TEXTS))
        assert "ZOO_HOME" in caught.value.hint
