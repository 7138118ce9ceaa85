"""Command-line arguments: files, folders, patterns, texts, tables, stdin."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.items import IMAGE, TEXT, write
from zoo import DataError
from zoo.data.inputs import Input, Inputs, expand


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one of them in a subfolder and one with a pattern's characters in its name."""
    (tmp_path / "below").mkdir()
    for name in ("b.png", "a[1].jpg", "below/c.webp"):
        write(tmp_path, name, b"x")
    return tmp_path


def test_images_by_name_folder_and_pattern(folder: Path) -> None:
    def found(*arguments: str) -> list[str]:
        items, names = expand([f"{folder}/{argument}" for argument in arguments], IMAGE)
        assert items == names
        return [str(Path(item).relative_to(folder)) for item in items]

    assert found("b.png", "b.png") == ["b.png", "b.png"]
    assert found("below", "b.png") == ["below/c.webp", "b.png"]
    assert found("*.png") == ["b.png"]
    assert found("**/*.*") == ["a[1].jpg", "b.png", "below/c.webp"]
    assert found("a[1].jpg") == ["a[1].jpg"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("*.bmp", "no file matches"),
        ("gone/*", "no file matches"),
        ("empty", "no images there"),
        ("gone.png", r"gone\.png: no such file"),
        ("hello world", "hello world: no such file"),
        ("", "an input is empty"),
        ("a\0b", "no such file"),
        ("word " * 1000, r"word w\.\.\.: no such file"),
        ("t.csv", r"t\.csv is not an image"),
    ],
)
def test_images_that_are_not_there(folder: Path, argument: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    write(folder, "t.csv", "text\na\n")
    with pytest.raises(DataError, match=message) as caught:
        expand([str(folder / "b.png"), argument], IMAGE)
    assert caught.value.hint == "this model reads images: give files, folders or patterns"
    assert len(caught.value.message) < 100


def test_a_folder_with_something_else_in_it(folder: Path) -> None:
    write(folder, "notes.txt", "x")
    (folder / "below").rename(folder.parent / "moved")
    with pytest.raises(DataError, match=r"notes\.txt is not an image"):
        expand([str(folder)], IMAGE)


def test_texts_are_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [
        "my card",
        "see the file notes.txt",
        "*",
        "[",
        "a\0b",
        "x" * 300,
        "x " * 5000 + ".csv",
        "word " * 90 + "a.txt",
    ]
    assert expand(texts, TEXT) == (texts, texts)


@pytest.mark.parametrize(
    ("argument", "message"),
    [("", "text is empty"), (" \t", "text is empty"), ("b.png", r"b\.png is an image; this model reads text")],
)
def test_texts_that_are_none(folder: Path, argument: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match=message) as caught:
        expand(["a text", argument], TEXT)
    assert caught.value.hint
    assert expand(["gone.png"], TEXT) == (["gone.png"], ["gone.png"])


def test_texts_of_files(tmp_path: Path) -> None:
    lines = write(tmp_path, "Lines.TXT", "\ufefffirst\r\n\r\n  \nsecond\u2028still second\n")
    table = write(tmp_path, "t.csv", 'text,words\na,"one, two"\nb,three\n')
    rows = write(tmp_path, "t.jsonl", '{"text": "four"}\n\n{"text": "five"}\n')
    items, names = expand([str(lines), str(rows), "six"], TEXT)
    assert items == ["first", "second\u2028still second", "four", "five", "six"]
    assert names == ["Lines.TXT:1", "Lines.TXT:4", "t.jsonl:1", "t.jsonl:3", "six"]
    assert expand([str(table)], TEXT, text="words") == (["one, two", "three"], ["t.csv:2", "t.csv:3"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "no such file"),
        ("gone.csv", None, "no such file"),
        ("Gone.JSONL", None, "no such file"),
        ("t.txt", "", "no texts there"),
        ("t.txt", "\n \n", "no texts there"),
        ("t.csv", "text\n", "no texts there"),
        ("t.csv", "words\na\n", "no column 'text'"),
        ("t.csv", "text,n\na,1\n,2\n", r"t\.csv:3 has an empty 'text'"),
        ("t.txt", b"caf\xe9", "not UTF-8"),
        ("t.csv", b"text\ncaf\xe9", "not UTF-8"),
    ],
)
def test_texts_that_are_not_there(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    path = tmp_path / name if content is None else write(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        expand(["a text before it", str(path)], TEXT)
    assert caught.value.hint


@pytest.mark.parametrize("preprocess", [TEXT, IMAGE])
def test_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preprocess: object) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", " two words ", "last"):
        write(tmp_path, name, b"x")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\n  \n two words \nlast")))
    items, names = expand(["-"], preprocess)  # type: ignore[arg-type]
    assert items == names == ["one", " two words ", "last"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    with pytest.raises(DataError, match="there is no input"):
        expand(["-"], preprocess)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="there is no input"):
        expand([], preprocess)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="stdin is closed"):
        expand(["-"], preprocess)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        ("é\r\nb\r\n".encode(), "['é', 'b']"),
        (b"\xef\xbb\xbfa\n", "['a']"),
        (b"caf\xe9\n", "DataError stdin:1 is not UTF-8"),
    ],
)
def test_a_real_stdin(data: bytes, answer: str) -> None:
    code = (
        "from tests.kit.items import TEXT\nfrom zoo import DataError\nfrom zoo.data.inputs import expand\n"
        "try:\n    print(expand(['-'], TEXT)[0])\nexcept DataError as error:\n    print('DataError', error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=data,
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert done.stdout.decode().startswith(answer)


def test_a_row_that_is_not_utf8_does_not_cost_the_others(tmp_path: Path) -> None:
    table = write(tmp_path, "t.csv", "text,n\ngood é,1\n".encode() + b"caf\xe9,2\nfine,3\nalso,\xff\n")
    found = list(Inputs([str(table)], TEXT))
    assert [each.item for each in found if isinstance(each.item, str)] == ["good é", "fine"]
    errors = [each.item.message for each in found if isinstance(each.item, DataError)]
    assert [f"{table}:{line} is not UTF-8: " in error for line, error in zip((3, 5), errors, strict=True)] == [True] * 2
    with pytest.raises(DataError, match=r"t\.csv:1 is not UTF-8"):
        list(Inputs([str(write(tmp_path, "t.csv", b"text,caf\xe9\na,b\n"))], TEXT))


def test_tables_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = []
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        paths.append(str(write(tmp_path, f"{name}/t.csv", "text\nmy card\n")))
    lines = str(write(tmp_path, "t.txt", "one\n"))
    found = [each.name for each in Inputs([*paths, lines], TEXT)]
    assert found == [f"{paths[0]}:2", f"{paths[1]}:2", "t.txt:1"]
    assert list(Inputs([paths[0]], TEXT)) == [Input("t.csv:2", "my card")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe with a name")
def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a.png", b"x")
    os.mkfifo("b.png")
    os.mkfifo("b.txt")
    for argument, preprocess in (("b.png", IMAGE), ("b.txt", TEXT)):
        with pytest.raises(DataError, match="not a regular file"):
            Inputs([argument], preprocess).count()
    Path("b.txt").unlink()
    for argument in ("*.png", "."):
        good, bad = Inputs([argument], IMAGE)
        assert good.item == good.name
        assert ("not a regular file" if argument != "." else "b.png is not an image") in bad.item.message
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"b.png\na.png\n")))
    bad, good = Inputs(["-"], IMAGE)
    assert ("not a regular file" in bad.item.message, good.item) == (True, "a.png")


def test_a_file_of_vectors_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Inputs([str(tmp_path / "v.npy")], TEXT).count()
    with pytest.raises(DataError, match="holds vectors"):
        Inputs([str(write(tmp_path, "v.npy", b"x"))], TEXT).count()
    assert Inputs(["what is a v.npy"], TEXT).count() == 1
