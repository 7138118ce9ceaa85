"""Files of vectors: `.npy`, Parquet and JSON lines, written row by row, continued after a break, read in blocks.

FILE.zoo.json   beside each: which model made it, by a fingerprint, and how far it is (`Record`)
x.npy           float32 [rows, dim];  x.npy.jsonl beside it: a line an input, with its name and its row or its error
x.parquet       columns `input`, `features` and `error`, a row an input; the record stands in its metadata, too
x.jsonl         {"input", "features"} or {"input", "error"}, a line an input

What the record counts is on disk and whole; whatever a break left behind that is cut off when writing goes on. Parquet
cannot be continued: its rows are kept as `.npy` in hidden files beside it, and written as Parquet at every end.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from zoo.answers import Failure
from zoo.disk import write_atomic
from zoo.errors import IntegrityError, UsageError
from zoo.extras import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

SCHEMA_VERSION = 1
SUFFIXES = (".npy", ".parquet", ".jsonl")
#: Rows of one row group of Parquet, and what is held of them while it is written.
GROUP = 8192
#: The key of the record in Parquet's metadata.
KEY = b"zoo.embeddings"
#: An input's name and its vector, or why it has none.
Found: TypeAlias = "tuple[str, Floats | Failure]"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What made a file of vectors, and how far it is: of `inputs` inputs `rows` have one.

    `inputs_sha256` chains the digests of those inputs' names and texts, `sizes` are the bytes that count of each file.
    """

    schema_version: int = SCHEMA_VERSION
    model: str
    fingerprint: str
    precision: str
    dim: int
    inputs: int = 0
    rows: int = 0
    inputs_sha256: str = ""
    sizes: dict[str, int] = {}
    complete: bool = False


class Line(msgspec.Struct, omit_defaults=True):
    """One line of a file of JSON lines, of vectors or beside a `.npy`."""

    input: str
    row: int | None = None
    features: list[float] | None = None
    error: Failure | None = None


class Writer(Protocol):
    """Appends to a file of vectors. `sizes` are the bytes of what was appended, file by file."""

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""

    def append(self, found: Sequence[Found]) -> None:
        """Write the next inputs' vectors and errors."""

    def flush(self) -> None:
        """Put on disk what was appended, so that it can be read."""

    def close(self, record: Record) -> None:
        """As `flush`, for the last time; the file is then as valid as a finished one."""

    def drop(self) -> None:
        """Close the files where nothing more can be written."""


def check_name(path: Path) -> None:
    """Raise UsageError for a name that no file of vectors has, MissingExtraError for Parquet without pyarrow."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} is no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file", hint="-o vectors.npy")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="-o vectors.npy")
    if path.suffix.lower() == ".parquet":
        require("writing Parquet", "pyarrow")


def record_path(path: Path) -> Path:
    """Where the record of a file lies."""
    return path.with_name(path.name + ".zoo.json")


def read_record(path: Path) -> Record | None:
    """The record beside a file of vectors, None without one. Raises IntegrityError for one that cannot be read."""
    place = record_path(path)
    try:
        return msgspec.json.decode(place.read_bytes(), type=Record)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{place} is damaged: {error}", hint="embed the inputs again") from error


def write_record(path: Path, record: Record) -> None:
    """Replace the record of a file; what it counts must be on disk."""
    write_atomic(record_path(path), msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def open_writer(path: Path, record: Record) -> Writer:
    """A writer that goes on where `record` ends: a new file for one without inputs.

    Raises IntegrityError when there is less on disk than the record counts.
    """
    kinds: dict[str, Callable[[Path, Record], Writer]] = {
        ".npy": NpyWriter, ".jsonl": JsonWriter, ".parquet": ParquetWriter
    }  # fmt: skip
    return kinds[path.suffix.lower()](path, record)


class _File:
    """A file that is appended to: `size` bytes of it count."""

    def __init__(self, path: Path, size: int | None) -> None:
        self.path = path
        self.size = size or 0
        if size is not None and (not path.is_file() or path.stat().st_size < size):
            raise IntegrityError(
                f"{path} is shorter than its record says", hint="remove it and its .zoo.json, and begin again"
            )
        self.file: IO[bytes] = path.open("wb" if size is None else "r+b")
        if size is not None:
            self.file.truncate(size)
            self.file.seek(size)

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self.file.write(data)
        self.size += len(data)

    def flush(self) -> None:
        """Put them on disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def drop(self) -> None:
        """Close it, whatever the disk says."""
        # Closing tries to write what is left.
        with suppress(OSError):
            self.file.close()


class NpyWriter:
    """`x.npy` and `x.npy.jsonl`. The header is always as long, so it is written again as rows are added."""

    def __init__(self, path: Path, record: Record) -> None:
        self.dim, self.rows = record.dim, record.rows
        self.matrix = _File(path, record.sizes.get("vectors"))
        self.items = _File(path.with_name(path.name + ".jsonl"), record.sizes.get("names"))
        if not record.sizes:
            self._write_header()
            self.matrix.size = self.matrix.file.tell()

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
                lines.append(Line(_plain(name), error=vector))
            else:
                lines.append(Line(_plain(name), row=self.rows + len(rows)))
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


class JsonWriter:
    """`x.jsonl`."""

    def __init__(self, path: Path, record: Record) -> None:
        self.lines = _File(path, record.sizes.get("lines"))

    @property
    def sizes(self) -> dict[str, int]:
        """As `Writer` has it."""
        return {"lines": self.lines.size}

    def append(self, found: Sequence[Found]) -> None:
        """As `Writer` has it."""
        self.lines.write(b"".join(msgspec.json.encode(_line(name, vector)) + b"\n" for name, vector in found))

    def flush(self) -> None:
        """As `Writer` has it."""
        self.lines.flush()

    def close(self, record: Record) -> None:
        """As `Writer` has it."""
        self.flush()
        self.lines.file.close()

    def drop(self) -> None:
        """As `Writer` has it."""
        self.lines.drop()


class ParquetWriter(NpyWriter):
    """`x.parquet`, made at the end of what was kept as `.x.parquet.npy`."""

    def __init__(self, path: Path, record: Record) -> None:
        self.path = path
        spool = path.with_name(f".{path.name}.npy")
        if record.complete and not spool.exists():
            raise UsageError(
                f"{path} is finished, and Parquet cannot be continued", hint="write the new inputs to another file"
            )
        super().__init__(spool, record)

    def close(self, record: Record) -> None:
        """As `Writer` has it."""
        super().close(record)
        temporary = self.path.with_name(f".{self.path.name}.new")
        _write_parquet(self.matrix.path, self.items.path, temporary, record)
        temporary.replace(self.path)
        if record.complete:
            self.matrix.path.unlink()
            self.items.path.unlink()


def _write_parquet(matrix: Path, items: Path, out: Path, record: Record) -> None:
    import numpy as np
    import pyarrow
    from pyarrow import parquet

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


def _line(name: str, vector: "Floats | Failure") -> Line | dict[str, object]:
    if isinstance(vector, Failure):
        return Line(_plain(name), error=vector)
    # The shortest words that float32 reads back as the same number.
    numbers = ",".join(vector.astype("U").tolist())
    return {"input": _plain(name), "features": msgspec.Raw(f"[{numbers}]".encode())}


def _plain(name: str) -> str:
    """A file's name whose bytes are no UTF-8, in letters that JSON can hold."""
    return name.encode("utf-8", "backslashreplace").decode()
