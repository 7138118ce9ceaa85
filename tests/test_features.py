"""The feature cache: computes what is new, once, under a key of all that matters, and survives what disks do."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zoo import AccessError, DataError, Zoo
from zoo.bundle import Bundle, describe_files, write_manifest
from zoo.data import Example
from zoo.features import FeatureCache, cache_key
from zoo.runtime import Session


def examples(texts: list[str], label: str = "a") -> list[Example]:
    """Examples as the data module makes them."""
    return [Example(text, text, label, hashlib.sha256(text.encode()).hexdigest()) for text in texts]


@pytest.fixture
def cache(shelf: Path, tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "features", Zoo().session("tiny-bert", "cpu"))


TEXTS = [f"card number {n}" for n in range(40)]


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
        "import sys; from pathlib import Path; from zoo import Zoo; from zoo.features import FeatureCache; "
        "from tests.test_features import TEXTS, examples; "
        f"cache = FeatureCache(Path({str(cache.path.parent)!r}), Zoo().session('tiny-bert', 'cpu')); "
        "cache.features(examples(TEXTS)); print(cache.computed)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "0"


def copy_of(bundle: Bundle, folder: Path, change: str) -> Bundle:
    """A bundle with one of its files a little longer."""
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
    monkeypatch.setattr("zoo.encode.VERSION", 99)
    keys.add(cache_key(other))
    other.device = "cuda:0"
    keys.add(cache_key(other))
    assert len(keys) == 6
    # Which of two equal GPUs computed a feature does not matter, and neither does where the bundle lies.
    other.device = "cuda:1"
    assert cache_key(other) in keys
    shutil.copytree(other.bundle.path, tmp_path / "elsewhere")
    other.bundle = Bundle.open(tmp_path / "elsewhere")
    assert cache_key(other) in keys


def test_an_unreadable_item_does_not_cost_those_before_it(cache: FeatureCache) -> None:
    with pytest.raises(DataError):
        cache.features(examples([*TEXTS, " "]))
    session = Session(Zoo().graph("tiny-lite"), "cpu")
    pictures = FeatureCache(cache.path.parent, session)
    good = sorted((Path(__file__).parents[1] / "zoo/assets").glob("*.jpg")) * 2
    rows = [Example(str(n), path, "a", f"{n:064x}") for n, path in enumerate(good)]
    broken = Example("broken", Path(__file__), "a", "f" * 64)
    with pytest.raises(DataError, match="test_features"):
        pictures.features([*rows, broken])
    pictures.features(rows)
    assert pictures.computed < len(rows)


def test_a_damaged_cache_is_made_anew(cache: FeatureCache) -> None:
    first = cache.features(examples(TEXTS))
    cache.path.write_bytes(b"not a database, for sure" * 100)
    np.testing.assert_allclose(cache.features(examples(TEXTS)), first, atol=1e-6)
    assert cache.computed == 40


def test_a_cache_that_cannot_be_written(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = FeatureCache(tmp_path / "file" / "features", Zoo().session("tiny-bert", "cpu"))
    with pytest.raises(AccessError, match="cannot be used") as caught:
        cache.features(examples(TEXTS))
    assert "ZOO_HOME" in caught.value.hint
