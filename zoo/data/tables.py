"""Tables: CSV, JSON lines and Parquet files, a row an item, with a column of texts or of pictures and one of labels."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, TypeVar

from zoo.data.folders import Content, read_picture
from zoo.data.items import SEPARATOR, Example, Skipped
from zoo.errors import DataError, quote
from zoo.extras import require
from zoo.schema import Task
from zoo.system.files import sha256

TABLES = (".csv", ".jsonl", ".parquet")
DEFAULT_TEXT, DEFAULT_IMAGE, DEFAULT_LABEL = "text", "image", "label"
Made = TypeVar("Made")
#: Letters of one cell of CSV.
LARGEST_CELL = 1 << 30
#: Rows of a Parquet file that are in memory at once, beside the items themselves.
PARQUET_ROWS = 256


class Row(NamedTuple):
    """One row: the line (of Parquet: the row, from 1) that messages name, and the columns, or what is wrong with it."""

    line: int
    cells: Mapping[str, Any]
    error: DataError | None = None


def read_texts(path: Path, text: str | None, label: str | None, task: Task) -> Content:
    """The rows of a table of texts. Raises DataError for a missing column, or a cell that cannot be used."""
    text, label = text or DEFAULT_TEXT, label or DEFAULT_LABEL
    examples = []
    for line, row in _rows(path, {text: "--text", label: "--label"}):
        words = _cell(row[text], text, path, line)
        digest = sha256(words)
        examples.append(Example(f"{path.name}:{line}", words, _label(row[label], label, path, line, task), digest))
    return Content(examples, [])


def read_pictures(path: Path, image: str | None, label: str | None, task: Task, *, has_files: bool = True) -> Content:
    """The rows of a table of pictures: their bytes, or paths relative to the table's folder and inside of it.

    A path with nothing usable behind it, or a link out of the folder, is skipped. Raises DataError as `read_texts`
    does, and for a path that leaves the folder by its words; with `has_files` false for any path.
    """
    image, label = image or DEFAULT_IMAGE, label or DEFAULT_LABEL
    content, inside = Content([], []), path.parent.resolve()
    for line, row in _rows(path, {image: "--image", label: "--label"}):
        name, truth = f"{path.name}:{line}", _label(row[label], label, path, line, task)
        picture = _picture(row[image], image, path, line)
        if isinstance(picture, bytes):
            content.examples.append(Example(name, picture, truth, sha256(picture)))
            continue
        if not has_files:
            raise DataError(
                f"{name} names the picture {quote(picture)}, which is not in the table",
                path=path,
                hint="download the repository, and give the table that lies beside its pictures",
            )
        found = read_picture(path.parent / picture, inside, f"{name} {picture}")
        if isinstance(found, Skipped):
            content.skipped.append(found)
        else:
            content.examples.append(Example(f"{name} {picture}", path.parent / picture, truth, found))
    return content


def cells(path: Path, name: str) -> Iterator[tuple[int, str | DataError]]:
    """(line number, text) of one column of a table, or what is wrong with that row; read as it is asked for.

    Raises DataError for what is wrong with the table as a whole: no such column, or a file that cannot be read.
    """
    for row in _each_row(path, {name: "--text"}):
        yield row.line, _try(_cell, row.cells[name], name, path, row.line) if row.error is None else row.error


def picture_cells(path: Path, name: str) -> Iterator[tuple[int, bytes | Path | DataError]]:
    """As `cells`, of a column of pictures: their bytes, or paths relative to the table's folder and inside of it."""
    inside = path.parent.resolve()

    def picture(value: Any, line: int) -> bytes | Path:
        found = _picture(value, name, path, line)
        if isinstance(found, bytes):
            return found
        if not (path.parent / found).resolve().is_relative_to(inside):
            raise DataError(f"{path}:{line}: {quote(found)} is a link out of the folder", path=path, hint="copy it")
        return path.parent / found

    for row in _each_row(path, {name: "--image"}):
        yield row.line, _try(picture, row.cells[name], row.line) if row.error is None else row.error


