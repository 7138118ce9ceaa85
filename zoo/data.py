"""Data sets: a folder of pictures (`DATA/<class>/*.jpg`), or CSV / JSON lines with a text and a label column."""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from zoo.encode import IMAGE_SUFFIXES
from zoo.errors import DataError, UsageError
from zoo.progress import SILENT, Progress
from zoo.schema import ImagePreprocess, Preprocess, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

TABLES = (".csv", ".jsonl")
#: Files that operating systems leave in folders by themselves.
LITTER = frozenset({"thumbs.db", "desktop.ini"})
DEFAULT_TEXT, DEFAULT_LABEL = "text", "label"


class Example(Struct, frozen=True):
    """One labelled item: `name` for messages, `item` a path or a text, `digest` the sha256 of its bytes."""

    name: str
    item: Path | str
    label: str
    digest: str


class Dataset(Struct, frozen=True):
    """Labelled examples; `labels` are the classes in sorted order."""

    source: str
    examples: tuple[Example, ...]
    task: Task = Task.SINGLE_LABEL
    skipped: tuple[object, ...] = ()
    column: str = DEFAULT_LABEL

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, sorted."""
        if self.task is Task.REGRESSION:
            return (self.column,)
        return tuple(sorted({label for example in self.examples for label in self.labels_of(example)}))

    def labels_of(self, example: Example) -> tuple[str, ...]:
        """The labels of one example."""
        if self.task is Task.MULTI_LABEL:
            return tuple(part.strip() for part in example.label.split("|") if part.strip())
        return (example.label,) if self.task is Task.SINGLE_LABEL else ()

    def only(self, examples: "Iterable[Example]") -> "Dataset":
        """The data set with these of its examples."""
        return replace(self, examples=tuple(examples))

    @property
    def items(self) -> list[Path | str]:
        """What a Session takes."""
        return [example.item for example in self.examples]

    @property
    def digest(self) -> str:
        """sha256 over what the examples are and how they are labelled, whatever their order."""
        rows = sorted((example.digest, example.label) for example in self.examples)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def targets(self, labels: Sequence[str]) -> "NDArray[Any]":
        """What a model should answer: int64 [items], float32 [items, labels] of 0 and 1, or float32 [items, 1]."""
        import numpy as np

        if self.task is Task.REGRESSION:
            return np.asarray([[float(example.label)] for example in self.examples], np.float32)
        index = {label: position for position, label in enumerate(labels)}
        for example in self.examples:
            for label in self.labels_of(example):
                if label not in index:
                    raise DataError(
                        f"{example.name} has the label '{label}', which the model does not know",
                        path=example.name,
                        hint=f"known labels: {', '.join(labels)}",
                    )
        rows = [[index[label] for label in self.labels_of(example)] for example in self.examples]
        if self.task is Task.SINGLE_LABEL:
            return np.asarray([row[0] for row in rows], np.int64)
        several = np.zeros((len(rows), len(labels)), np.float32)
        for number, row in enumerate(rows):
            several[number, row] = 1
        return several


def load(
    path: str | Path,
    preprocess: Preprocess,
    *,
    task: Task = Task.SINGLE_LABEL,
    text: str | None = None,
    image: str | None = None,
    label: str | None = None,
    max_bad: float = 0.01,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Dataset:
    """The data set at `path` for a model that reads what `preprocess` says; `text` and `label` name columns.

    Raises DataError for anything that cannot be used: no such path, the wrong kind, a missing column, an empty cell,
    an empty class.
    """
    path = Path(path)
    check_kind(path, preprocess, text=text, label=label)
    if isinstance(preprocess, ImagePreprocess):
        return Dataset(str(path), tuple(_read_folder(path)))
    examples = tuple(_read_table(path, text, label))
    if not examples:
        raise DataError(f"{path} has no rows", path=path, hint="give a table with a header and at least one row")
    return Dataset(str(path), examples, task, (), label or DEFAULT_LABEL)


def check_kind(path: Path, preprocess: Preprocess, *, text: str | None = None, label: str | None = None) -> None:
    """Raise DataError for a path that is not there or not of the kind that the model reads; its content is not read."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder", path=path, hint="check the path of the data")
    if isinstance(preprocess, ImagePreprocess):
        if not path.is_dir():
            raise DataError(
                f"{path} is a file; this model reads pictures", path=path, hint="give a folder: DATA/<class>/*.jpg"
            )
        if text is not None or label is not None:
            raise UsageError(
                "--text and --label name columns of a table, and pictures have none", hint="leave them out"
            )
    elif path.suffix.lower() not in TABLES or not path.is_file():
        raise DataError(f"{path} is not a table; this model reads text", path=path, hint=f"give {' or '.join(TABLES)}")


