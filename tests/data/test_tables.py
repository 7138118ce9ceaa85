"""Tables: Parquet files as pyarrow writes them, and images by path or as bytes."""

import datetime
import io
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tests.kit.items import CLASSES, IMAGE, TEXT, image_bytes, write, write_parquet
from zoo import DataError, FinetuneOptions, MissingExtraError, Zoo
from zoo.data.dataset import Dataset, load
from zoo.data.images import decode_image
from zoo.data.inputs import expand
from zoo.data.items import Example
from zoo.options import DataOptions
from zoo.schema import Task


def facts(data: Dataset) -> list[tuple[object, str, str]]:
    return [(example.item, example.label, example.name) for example in data.examples]


def test_texts_in_parquet_are_those_of_the_same_csv(tmp_path: Path) -> None:
    rows = 700
    columns = {
        "text": [f"text {n}, é" for n in range(rows)],
        "label": [str(n % 3) for n in range(rows)],
        "more": range(rows),
    }
    stored = write_parquet(tmp_path / "t.parquet", columns | {"more": list(range(rows))}, row_group_size=100)
    csv = "text,label\n" + "".join(f'"{t}",{k}\n' for t, k in zip(columns["text"], columns["label"], strict=True))
    data, same = load(stored, TEXT), load(write(tmp_path, "t.csv", csv), TEXT)
    assert data.digest == same.digest
    assert [e.item for e in data.examples] == [e.item for e in same.examples]
    assert (data.examples[0].name, data.examples[-1].name) == ("t.parquet:1", "t.parquet:700")
    assert expand([str(stored)], TEXT, text="text")[0] == columns["text"]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1, 2], ("1", "2")),
        ([1.5, 2.0], ("1.5", "2.0")),
        ([True, False], ("False", "True")),
        ([Decimal("1.10"), Decimal("2.20")], ("1.10", "2.20")),
        ([datetime.date(2024, 1, 2), datetime.date(2023, 1, 2)], ("2023-01-02", "2024-01-02")),
        (pyarrow.array(["b", "a"]).dictionary_encode(), ("a", "b")),
    ],
)
def test_values_of_every_kind_are_labels(tmp_path: Path, values: Any, labels: tuple[str, ...]) -> None:
    assert load(write_parquet(tmp_path / "t.parquet", {"text": ["x", "y"], "label": values}), TEXT).labels == labels


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_list_of_labels_is_several(tmp_path: Path, kind: str) -> None:
    path, labels = tmp_path / f"t.{kind}", [["sea", "snow"], ["sea"], []]
    if kind == "parquet":
        write_parquet(path, {"text": ["x", "y", "z"], "label": labels})
    else:
        rows = zip("xyz", labels, strict=True)
        path.write_text("".join(json.dumps({"text": text, "label": each}) + "\n" for text, each in rows))
    data = load(path, TEXT, DataOptions(task=Task.MULTI_LABEL))
    assert [example.label for example in data.examples] == ["sea|snow", "sea", ""]
    assert data.targets(("sea", "snow")).tolist() == [[1, 1], [1, 0], [0, 0]]
    with pytest.raises(DataError, match="'label' is not one value"):
        load(path, TEXT)


@pytest.mark.parametrize("kind", ["Sequence", "List", None])
def test_lists_of_numbers_of_classes_have_their_names(tmp_path: Path, kind: str | None) -> None:
    item = {"names": ["sea", "snow"], "_type": "ClassLabel"}
    facts = {"info": {"features": {"label": {"feature": item, "_type": kind} if kind else [item]}}}
    table = pyarrow.table({"text": ["x", "y"], "label": [[0, 1], [1]]})
    table = table.replace_schema_metadata({b"huggingface": json.dumps(facts).encode()})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet", TEXT, DataOptions(task=Task.MULTI_LABEL))
    assert [example.label for example in data.examples] == ["sea|snow", "snow"]


