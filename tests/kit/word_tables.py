"""Word vectors for tests: seeded tables in every layout that upstream publishes, and registry rows for them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tests.kit.models import WORDS as ENGLISH
from zoo.schema import Entry

#: Words that are hard for the formats: signs, accents, other scripts, upper case, one that begins another.
WORDS = [*dict.fromkeys(ENGLISH), "naïve", "東京", "New_York", "king", "kings", "kin", "##", "'s", "🙂", "King", "zoë"]


def vectors(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Random float32 [count, dim] of very different lengths."""
    random = np.random.default_rng(seed)
    return (random.normal(size=(count, dim)) * random.lognormal(size=(count, 1))).astype(np.float32)


def binary(
    words: Sequence[str | bytes], table: np.ndarray, *, newline: bool = True, header: str | None = None
) -> bytes:
    """The bytes of a file in word2vec.c's binary format."""
    rows = [
        encoded(word) + b" " + row.astype("<f4").tobytes() + b"\n" * newline
        for word, row in zip(words, table, strict=True)
    ]
    first = header if header is not None else f"{len(table)} {table.shape[1]}"
    return first.encode() + b"\n" + b"".join(rows)


def text(
    words: Sequence[str | bytes], table: np.ndarray, *, header: str | bool = True, end: str = "\n", form: str = "{!r}"
) -> bytes:
    """The bytes of a text file: word2vec's and (end=" \\n") fastText's with a header, GloVe's without one."""
    numbers = (" ".join(form.format(float(value)) for value in row) for row in table)
    rows = [encoded(word) + f" {row}{end}".encode() for word, row in zip(words, numbers, strict=True)]
    first = header if isinstance(header, str) else f"{len(table)} {table.shape[1]}"
    return (f"{first}\n".encode() if header else b"") + b"".join(rows)


def encoded(word: str | bytes) -> bytes:
    return word if isinstance(word, bytes) else word.encode()


def write_list(path: Path, words: Sequence[str], column: str = "index") -> Path:
    """A file of the words alone, in the format of the suffix; `.ids.json` is {word: id}."""
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({column: list(words)}), path)
    elif path.name.endswith(".ids.json"):
        path.write_text(json.dumps({word: index for index, word in reversed(list(enumerate(words)))}))
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(words)))
    else:
        path.write_bytes("".join(f"{word}\n" for word in words).encode())
    return path


def write_table(path: Path, table: np.ndarray) -> Path:
    """A file of the numbers alone, as .npy or .safetensors."""
    if path.suffix == ".npy":
        np.save(path, table)
    else:
        from safetensors.numpy import save_file

        save_file({"vectors": np.ascontiguousarray(table)}, path)
    return path


def row(
    table: Path, words: Path | None, dim: int, *, config: Mapping[str, Any] | None = None, **preprocess: Any
) -> dict:
    """A registry row of these files, served by file://."""
    files = [table, *([words] if words else [])]
    return {
        "family": "word2vec",
        "task": "word-vectors",
        "description": "random vectors for tests",
        "license": "CC0-1.0",
        "params": 1000,
        "dim": dim,
        "config": dict(config or {}),
        "preprocess": {
            "kind": "words", "table": table.name, "words": words.name if words else None, "lowercase": True,
            **preprocess,
        },
        "files": [
            {
                "path": path.name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "size": path.stat().st_size or None,
                "sources": [path.as_uri()],
            }
            for path in files
        ],
    }  # fmt: skip


def entry(table: Path, words: Path | None, dim: int, **more: Any) -> Entry:
    """The row of `row` as an Entry."""
    return msgspec.convert({**row(table, words, dim, **more), "name": "tiny-words"}, Entry)


def write_registry(path: Path, rows: Mapping[str, dict]) -> Path:
    """A registry file of these rows."""
    path.write_text(json.dumps({"schema_version": 1, "models": dict(rows)}))
    return path
