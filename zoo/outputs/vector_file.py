"""Files of vectors: `.npy`, Parquet and JSON lines, as `zoo.outputs.resumable_file` writes them.

x.npy           float32 [rows, dim];  x.npy.jsonl beside it: a line an input, with its name and its row or its error
x.parquet       columns `input`, `features` and `error`, a row an input; the record stands in its metadata, too
x.jsonl         {"input", "features"} or {"input", "error"}, a line an input
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from zoo.outputs.resumable_file import GROUP, File, Found, LineWriter, ParquetWriter, Record, Writer, plain
from zoo.results import Failure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

SUFFIXES = (".npy", ".parquet", ".jsonl")
#: The key of the record in Parquet's metadata.
KEY = b"zoo.embeddings"
#: Who writes them, in their records.
VERB = "embed"


class Line(msgspec.Struct, omit_defaults=True):
    """One line of a file of JSON lines, of vectors or beside a `.npy`."""

    input: str
    row: int | None = None
    features: list[float] | None = None
    error: Failure | None = None


def open_writer(path: Path, record: Record) -> Writer:
    """As `zoo.outputs.resumable_file.OpenWriter`: rows are vectors float32 [dim]."""
    kind = path.suffix.lower()
    if kind == ".npy":
        return NpyWriter(path, record)
    if kind == ".jsonl":
        return LineWriter(path, record, _lines)
    return ParquetWriter(path, record, ".npy", NpyWriter, _write_parquet)


class NpyWriter:
    """`x.npy` and `x.npy.jsonl`. The header is always as long, so it is written again as rows are added."""

    def __init__(self, path: Path, record: Record) -> None:
        self.dim, self.rows = record.dim, record.rows
        self.matrix = File(path, record.sizes.get("vectors"))
        try:
            self.items = File(path.with_name(path.name + ".jsonl"), record.sizes.get("names"))
        except BaseException:
            self.matrix.drop()
            raise

    def start(self) -> None:
        """As `Writer` has it."""
        self.matrix.start()
        self.items.start()
        if not self.matrix.size:
            self._write_header()
            self.matrix.size = self.matrix.file.tell()

    @property
    def paths(self) -> tuple[Path, ...]:
        """As `Writer` has it."""
        return self.matrix.path, self.items.path

    @property
    def sizes(self) -> dict[str, int]:
        """As `Writer` has it."""
        return {"vectors": self.matrix.size, "names": self.items.size}

    def append(self, found: Sequence[Found]) -> None:
        """As `Writer` has it."""
        rows: list[bytes] = []
        lines: list[Line] = []
        for name, vector in found:
            if isinstance(vector, Failure):
                lines.append(Line(plain(name), error=vector))
            else:
                lines.append(Line(plain(name), row=self.rows + len(rows)))
                rows.append(vector.astype("<f4", copy=False).tobytes())
        self.matrix.write(b"".join(rows))
        self.items.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        self.rows += len(rows)

    def flush(self) -> None:
        """As `Writer` has it."""
        self.matrix.flush()
        self._write_header()
        self.matrix.flush()
        self.items.flush()

    def close(self, record: Record) -> None:
        """As `Writer` has it."""
        self.flush()
        self.matrix.file.close()
        self.items.file.close()

    def drop(self) -> None:
        """As `Writer` has it."""
        self.matrix.drop()
        self.items.drop()

    def _write_header(self) -> None:
        from numpy.lib import format as npy

        # numpy pads it so that the first axis can grow: https://numpy.org/neps/nep-0001-npy-format.html
        self.matrix.file.seek(0)
        npy.write_array_header_1_0(
            self.matrix.file, {"shape": (self.rows, self.dim), "fortran_order": False, "descr": "<f4"}
        )
        if self.matrix.size:
            self.matrix.file.seek(self.matrix.size)


def _write_parquet(spool: Sequence[Path], out: Path, record: Record) -> None:
    import numpy as np
    import pyarrow
    from pyarrow import parquet

    matrix, items = spool
    failure = pyarrow.struct([("code", pyarrow.string()), ("message", pyarrow.string()), ("hint", pyarrow.string())])
    features = pyarrow.list_(pyarrow.float32(), record.dim)
    schema = pyarrow.schema([("input", pyarrow.string()), ("features", features), ("error", failure)])
    schema = schema.with_metadata({KEY: msgspec.json.encode(record)})
    vectors: Any = np.load(matrix, mmap_mode="r") if record.rows else np.empty((0, record.dim), "<f4")
    decoder = msgspec.json.Decoder(Line)
    with items.open("rb") as names, parquet.ParquetWriter(out, schema) as writer:
        while group := [decoder.decode(line) for _, line in zip(range(GROUP), names, strict=False)]:
            rows = [line.row for line in group if line.row is not None]
            block = np.zeros((len(group), record.dim), np.float32)
            mask = np.array([line.row is None for line in group])
            if rows:
                block[~mask] = vectors[rows[0] : rows[-1] + 1]
            column = pyarrow.FixedSizeListArray.from_arrays(
                pyarrow.array(block.reshape(-1)), type=features, mask=pyarrow.array(mask)
            )
            errors = pyarrow.array([None if e.error is None else msgspec.to_builtins(e.error) for e in group], failure)
            inputs = pyarrow.array([line.input for line in group], pyarrow.string())
            writer.write_batch(pyarrow.record_batch([inputs, column, errors], schema=schema))


def _lines(found: Sequence[Found]) -> bytes:
    return b"".join(msgspec.json.encode(_line(name, vector)) + b"\n" for name, vector in found)


def _line(name: str, vector: "Floats | Failure") -> Line | dict[str, object]:
    if isinstance(vector, Failure):
        return Line(plain(name), error=vector)
    # The shortest words that float32 reads back as the same number.
    numbers = ",".join(vector.astype("U").tolist())
    return {"input": plain(name), "features": msgspec.Raw(f"[{numbers}]".encode())}
