"""Tables as CSV, JSON lines and Parquet: one writer for `zoo run -o`, `zoo embed` and `zoo evaluate --predictions`."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

import msgspec

from zoo.errors import UsageError
from zoo.extras import require
from zoo.runtime.in_order import windows

#: Rows of one row group of Parquet. No more rows are held in memory while a Parquet file is written.
ROW_GROUP = 8192
#: A cell for each column. An empty cell is None; a number is the text that `decimals` returns.
Row: TypeAlias = Sequence[Any]


class Table(NamedTuple):
    """The columns of a table, with distinct names. The columns in `numbers` hold numbers, the others text."""

    columns: tuple[str, ...]
    numbers: frozenset[str] = frozenset()

    def csv(self, rows: Iterable[Row]) -> bytes:
        """The rows as lines of CSV; the header is the row `columns`."""
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()

    def json_lines(self, rows: Iterable[Row]) -> bytes:
        """The rows as lines of JSON, without empty cells. Here a number may also be the JSON text of an array."""
        lines = []
        for row in rows:
            cells = {name: cell for name, cell in zip(self.columns, row, strict=True) if cell is not None}
            cells |= {name: msgspec.Raw(cells[name].encode()) for name in self.numbers & cells.keys()}
            lines.append(msgspec.json.encode(cells) + b"\n")
        return b"".join(lines)

    def write_parquet(self, lines: Iterable[bytes], out: Path | IO[bytes], metadata: Mapping[bytes, bytes]) -> None:
        """Write lines that `json_lines` returned as Parquet, with columns of float32 and of strings."""
        import pyarrow

        types = {name: pyarrow.float32() if name in self.numbers else pyarrow.string() for name in self.columns}
        groups = windows(map(msgspec.json.decode, lines), ROW_GROUP)
        columns = ([[line.get(name) for line in group] for name in types] for _, group in groups)
        write_parquet(out, types, columns, metadata)


def write_parquet(
    out: Path | IO[bytes], types: Mapping[str, Any], groups: Iterable[Sequence[Any]], metadata: Mapping[bytes, bytes]
) -> None:
    """Write a Parquet file. `types` are pyarrow's types by column; a group is a list of values for each column."""
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema(list(types.items()), dict(metadata) or None)
    with parquet.ParquetWriter(out, schema) as writer:
        for columns in groups:
            arrays = [pyarrow.array(column, kind) for column, kind in zip(columns, types.values(), strict=True)]
            writer.write_batch(pyarrow.record_batch(arrays, schema=schema))


def check_name(path: Path, suffixes: Sequence[str], option: str = "-o") -> None:
    """Raise UsageError for a file name without one of `suffixes`, MissingExtraError for Parquet without pyarrow."""
    hint = f"{option} out{suffixes[0]}"
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{path} is not a {', '.join(suffixes[:-1])} or {suffixes[-1]} file", hint=hint)
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint=hint)
    if path.suffix.lower() == ".parquet":
        require("writing Parquet", "pyarrow")


def decimals(numbers: Any) -> list[str]:
    """The numbers [n] as text: the shortest decimals that float32 reads back as the same number."""
    import numpy as np

    found: list[str] = np.asarray(numbers, np.float32).astype("U").tolist()
    return found


def plain(name: str) -> str:
    """A name that can be written as UTF-8: bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def score_columns(labels: Sequence[str], reserved: Collection[str]) -> tuple[str, ...]:
    """A column name for each label: its own, or with `score:` in front, repeated until no other column has that name.

    `reserved` are the names of the table's other columns.
    """
    taken, columns = {*reserved, *labels}, []
    for label in labels:
        column = label
        while column in reserved or (column != label and column in taken):
            column = f"score:{column}"
        taken.add(column)
        columns.append(column)
    return tuple(columns)
