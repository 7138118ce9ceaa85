"""CSV, JSON lines and Parquet files: one row for each item, with a column of texts or images and one of labels."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

from zoo.data.folders import Content, read_image
from zoo.data.items import SEPARATOR, Example, Skipped, TextPair, attempt
from zoo.errors import DataError, quote
from zoo.extras import require
from zoo.schema import Task
from zoo.system.files import sha256

#: The column of the second texts of pairs, which a table may have.
TEXT_PAIR = "text_pair"
TABLES = (".csv", ".jsonl", ".parquet")
DEFAULT_TEXT, DEFAULT_IMAGE, DEFAULT_LABEL = "text", "image", "label"
#: Rows of a Parquet file that are decoded at once.
PARQUET_ROWS = 256


#: One row: the line (in Parquet the row, from 1) for messages, and its cells by column, or the error of the row.
Row: TypeAlias = tuple[int, Mapping[str, Any] | DataError]


def read_texts(path: Path, text: str | None, label: str, task: Task, *, pairs: bool = False) -> Content:
    """The examples in a table of texts; with `pairs` of pairs, if the table has the column `text_pair`.

    Raises DataError for a missing column, for a cell that cannot be used, and without `pairs` for the column
    `text_pair`, unless `text` names the column to read.
    """
    examples, is_named, text = [], text is not None, text or DEFAULT_TEXT
    for line, row in _rows(path, {text: "--text", label: "--label"}):
        if not (pairs or is_named):
            _refuse_pair(row, path)
        words = _text(row, text, path, line, pairs=pairs)
        digest = sha256(words if isinstance(words, str) else "\0".join(words))
        examples.append(Example(f"{path.name}:{line}", words, _label(row[label], label, path, line, task), digest))
    return Content(examples, [])


def read_images(path: Path, image: str, label: str, task: Task, *, has_files: bool) -> Content:
    """The examples in a table of images: bytes, or paths relative to the table's folder and inside that folder.

    Missing files, other kinds of files and links out of the folder are skipped. Raises DataError as `read_texts` does,
    and for a path that leaves the folder; without `has_files` for any path.
    """
    content, inside = Content([], []), path.parent.resolve()
    for line, row in _rows(path, {image: "--image", label: "--label"}):
        name, truth = f"{path.name}:{line}", _label(row[label], label, path, line, task)
        item = _image(row[image], image, path, line)
        if isinstance(item, bytes):
            content.examples.append(Example(name, item, truth, sha256(item)))
            continue
        if not has_files:
            raise DataError(
                f"{name} names the image {quote(item)}, which is not in the table",
                path=path,
                hint="download the repository, and give the table in its folder of images",
            )
        found = read_image(path.parent / item, inside, f"{name} {item}")
        if isinstance(found, Skipped):
            content.skipped.append(found)
        else:
            content.examples.append(Example(f"{name} {item}", path.parent / item, truth, found))
    return content


def cells(path: Path, name: str | None, *, pairs: bool = False) -> Iterator[tuple[int, str | TextPair | DataError]]:
    """Yields, for one column of a table, each line number with the text or with the row's error, read lazily.

    With `pairs` a row of a table with the column `text_pair` is a pair. Raises DataError for a missing column, for a
    file that cannot be read, and as `read_texts` does for the column `text_pair`.
    """
    column = name or DEFAULT_TEXT
    for line, row in _each_row(path, {column: "--text"}):
        if not (pairs or name) and not isinstance(row, DataError):
            _refuse_pair(row, path)
        text = partial(_text, pairs=pairs)
        yield line, row if isinstance(row, DataError) else attempt(text, row, column, path, line)


def _refuse_pair(row: Mapping[str, Any], path: Path) -> None:
    if TEXT_PAIR in row:
        problem = f"{path} has the column '{TEXT_PAIR}', which would not be read"
        raise DataError(problem, path=path, hint=f"--text {DEFAULT_TEXT} reads one column alone; or rename {TEXT_PAIR}")


def _text(row: Mapping[str, Any], column: str, path: Path, line: int, *, pairs: bool) -> str | TextPair:
    text = _cell(row[column], column, path, line)
    return TextPair(text, _cell(row[TEXT_PAIR], TEXT_PAIR, path, line)) if pairs and TEXT_PAIR in row else text


def image_cells(path: Path, name: str) -> Iterator[tuple[int, bytes | Path | DataError]]:
    """`cells` for a column of images: bytes, or paths relative to the table's folder and inside that folder."""
    inside = path.parent.resolve()

    def image(value: Any, line: int) -> bytes | Path:
        found = _image(value, name, path, line)
        if isinstance(found, bytes):
            return found
        if not (path.parent / found).resolve().is_relative_to(inside):
            raise _bad_row(path, line, f": {quote(found)} is a link out of the folder", "copy the file")
        return path.parent / found

    for line, row in _each_row(path, {name: "--image"}):
        yield line, row if isinstance(row, DataError) else attempt(image, row[name], line)


