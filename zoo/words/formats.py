"""Readers of published word-vector files: memory-mapped and checked, with the header compared with the file's size.

word2vec-binary    "N dim" and a newline; then, N times, a word, a space, dim float32 and often a newline (word2vec.c)
word2vec-text      "N dim" and a newline; then one line for each word: the word and dim numbers, separated by a space
                   (fastText's .vec)
glove-text         the same lines without the header; words may contain spaces
npy, safetensors   the table alone; the words are in another file: Parquet, text (one word in each line) or JSON

Words are read as by gensim's load_word2vec_format: strictly UTF-8, and of duplicates the first row counts. Any other
defect is an IntegrityError that names the file and the row.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from zoo.errors import IntegrityError, quote
from zoo.extras import require
from zoo.schema import Entry, WordsPreprocess
from zoo.system.files import map_file

if TYPE_CHECKING:
    import mmap
    from typing import Literal, TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    Batch: TypeAlias = tuple[list[bytes], NDArray[np.float32]]
    Bytes: TypeAlias = mmap.mmap | bytes
    Order: TypeAlias = Literal["C", "F"]

#: The layout of a file by its suffix, for registry rows that name no layout.
SUFFIXES = {
    ".bin": "word2vec-binary",
    ".vec": "word2vec-text",
    ".txt": "glove-text",
    ".npy": "npy",
    ".safetensors": "safetensors",
}
LAYOUTS = tuple(SUFFIXES.values())
#: Layouts whose words are in another file.
TABLES = ("npy", "safetensors")
#: Rows in a batch.
ROWS = 2048
#: The largest size of a word in bytes, so that a file of another kind is not searched to its end.
MAX_WORD_BYTES = 1 << 16
#: The largest size of a number in a text, in bytes.
MAX_NUMBER_BYTES = 64
DECIMAL = re.compile(rb"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
#: The accepted number types: safetensors' names -> numpy's dtypes.
DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
NPY = re.compile(
    rb"\{\s*'descr':\s*'([^']*)',\s*'fortran_order':\s*(True|False),\s*'shape':\s*\((\d{1,18}),\s*(\d{1,18})\),?\s*\}\s*"
)


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def layout(entry: Entry) -> str | None:
    """The layout of a registry row's table, by `config.format` or the suffix; None if it is not one of LAYOUTS."""
    assert isinstance(entry.preprocess, WordsPreprocess)
    found = entry.config.get("format") or SUFFIXES.get(Path(entry.preprocess.table).suffix)
    return found if found in LAYOUTS else None


def read(path: Path, layout: str, dim: int) -> "Iterator[Batch]":
    """Yields checked batches (words, vectors float32 [len(words), dim]) of a file with both. Raises IntegrityError."""
    is_binary = layout == "word2vec-binary"
    return checked(path, _binary(path, dim) if is_binary else _text(path, dim, with_header=layout == "word2vec-text"))


def read_table(path: Path, layout: str, dim: int) -> "tuple[NDArray[Any], int]":
    """Returns the memory-mapped table [words, dim] and its offset in the file. Raises IntegrityError.

    The table is in C or in Fortran order, like the published file.
    """
    import numpy as np

    data = _map(path)
    dtype, order, (count, found), offset = _npy(path, data) if layout == "npy" else _safetensors(path, data)
    if found != dim or count < 1:
        _fail(path, f"it is a table of {count} x {found}, and the row's dim is {dim}")
    size = count * dim * np.dtype(dtype).itemsize
    if offset + size != len(data):
        _fail(path, f"its header announces {size:,} bytes of numbers, {len(data) - offset:,} follow")
    return np.frombuffer(data, dtype, count * dim, offset).reshape((count, dim), order=order), offset


def read_words(path: Path, column: str | None = None) -> list[bytes]:
    """The words in a file, in the order of the table's rows. Raises IntegrityError.

    The suffix decides: .parquet (the column `column`, or the only one), .json (a list of words, or a mapping to their
    ids), any other suffix: one word in each line.
    """
    if path.suffix not in (".parquet", ".json"):
        text = bytes(_map(path)).removeprefix(BOM_UTF8).removesuffix(b"\n")
        return [word.removesuffix(b"\r") for word in text.split(b"\n")]
    words = _parquet(path, column) if path.suffix == ".parquet" else _json(path)
    try:
        return [word.encode() for word in words]
    except UnicodeEncodeError:
        _fail(path, "a word is not Unicode text")


def pair(path: Path, words: list[bytes], table: "NDArray[Any]") -> "Iterator[Batch]":
    """Yields checked batches of a table and the `words` that were read from `path`. Raises IntegrityError."""
    if len(words) != len(table):
        _fail(path, f"it lists {len(words):,} words, the table has {len(table):,} rows")
    parts = range(0, len(words), ROWS)
    return checked(path, ((words[start : start + ROWS], _float32(table[start : start + ROWS])) for start in parts))


