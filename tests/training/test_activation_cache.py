"""The activations of a trunk on disk: computed once, in half precision, crash-safe, bounded, equal in any batch."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo import AccessError, DataError, UsageError, Zoo
from zoo.bundle import Bundle
from zoo.data.items import Example
from zoo.runtime.pipeline import Skip
from zoo.runtime.session import Session
from zoo.training.activation_cache import Activations

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"late parcel {'card ' * (n % 9)}{n}" for n in range(60)]


def examples(texts: Sequence[str]) -> list[Example]:
    return [Example(text, text, "a", hashlib.sha256(text.encode()).hexdigest()) for text in texts]


@pytest.fixture(scope="module")
def frozen(shelf_file: Path, kept_home: Path, trunks: Path) -> dict[str, Bundle]:
    """The first stages of the tiny models."""
    shutil.copytree(trunks, kept_home / "graphs", dirs_exist_ok=True)
    zoo = Zoo(home=kept_home, registry=shelf_file)
    return {name: zoo.graph(name, cut) for name, cut in (("tiny-bert", 1), ("tiny-lite", 8))}


@pytest.fixture
def texts(frozen: dict[str, Bundle]) -> Session:
    return Session(frozen["tiny-bert"], "cpu")


@pytest.fixture
def images(tmp_path: Path) -> list[Example]:
    random = np.random.default_rng(0)
    found = []
    for number in range(5):
        path = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 255, (90 + 10 * number, 120, 3), dtype=np.uint8)).save(path)
        found.append(Example(path.name, path, "a", hashlib.sha256(path.read_bytes()).hexdigest()))
    return found


class Notes:
    """Progress that keeps its notes."""

    def __init__(self) -> None:
        from zoo.progress import SILENT

        self.task = SILENT.task
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def alone(session: Session, text: str) -> np.ndarray:
    """The trunk's activations for one text without padding: [tokens, width]."""
    ((_, arrays),) = session.stream([text], ["hidden"])
    return arrays["hidden"][0]


def check(activations: Activations, session: Session, texts: Sequence[str], rows: Sequence[int]) -> None:
    """The batch holds the trunk's activations within half precision, padded to its longest text."""
    batch = activations.batch(rows)
    wanted = [alone(session, texts[row]) for row in rows]
    assert batch["hidden"].dtype == np.float32
    assert batch["attention_mask"].dtype == np.int64
    assert batch["hidden"].shape == (len(rows), max(map(len, wanted)), 32)
    for index, each in enumerate(wanted):
        np.testing.assert_allclose(batch["hidden"][index, : len(each)], each, rtol=1e-3, atol=1e-3)
        assert not batch["hidden"][index, len(each) :].any()
        assert batch["attention_mask"][index].tolist() == [1] * len(each) + [0] * (len(batch["hidden"][0]) - len(each))


def test_only_new_items_are_computed(texts: Session, tmp_path: Path) -> None:
    with Activations(tmp_path, texts, examples(TEXTS[:10])) as first:
        assert (len(first.items), first.computed, first.records is None) == (10, 10, False)
        check(first, texts, TEXTS, [3, 0, 7])
    with Activations(tmp_path, texts, examples([*TEXTS, *TEXTS[:5]])) as second:
        assert (len(second.items), second.computed) == (65, 50)
        check(second, texts, [*TEXTS, *TEXTS[:5]], [64, 8, 30, 8])
    with Activations(tmp_path, texts, examples(TEXTS[::-1])) as third:
        assert third.computed == 0
        check(third, texts, TEXTS[::-1], range(60))
        size = sum(len(texts._pipeline.encoder.tokens([text])[0]) * (32 * 2 + 4) for text in TEXTS)
        (data,) = tmp_path.glob("*.activations/data")
        # No padding is stored.
        assert data.stat().st_size == size


CHILD = """
import sys
from pathlib import Path
from tests.training.test_activation_cache import MANY, Slow, examples
from zoo import AccessError
from zoo.bundle import Bundle
from zoo.training import item_cache
from zoo.training.activation_cache import Activations
item_cache.CHUNK_BYTES = 1
try:
    with Activations(Path(sys.argv[2]), Slow(Bundle.open(Path(sys.argv[1])), "cpu"), examples(MANY)):
        pass
except AccessError as error:
    print(error.message)
    sys.exit(error.exit_code)
"""
MANY = [f"card number {n} " + "late " * 20 for n in range(600)]


class Slow(Session):
    """A session slow enough to be killed while it computes."""

    def stream(self, items: Sequence[Any], outputs: Sequence[str], skip: Skip | None = None) -> Iterator[Any]:
        for batch in super().stream(items, outputs, skip):
            time.sleep(0.02)
            yield batch


