"""Inputs for `zoo run` and `zoo embed`, and readers of their output files."""

import csv
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

FORMATS = ("v.npy", "v.parquet", "v.jsonl")
WORDS = ("card", "late", "money", "parcel", "door", "price")


def some_texts(count: int) -> list[str]:
    """Different texts of several lengths."""
    return [f"{WORDS[n % 6]} {'late ' * (n * 7 % 11)}{n}" for n in range(count)]


def write_lines(path: Path, count: int) -> Path:
    path.write_text("\n".join(some_texts(count)) + "\n")
    return path


def files(out: Path) -> dict[str, bytes]:
    """Every file of an output, by name."""
    return {path.name: path.read_bytes() for path in out.parent.iterdir() if out.name in path.name}


def breaking(texts: list[str], at: int) -> Iterator[str]:
    """Yields the texts, and raises SIGINT before the one at index `at`."""
    for number, text in enumerate(texts):
        if number == at:
            signal.raise_signal(signal.SIGINT)
        yield text


def write_photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (40, 30 + number), (number * 9, 90, 200 - number * 5)).save(folder / f"{number:02}.png")
    return folder


def rows(out: Path) -> list[dict[str, Any]]:
    """The rows of an output as another program reads them: numbers as numbers, without empty cells."""
    if out.suffix == ".parquet":
        from pyarrow import parquet

        found = parquet.read_table(out).to_pylist()
    elif out.suffix == ".jsonl":
        found = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        with out.open(newline="") as file:
            found = [{name: _number(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
    return [{name: cell for name, cell in row.items() if cell not in ("", None)} for row in found]


def _number(cell: str) -> str | float:
    try:
        return float(cell)
    except ValueError:
        return cell
