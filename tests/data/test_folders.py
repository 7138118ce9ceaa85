"""Folders of images: classes, parts, and other files in them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.items import IMAGE, TEXT, write, write_images
from zoo import DataError, UsageError
from zoo.data.dataset import load, load_parts
from zoo.data.items import Skipped
from zoo.options import DataOptions
from zoo.schema import Task


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's right to read everything if the tests run as root."""
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
    images = write_images(tmp_path / "images", 2)
    for columns in ({"label": "x"}, {"text": "x"}, {"image": "x"}):
        with pytest.raises(UsageError, match="name columns of a table, and a folder has none"):
            load(images, IMAGE, DataOptions(**columns))  # type: ignore[arg-type]
    for task in (Task.MULTI_LABEL, Task.REGRESSION):
        with pytest.raises(UsageError, match=f"a folder gives each image one label, .* --task {task}"):
            load(images, IMAGE, DataOptions(task=task))
    (images / "red" / ".DS_Store").touch()
    (images / "red" / "Thumbs.db").touch()
    assert len(load(images, IMAGE).examples) == 6


def test_what_loses_a_whole_folder_is_an_error(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    data = load(images, IMAGE)
    inside = images / data.labels[0]
    (images / ".hidden").mkdir()
    write(images, "README.md", "x")
    assert load(images, IMAGE) == data
    write(images, "stray.png", "x")
    with pytest.raises(DataError, match=r"stray\.png is in no class folder"):
        load(images, IMAGE)
    (images / "stray.png").unlink()
    (inside / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"folder\.png is a folder in a class folder"):
        load(images, IMAGE)
    (inside / "folder.png").rmdir()
    (images / "outside").symlink_to(tmp_path)
    with pytest.raises(DataError, match="outside is a link out of the folder"):
        load(images, IMAGE)
    (images / "outside").unlink()
    (images / "empty").mkdir()
    write(images / "empty", "notes.txt", "x")
    with pytest.raises(DataError, match="the class 'empty' is empty") as caught:
        load(images, IMAGE, DataOptions(max_bad=1.0))
    assert caught.value.exit_code == 2


def test_what_cannot_be_used_is_skipped_and_bounded(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 4)
    data = load(images, IMAGE)
    inside = images / "red"
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
    read = load(images, IMAGE, DataOptions(max_bad=0.5))
    found = {skipped.name: skipped.reason for skipped in read.skipped}
    assert "cannot be read" in found.pop("red/round.png")
    assert found == reasons
    # A link to a file inside the folder counts as a copy.
    assert {e.name for e in read.examples} - {e.name for e in data.examples} == {"red/same.png"}
    # Five of 18 are bad: 0.27 allows 4, and 0.28 allows 5.
    with pytest.raises(
        DataError, match=r"5 of 18 items cannot be used, more than --max-bad 0\.27 allows \(4\)"
    ) as caught:
        load(images, IMAGE, DataOptions(max_bad=0.27))
    assert caught.value.hint == "repair or remove them, or --max-bad 0.28"
    assert "red/notes.txt (not an image), red/nothing.png (a link to nothing)" in caught.value.message
    assert len(load(images, IMAGE, DataOptions(max_bad=0.28)).skipped) == 5
    with pytest.raises(DataError, match=r"more than --max-bad 0\.01 allows \(0\)"):
        load(images, IMAGE)


def test_a_file_that_may_not_be_read_is_skipped() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        images = write_images(folder / "images", 2)
        (images / "red" / "00.png").chmod(0)
        with as_nobody():
            data = load(images, IMAGE, DataOptions(max_bad=0.2))
            assert data.skipped == (Skipped("red/00.png", "cannot be read: Permission denied"),)
            assert len(data.examples) == 5
        (images / "red").chmod(0)
        with as_nobody(), pytest.raises(DataError, match="red cannot be read: Permission denied") as caught:
            load(images, IMAGE, DataOptions(max_bad=0.2))
        assert caught.value.hint == f"chmod u+rx {images / 'red'}"
        (images / "red").chmod(0o755)


def test_a_folder_of_parts(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for part in ("train", "validation", "test"):
        write_images(root / part, 2)
    parts = load_parts(root, IMAGE)
    assert list(parts) == ["train", "val", "test"]
    assert {data.labels for data in parts.values()} == {("blue", "green", "red")}
    assert parts["val"].examples[0].name == "validation/blue/00.png"
    # `load` returns the items of all parts.
    everything = load(root, IMAGE)
    assert len(everything.examples) == 18
    assert everything.labels == ("blue", "green", "red")
    (root / "valid").mkdir()
    with pytest.raises(DataError, match=r"has valid/ and validation/, which mean the same"):
        load(root, IMAGE)
    (root / "valid").rmdir()
    # With another folder beside them, parts are classes.
    (root / "train").rename(root / "bus")
    write_images(root / "train", 2)
    with pytest.raises(DataError, match="is a folder in a class folder"):
        load(root, IMAGE)
    shutil.rmtree(root / "bus")
    (root / "test" / "red" / "extra.txt").touch()
    with pytest.raises(DataError, match=r"1 of 19 items .*test/red/extra\.txt \(not an image\)"):
        load_parts(root, IMAGE)


def test_classes_that_are_called_like_parts(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    for old, new in (("red", "train"), ("green", "val")):
        (images / old).rename(images / new)
    assert load(images, IMAGE).labels == ("blue", "train", "val")
    (images / "blue").rename(tmp_path / "away")
    assert list(load_parts(images, IMAGE)) == ["train"]
    assert load(images, IMAGE).labels == ("train", "val")


def test_a_part_is_never_a_link_out_of_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_images(root / "train", 2)
    (root / "val").symlink_to(write_images(tmp_path / "outside", 2))
    with pytest.raises(DataError, match="val is a link out of the folder"):
        load(root, IMAGE)


def test_a_folder_is_no_data_for_texts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a table; this model reads text"):
        load(write_images(tmp_path / "images", 2), TEXT)
