"""Files of rows, one an input, written in the inputs' order and continued after a break: what `embed` and `run` write.

FILE.zoo.json   beside each: what made it, by a fingerprint, and how far it is (`Record`)

What the record counts is on disk and whole; whatever a break left behind that is cut off when writing goes on. Parquet
cannot be continued: its rows are kept in hidden files beside it, and written as Parquet at every end.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import msgspec

from zoo.errors import IntegrityError, UsageError
from zoo.extras import require
from zoo.schema import Preprocess, Task
from zoo.system import records
from zoo.system.files import try_lock

SCHEMA_VERSION = 1
#: Rows of one row group of Parquet, and what is held of them while it is written.
GROUP = 8192
#: An input's name and its row, or the Failure that says why it has none.
Found: TypeAlias = tuple[str, Any]


class Answering(msgspec.Struct, frozen=True, kw_only=True):
    """What, beside the features, decides a row of `run`; `task` is None of nearest words."""

    columns: tuple[str, ...]
    task: Task | None = None
    labels: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    preprocess: Preprocess | None = None


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A place in a file of rows that can be gone on from: see `Record`."""

    inputs: int
    rows: int
    inputs_sha256: str
    sizes: dict[str, int]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What made a file of rows, and how far it is: of `inputs` inputs `rows` have one.

    `verb` wrote it, `dim` are the numbers of a row of features, `answering` is of `run` alone. `inputs_sha256` chains
    the digests of those inputs' names and texts, `sizes` are the bytes that count of each file. Where the end lies
    within a window, whose rows would have been others with more inputs in it, `mark` is where that window began.
    """

    schema_version: int = SCHEMA_VERSION
    verb: str
    model: str
    fingerprint: str
    precision: str
    dim: int = 0
    answering: Answering | None = None
    inputs: int = 0
    rows: int = 0
    inputs_sha256: str = ""
    sizes: dict[str, int] = {}
    mark: Mark | None = None
    complete: bool = False

    def at_mark(self) -> "Record":
        """The record as it was at the mark, where there is one."""
        if self.mark is None:
            return self
        return msgspec.structs.replace(self, mark=None, **msgspec.structs.asdict(self.mark))

    def marked(self) -> "Record":
        """The same, with a mark at its end."""
        mark = Mark(inputs=self.inputs, rows=self.rows, inputs_sha256=self.inputs_sha256, sizes=self.sizes)
        return msgspec.structs.replace(self, mark=mark)


class Writer(Protocol):
    """Appends to a file of rows. `paths` are its files, `sizes` the bytes of what was appended, file by file.

    Made, it holds its files against other processes and has changed none: that begins with `start`.
    """

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its files."""

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""

    def start(self) -> None:
        """Cut off what does not count; a new file gets its header."""

    def append(self, found: Sequence[Found]) -> None:
        """Write the next inputs' rows and errors."""

    def flush(self) -> None:
        """Put on disk what was appended, so that it can be read."""

    def close(self, record: Record) -> None:
        """As `flush`, for the last time; the file is then as valid as a finished one."""

    def drop(self) -> None:
        """Close the files where nothing more can be written."""


#: Opens a writer that goes on where the record ends, with a new file for one without inputs. Raises IntegrityError when
#: there is less on disk than the record counts, UsageError when another process writes there.
OpenWriter: TypeAlias = Callable[[Path, Record], Writer]


def check_name(path: Path, suffixes: Sequence[str]) -> None:
    """Raise UsageError for a name that no such file has, MissingExtraError for Parquet without pyarrow."""
    hint = f"-o out{suffixes[0]}"
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{path} is no {', '.join(suffixes[:-1])} or {suffixes[-1]} file", hint=hint)
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint=hint)
    if path.suffix.lower() == ".parquet":
        require("writing Parquet", "pyarrow")


def record_path(path: Path) -> Path:
    """Where the record of a file lies."""
    return path.with_name(path.name + ".zoo.json")