def lines(path: Path) -> Iterator[tuple[int, str | DataError]]:
    """Yields the number of every line of a UTF-8 file that is not blank, with its text or its error.

    Only a line feed ends a line: JSON and texts may contain other Unicode separators. Raises DataError for a file that
    cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield from lines_of(file, path)
    except OSError as error:
        raise _unreadable(path, error) from error


def lines_of(file: Iterable[bytes], path: Path) -> Iterator[tuple[int, str | DataError]]:
    """`lines` for an open file; error messages call it `path`."""
    for number, line in enumerate(file, 1):
        text = attempt(_decoded, line, path, number)
        if isinstance(text, DataError) or text.strip():
            yield number, text


def count_rows(path: Path) -> int:
    """The number of rows in the footer of a Parquet file. Raises DataError as `cells` does."""
    with _parquet(path) as file:
        return int(file.metadata.num_rows)


def parse_number(cell: str) -> float | None:
    """The finite float32 number that a cell holds, None for any other text."""
    try:
        # Refuse underscores: Python would read 1_000 as a number.
        value = float("_" if "_" in cell else cell)
    except ValueError:
        return None
    # The largest float32 is 2**128 - 2**104; a number that is rounded to it counts as finite.
    return value if math.isfinite(value) and abs(value) < 2.0**128 - 2.0**103 else None


def _rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the line and the cells of each row of a table. `columns` maps required columns to the options for them."""
    for line, row in _each_row(path, columns):
        if isinstance(row, DataError):
            raise row
        yield line, row