def test_a_label_in_a_list_is_one(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    wrong = {'["a|b"]': "the label 'a|b' contains '|'", '[["a"]]': "is not one value", "[null]": "empty"}
    for value, message in wrong.items():
        path.write_text(f'{{"text": "x", "label": {value}}}\n')
        with pytest.raises(DataError, match=re.escape(message)):
            load(path, TEXT, DataOptions(task=Task.MULTI_LABEL))


def test_numbers_of_classes_have_their_names(tmp_path: Path) -> None:
    columns = {"text": ["x", "y", "z"], "label": [1, 0, 1]}
    assert load(write_parquet(tmp_path / "t.parquet", columns, CLASSES), TEXT).labels == ("cat", "dog")
    # Without names, and with metadata in another form than the library's, they stay numbers.
    for strange in (None, {}, [], {"info": {"features": {"label": {"_type": "ClassLabel"}}}}, {"info": None}):
        assert load(write_parquet(tmp_path / "t.parquet", columns, strange), TEXT).labels == ("0", "1")
    unknown = write_parquet(tmp_path / "t.parquet", {"text": ["x", "y"], "label": [1, -1]}, CLASSES)
    with pytest.raises(DataError, match=r"t\.parquet:2 has an empty 'label'"):
        load(unknown, TEXT)


def test_numbers_of_parquet_are_exact(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, -2.5e-30]
    data = load(
        write_parquet(tmp_path / "t.parquet", {"text": list("xyz"), "label": values}),
        TEXT,
        DataOptions(task=Task.REGRESSION),
    )
    assert data.targets(data.labels)[:, 0].tolist() == np.asarray(values, np.float32).tolist()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["x"]}, "has no column 'label'"),
        ({"text": pyarrow.array([], pyarrow.string()), "label": pyarrow.array([], pyarrow.string())}, "has no rows"),
        ({"text": ["x", None], "label": ["a", "b"]}, r"t\.parquet:2 has an empty 'text'"),
        ({"text": ["x"], "label": [float("nan")]}, r"t\.parquet:1 has an empty 'label'"),
        ({"text": [["x"]], "label": ["a"]}, "'text' is not one value"),
        ({"text": [b"x"], "label": ["a"]}, "'text' is not one value"),
        ({"text": [{"a": "x"}], "label": ["a"]}, "'text' is not one value"),
    ],
)
def test_parquet_that_cannot_be_used(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write_parquet(tmp_path / "t.parquet", columns), TEXT)


