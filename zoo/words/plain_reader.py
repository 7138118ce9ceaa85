"""Reference readers of word-vector files: each format in the simplest way, slow and without checks.

The readers of zoo.words.formats and of plugins are compared with these readers, which therefore share no code with
them. A file in an unexpected form may raise any exception.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from zoo.data.tokenizers import is_one_token
from zoo.errors import brief
from zoo.schema import Entry, WordsPreprocess
from zoo.words import formats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

#: The largest size of a header or a word in bytes, so that a file of another kind is not searched to its end.
MAX_BYTES = 1 << 16


def rows(entry: Entry, weights: Path, layout: str) -> Iterator[tuple[bytes, Any]]:
    """Yields the word and the vector of every row in the entry's files in `weights`; `parse` reads the vector.

    `layout` is one of zoo.words.formats.LAYOUTS. A list of words with several columns needs `config.column`.
    """
    import numpy as np

    preprocess, dim = entry.preprocess, entry.dim
    assert isinstance(preprocess, WordsPreprocess)
    path = weights / preprocess.table
    if layout in ("npy", "safetensors"):
        if preprocess.words is None:
            raise ValueError("it has no list of words beside it")
        words = listed(weights / preprocess.words, entry.config.get("column"))
        if layout == "npy":
            table = np.load(path, mmap_mode="r")
        else:
            from safetensors.numpy import load_file

            (table,) = load_file(path).values()
        yield from zip(words, table, strict=True)
        return
    if preprocess.words is not None:
        raise ValueError("it has a list of words beside it")
    with path.open("rb") as file:
        if layout != "glove-text":
            count, width = map(int, file.readline(MAX_BYTES).split())
            if width != dim:
                raise ValueError(f"its vectors have {width} numbers, not {dim}")
        if layout == "word2vec-binary":
            for _ in range(count):
                yield _word(file), file.read(4 * dim)
            return
        for line in file:
            # Words of GloVe may contain spaces; the last fields are the numbers.
            word, *numbers = line.rstrip().rsplit(b" ", dim if layout == "glove-text" else -1)
            yield word, numbers


def listed(path: Path, column: str | None = None) -> list[bytes]:
    """The words in a file, in the order of the table: Parquet, JSON (a list, or a mapping to ids) or lines."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
        if column is None and table.num_columns > 1:
            raise ValueError(f"{path.name} has the columns {', '.join(table.column_names)}")
        return [word.encode() for word in table[column or 0].to_pylist()]
    if path.suffix == ".json":
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            words = {index: word for word, index in found.items()}
            found = [words[index] for index in range(len(found))]
        return [word.encode() for word in found]
    with path.open("rb") as file:
        lines = [line.removesuffix(b"\n").removesuffix(b"\r") for line in file]
    return [lines[0].removeprefix(BOM_UTF8), *lines[1:]]


def parse(vector: Any) -> "Vector":
    """A vector from `rows` as float32 [dim]."""
    import numpy as np

    if isinstance(vector, bytes):
        return np.frombuffer(vector, "<f4")
    return np.array([float(number) for number in vector] if isinstance(vector, list) else vector, np.float32)


def spread(entry: Entry, weights: Path, count: int) -> "tuple[dict[str, Vector], str | None]":
    """Returns about `count` words, evenly spread over the rows, with their vectors; and a word with two rows, or None.

    All words can occur in a text, and none has a zero vector, which is the vector of unknown words. The word with two
    rows is one of them, with the vector of its first row. Raises ValueError if there are no such words, and for files
    in another layout.
    """
    preprocess, layout = entry.preprocess, formats.layout(entry)
    assert isinstance(preprocess, WordsPreprocess)
    if layout is None:
        raise ValueError(f"the format of {preprocess.table} is none of {', '.join(formats.LAYOUTS)}")
    try:
        wanted, twice = _choose([word for word, _ in rows(entry, weights, layout)], count, preprocess)
        read = {
            word: parse(numbers) for row, (word, numbers) in enumerate(rows(entry, weights, layout)) if row in wanted
        }
        if wrong := [len(vector) for vector in read.values() if vector.shape != (entry.dim,)]:
            raise ValueError(f"a row has {wrong[0]} numbers, not {entry.dim}")
    except Exception as error:
        # A plugin's own format may have one of these suffixes, and raise any exception here.
        raise ValueError(f"{preprocess.table} cannot be read as {layout}: {brief(str(error))}") from error
    found = {word.decode(): vector for word, vector in read.items() if vector.any()}
    if not found:
        raise ValueError(f"no word of {preprocess.words or preprocess.table} can occur in a text")
    return found, twice if twice in found else None


def _choose(words: list[bytes], count: int, preprocess: WordsPreprocess) -> tuple[set[int], str | None]:
    """Returns the rows of `count` words and of the first word with two rows; and that word, or None."""
    first: dict[bytes, int] = {}
    again = [word for row, word in enumerate(words) if first.setdefault(word, row) != row]
    distinct = list(first)

    def is_named(word: bytes) -> bool:
        try:
            return is_one_token(word.decode(), preprocess)
        except UnicodeDecodeError:
            return False

    targets = [index * (len(distinct) - 1) // (count - 1) for index in range(count)]
    chosen = [next(filter(is_named, chain(distinct[at:], reversed(distinct[:at]))), None) for at in targets]
    twice = next(filter(is_named, again), None)
    return {first[word] for word in (*chosen, twice) if word is not None}, None if twice is None else twice.decode()


def _word(file: BinaryIO) -> bytes:
    """The bytes up to the next space, without the newline that word2vec.c writes after the previous row."""
    word = bytearray()
    while (byte := file.read(1)) != b" ":
        if not byte or len(word) > MAX_BYTES:
            raise ValueError("it ends inside a word")
        word += byte
    return bytes(word).lstrip(b"\n")
