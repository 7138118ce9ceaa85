"""Data sets: what is read, what is refused and why, and a split that only the items and the seed decide."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_chain import write_pictures
from zoo import DataError, UsageError
from zoo.data import Dataset, Example, load, split
from zoo.schema import ImagePreprocess, TextPreprocess

TEXT = TextPreprocess(tokenizer="t.json", max_length=8, pooling="mean", normalize=True)
IMAGE = ImagePreprocess(resize=8, crop=8, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    """A file of the data set."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", '\ufefflabel,text,more\r\na,"two\nlines, and ""quotes""",x\r\n b ,é 東京,y\r\n')
    examples = load(path, TEXT).examples
    assert [(example.item, example.label) for example in examples] == [
        ('two\nlines, and "quotes"', "a"),
        ("é 東京", "b"),
    ]


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"words": "one", "kind": 1}, {"words": "two", "kind": 2}]
    path = write(tmp_path, "t.jsonl", "\n\n".join(map(json.dumps, rows)))
    data = load(path, TEXT, text="words", label="kind")
    assert data.labels == ("1", "2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "text,label\n", "has no rows"),
        ("t.csv", "", "has no rows"),
        ("t.csv", "text\nx\n", "no column 'label'"),
        ("t.csv", "text,label\nx,a\n,a\n", r"t\.csv:3 has an empty 'text'"),
        ("t.csv", "text,label\nx\n", r"t\.csv:2 has an empty 'label'"),
        ("t.csv", "text,label\nx,é\n".encode("latin-1"), "not UTF-8"),
        ("t.jsonl", '{"text": "x", "label": "a"}\nnonsense', r"t\.jsonl:2 is not JSON"),
        ("t.jsonl", "[1]", "not a JSON object"),
        ("t.txt", "x", "not a table"),
        ("t.csv", "text,label\nsorry, wrong parcel,delivery\n", r"t\.csv:2 has more cells than the header"),
        ("t.csv", "text,text,label\nx,y,a\n", "two columns 'text'"),
        ("t.csv", 'text,label\na,"x\nb,y\n', "is not CSV"),
        ("t.csv", f"text,label\n{'x' * 200_000},a\n", "is not CSV"),
        ("t.csv", "text,label\nx,a\n".encode("utf-16"), "not UTF-8"),
        ("t.jsonl", '{"text": "x", "label": "a"}\n{"text": "y"}', r"t\.jsonl:2 has no column 'label'"),
        ("t.jsonl", '{"text": "x", "label": NaN}', r"t\.jsonl:1 has an empty 'label'"),
        ("t.jsonl", '{"text": null, "label": "a"}', r"t\.jsonl:1 has an empty 'text'"),
        ("t.jsonl", '{"text": ["x"], "label": "a"}', "'text' is not one value"),
        ("t.jsonl", '{"text": "\\ud800", "label": "a"}', "half a character"),
        ("t.jsonl", '{"text":' + "[" * 100_000, r"t\.jsonl:1 is not JSON"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(write(tmp_path, name, content), TEXT)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_a_kind_of_data_that_the_model_does_not_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this model reads pictures"):
        load(write(tmp_path, "t.csv", "text,label\nx,a\n"), IMAGE)
    (tmp_path / "folder.csv").mkdir()
    for folder in (tmp_path, tmp_path / "folder.csv"):
        with pytest.raises(DataError, match="not a table"):
            load(folder, TEXT)


def test_line_separators_inside_a_text(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0cfour"
    rows = json.dumps({"text": text, "label": "a"}, ensure_ascii=False)
    assert load(write(tmp_path, "t.jsonl", rows + "\r\n" + rows), TEXT).items == [text, text]


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "nowhere", IMAGE)
    with pytest.raises(DataError, match="no class folders"):
        load(tmp_path, IMAGE)
    pictures = write_pictures(tmp_path / "pictures", 2)
    with pytest.raises(UsageError, match="pictures have none"):
        load(pictures, IMAGE, label="x")
    (pictures / "red" / ".DS_Store").touch()
    (pictures / "red" / "Thumbs.db").touch()
    assert len(load(pictures, IMAGE).examples) == 6
    write(pictures / "red", "notes.txt", "x")
    with pytest.raises(DataError, match=r"notes\.txt is not a picture"):
        load(pictures, IMAGE)
    (pictures / "red" / "notes.txt").unlink()
    outside = write(tmp_path, "outside.png", b"x")
    (pictures / "red" / "link.png").symlink_to(outside)
    with pytest.raises(DataError, match="link out of the folder"):
        load(pictures, IMAGE)


labelled = st.lists(st.tuples(st.integers(0, 400), st.sampled_from("abc")), min_size=6, max_size=120)


def dataset(rows: list[tuple[int, str]]) -> Dataset:
    """A data set whose items repeat now and then; every class has at least two different ones."""
    rows = [*rows, *((number, label) for label in "abc" for number in (1000 + ord(label), 2000 + ord(label)))]
    return Dataset(
        "rows",
        tuple(
            Example(str(n), str(n), label, f"{number * 3 + ord(label) % 3:064x}")
            for n, (number, label) in enumerate(rows)
        ),
    )


@given(labelled, st.floats(0.05, 0.95), st.integers(0, 3), st.randoms())
def test_split(rows: list[tuple[int, str]], fraction: float, seed: int, random: object) -> None:
    data = dataset(rows)
    train, held = split(data, fraction, seed)
    assert sorted((*train.examples, *held.examples), key=lambda e: int(e.name)) == list(data.examples)
    assert not {e.digest for e in train.examples} & {e.digest for e in held.examples}
    assert train.labels == held.labels == data.labels
    for label in data.labels:
        # An item under two labels counts for the first of them.
        others = {e.digest for e in data.examples if e.label < label}
        of_class = [{e.digest for e in part.examples if e.label == label} - others for part in (train, held)]
        count = sum(map(len, of_class))
        assert len(of_class[1]) == min(max(round(fraction * count), 1), count - 1)
    shuffled = list(data.examples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = split(Dataset("rows", tuple(shuffled)), fraction, seed)[1]
    assert {e.name for e in again.examples} == {e.name for e in held.examples}


def test_the_seed_decides_the_split() -> None:
    data = dataset([(number, "abc"[number % 3]) for number in range(90)])
    assert len({tuple(e.name for e in split(data, 0.3, seed)[1].examples) for seed in range(5)}) == 5


def test_an_item_under_two_labels_stays_on_one_side() -> None:
    rows = tuple(Example(str(n), str(n), "ab"[n % 2], f"{n // 2:064x}") for n in range(40))
    apart = tuple(Example(f"b{n}", f"b{n}", "b", f"{n + 100:064x}") for n in range(10))
    train, held = split(Dataset("x", rows + apart), 0.4, 0)
    assert not {e.digest for e in train.examples} & {e.digest for e in held.examples}


def test_classes_that_cannot_be_split() -> None:
    with pytest.raises(DataError, match="only the class 'a'"):
        split(Dataset("x", (Example("1", "1", "a", "1"), Example("2", "2", "a", "2"))), 0.5, 0)
    twice = (
        Example("1", "1", "a", "1"),
        Example("2", "1", "a", "1"),
        Example("3", "3", "b", "3"),
        Example("4", "4", "b", "4"),
    )
    with pytest.raises(DataError, match="the class 'a' has 1 item of its own"):
        split(Dataset("x", twice), 0.5, 0)


def test_an_item_under_two_labels_is_on_one_side_only() -> None:
    rows = tuple(Example(str(n), str(n), label, f"{n:064x}") for label in "ab" for n in range(6))
    more = tuple(Example(str(n), str(n), "b", f"{n:064x}") for n in range(6, 10))
    for seed in range(10):
        train, held = split(Dataset("x", rows + more), 0.5, seed)
        assert not {e.digest for e in train.examples} & {e.digest for e in held.examples}
        assert train.labels == held.labels == ("a", "b")
    with pytest.raises(DataError, match="the class 'b' has 0 items of its own"):
        split(Dataset("x", rows), 0.5, 0)


def test_what_else_lies_in_folders(tmp_path: Path) -> None:
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
    (inside / "nothing.png").symlink_to(inside / "gone.png")
    with pytest.raises(DataError, match=r"nothing\.png is not a picture"):
        load(pictures, IMAGE)
    (inside / "nothing.png").unlink()
    os.mkfifo(inside / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png is not a picture"):
        load(pictures, IMAGE)
    (inside / "pipe.png").unlink()
    (inside / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"folder\.png is not a picture"):
        load(pictures, IMAGE)
    (inside / "folder.png").rmdir()
    (pictures / "outside").symlink_to(tmp_path)
    with pytest.raises(DataError, match="link out of the folder"):
        load(pictures, IMAGE)
    (pictures / "outside").unlink()
    (pictures / "empty").mkdir()
    with pytest.raises(DataError, match="the class 'empty' is empty"):
        load(pictures, IMAGE)


def test_the_digest_of_a_data_set_ignores_order_and_names() -> None:
    rows = dataset([(number, "abc"[number % 3]) for number in range(9)]).examples
    renamed = tuple(Example("other", "other", e.label, e.digest) for e in rows[::-1])
    relabelled = (Example("0", "0", "c", rows[0].digest), *rows[1:])
    digest = Dataset("x", rows).digest
    assert Dataset("y", renamed).digest == digest
    assert len({digest, Dataset("x", relabelled).digest, Dataset("x", rows[1:]).digest}) == 3


def test_labels_that_a_model_does_not_know() -> None:
    data = dataset([])
    assert data.targets(["c", "b", "a", "d"]).tolist() == [2, 2, 1, 1, 0, 0]
    with pytest.raises(DataError, match="has the label 'c', which the model does not know"):
        data.targets(["a", "b"])
