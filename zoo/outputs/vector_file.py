"""Files of vectors: `.npy`, Parquet and JSON lines, written by the writers of `zoo.outputs.resumable_file`.

x.npy           float32 [rows, dim]
x.npy.jsonl     beside x.npy: a line for each input, with its name and its row or error
x.parquet       a row for each input, with columns `input`, `features` and `error`; its metadata hold the record too
x.jsonl         a line for each input: {"input", "features"} or {"input", "error"}
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from zoo.outputs.resumable_file import LineWriter, NamedRow, OutputRecord, Writer, parquet_writer
from zoo.outputs.table import ROW_GROUP, Row, Table, decimals, plain, write_parquet
from zoo.results import Failure
from zoo.runtime.in_order import windows

SUFFIXES = (".npy", ".parquet", ".jsonl")
#: The key of the record in Parquet's metadata.
KEY = b"zoo.embeddings"
#: The command in the records of these files.
VERB = "embed"
#: The tables in a `.jsonl` file of vectors, and in the `.jsonl` file beside a `.npy`.
VECTORS = Table(("input", "features", "error"), frozenset(["features"]))
NAMES = Table(("input", "row", "error"), frozenset(["row"]))


class Line(msgspec.Struct):
    """One line of a `.jsonl` file, with a vector or beside a `.npy`."""

    input: str
    row: int | None = None
    features: list[float] | None = None
    error: Failure | None = None


def open_writer(path: Path, record: OutputRecord) -> Writer:
    """A writer whose rows are vectors float32 [dim]: see `zoo.outputs.resumable_file.OpenWriter`."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return NpyWriter(path, record)
    if suffix == ".jsonl":
        return LineWriter(path, record, VECTORS, _cells)
    return parquet_writer(path, record, ".npy", NpyWriter, _convert)


def _cells(named_row: NamedRow) -> Row:
    name, vector = named_row
    if isinstance(vector, Failure):
        return plain(name), None, vector
    return plain(name), f"[{','.join(decimals(vector))}]", None


class NpyWriter(Writer):
    """Writes `x.npy` and `x.npy.jsonl`. The header has a fixed length and is written again when rows are added."""

    def __init__(self, path: Path, record: OutputRecord) -> None:
        self.dim, self.rows = record.dim, record.rows
        super().__init__({"vectors": path, "names": path.with_name(path.name + ".jsonl")}, record)
        self.matrix, self.names = self.files.values()

    def start(self) -> None:
        """Also write the header of a new file."""
        super().start()
        if not self.matrix.size:
            self._write_header()
            self.matrix.size = self.matrix.file.tell()

    def append(self, rows: Sequence[NamedRow]) -> None:
        """Write the next inputs' vectors, and their names or errors."""
        vectors: list[bytes] = []
        lines: list[Row] = []
        for name, vector in rows:
            if isinstance(vector, Failure):
                lines.append((plain(name), None, vector))
            else:
                lines.append((plain(name), str(self.rows + len(vectors)), None))
                vectors.append(vector.astype("<f4", copy=False).tobytes())
        self.matrix.write(b"".join(vectors))
        self.names.write(NAMES.json_lines(lines))
        self.rows += len(vectors)

    def flush(self) -> None:
        """Write the vectors to disk, and only then the header that counts them."""
        self.matrix.flush()
        self._write_header()
        super().flush()

    def _write_header(self) -> None:
        from numpy.lib import format as npy

        # numpy pads it so that the first axis can grow: https://numpy.org/neps/nep-0001-npy-format.html
        self.matrix.file.seek(0)
        npy.write_array_header_1_0(
            self.matrix.file, {"shape": (self.rows, self.dim), "fortran_order": False, "descr": "<f4"}
        )
        if self.matrix.size:
            self.matrix.file.seek(self.matrix.size)


def _convert(files: Sequence[Path], out: Path, record: OutputRecord) -> None:
    import numpy as np
    import pyarrow

    matrix, names = files
    # An array without rows cannot be memory-mapped.
    vectors = np.load(matrix, mmap_mode="r") if record.rows else []
    failure = pyarrow.struct([("code", pyarrow.string()), ("message", pyarrow.string()), ("hint", pyarrow.string())])
    types = {"input": pyarrow.string(), "features": pyarrow.list_(pyarrow.float32(), record.dim), "error": failure}

    def columns(group: list[Line]) -> list[list[Any]]:
        features = [None if line.row is None else vectors[line.row] for line in group]
        errors = [None if line.error is None else msgspec.to_builtins(line.error) for line in group]
        return [[line.input for line in group], features, errors]

    with names.open("rb") as lines:
        groups = windows(map(msgspec.json.Decoder(Line).decode, lines), ROW_GROUP)
        write_parquet(out, types, (columns(group) for _, group in groups), {KEY: msgspec.json.encode(record)})