def split(data: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """(training, held out): `fraction` of every class held out, at least one item and never all of them.

    Which items are held out depends on their bytes and `seed` only, not on their order; identical items stay
    together. Raises DataError for one class only, or a class too small to split.
    """
    require_classes(data)
    # An item that stands under two labels counts for the first of them: on both sides, it would give itself away.
    owners: dict[str, str] = {}
    for example in data.examples:
        owners[example.digest] = min(example.label, owners.get(example.digest, example.label))
    held: set[str] = set()
    for label in data.labels:
        digests = [digest for digest, owner in owners.items() if owner == label]
        if len(digests) < 2:
            raise DataError(
                f"the class '{label}' has {len(digests)} item{'' if len(digests) == 1 else 's'} of its own, "
                "and at least 2 are needed to hold one out",
                path=data.source,
                hint="add items, or give a validation set of your own: --val DATA",
            )
        ranked = sorted(digests, key=lambda digest: hashlib.sha256(f"{seed} {digest}".encode()).digest())
        count = min(max(round(fraction * len(ranked)), 1), len(ranked) - 1)
        held.update(ranked[:count])
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example in data.examples:
        parts[example.digest in held].append(example)
    return Dataset(data.source, tuple(parts[0])), Dataset(data.source, tuple(parts[1]))


def require_classes(data: Dataset) -> None:
    """Raise DataError unless there are at least two classes to tell apart."""
    if len(data.labels) < 2:
        raise DataError(
            f"{data.source} has only the class '{data.labels[0]}'; a classifier needs two or more",
            path=data.source,
            hint="add a class, or use zoo run with the backbone itself for features",
        )


def class_counts(data: Dataset) -> dict[str, int]:
    """Items of each class, in the order of `labels`."""
    counts = Counter(example.label for example in data.examples)
    return {label: counts[label] for label in data.labels}


def image_files(folder: Path) -> list[Path]:
    """The pictures of one folder, sorted. Raises DataError for a file of another kind or a link out of the folder."""
    files = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.lower() in LITTER:
            continue
        _stay_inside(path, folder)
        # Reading a pipe would wait for ever, and a link may lead to nothing.
        if not path.is_file() or path.suffix.lower() not in IMAGE_SUFFIXES:
            hint = f"move it away; accepted: {', '.join(sorted(IMAGE_SUFFIXES))}"
            raise DataError(
                f"{path} is not a picture",
                path=path,
                hint=f"pictures in folders: a pattern such as '{folder}/*/*'" if path.is_dir() else hint,
            )
        files.append(path)
    return files


def _stay_inside(path: Path, folder: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{path} is a link out of the folder", path=path, hint="copy what it points to instead")


def _read_folder(root: Path) -> Iterator[Example]:
    layout = "lay the pictures out as DATA/<class>/*.jpg"
    visible = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    folders = [path for path in visible if path.is_dir()]
    if not folders:
        raise DataError(f"{root} has no class folders", path=root, hint=layout)
    for path in visible:
        if path not in folders and path.suffix.lower() in IMAGE_SUFFIXES:
            raise DataError(f"{path} is in no class folder", path=path, hint=layout)
    for folder in folders:
        _stay_inside(folder, root)
        files = image_files(folder)
        if not files:
            raise DataError(
                f"the class '{folder.name}' is empty: {folder}", path=folder, hint="fill or remove the folder"
            )
        for path in files:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            yield Example(str(path.relative_to(root)), path, folder.name, digest)


def _read_table(path: Path, text: str | None, label: str | None) -> Iterator[Example]:
    for line, row in _rows(path):
        words = _cell(row, text or DEFAULT_TEXT, "--text", path, line)
        yield Example(
            f"{path.name}:{line}",
            words,
            _cell(row, label or DEFAULT_LABEL, "--label", path, line).strip(),
            hashlib.sha256(words.encode()).hexdigest(),
        )


def column(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of one column of a CSV or JSON lines file. Raises DataError as `load` does."""
    for line, row in _rows(path):
        yield line, _cell(row, name, "--text", path, line)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a CSV or JSON lines file."""
    yield from (_csv_rows if path.suffix.lower() == ".csv" else _json_rows)(path, read_text(path))


def read_text(path: Path) -> str:
    """The UTF-8 text of a file, without a byte order mark. Raises DataError when it cannot be read as that."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", path=path, hint=f"chmod u+r {path}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: {error.reason} at byte {error.start}", path=path, hint="save it as UTF-8"
        ) from error


def _csv_rows(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Strict: a quote that never closes would swallow the rows after it.
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        names = [name for name in reader.fieldnames or () if name]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{path} has two columns '{twice[0]}'", path=path, hint="rename or remove one of them")
        for row in reader:
            # A comma in a text without quotes would move the label.
            if None in row:
                raise DataError(
                    f"{path}:{reader.line_num} has more cells than the header",
                    path=path,
                    hint='put texts with commas in "quotes"',
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num} is not CSV: {error}", path=path, hint="save it again") from error


def _json_rows(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines: JSON strings may hold line separators of Unicode as they are.
    for line, record in enumerate(content.split("\n"), 1):
        if not record.strip():
            continue
        try:
            row = json.loads(record)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{line} is not JSON: {error}", path=path, hint="one JSON object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{line} is not a JSON object", path=path, hint="one JSON object a line")
        yield line, row


def _cell(row: dict[str, Any], column: str, option: str, path: Path, line: int) -> str:
    if column not in row:
        columns = ", ".join(name for name in row if name)
        raise DataError(f"{path}:{line} has no column '{column}'", path=path, hint=f"{option} COL, one of: {columns}")
    value = row[column]
    if isinstance(value, list | dict):
        raise DataError(f"{path}:{line}: '{column}' is not one value", path=path, hint="give a text or a number")
    # A table written by pandas has NaN where a cell was empty.
    if value is None or value != value or not str(value).strip():
        raise DataError(f"{path}:{line} has an empty '{column}'", path=path, hint="fill or remove the row")
    words = str(value)
    if any("\ud800" <= character <= "\udfff" for character in words):
        raise DataError(f"{path}:{line}: '{column}' holds half a character", path=path, hint="repair or remove the row")
    return words