def read_record(path: Path, verb: str) -> Record | None:
    """The record beside a file, None without one of this verb. Raises IntegrityError for one that cannot be read."""
    hint = f"remove it and {path.name}, and begin again"
    record = records.read_record(record_path(path), Record, SCHEMA_VERSION, hint=hint)
    return record if record is not None and record.verb == verb else None


def write_record(path: Path, record: Record) -> None:
    """Replace the record of a file; what it counts must be on disk."""
    records.write_record(record_path(path), record, indent=2)


class File:
    """A file that is appended to: `size` bytes of it count. No other process writes it meanwhile."""

    def __init__(self, path: Path, size: int | None) -> None:
        self.path = path
        self.size = size or 0
        self.was_empty = not path.exists() or path.stat().st_size == 0
        if size is not None and (not path.is_file() or path.stat().st_size < size):
            raise IntegrityError(
                f"{path} is shorter than its record says", hint="remove it and its .zoo.json, and begin again"
            )
        # Neither truncated nor written yet: others may be at it, or it may be somebody's.
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self.file: IO[bytes] = os.fdopen(os.open(path, flags, 0o666), "r+b")
        if not try_lock(self.file):
            self.file.close()
            raise UsageError(f"{path} is being written by another process", hint="wait for it, or choose another -o")

    def start(self) -> None:
        """Cut off what does not count."""
        self.file.truncate(self.size)
        self.file.seek(self.size)

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
            if self.was_empty and self.path.stat().st_size == 0:
                self.path.unlink()


class LineWriter:
    """One file of lines: `encode` makes those of some inputs, `header` comes before all."""

    def __init__(
        self, path: Path, record: Record, encode: Callable[[Sequence[Found]], bytes], header: bytes = b""
    ) -> None:
        self.encode = encode
        self.header = b"" if record.sizes else header
        self.lines = File(path, record.sizes.get("lines"))

    def start(self) -> None:
        """As `Writer` has it."""
        self.lines.start()
        self.lines.write(self.header)

    @property
    def paths(self) -> tuple[Path, ...]:
        """As `Writer` has it."""
        return (self.lines.path,)

    @property
    def sizes(self) -> dict[str, int]:
        """As `Writer` has it."""
        return {"lines": self.lines.size}

    def append(self, found: Sequence[Found]) -> None:
        """As `Writer` has it."""
        self.lines.write(self.encode(found))

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


class ParquetWriter:
    """`x.parquet`, which `convert` makes at the end of what another writer kept in `.x.parquet` + `suffix`."""

    def __init__(
        self,
        path: Path,
        record: Record,
        suffix: str,
        open_spool: OpenWriter,
        convert: Callable[[Sequence[Path], Path, Record], None],
    ) -> None:
        spool = path.with_name(f".{path.name}{suffix}")
        if record.complete and not spool.exists():
            raise UsageError(
                f"{path} is finished, and Parquet cannot be continued", hint="write the new inputs to another file"
            )
        self.path = path
        self.spool = open_spool(spool, record)
        self.convert = convert

    @property
    def paths(self) -> tuple[Path, ...]:
        """As `Writer` has it."""
        return (self.path, *self.spool.paths)

    @property
    def sizes(self) -> dict[str, int]:
        """As `Writer` has it."""
        return self.spool.sizes

    def start(self) -> None:
        """As `Writer` has it."""
        self.spool.start()

    def append(self, found: Sequence[Found]) -> None:
        """As `Writer` has it."""
        self.spool.append(found)

    def flush(self) -> None:
        """As `Writer` has it."""
        self.spool.flush()

    def close(self, record: Record) -> None:
        """As `Writer` has it."""
        self.spool.close(record)
        temporary = self.path.with_name(f".{self.path.name}.new")
        try:
            self.convert(self.spool.paths, temporary, record)
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        if record.complete:
            for path in self.spool.paths:
                path.unlink()

    def drop(self) -> None:
        """As `Writer` has it."""
        self.spool.drop()


def plain(name: str) -> str:
    """A file's name whose bytes are no UTF-8, in letters that JSON can hold."""
    return name.encode("utf-8", "backslashreplace").decode()
