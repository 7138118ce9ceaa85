"""Reads files of vectors in blocks, so that a million vectors need no more memory than one block."""

from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from zoo.errors import DataError
from zoo.extras import require
from zoo.outputs.resumable_file import OutputRecord
from zoo.outputs.vector_file import KEY, SUFFIXES, VERB, Line
from zoo.runtime.in_order import windows

if TYPE_CHECKING:
    from zoo.runtime.session import Floats

#: Vectors in one block.
BLOCK = 8192


class Stored:
    """A file of vectors. `record` names the model that made it; it is None for a `.npy` that zoo did not write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind = path.suffix.lower()
        # A Parquet file contains its record, in case it was moved without FILE.zoo.json.
        self.record = _parquet_record(path) if self.kind == ".parquet" else OutputRecord.read(path, VERB)

    def blocks(self) -> "Iterator[Floats]":
        """The vectors in order, as blocks float32 [n, dim]. Raises DataError for a file that cannot be read."""
        import numpy as np

        if self.kind == ".npy":
            matrix = self.matrix()
            for start in range(0, len(matrix), BLOCK):
                yield np.asarray(matrix[start : start + BLOCK], np.float32)
        elif self.kind == ".parquet":
            for batch in self._batches("features"):
                column = batch.column(0).drop_null()
                if len(column):
                    yield column.flatten().to_numpy().reshape(len(column), -1)
        else:
            rows = (np.array(line.features, np.float32) for line in self._lines(self.path) if line.features is not None)
            for _, block in windows(rows, BLOCK):
                yield np.stack(block)

    def matrix(self) -> Any:
        """The array [rows, dim] of a `.npy`, memory-mapped."""
        import numpy as np

        try:
            matrix = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            if self.record is not None and not self.record.rows:
                return np.empty((0, self.record.dim), np.float32)
            message = f"{self.path} cannot be read: {error}"
            raise DataError(message, path=self.path, hint="embed the inputs again") from error
        if matrix.ndim != 2 or matrix.dtype.kind != "f":
            message = f"{self.path} holds no vectors: {matrix.dtype} {list(matrix.shape)}"
            raise DataError(message, path=self.path, hint="give an array of floats [rows, dim]")
        return matrix

    def names(self, rows: Collection[int]) -> dict[int, str]:
        """The names of the inputs of these rows; FILE:ROW for a row without a name."""
        names = islice(self._names(), max(rows, default=-1) + 1)
        found = {row: name for row, name in enumerate(names) if row in rows}
        return {row: found.get(row, f"{self.path.name}:{row}") for row in rows}

    def _names(self) -> Iterator[str]:
        """The names of all inputs that have a row, in order."""
        if self.kind == ".parquet":
            for batch in self._batches("input", "features"):
                is_there = batch.column(1).is_valid().to_pylist()
                yield from (name for name, there in zip(batch.column(0).to_pylist(), is_there, strict=True) if there)
            return
        path = self.path if self.kind == ".jsonl" else self.path.with_name(self.path.name + ".jsonl")
        if path.is_file():
            yield from (line.input for line in self._lines(path) if line.error is None)

    def _lines(self, path: Path) -> Iterator[Line]:
        decoder = msgspec.json.Decoder(Line)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield decoder.decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    message = f"{path}:{number} was not written by zoo embed: {error}"
                    raise DataError(message, path=path, hint="embed the inputs again") from error

    def _batches(self, *columns: str) -> Iterator[Any]:
        from pyarrow import parquet

        with parquet.ParquetFile(self.path) as file:
            yield from file.iter_batches(BLOCK, columns=list(columns))


def is_stored(argument: str) -> bool:
    """Whether an argument names a file of vectors: any `.npy`, or a file that `zoo embed` wrote."""
    path = Path(argument)
    kind = path.suffix.lower()
    try:
        if kind not in SUFFIXES or not path.is_file():
            return False
    except (OSError, ValueError):
        # Too long for a file name: the argument is a text that ends like one.
        return False
    if kind == ".parquet":
        return _parquet_record(path) is not None
    return kind == ".npy" or OutputRecord.read(path, VERB) is not None


def _parquet_record(path: Path) -> OutputRecord | None:
    require(f"reading {path.name}", "pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        found = (parquet.read_metadata(path).metadata or {}).get(KEY)
        return None if found is None else msgspec.json.decode(found, type=OutputRecord)
    except (pyarrow.ArrowException, OSError, ValueError, msgspec.MsgspecError):
        # This is not a file of vectors. If it is a damaged table, the reader of tables reports that.
        return None
