"""Files of `embed` and `run` with a row for each input, in input order; an interrupted run can continue them.

FILE.zoo.json   the record beside each file: the model's fingerprint, and the number of written rows (`OutputRecord`)

Every row that the record counts is on disk. Bytes after those rows are cut off when writing continues. Parquet cannot
be appended to: its rows are kept in hidden files beside it, and the Parquet file is written at the end of a run.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeAlias

import msgspec

from zoo.errors import IntegrityError, UsageError
from zoo.outputs.table import Row, Table
from zoo.schema import Preprocess, Task
from zoo.system.files import try_lock
from zoo.system.records import read_record, write_record

SCHEMA_VERSION = 1
#: An input's name, and its row or the Failure that explains why there is none.
NamedRow: TypeAlias = tuple[str, Any]


class AnswerColumns(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of an output of `run`, and the facts that determine them; `task` is None for nearest words."""

    columns: tuple[str, ...]
    task: Task | None = None
    labels: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    preprocess: Preprocess | None = None


class ResumePoint(msgspec.Struct, frozen=True, kw_only=True):
    """A position in an output at which writing may continue; the fields are those of `OutputRecord`."""

    inputs: int
    rows: int
    inputs_sha256: str
    sizes: dict[str, int]


class OutputRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of FILE.zoo.json: the model that made an output, and the number of written rows.

    verb            the command that wrote it
    dim             numbers in a row of features
    answering       the columns of an output of `run`
    prompt          the name of the prompt before each text, if the user named one
    inputs, rows    inputs that were read, and those among them that have a row
    inputs_sha256   a chain of the digests of those inputs' names and texts
    sizes           valid bytes of each file
    mark            start of the last window of texts, if the output ends inside it: with more inputs, its texts are
                    batched differently
    """

    schema_version: int = SCHEMA_VERSION
    verb: str
    model: str
    fingerprint: str
    precision: str
    dim: int = 0
    answering: AnswerColumns | None = None
    prompt: str | None = None
    inputs: int = 0
    rows: int = 0
    inputs_sha256: str = ""
    sizes: dict[str, int] = {}
    mark: ResumePoint | None = None
    complete: bool = False

    @classmethod
    def read(cls, path: Path, verb: str) -> "OutputRecord | None":
        """The record beside a file; None if there is none of this verb. Raises IntegrityError for a damaged record."""
        hint = f"remove it and {path.name}, and start again"
        record = read_record(record_path(path), cls, SCHEMA_VERSION, hint=hint)
        return record if record is not None and record.verb == verb else None

    def write(self, path: Path) -> None:
        """Write the record beside a file, in place of an older one. The rows that it counts must be on disk."""
        write_record(record_path(path), self, indent=2)

    def at_mark(self) -> "OutputRecord":
        """The record as it was at `mark`; the record itself if it has no mark."""
        if self.mark is None:
            return self
        return msgspec.structs.replace(self, mark=None, **msgspec.structs.asdict(self.mark))

    def marked(self) -> "OutputRecord":
        """The same record, with `mark` set to its end."""
        mark = ResumePoint(inputs=self.inputs, rows=self.rows, inputs_sha256=self.inputs_sha256, sizes=self.sizes)
        return msgspec.structs.replace(self, mark=mark)


def record_path(path: Path) -> Path:
    """The path of the record of an output."""
    return path.with_name(path.name + ".zoo.json")


class File:
    """A file to append to; its first `size` bytes are valid. It is locked against other processes."""

    def __init__(self, path: Path, size: int | None) -> None:
        self.path = path
        self.size = size or 0
        self.was_empty = not path.exists() or path.stat().st_size == 0
        if size is not None and (not path.is_file() or path.stat().st_size < size):
            hint = "remove it and its .zoo.json, and start again"
            raise IntegrityError(f"{path} is shorter than its record says", hint=hint)
        # The file is not changed yet, because it may belong to another process or to another program.
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self.file: IO[bytes] = os.fdopen(os.open(path, flags, 0o666), "r+b")
        if not try_lock(self.file):
            self.file.close()
            raise UsageError(f"{path} is being written by another process", hint="wait for it, or choose another -o")

    def start(self) -> None:
        """Cut off the bytes that are not valid."""
        self.file.truncate(self.size)
        self.file.seek(self.size)

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self.file.write(data)
        self.size += len(data)

    def flush(self) -> None:
        """Write the appended bytes to disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def drop(self) -> None:
        """Close the file and ignore errors of the disk; remove the file if it was empty and still is."""
        # Closing tries to write the remaining bytes, which may fail.
        with suppress(OSError):
            self.file.close()
            if self.was_empty and self.path.stat().st_size == 0:
                self.path.unlink()