def lines(path: Path) -> Iterator[tuple[int, str | DataError]]:
    """(number, text) of every line of a UTF-8 file that is not blank, or what is wrong with it.

    Only a line feed ends a line: JSON and texts may hold Unicode's other separators. Raises DataError for a file that
    cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield from lines_of(file, path)
    except OSError as error:
        raise _unreadable(path, error) from error


def lines_of(file: Iterable[bytes], path: Path) -> Iterator[tuple[int, str | DataError]]:
    """As `lines`, of an open file that messages call `path`."""
    for number, line in enumerate(file, 1):
        text = _try(_decoded, line, path, number)
        if isinstance(text, DataError) or text.strip():
            yield number, text


def count_rows(path: Path) -> int:
    """How many rows a Parquet file has, by its footer. Raises DataError as `cells` does."""
    with _parquet(path) as file:
        return int(file.metadata.num_rows)


def parse_number(cell: str) -> float | None:
    """A finite number that float32 can hold, None for any other words."""
    try:
        # Python also reads 1_000, which no table means as a number.
        value = float("_" if "_" in cell else cell)
    except ValueError:
        return None
    # The largest float32 is 2**128 - 2**104; whatever rounds to it is still finite.
    return value if math.isfinite(value) and abs(value) < 2.0**128 - 2.0**103 else None


def _rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line, cells) of the rows of a table; each of `columns`, which an option names, is in every row."""
    for row in _each_row(path, columns):
        if row.error is not None:
            raise row.error
        yield row.line, row.cells