def test_a_killed_process_leaves_what_it_wrote(texts: Session, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", CHILD, str(texts.bundle.path), str(tmp_path)]
    for _ in range(2):
        before = sum(path.stat().st_size for path in tmp_path.glob("*.activations/index"))
        child = subprocess.Popen(arguments, cwd=ROOT)
        while sum(path.stat().st_size for path in tmp_path.glob("*.activations/index")) <= before:
            assert child.poll() is None
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
    # Add the bytes that a crash in the middle of a write leaves.
    for name, torn in (("data", b"half an item"), ("index", b"\1" * 100)):
        with next(tmp_path.glob(f"*.activations/{name}")).open("ab") as file:
            file.write(torn)
    with Activations(tmp_path, texts, examples(MANY)) as activations:
        assert 0 < activations.computed < len(MANY)
        for row in range(0, len(MANY), 37):
            check(activations, texts, MANY, [row])
    with Activations(tmp_path, texts, examples(MANY)) as activations:
        assert activations.computed == 0


def test_a_full_disk_keeps_what_was_there(texts: Session, tmp_path: Path) -> None:
    with Activations(tmp_path, texts, examples(TEXTS)) as activations:
        before = activations.batch(range(60))
    (data,) = tmp_path.glob("*.activations/data")
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({data.stat().st_size + 5000},) * 2)\n" + CHILD
    arguments = [sys.executable, "-c", code, str(texts.bundle.path), str(tmp_path)]
    child = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 8, child.stderr
    assert child.stdout.count("\n") == 1
    assert "File too large" in child.stdout
    with Activations(tmp_path, texts, examples(TEXTS)) as activations:
        assert activations.computed == 0
        after = activations.batch(range(60))
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


class Loud(Session):
    """A session whose second item has numbers beyond float16."""

    def stream(self, items: Sequence[Any], outputs: Sequence[str], skip: Skip | None = None) -> Iterator[Any]:
        for positions, arrays in super().stream(items, outputs, skip):
            for index, position in enumerate(positions):
                arrays["hidden"][index] *= 1e6 if items[position] == TEXTS[1] else 1
            yield positions, arrays


def test_what_half_precision_cannot_hold(frozen: dict[str, Bundle], texts: Session, tmp_path: Path) -> None:
    with Activations(tmp_path, Loud(frozen["tiny-bert"], "cpu"), examples(TEXTS[:3])) as activations:
        batch = activations.batch([0, 1, 2])["hidden"]
    assert np.isfinite(batch).all()
    wanted = alone(texts, TEXTS[1]) * 1e6
    assert np.abs(wanted).max() > 65504
    np.testing.assert_allclose(batch[1, : len(wanted)], wanted, rtol=1e-4, atol=10)
    assert np.abs(batch[[0, 2]]).max() < 65504


def test_a_data_set_that_is_too_large_is_computed_again(
    texts: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE_LIMIT", "20KB")
    notes = Notes()
    with Activations(tmp_path, texts, examples(TEXTS), notes) as activations:
        assert activations.records is None
        assert "about" in notes.lines[-1]
        check(activations, texts, TEXTS, [5, 1, 59])
    assert not list(tmp_path.iterdir())
    # A part of the data fits, and replaces the cached activations of other data with the same trunk.
    for part in (TEXTS[:15], TEXTS[30:45]):
        with Activations(tmp_path, texts, examples(part)) as activations:
            assert activations.records is not None
            check(activations, texts, part, [0, 14])
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 20_000


def test_an_unreadable_item_is_an_error(texts: Session, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught, Activations(tmp_path, texts, examples([TEXTS[0], " ", TEXTS[1]])):
        pass
    assert caught.value.index == 1


def test_views_of_images(frozen: dict[str, Bundle], images: list[Example], tmp_path: Path) -> None:
    session, folder = Session(frozen["tiny-lite"], "cpu"), tmp_path / "cache"
    with Activations(folder, session, images, views=2) as activations:
        assert (len(activations.items), activations.computed) == (15, 15)
        batch = activations.batch([1, 6, 11])["activations"]
        assert len({array.tobytes() for array in batch}) == 3
        everything = activations.batch(range(15))["activations"]
    with Activations(folder, session, images[:2]) as plain:
        assert plain.computed == 0
        np.testing.assert_array_equal(plain.batch([1])["activations"][0], batch[0])
    with Activations(folder, session, images, views=2, seed=1) as other:
        assert other.computed == 10
    with Activations(tmp_path / "again", session, images, views=2) as again:
        np.testing.assert_array_equal(again.batch(range(15))["activations"], everything)


def test_texts_have_no_views(texts: Session, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="images"), Activations(tmp_path, texts, examples(TEXTS), views=1):
        pass


def test_a_folder_that_cannot_be_written(texts: Session, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    opened = Activations(tmp_path / "file", texts, examples(TEXTS))
    with pytest.raises(AccessError, match="cannot be used"), opened:
        pass


def test_two_processes_fill_one_cache(texts: Session, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", CHILD, str(texts.bundle.path), str(tmp_path)]
    children = [subprocess.Popen(arguments, cwd=ROOT, env={**os.environ}) for _ in range(2)]
    assert [child.wait(timeout=200) for child in children] == [0, 0]
    with Activations(tmp_path, texts, examples(MANY)) as activations:
        assert activations.computed == 0
        check(activations, texts, MANY, [0, 300, 599])
