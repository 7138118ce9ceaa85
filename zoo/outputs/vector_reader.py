"""Files of vectors, read: in blocks, so that a million of them need no more memory than one block."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from zoo.errors import DataError
from zoo.extras import require
from zoo.outputs.resumable_file import Record, read_record
from zoo.outputs.vector_file import KEY, SUFFIXES, VERB, Line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

#: Vectors of one block.
BLOCK = 8192


class Stored:
    """An opened file of vectors: `record` says what made it, None for a `.npy` of somebody else's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind = path.suffix.lower()
        record = read_record(path, VERB)
        if self.kind == ".parquet":
            # A file that was moved without what lay beside it still knows.
            record = _parquet_record(path)
        self.record: Record | None = record

    def blocks(self) -> "Iterator[Floats]":
        """The vectors, in order, some float32 [n, dim] after another. Raises DataError for a file that has none."""
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
            rows: list[Floats] = []
            for line in self._lines(self.path):
                if line.features is not None:
                    rows.append(np.array(line.features, np.float32))
                if len(rows) == BLOCK:
                    yield np.stack(rows)
                    rows = []
            if rows:
                yield np.stack(rows)

    def matrix(self) -> Any:
        """Of a `.npy` the array [rows, dim], memory-mapped."""
        import numpy as np

        try:
            matrix = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            if self.record is not None and not self.record.rows:
                return np.empty((0, self.record.dim), np.float32)
            raise DataError(
                f"{self.path} cannot be read: {error}", path=self.path, hint="embed the inputs again"
            ) from error
        if matrix.ndim != 2 or matrix.dtype.kind != "f":
            raise DataError(
                f"{self.path} holds no vectors: {matrix.dtype} {list(matrix.shape)}",
                path=self.path,
                hint="give an array of floats [rows, dim]",
            )
        return matrix

    def names(self, rows: Collection[int]) -> dict[int, str]:
        """What the inputs of these rows are called: by row, where nobody has said."""
        found: dict[int, str] = {}
        left = set(rows)
        for row, name in enumerate(self._names()):
            if not left:
                break
            if row in left:
                found[row] = name
                left.remove(row)
        return {**found, **{row: f"{self.path.name}:{row}" for row in left}}

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
                    raise DataError(
                        f"{path}:{number} is no line of zoo embed: {error}", path=path, hint="embed the inputs again"
                    ) from error

    def _batches(self, *columns: str) -> Iterator[Any]:
        from pyarrow import parquet

        with parquet.ParquetFile(self.path) as file:
            yield from file.iter_batches(BLOCK, columns=list(columns))


def is_stored(argument: str) -> bool:
    """Whether an argument names a file of vectors: any `.npy`, and what `zoo embed` wrote."""
    path = Path(argument)
    kind = path.suffix.lower()
    try:
        if kind not in SUFFIXES or not path.is_file():
            return False
    except (OSError, ValueError):
        # Too long for a file's name: a text that ends like one.
        return False
    if kind == ".parquet":
        return _parquet_record(path) is not None
    return kind == ".npy" or read_record(path, VERB) is not None


def _parquet_record(path: Path) -> Record | None:
    require(f"reading {path.name}", "pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        found = (parquet.read_metadata(path).metadata or {}).get(KEY)
        return None if found is None else msgspec.json.decode(found, type=Record)
    except (pyarrow.ArrowException, OSError, ValueError, msgspec.MsgspecError):
        # No file of vectors: whoever reads it as a table says what is wrong with it.
        return None