def _each_row(path: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    """As `_rows`; a row that is wrong by itself has its error, and others follow."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path, columns)
        return
    is_first = True
    for row in (_csv_rows if suffix == ".csv" else _json_rows)(path):
        problem = row.error or _try(_check_columns, columns, list(row.cells), f"{path}:{row.line}", path)
        if problem is not None and row.error is None and is_first:
            # The whole table lacks it: a thousand more such rows would say no more.
            raise problem
        is_first = is_first and row.error is not None
        yield row if problem is None else Row(row.line, {}, problem)


def _try(function: Callable[..., Made], *arguments: Any) -> Made | DataError:
    """What `function` returns, or the DataError that it raised."""
    try:
        return function(*arguments)
    except DataError as error:
        return error


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number} is not UTF-8: {error.reason} at its byte {error.start}",
            path=path,
            hint="save it as UTF-8",
        ) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror}", path=path, hint=f"chmod u+r {path}")


def _check_columns(columns: Mapping[str, str], present: list[str], where: str, path: Path) -> None:
    for name, option in columns.items():
        if name not in present:
            known = ", ".join(word for word in present if word)
            reads = "; this model reads pictures" if option == "--image" else ""
            raise DataError(f"{where} has no column '{name}'{reads}", path=path, hint=f"{option} COL, one of: {known}")


def _csv_rows(path: Path) -> Iterator[Row]:
    # The library's own limit is 128 KB, for the whole process.
    csv.field_size_limit(LARGEST_CELL)
    # Strict: a quote that never closes would swallow the rows after it.
    reader = csv.DictReader(_csv_lines(path), strict=True)
    try:
        names = [name for name in reader.fieldnames or () if name]
        if (problem := _not_utf8({"names": names}, path, reader.line_num)) is not None:
            raise problem
        _check_names(path, names)
        for row in reader:
            error = _not_utf8(row, path, reader.line_num)
            # A comma in a text without quotes would move the label.
            if None in row:
                error = DataError(
                    f"{path}:{reader.line_num} has more cells than the header",
                    path=path,
                    hint='put texts with commas in "quotes"',
                )
            yield Row(reader.line_num, row, error)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num} is not CSV: {error}", path=path, hint="save it again") from error


def _csv_lines(path: Path) -> Iterator[str]:
    """The lines of a file; half a surrogate stands for each byte that is not UTF-8, so that the others can be read."""
    try:
        with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
            yield from file
    except OSError as error:
        raise _unreadable(path, error) from error


def _not_utf8(row: Mapping[Any, Any], path: Path, line: int) -> DataError | None:
    cells = (cell for value in row.values() for cell in (value if isinstance(value, list) else [value]))
    for cell in cells:
        if cell is None or cell.isascii():
            continue
        try:
            cell.encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeDecodeError as error:
            bad = f"{error.reason}: byte 0x{error.object[error.start]:02x}"
            return DataError(f"{path}:{line} is not UTF-8: {bad}", path=path, hint="save it as UTF-8")
    return None


def _check_names(path: Path, names: list[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path} has two columns '{twice[0]}'", path=path, hint="rename or remove one of them")


def _json_rows(path: Path) -> Iterator[Row]:
    for line, record in lines(path):
        row = record if isinstance(record, DataError) else _try(_json_object, record, path, line)
        yield Row(line, {}, row) if isinstance(row, DataError) else Row(line, row)


def _json_object(record: str, path: Path, line: int) -> dict[str, Any]:
    try:
        row = json.loads(record)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{line} is not JSON: {error}", path=path, hint="one JSON object a line") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}:{line} is not a JSON object", path=path, hint="one JSON object a line")
    return row


def _parquet_rows(path: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    with _parquet(path) as file:
        schema = file.schema_arrow
        _check_names(path, schema.names)
        _check_columns(columns, schema.names, str(path), path)
        classes = _class_names(schema.metadata or {})
        line = 0
        for batch in file.iter_batches(PARQUET_ROWS, columns=list(columns)):
            for row in batch.to_pylist():
                line += 1
                yield Row(line, {name: _named(value, classes.get(name)) for name, value in row.items()})


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """The opened file; what pyarrow says of it inside becomes a DataError."""
    require(f"reading {path.name}", "pyarrow")
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} cannot be read as Parquet: {reason}", path=path, hint="write the file again"
        ) from error


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The names of columns of classes, which the library `datasets` stores as numbers (features.ClassLabel)."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        found = {name: _each(feature) for name, feature in features.items()}
        return {
            name: [str(word) for word in feature["names"]]
            for name, feature in found.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def _each(feature: Any) -> Any:
    """What the items of a list are, as the library writes it: `[item]`, or a Sequence or List of it."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    if isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
        return feature.get("feature")
    return feature


def _named(value: Any, names: list[str] | None) -> Any:
    if names is not None and isinstance(value, list):
        return [_named(each, names) for each in value]
    if names is None or not isinstance(value, int):
        return value
    # The library's number for "not known", as in a test set without answers.
    return names[value] if 0 <= value < len(names) else None


def _label(value: Any, column: str, path: Path, line: int, task: Task) -> str:
    if task is Task.MULTI_LABEL and isinstance(value, list):
        value = _joined(value, column, path, line)
    is_missing = value is None and path.suffix.lower() == ".csv"
    # A table written by pandas has NaN where a cell was empty.
    if task is Task.MULTI_LABEL and not is_missing and (value is None or value != value or value == ""):
        return ""
    if task is Task.MULTI_LABEL and isinstance(value, str) and not value.strip():
        return ""
    words = _cell(value, column, path, line).strip()
    if task is Task.REGRESSION and parse_number(words) is None:
        raise DataError(
            f"{path}:{line}: '{column}' is no finite number: {quote(words)}", path=path, hint="correct or remove it"
        )
    return words


def _joined(value: list[Any], column: str, path: Path, line: int) -> str:
    """A list of labels, as JSON and Parquet have them, in the form that a cell of CSV has."""
    labels = [_cell(each, column, path, line).strip() for each in value]
    if divided := [label for label in labels if SEPARATOR in label]:
        raise DataError(
            f"{path}:{line}: the label {quote(divided[0])} contains '{SEPARATOR}', which stands between labels",
            path=path,
            hint="call it otherwise",
        )
    return SEPARATOR.join(labels)


def _picture(value: Any, column: str, path: Path, line: int) -> bytes | str:
    """A picture's bytes, or its path: both may stand in a struct of the fields `bytes` and `path` (datasets.Image)."""
    if isinstance(value, dict) and value.keys() & {"bytes", "path"}:
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    name = _cell(value, column, path, line).strip()
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or ".." in PureWindowsPath(name).parts:
        raise DataError(
            f"{path}:{line}: {quote(name)} leads out of the table's folder",
            path=path,
            hint="write paths relative to the table's folder, and keep the pictures in it",
        )
    return name


def _cell(value: Any, column: str, path: Path, line: int) -> str:
    if isinstance(value, list | dict | bytes):
        raise DataError(f"{path}:{line}: '{column}' is not one value", path=path, hint="give a text or a number")
    if value is None or value != value or not str(value).strip():
        raise DataError(f"{path}:{line} has an empty '{column}'", path=path, hint="fill or remove the row")
    words = str(value)
    if any("\ud800" <= character <= "\udfff" for character in words):
        raise DataError(f"{path}:{line}: '{column}' holds half a character", path=path, hint="repair or remove the row")
    return words