def checked(path: Path, batches: "Iterable[Batch]") -> "Iterator[Batch]":
    """Yields the batches without duplicates. Raises IntegrityError for invalid words, infinite numbers and NaN."""
    import numpy as np

    seen: set[bytes] = set()
    row = 0
    for words, vectors in batches:
        finite: list[bool] = np.atleast_1d(np.isfinite(vectors).all(axis=1)).tolist()
        kept = []
        for index, word in enumerate(words):
            if not finite[index]:
                _fail(path, f"row {row + index + 1} ({_show(word)}) holds numbers that are not finite")
            if not word:
                _fail(path, f"the word of row {row + index + 1} is empty")
            try:
                word.decode()
            except UnicodeDecodeError:
                _fail(path, f"the word of row {row + index + 1} is not UTF-8")
            if word not in seen:
                seen.add(word)
                kept.append(index)
        row += len(words)
        if len(kept) < len(words):
            words, vectors = [words[index] for index in kept], vectors[kept]
        if kept:
            yield words, vectors


def _binary(path: Path, dim: int) -> "Iterator[Batch]":
    import numpy as np

    data = _map(path)
    count, at = _header(path, data, dim, smallest=4 * dim + 2)
    for first in range(0, count, ROWS):
        words, rows = [], []
        for row in range(first, min(first + ROWS, count)):
            space = data.find(b" ", at, at + MAX_WORD_BYTES)
            end = space + 1 + 4 * dim
            if space < 0 or end > len(data):
                _fail(path, f"it ends inside row {row + 1} of {count:,}")
            # word2vec.c ends each row with a newline; other writers do not.
            words.append(data[at:space].lstrip(b"\n"))
            rows.append(data[space + 1 : end])
            at = end
        yield words, np.frombuffer(b"".join(rows), "<f4").reshape(len(rows), dim)
    if data[at : at + 2] not in (b"", b"\n"):
        _fail(path, f"it contains more than the {count:,} words that its header announces")


def _text(path: Path, dim: int, *, with_header: bool) -> "Iterator[Batch]":
    data = _map(path)
    count, at = _header(path, data, dim, smallest=2 * dim + 2) if with_header else (None, 0)
    lines = _lines(path, data, at, MAX_WORD_BYTES + MAX_NUMBER_BYTES * dim)
    row = 0
    while part := list(islice(lines, ROWS)):
        words, numbers = [], []
        for number, line in enumerate(part, row + 1):
            # fastText ends its lines with a space.
            word, _, rest = line.rstrip().partition(b" ")
            if not with_header and rest.count(b" ") >= dim:
                word, rest = _spaced(word, rest, dim)
            if rest.count(b" ") != dim - 1 or not rest:
                found = rest.count(b" ") + 1 if rest else 0
                _fail(path, f"row {number} ({_show(word)}) has {found} numbers, not {dim}")
            words.append(word)
            numbers.append(rest)
        row += len(part)
        if count is not None and row > count:
            _fail(path, f"it contains more than the {count:,} words that its header announces")
        yield words, _parse(path, words, numbers, dim, row - len(part))
    if count is not None and row < count:
        _fail(path, f"it ends after {row:,} of the {count:,} words that its header announces")


def _spaced(word: bytes, rest: bytes, dim: int) -> tuple[bytes, bytes]:
    """Returns the word and the numbers of a line with more than `dim` fields after the first one.

    Words of GloVe may have spaces, such as `. . .` in glove.840B. If an additional field is a number, the line has too
    many numbers and is returned unchanged.
    """
    *more, numbers = rest.split(b" ", rest.count(b" ") + 1 - dim)
    return (word, rest) if any(map(DECIMAL.fullmatch, more)) else (b" ".join([word, *more]), numbers)


def _parse(path: Path, words: list[bytes], rows: list[bytes], dim: int, before: int) -> "NDArray[np.float32]":
    """The numbers of the rows [len(rows), dim], read as by C's strtod and rounded once: gensim gives the same bits."""
    import numpy as np

    try:
        return _float32(np.fromiter(map(float, b" ".join(rows).split(b" ")), "<f8", len(rows) * dim).reshape(-1, dim))
    except ValueError:
        for number, (word, row) in enumerate(zip(words, rows, strict=True), before + 1):
            try:
                list(map(float, row.split(b" ")))
            except ValueError:
                _fail(path, f"row {number} ({_show(word)}) contains something that is not a number")
        raise


