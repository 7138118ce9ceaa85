"""Data sets: tables of texts, labels and targets of each task, the bound of bad items, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.items import IMAGE, TEXT, write
from zoo import DataError, UsageError
from zoo.data.dataset import Dataset, load
from zoo.data.items import Example, Skipped, Unreadable
from zoo.options import DataOptions
from zoo.schema import Task


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
    data = load(path, TEXT, DataOptions(text="words", label="kind"))
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
        ("t.csv", "text,label\nx,a\n".encode("utf-16"), "not UTF-8"),
        ("t.jsonl", '{"text": "x", "label": "a"}\n{"text": "y"}', r"t\.jsonl:2 has no column 'label'"),
        ("t.jsonl", '{"text": "x", "label": NaN}', r"t\.jsonl:1 has an empty 'label'"),
        ("t.jsonl", '{"text": null, "label": "a"}', r"t\.jsonl:1 has an empty 'text'"),
        ("t.jsonl", '{"text": ["x"], "label": "a"}', "'text' is not one value"),
        ("t.jsonl", '{"text": "\\ud800", "label": "a"}', "a lone surrogate"),
        ("t.jsonl", '{"text":' + "[" * 100_000, r"t\.jsonl:1 is not JSON"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(write(tmp_path, name, content), TEXT)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_a_kind_of_data_that_the_model_does_not_read(tmp_path: Path) -> None:
    table = write(tmp_path, "t.csv", "text,label\nx,a\n")
    with pytest.raises(DataError, match="no column 'image'; this model reads images") as caught:
        load(table, IMAGE)
    assert caught.value.hint == "--image COL, one of: text, label"
    with pytest.raises(DataError, match="neither a folder nor a table; this model reads images"):
        load(write(tmp_path, "t.txt", "x"), IMAGE)
    with pytest.raises(UsageError, match="--text names a column of texts, and this model reads images"):
        load(table, IMAGE, DataOptions(text="text"))
    with pytest.raises(UsageError, match="--image names a column of images, and this model reads text"):
        load(table, TEXT, DataOptions(image="text"))
    (tmp_path / "folder.csv").mkdir()
    for folder in (tmp_path, tmp_path / "folder.csv"):
        with pytest.raises(DataError, match="not a table"):
            load(folder, TEXT)


def test_line_separators_inside_a_text(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0cfour"
    rows = json.dumps({"text": text, "label": "a"}, ensure_ascii=False)
    assert load(write(tmp_path, "t.jsonl", rows + "\r\n" + rows), TEXT).items == [text, text]


def test_the_digest_of_a_data_set_ignores_order_and_names() -> None:
    rows = classes(*((str(number), "abc"[number % 3]) for number in range(9))).examples
    renamed = tuple(Example("other", "other", e.label, e.digest) for e in rows[::-1])
    relabelled = (Example("0", "0", "c", rows[0].digest), *rows[1:])
    digest = Dataset("x", rows).digest
    assert Dataset("y", renamed).digest == digest
    assert len({digest, Dataset("x", relabelled).digest, Dataset("x", rows[1:]).digest}) == 3


def classes(*rows: tuple[str, str]) -> Dataset:
    """A data set of these pairs of item and label."""
    return Dataset("rows", tuple(Example(f"t.csv:{n}", item, label, item) for n, (item, label) in enumerate(rows, 2)))


def test_classes_as_targets() -> None:
    data = classes(("x", "c"), ("y", "a"), ("z", "c"))
    assert data.labels == ("a", "c")
    targets = data.targets(["c", "b", "a"])
    assert targets.dtype == np.int64
    assert targets.tolist() == [0, 2, 0]
    assert data.only(()).targets(["a"]).shape == (0,)
    with pytest.raises(DataError, match=r"t\.csv:2 has the label 'c', which the model does not know") as caught:
        data.targets(["a", "b"])
    assert caught.value.hint == "known labels: a, b"


def test_several_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "text,label\none,b | a\ntwo,\nthree,a||a\nfour, \n")
    with pytest.raises(DataError, match=r"t\.csv:3 has an empty 'label'"):
        load(path, TEXT)
    data = load(path, TEXT, DataOptions(task=Task.MULTI_LABEL))
    assert data.labels == ("a", "b")
    assert [data.labels_of(example) for example in data.examples] == [("b", "a"), (), ("a",), ()]
    targets = data.targets(["b", "a"])
    assert targets.dtype == np.float32
    assert targets.tolist() == [[1, 1], [0, 0], [0, 1], [0, 0]]
    assert data.only(()).targets(["a", "b"]).shape == (0, 2)
    with pytest.raises(DataError, match=r"t\.csv:2 has the label 'b'"):
        data.targets(["a"])
    with pytest.raises(DataError, match=r"t\.csv:2 has an empty 'label'"):
        # A row without the label's column does not mean that it has no labels.
        load(write(tmp_path, "short.csv", "text,label\none\n"), TEXT, DataOptions(task=Task.MULTI_LABEL))
    rows = write(tmp_path, "t.jsonl", '{"text": "x", "label": null}\n{"text": "y", "label": "a"}\n')
    assert load(rows, TEXT, DataOptions(task=Task.MULTI_LABEL)).targets(["a"]).tolist() == [[0], [1]]


def test_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "text,price\none, 1.5 \ntwo,-2e3\n")
    data = load(path, TEXT, DataOptions(task=Task.REGRESSION, label="price"))
    assert data.labels == ("price",)
    targets = data.targets(data.labels)
    assert targets.dtype == np.float32
    assert targets.tolist() == [[1.5], [-2000]]
    assert data.only(()).targets(data.labels).shape == (0, 1)


@pytest.mark.parametrize("cell", ["much", "nan", "inf", "-Infinity", "1e39", "1_000", "0x10", "1,5", "true"])
def test_numbers_that_are_none(tmp_path: Path, cell: str) -> None:
    path = write(tmp_path, "t.csv", f'text,label\none,1\ntwo,"{cell}"\n')
    with pytest.raises(DataError, match=rf"t\.csv:3: 'label' is not a finite number: '{cell}'"):
        load(path, TEXT, DataOptions(task=Task.REGRESSION))
    data = Dataset("x", (Example("t.csv:3", "two", cell, "2"),), Task.REGRESSION)
    with pytest.raises(DataError, match=r"t\.csv:3: 'label' is not a finite number"):
        data.targets(data.labels)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_every_float32_is_a_number(value: float) -> None:
    data = Dataset("x", (Example("x", "x", repr(value), "x"),), Task.REGRESSION)
    assert data.targets(data.labels).tolist() == [[value]]


@given(st.integers(1, 400), st.integers(0, 100))
def test_the_bound_of_bad_items_is_a_whole_number_of_them(total: int, percent: int) -> None:
    allowed = percent * total // 100
    bad = [Skipped(str(number), "broken") for number in range(total)]
    allowed = min(allowed, total - 1)
    Unreadable(bad[:allowed], total, percent / 100).check()
    with pytest.raises(DataError, match=f"{allowed + 1} of {total} items"):
        Unreadable(bad[: allowed + 1], total, percent / 100).check()


def test_the_first_bad_items_are_named_and_the_hint_is_enough() -> None:
    bad = [Skipped(f"{number}.png", "broken") for number in range(7)]
    with pytest.raises(DataError, match=r"7 of 50 .*: 0\.png \(broken\), .*, 4\.png \(broken\) and 2 more$") as caught:
        Unreadable(bad, 50, 0.01).check()
    assert caught.value.hint == "repair or remove them, or --max-bad 0.14"
    Unreadable(bad, 50, 0.14).check()