def _each_row(path: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    """Yields the rows of a table; a row that cannot be read is an error, and the next rows follow."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path, columns)
        return
    is_first, is_csv = True, suffix == ".csv"
    for line, row in (_csv_rows if is_csv else _json_rows)(path):
        if isinstance(row, DataError):
            yield line, row
            continue
        problem = attempt(_check_columns, columns, list(row), str(path) if is_csv else f"{path}:{line}", path)
        if problem is not None and is_first:
            # The first row lacks a column, so the whole table does.
            raise problem
        is_first = False
        yield line, problem or row


def _bad_row(path: Path, line: int, problem: str, hint: str) -> DataError:
    return DataError(f"{path}:{line}{problem}", path=path, hint=hint)


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        problem = f" is not UTF-8: {error.reason} at byte {error.start}"
        raise _bad_row(path, number, problem, "save it as UTF-8") from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror}", path=path, hint=f"chmod u+r {path}")


def _check_columns(columns: Mapping[str, str], present: list[str], where: str, path: Path) -> None:
    for name, option in columns.items():
        if name not in present:
            known = ", ".join(word for word in present if word)
            reads = "; this model reads images" if option == "--image" else ""
            raise DataError(f"{where} has no column '{name}'{reads}", path=path, hint=f"{option} COL, one of: {known}")


def _csv_rows(path: Path) -> Iterator[Row]:
    # Raise the limit of 128 KB, which applies to the whole process.
    csv.field_size_limit(1 << 30)
    # Without `strict` a quote that is never closed would swallow the next rows.
    reader = csv.DictReader(_csv_lines(path), strict=True)
    try:
        names = [name for name in reader.fieldnames or () if name]
        if (problem := _not_utf8({"names": names}, path, reader.line_num)) is not None:
            raise problem
        _check_names(path, names)
        for row in reader:
            error = _not_utf8(row, path, reader.line_num)
            # After an unquoted comma the label would be in the wrong column.
            if None in row:
                hint = 'put texts with commas in "quotes"'
                error = _bad_row(path, reader.line_num, " has more cells than the header", hint)
            yield reader.line_num, error or row
    except csv.Error as error:
        raise _bad_row(path, reader.line_num, f" is not CSV: {error}", "save it again") from error


def _csv_lines(path: Path) -> Iterator[str]:
    """The lines of a file. Bytes that are not UTF-8 become lone surrogates, so that other rows can be read."""
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
            return _bad_row(path, line, f" is not UTF-8: {bad}", "save it as UTF-8")
    return None


def _check_names(path: Path, names: list[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path} has two columns '{twice[0]}'", path=path, hint="rename or remove one of them")


def _json_rows(path: Path) -> Iterator[Row]:
    for line, record in lines(path):
        yield line, record if isinstance(record, DataError) else attempt(_json_object, record, path, line)


def _json_object(record: str, path: Path, line: int) -> dict[str, Any]:
    try:
        row = json.loads(record)
    except (ValueError, RecursionError) as error:
        # The error's own text would add a second line number, which is always 1.
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise _bad_row(path, line, f" is not JSON: {reason}", "write one JSON object in each line") from error
    if not isinstance(row, dict):
        raise _bad_row(path, line, " is not a JSON object", "write one JSON object in each line")
    return row


def _parquet_rows(path: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    with _parquet(path) as file:
        schema = file.schema_arrow
        _check_names(path, schema.names)
        _check_columns(columns, schema.names, str(path), path)
        classes = _class_names(schema.metadata or {})
        line = 0
        wanted = [*columns, *({TEXT_PAIR} & set(schema.names) - set(columns))]
        for batch in file.iter_batches(PARQUET_ROWS, columns=wanted):
            for row in batch.to_pylist():
                line += 1
                yield line, {name: _named(value, classes.get(name)) for name, value in row.items()}


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """The opened file. Raises DataError for the errors of pyarrow inside the context."""
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
    """The class names of each column that the library `datasets` stores as numbers (features.ClassLabel)."""
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
    """The feature of a list's items: the library describes a list as `[item]`, Sequence or List."""
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
    # Any other number means that the class is not known, as in a test set without answers.
    return names[value] if 0 <= value < len(names) else None


def _label(value: Any, column: str, path: Path, line: int, task: Task) -> str:
    if task is Task.MULTI_LABEL and isinstance(value, list):
        value = _joined(value, column, path, line)
    is_blank = not value.strip() if isinstance(value, str) else value is None and path.suffix.lower() != ".csv"
    # pandas writes NaN for an empty cell. In CSV, None means that the row is too short.
    if task is Task.MULTI_LABEL and (is_blank or value != value):
        return ""
    words = _cell(value, column, path, line).strip()
    if task is Task.REGRESSION and parse_number(words) is None:
        raise _bad_row(path, line, f": '{column}' is not a finite number: {quote(words)}", "correct or remove it")
    return words


def _joined(value: list[Any], column: str, path: Path, line: int) -> str:
    """The labels in a list (of JSON or Parquet), joined as in a cell of CSV."""
    labels = [_cell(each, column, path, line).strip() for each in value]
    if divided := [label for label in labels if SEPARATOR in label]:
        problem = f": the label {quote(divided[0])} contains '{SEPARATOR}', which separates labels"
        raise _bad_row(path, line, problem, "rename the label")
    return SEPARATOR.join(labels)


def _image(value: Any, column: str, path: Path, line: int) -> bytes | str:
    """An image's bytes or its path, also from a struct with the fields `bytes` and `path` (datasets.Image)."""
    if isinstance(value, dict) and value.keys() & {"bytes", "path"}:
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    name = _cell(value, column, path, line).strip()
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or ".." in PureWindowsPath(name).parts:
        hint = "write paths relative to the table's folder, and keep the images in it"
        raise _bad_row(path, line, f": {quote(name)} leads out of the table's folder", hint)
    return name


def _cell(value: Any, column: str, path: Path, line: int) -> str:
    if isinstance(value, list | dict | bytes):
        raise _bad_row(path, line, f": '{column}' is not one value", "give a text or a number")
    if value is None or value != value or not str(value).strip():
        raise _bad_row(path, line, f" has an empty '{column}'", "fill or remove the row")
    words = str(value)
    if any("\ud800" <= character <= "\udfff" for character in words):
        raise _bad_row(path, line, f": '{column}' contains a lone surrogate", "repair or remove the row")
    return words