class Writer(ABC):
    """Appends rows to the files of an output, after the rows that `record` counts.

    The files are locked at once and not changed before `start`. `paths` are the files by their names in the record.
    `parquet` is set if a Parquet file is made from them at the end: its path, and the function that writes it. Raises
    IntegrityError if a file is shorter than the record says, UsageError if another process writes it.
    """

    def __init__(self, paths: Mapping[str, Path], record: OutputRecord) -> None:
        self.files: dict[str, File] = {}
        self.parquet: tuple[Path, Callable[[Path, OutputRecord], None]] | None = None
        try:
            for name, path in paths.items():
                self.files[name] = File(path, record.sizes.get(name))
        except BaseException:
            self.drop()
            raise

    @property
    def paths(self) -> list[Path]:
        """The path of the output and of every other file that is written."""
        return [*([self.parquet[0]] if self.parquet else []), *(file.path for file in self.files.values())]

    @property
    def sizes(self) -> dict[str, int]:
        """Valid bytes of each file."""
        return {name: file.size for name, file in self.files.items()}

    def start(self) -> None:
        """Cut off the bytes that are not valid; a new file gets its header."""
        for file in self.files.values():
            file.start()

    @abstractmethod
    def append(self, rows: Sequence[NamedRow]) -> None:
        """Write the next inputs' rows and errors."""

    def flush(self) -> None:
        """Write the appended rows to disk."""
        for file in self.files.values():
            file.flush()

    def close(self, record: OutputRecord) -> None:
        """Flush and close the files, and write the Parquet file if there is one: the output is then valid."""
        self.flush()
        for file in self.files.values():
            file.file.close()
        if self.parquet is None:
            return
        out, convert = self.parquet
        temporary = out.with_name(f".{out.name}.new")
        try:
            convert(temporary, record)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
        if record.complete:
            for file in self.files.values():
                file.path.unlink()

    def drop(self) -> None:
        """Close the files after an error, when nothing more can be written."""
        for file in self.files.values():
            file.drop()


#: A function that opens the writer of an output, to append rows after those that the record counts.
OpenWriter: TypeAlias = Callable[[Path, OutputRecord], Writer]


class LineWriter(Writer):
    """Writes CSV to a `.csv` file and JSON lines to any other file. `cells` returns an input's row of the `table`."""

    def __init__(self, path: Path, record: OutputRecord, table: Table, cells: Callable[[NamedRow], Row]) -> None:
        is_csv = path.suffix.lower() == ".csv"
        self.encode, self.cells = table.csv if is_csv else table.json_lines, cells
        self.header = table.csv([table.columns]) if is_csv and not record.sizes else b""
        super().__init__({"lines": path}, record)

    def start(self) -> None:
        """Also write the header."""
        super().start()
        self.files["lines"].write(self.header)

    def append(self, rows: Sequence[NamedRow]) -> None:
        """Write the next inputs' lines."""
        self.files["lines"].write(self.encode(map(self.cells, rows)))


def parquet_writer(
    path: Path,
    record: OutputRecord,
    suffix: str,
    open_spool: OpenWriter,
    convert: Callable[[Sequence[Path], Path, OutputRecord], None],
) -> Writer:
    """A writer of `x.parquet`: rows go to `.x.parquet` + `suffix`, by `open_spool`; `convert` makes Parquet from it."""
    spool = path.with_name(f".{path.name}{suffix}")
    if record.complete and not spool.exists():
        hint = "write the new inputs to another file"
        raise UsageError(f"{path} is finished, and Parquet cannot be continued", hint=hint)
    writer = open_spool(spool, record)
    files = writer.paths
    writer.parquet = path, lambda out, record: convert(files, out, record)
    return writer
