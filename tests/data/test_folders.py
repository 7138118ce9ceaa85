"""Folders of pictures: classes, parts, and what else lies in them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.items import IMAGE, TEXT, write, write_pictures
from zoo import DataError, UsageError
from zoo.data.dataset import load, load_parts
from zoo.data.items import Skipped
from zoo.options import DataOptions
from zoo.schema import Task


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's right to read everything, where the tests run as root."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "nowhere", IMAGE)
    with pytest.raises(DataError, match="no class folders"):
        load(tmp_path, IMAGE)
    pictures = write_pictures(tmp_path / "pictures", 2)
    for columns in ({"label": "x"}, {"text": "x"}, {"image": "x"}):
        with pytest.raises(UsageError, match="name columns of a table, and a folder has none"):
            load(pictures, IMAGE, DataOptions(**columns))  # type: ignore[arg-type]
    for task in (Task.MULTI_LABEL, Task.REGRESSION):
        with pytest.raises(UsageError, match=f"a folder gives each image one label, .* --task {task}"):
            load(pictures, IMAGE, DataOptions(task=task))
    (pictures / "red" / ".DS_Store").touch()
    (pictures / "red" / "Thumbs.db").touch()
    assert len(load(pictures, IMAGE).examples) == 6


def test_what_loses_a_whole_folder_is_an_error(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 2)
    data = load(pictures, IMAGE)
    inside = pictures / data.labels[0]
    (pictures / ".hidden").mkdir()
    write(pictures, "README.md", "x")
    assert load(pictures, IMAGE) == data
    write(pictures, "stray.png", "x")
    with pytest.raises(DataError, match=r"stray\.png is in no class folder"):
        load(pictures, IMAGE)
    (pictures / "stray.png").unlink()
    (inside / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"folder\.png is a folder in a class folder"):
        load(pictures, IMAGE)
    (inside / "folder.png").rmdir()
    (pictures / "outside").symlink_to(tmp_path)
    with pytest.raises(DataError, match="outside is a link out of the folder"):
        load(pictures, IMAGE)
    (pictures / "outside").unlink()
    (pictures / "empty").mkdir()
    write(pictures / "empty", "notes.txt", "x")
    with pytest.raises(DataError, match="the class 'empty' is empty") as caught:
        load(pictures, IMAGE, DataOptions(max_bad=1.0))
    assert caught.value.exit_code == 2


def test_what_cannot_be_used_is_skipped_and_bounded(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 4)
    data = load(pictures, IMAGE)
    inside = pictures / "red"
    outside = write(tmp_path, "outside.png", (inside / "00.png").read_bytes() + b"1")
    write(inside, "notes.txt", "x")
    (inside / "out.png").symlink_to(outside)
    (inside / "round.png").symlink_to("round.png")
    (inside / "nothing.png").symlink_to("gone.png")
    os.mkfifo(inside / "pipe.png")
    (inside / "same.png").symlink_to("00.png")
    reasons = {
        "red/notes.txt": "not an image",
        "red/nothing.png": "a link to nothing",
        "red/out.png": "a link out of the folder",
        "red/pipe.png": "not a file",
    }
    read = load(pictures, IMAGE, DataOptions(max_bad=0.5))
    found = {skipped.name: skipped.reason for skipped in read.skipped}
    assert "cannot be read" in found.pop("red/round.png")
    assert found == reasons
    # A link that stays inside is a copy.
    assert {e.name for e in read.examples} - {e.name for e in data.examples} == {"red/same.png"}
    # Five of 18 are bad: 0.27 allows 4, and 0.28 allows 5.
    with pytest.raises(
        DataError, match=r"5 of 18 items cannot be used, more than --max-bad 0\.27 allows \(4\)"
    ) as caught:
        load(pictures, IMAGE, DataOptions(max_bad=0.27))
    assert caught.value.hint == "repair or remove them, or --max-bad 0.28"
    assert "red/notes.txt (not an image), red/nothing.png (a link to nothing)" in caught.value.message
    assert len(load(pictures, IMAGE, DataOptions(max_bad=0.28)).skipped) == 5
    with pytest.raises(DataError, match=r"more than --max-bad 0\.01 allows \(0\)"):
        load(pictures, IMAGE)


def test_a_file_that_may_not_be_read_is_skipped() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        pictures = write_pictures(folder / "pictures", 2)
        (pictures / "red" / "00.png").chmod(0)
        with as_nobody():
            data = load(pictures, IMAGE, DataOptions(max_bad=0.2))
            assert data.skipped == (Skipped("red/00.png", "cannot be read: Permission denied"),)
            assert len(data.examples) == 5
        (pictures / "red").chmod(0)
        with as_nobody(), pytest.raises(DataError, match="red cannot be read: Permission denied") as caught:
            load(pictures, IMAGE, DataOptions(max_bad=0.2))
        assert caught.value.hint == f"chmod u+rx {pictures / 'red'}"
        (pictures / "red").chmod(0o755)


def test_a_folder_of_parts(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for part in ("train", "validation", "test"):
        write_pictures(root / part, 2)
    parts = load_parts(root, IMAGE)
    assert list(parts) == ["train", "val", "test"]
    assert {data.labels for data in parts.values()} == {("blue", "green", "red")}
    assert parts["val"].examples[0].name == "validation/blue/00.png"
    # Asked for as one, it is all of them.
    everything = load(root, IMAGE)
    assert len(everything.examples) == 18
    assert everything.labels == ("blue", "green", "red")
    (root / "valid").mkdir()
    with pytest.raises(DataError, match=r"has valid/ and validation/, which mean the same"):
        load(root, IMAGE)
    (root / "valid").rmdir()
    # Another class beside them, and they are classes themselves.
    (root / "train").rename(root / "bus")
    write_pictures(root / "train", 2)
    with pytest.raises(DataError, match="is a folder in a class folder"):
        load(root, IMAGE)
    shutil.rmtree(root / "bus")
    (root / "test" / "red" / "extra.txt").touch()
    with pytest.raises(DataError, match=r"1 of 19 items .*test/red/extra\.txt \(not an image\)"):
        load_parts(root, IMAGE)


def test_classes_that_are_called_like_parts(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 2)
    for old, new in (("red", "train"), ("green", "val")):
        (pictures / old).rename(pictures / new)
    assert load(pictures, IMAGE).labels == ("blue", "train", "val")
    (pictures / "blue").rename(tmp_path / "away")
    assert list(load_parts(pictures, IMAGE)) == ["train"]
    assert load(pictures, IMAGE).labels == ("train", "val")


def test_a_part_is_never_a_link_out_of_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_pictures(root / "train", 2)
    (root / "val").symlink_to(write_pictures(tmp_path / "outside", 2))
    with pytest.raises(DataError, match="val is a link out of the folder"):
        load(root, IMAGE)


def test_a_folder_is_no_data_for_texts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a table; this model reads text"):
        load(write_pictures(tmp_path / "pictures", 2), TEXT)