def _lines(path: Path, data: "Bytes", at: int, longest: int) -> Iterator[bytes]:
    while at < len(data):
        end = data.find(b"\n", at, at + longest)
        if end < 0 and len(data) - at > longest:
            _fail(path, f"a line is longer than {longest:,} bytes")
        end = len(data) if end < 0 else end
        yield data[at:end]
        at = end + 1


def _header(path: Path, data: "Bytes", dim: int, *, smallest: int) -> tuple[int, int]:
    """Returns the number of words and the offset of the first row. A row has at least `smallest` bytes."""
    end = data.find(b"\n", 0, 128)
    found = re.fullmatch(rb"\s*(\d{1,18})\s+(\d{1,18})\s*", data[: max(end, 0)])
    if found is None:
        _fail(path, "its first line is not the number of words and their dimension")
    count, width = int(found[1]), int(found[2])
    if width != dim or count < 1:
        _fail(path, f"its header says {count} words of {width} numbers, and the row's dim is {dim}")
    # The last newline may be missing.
    if count * smallest > len(data) - end:
        _fail(path, f"its header announces {count:,} words of {dim}, and only {len(data) - end - 1:,} bytes follow")
    return count, end + 1


def _npy(path: Path, data: "Bytes") -> "tuple[str, Order, tuple[int, int], int]":
    """The header of a .npy file (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html)."""
    version = data[6:8]
    width = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}.get(version)
    if data[:6] != b"\x93NUMPY" or width is None:
        _fail(path, "it is not numpy's .npy")
    offset = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    found = NPY.fullmatch(data[8 + width : min(offset, 8 + width + MAX_WORD_BYTES)])
    if found is None:
        _fail(path, "its header is not that of a table of numbers with two axes")
    dtype = found[1].decode("ascii", "replace")
    if dtype not in DTYPES.values():
        _fail(path, f"its numbers are {_show(found[1])}, not little-endian float16, 32 or 64")
    return dtype, "F" if found[2] == b"True" else "C", (int(found[3]), int(found[4])), offset


def _safetensors(path: Path, data: "Bytes") -> "tuple[str, Order, tuple[int, int], int]":
    """The header of a file with one tensor (https://huggingface.co/docs/safetensors, "Format")."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, 100_000_000):
        _fail(path, "it is not a safetensors file: its header is longer than the file")
    try:
        listed = msgspec.json.decode(data[8 : 8 + length], type=dict[str, Any])
        listed.pop("__metadata__", None)
        (tensor,) = msgspec.convert(list(listed.values()), list[_Tensor])
        count, dim = tensor.shape
    except (msgspec.MsgspecError, ValueError, RecursionError):
        _fail(path, "its header is not that of one table with two axes")
    if tensor.dtype not in DTYPES or min(count, dim) < 0 or tensor.data_offsets[0] != 0:
        _fail(path, f"its numbers are {_show(tensor.dtype.encode(errors='replace'))}, not F16, F32 or F64")
    return DTYPES[tensor.dtype], "C", (count, dim), 8 + length


def _parquet(path: Path, column: str | None) -> list[str]:
    require(f"reading {path.name}", "numpy", "pyarrow")
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            names = file.schema_arrow.names
            name = column or (names[0] if len(names) == 1 else None)
            if name not in names:
                _fail(
                    path, f"its columns are {', '.join(names)}: the row's config.column must name the column of words"
                )
            words = [word for part in file.iter_batches(columns=[name]) for word in part.column(0).to_pylist()]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        _fail(path, f"it cannot be read as Parquet: {' '.join(str(error).split())[:200]}")
    if not all(isinstance(word, str) for word in words):
        _fail(path, f"the column {name} holds something that is not text")
    return words


def _json(path: Path) -> list[str]:
    try:
        found = msgspec.json.decode(_map(path), type=list[str] | dict[str, int])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        _fail(path, "it is neither a list of words nor a mapping from words to ids")
    if isinstance(found, list):
        return found
    if sorted(found.values()) != list(range(len(found))):
        _fail(path, f"its ids are not 0 to {len(found) - 1:,}, each once")
    return sorted(found, key=found.__getitem__)


def _float32(numbers: "NDArray[Any]") -> "NDArray[np.float32]":
    import numpy as np

    # A number that is too large becomes infinite, which `checked` refuses.
    with np.errstate(over="ignore"):
        return numbers.astype("<f4", copy=False)


def _map(path: Path) -> "Bytes":
    data = map_file(path)
    if not data:
        _fail(path, "it is empty")
    return data


def _show(word: bytes) -> str:
    return quote(word.decode(errors="replace"))


def _fail(path: Path, problem: str) -> NoReturn:
    hint = "the file does not fit its registry row: check the row's dim, config.format and files"
    raise IntegrityError(f"{path.name}: {problem}", hint=hint)