def test_parquet_that_is_none(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "whole.parquet", {"text": ["x"] * 999, "label": ["a"] * 999}).read_bytes()
    for name, content in (
        ("a", b""),
        ("b", b"PAR1"),
        ("c", whole[:-30]),
        ("d", whole[40:]),
        ("e", b"text,label\nx,a\n"),
    ):
        with pytest.raises(DataError, match="cannot be read as Parquet") as caught:
            load(write(tmp_path, f"{name}.parquet", content), TEXT)
        assert "\n" not in caught.value.message
    damaged = bytearray(whole)
    damaged[4:40] = bytes(36)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        load(write(tmp_path, "f.parquet", bytes(damaged)), TEXT)
    names = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 3, names=["text", "text", "label"])
    pyarrow.parquet.write_table(names, tmp_path / "g.parquet")
    with pytest.raises(DataError, match="two columns 'text'"):
        load(tmp_path / "g.parquet", TEXT)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import extras

    path = write_parquet(tmp_path / "t.parquet", {"text": ["x"], "label": ["a"]})
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"reading t\.parquet needs the package pyarrow") as caught:
        load(path, TEXT)
    assert caught.value.hint == "pip install 'backbone-zoo[data]'"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two images, one of them in a subfolder; a third one lies outside of the folder."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    write(folder, "one.png", image_bytes(1))
    write(folder / "below", "two.jpg", image_bytes(2, "JPEG"))
    write(tmp_path, "outside.png", image_bytes(3))
    return folder


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_paths_of_images(photos: Path, kind: str) -> None:
    columns = {"image": ["one.png", "./below/two.jpg"], "label": ["a", "b"]}
    table = photos / f"t.{kind}"
    rows = list(zip(*columns.values(), strict=True))
    if kind == "parquet":
        write_parquet(table, columns)
    elif kind == "csv":
        table.write_text("image,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    else:
        table.write_text("".join(json.dumps({"image": path, "label": label}) + "\n" for path, label in rows))
    data = load(table, IMAGE)
    line = 2 if kind == "csv" else 1
    assert facts(data) == [
        (photos / "one.png", "a", f"t.{kind}:{line} one.png"),
        (photos / "below/two.jpg", "b", f"t.{kind}:{line + 1} ./below/two.jpg"),
    ]
    # The same bytes have the same digest in every form, so that features are computed once.
    (photos / "folder" / "a").mkdir(parents=True)
    (photos / "one.png").rename(photos / "folder" / "a" / "other.png")
    assert load(photos / "folder", IMAGE).examples[0].digest == data.examples[0].digest


@pytest.mark.parametrize(
    "path", ["../outside.png", "below/../../outside.png", "/etc/hosts", "..\\outside.png", "C:/x.png"]
)
def test_paths_never_leave_the_folder(photos: Path, path: str) -> None:
    table = write(photos, "t.csv", f"image,label\none.png,a\n{path},b\n")
    with pytest.raises(DataError, match=r"t\.csv:3: .* leads out of the table's folder") as caught:
        load(table, IMAGE, DataOptions(max_bad=1))
    assert caught.value.hint


def test_images_that_cannot_be_used_are_skipped(photos: Path) -> None:
    (photos / "out.png").symlink_to(photos.parent / "outside.png")
    (photos / "away").symlink_to(photos.parent)
    write(photos, "notes.txt", "x")
    paths = ["one.png", "gone.png", "out.png", "away/outside.png", "notes.txt", "below", "x\0.png", "n" * 999 + ".png"]
    rows = "".join(json.dumps({"photo": path, "label": "a"}) + "\n" for path in paths)
    data = load(write(photos, "t.jsonl", rows), IMAGE, DataOptions(image="photo", max_bad=0.9))
    assert [example.item for example in data.examples] == [photos / "one.png"]
    reasons = {each.name.partition(" ")[0]: each.reason for each in data.skipped}
    assert reasons == {
        "t.jsonl:2": "no such file",
        "t.jsonl:3": "a link out of the folder",
        "t.jsonl:4": "a link out of the folder",
        "t.jsonl:5": "not an image",
        "t.jsonl:6": "not an image",
        "t.jsonl:7": reasons["t.jsonl:7"],
        "t.jsonl:8": "cannot be read: File name too long",
    }
    assert data.skipped[0].name == "t.jsonl:2 gone.png"
    with pytest.raises(DataError, match="7 of 8 items cannot be used"):
        load(photos / "t.jsonl", IMAGE, DataOptions(image="photo"))
    with pytest.raises(DataError, match="1 of 1 items cannot be used"):
        load(write(photos, "bad.csv", "image,label\ngone.png,a\n"), IMAGE, DataOptions(max_bad=1))


def test_images_in_the_table_itself(photos: Path) -> None:
    one, two = image_bytes(1), image_bytes(2, "JPEG")
    structs = [{"bytes": one, "path": "one.png"}, {"bytes": two, "path": None}, {"bytes": None, "path": "one.png"}]
    table = write_parquet(photos / "t.parquet", {"image": structs, "label": [1, 0, 0]}, CLASSES)
    data = load(table, IMAGE)
    assert facts(data) == [
        (one, "dog", "t.parquet:1"),
        (two, "cat", "t.parquet:2"),
        (photos / "one.png", "cat", "t.parquet:3 one.png"),
    ]
    assert data.examples[0].digest == data.examples[2].digest
    assert decode_image(data.items[0], 8).shape == (9, 12, 3)
    plain = write_parquet(photos / "p.parquet", {"image": [one, two], "label": ["a", "b"]})
    assert load(plain, IMAGE).items == [one, two]
    assert load(plain, IMAGE, DataOptions(task=Task.MULTI_LABEL)).targets(["a", "b"]).tolist() == [[1, 0], [0, 1]]
    for empty in ({"bytes": None, "path": None}, {"bytes": b"", "path": ""}):
        with pytest.raises(DataError, match=r"e\.parquet:1 has an empty 'image'"):
            load(write_parquet(photos / "e.parquet", {"image": [empty], "label": ["a"]}), IMAGE)


def test_a_table_of_images_goes_into_an_example(photos: Path) -> None:
    data = load(
        write(photos, "t.csv", "image,price\none.png,3\nbelow/two.jpg,4.5\n"),
        IMAGE,
        DataOptions(label="price", task=Task.REGRESSION),
    )
    assert isinstance(data.examples[0], Example)
    assert data.labels == ("price",)
    assert data.targets(data.labels).tolist() == [[3], [4.5]]


def test_the_whole_chain_on_images_in_a_table(shelf: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = []
    for number in range(20):
        pixels = random.integers(0, 60, (50, 60, 3), dtype=np.uint8)
        pixels[:, :, number % 2] += 150
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        images.append(stream.getvalue())
    labels = ["red", "green"] * 10
    table = write_parquet(tmp_path / "t.parquet", {"image": images, "label": labels})
    zoo = Zoo()
    outcome = zoo.finetune("tiny-lite", table, tmp_path / "out", FinetuneOptions(lr=0.01, epochs=20))
    assert outcome.items == 20
    # The features of the same images as files are in the cache.
    for number, (content, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "folder" / label).mkdir(parents=True, exist_ok=True)
        write(tmp_path / "folder" / label, f"{number}.png", content)
    assert zoo.finetune("tiny-lite", tmp_path / "folder", tmp_path / "two", FinetuneOptions(lr=0.01)).computed == 0
    assert zoo.evaluate(str(tmp_path / "out"), table, held_out=True).metrics.n == 4
    # An image that cannot be decoded is named by its row.
    write_parquet(table, {"image": [*images[:2], images[2][:60], *images[3:]], "label": labels})
    with pytest.raises(DataError, match=r"t\.parquet:3\b.*cannot be decoded"):
        zoo.evaluate(str(tmp_path / "out"), table)
