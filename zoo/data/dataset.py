"""Data sets: a folder of pictures, or a table (CSV, JSON lines, Parquet), here or on the Hugging Face Hub."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from zoo.data.folders import Content, read_classes, split_folders
from zoo.data.items import SEPARATOR, Example, Item, Skipped, check_bad, quoted
from zoo.data.tables import DEFAULT_LABEL, TABLES, parse_number, read_pictures, read_texts
from zoo.errors import DataError, UsageError
from zoo.options import FinetuneOptions
from zoo.progress import SILENT, Progress
from zoo.schema import ImagePreprocess, Preprocess, Task
from zoo.system.files import sha256

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Dataset", "Example", "Item", "Skipped", "check_bad", "check_kind", "load", "load_parts", "require_classes"]

#: How a table of the Hugging Face Hub begins, also after a Path has made one slash of two.
HUB = re.compile(r"hf:/{1,2}")


class Dataset(Struct, frozen=True):
    """Labelled examples, what of the source was left out, and the `column` that the labels or numbers stand in."""

    source: str
    examples: tuple[Example, ...]
    task: Task = Task.SINGLE_LABEL
    skipped: tuple[Skipped, ...] = ()
    column: str = DEFAULT_LABEL

    @property
    def labels(self) -> tuple[str, ...]:
        """What each column of a model's answer means, sorted: the classes, or the parts of `a|b`; else the column."""
        if self.task is Task.REGRESSION:
            return (self.column,)
        return tuple(sorted({label for example in self.examples for label in self.labels_of(example)}))

    def labels_of(self, example: Example) -> tuple[str, ...]:
        """The labels of one example: its class, or the distinct parts of `a|b` in their order; a number has none."""
        if self.task is Task.MULTI_LABEL:
            parts = [part.strip() for part in example.label.split(SEPARATOR)]
            return tuple(dict.fromkeys(part for part in parts if part))
        return (example.label,) if self.task is Task.SINGLE_LABEL else ()

    @property
    def items(self) -> list[Item]:
        """What a Session takes."""
        return [example.item for example in self.examples]

    @property
    def digest(self) -> str:
        """sha256 over what the examples are and how they are labelled, whatever their order."""
        rows = sorted((example.digest, example.label) for example in self.examples)
        return sha256(json.dumps(rows))

    def only(self, examples: Iterable[Example]) -> "Dataset":
        """The data set with these of its examples."""
        return msgspec.structs.replace(self, examples=tuple(examples))

    def targets(self, labels: Sequence[str]) -> "NDArray[Any]":
        """What a model should answer, in the order of the examples and of `labels`.

        One label: int64 [items], positions in `labels`. Several: float32 [items, labels] of 0 and 1. A number: float32
        [items, 1]. Raises DataError for a label that is not among them, and for a cell that is no finite number.
        """
        import numpy as np

        if self.task is Task.REGRESSION:
            return np.asarray([[self.number(example)] for example in self.examples], np.float32).reshape(-1, 1)
        index = {label: position for position, label in enumerate(labels)}
        rows = [
            [self._position(label, index, example) for label in self.labels_of(example)] for example in self.examples
        ]
        if self.task is Task.SINGLE_LABEL:
            return np.asarray([row[0] for row in rows], np.int64)
        several = np.zeros((len(rows), len(labels)), np.float32)
        for number, row in enumerate(rows):
            several[number, row] = 1
        return several

    def number(self, example: Example) -> float:
        """The number of an example's cell. Raises DataError naming it."""
        value = parse_number(example.label)
        if value is None:
            raise DataError(
                f"{example.name}: '{self.column}' is no finite number: {quoted([example.label])[0]}",
                path=example.name,
                hint="correct or remove it",
            )
        return value

    @staticmethod
    def _position(label: str, index: dict[str, int], example: Example) -> int:
        if label not in index:
            raise DataError(
                f"{example.name} has the label '{label}', which the model does not know",
                path=example.name,
                hint=f"known labels: {', '.join(index)}",
            )
        return index[label]


def load(
    source: str | Path,
    preprocess: Preprocess,
    *,
    task: Task = Task.SINGLE_LABEL,
    text: str | None = None,
    image: str | None = None,
    label: str | None = None,
    max_bad: float = FinetuneOptions().max_bad,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Dataset:
    """The data set at `source` for a model that reads what `preprocess` says; `text`, `image` and `label` name columns.

    Of a folder with `train`, `val` and `test` all of them: `load_parts` keeps them apart. Raises DataError for anything
    that cannot be used: the wrong kind, a missing column, an empty cell, an empty class, more than `max_bad` of the
    items; NotFoundError, OfflineError, AccessError and NetworkError for a table of the Hub.
    """
    parts = load_parts(
        source, preprocess, task=task, text=text, image=image, label=label, max_bad=max_bad, offline=offline,
        progress=progress,
    )  # fmt: skip
    first, *more = parts.values()
    return msgspec.structs.replace(
        first,
        source=str(source),
        examples=first.examples + tuple(example for part in more for example in part.examples),
        skipped=first.skipped + tuple(skipped for part in more for skipped in part.skipped),
    )


def load_parts(
    source: str | Path,
    preprocess: Preprocess,
    *,
    task: Task = Task.SINGLE_LABEL,
    text: str | None = None,
    image: str | None = None,
    label: str | None = None,
    max_bad: float = FinetuneOptions().max_bad,
    offline: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Dataset]:
    """What `load` reads, as the parts `train`, `val` and `test` of a folder that has them; else all of it as `train`.

    Raises what `load` raises.
    """
    check_kind(source, preprocess, task=task, text=text, image=image, label=label)
    path = _local(source, offline, progress)
    column = label or DEFAULT_LABEL
    if path.is_dir():
        folders = split_folders(path) or {"train": path}
        contents = {part: read_classes(folder, path) for part, folder in folders.items()}
    elif isinstance(preprocess, ImagePreprocess):
        folders = {"train": path}
        contents = {"train": read_pictures(path, image, label, task, has_files=not is_hub(source))}
    else:
        folders = {"train": path}
        contents = {"train": read_texts(path, text, label, task)}
    parts = {}
    for part, (examples, skipped) in contents.items():
        where = str(source) if len(contents) == 1 else str(folders[part])
        parts[part] = Dataset(where, tuple(examples), task, tuple(skipped), column)
    _check_content(source, contents, max_bad)
    return parts


def _check_content(source: str | Path, contents: dict[str, Content], max_bad: float) -> None:
    skipped = [each for content in contents.values() for each in content.skipped]
    total = len(skipped) + sum(len(content.examples) for content in contents.values())
    if not total:
        raise DataError(f"{source} has no rows", path=source, hint="give a table with a header and at least one row")
    check_bad(skipped, total, max_bad)
    if len(skipped) == total:
        raise DataError(f"{source} has no item that can be used: {skipped[0]}", path=source, hint="give other data")


def is_hub(source: str | Path) -> bool:
    """Whether the data is a table of the Hugging Face Hub."""
    return HUB.match(str(source)) is not None


def _local(source: str | Path, offline: bool, progress: Progress) -> Path:
    if not is_hub(source):
        return Path(source)
    from zoo.hub import dataset_file

    return dataset_file(HUB.sub("hf://", str(source)), offline=offline, progress=progress)


def check_kind(
    source: str | Path,
    preprocess: Preprocess,
    *,
    task: Task = Task.SINGLE_LABEL,
    text: str | None = None,
    image: str | None = None,
    label: str | None = None,
) -> None:
    """Raise DataError for a path that is not there or not of the kind that the model reads; its content is not read."""
    path, kinds = Path(source), f"{', '.join(TABLES[:-1])} or {TABLES[-1]}"
    reads_pictures = isinstance(preprocess, ImagePreprocess)
    if not is_hub(source) and not path.exists():
        raise DataError(f"{source}: no such file or folder", path=source, hint="check the path of the data")
    is_table = path.suffix.lower() in TABLES and (is_hub(source) or path.is_file())
    if reads_pictures and not is_table and not path.is_dir():
        raise DataError(
            f"{source} is no folder and no table; this model reads pictures",
            path=source,
            hint=f"give a folder, DATA/<class>/*.jpg, or a {kinds} file with a column of pictures",
        )
    if not reads_pictures and not is_table:
        raise DataError(f"{source} is not a table; this model reads text", path=source, hint=f"give {kinds}")
    if not is_table and (text is not None or image is not None or label is not None):
        raise UsageError(
            "--text, --image and --label name columns of a table, and a folder has none", hint="leave them out"
        )
    if not is_table and task is not Task.SINGLE_LABEL:
        raise UsageError(
            f"folders give each picture one label, and --task {task} wants more",
            hint="give a table with a column of paths (--image) and one of labels (--label)",
        )
    if reads_pictures and text is not None:
        raise UsageError("--text names a column of texts, and this model reads pictures", hint="--image COL")
    if not reads_pictures and image is not None:
        raise UsageError("--image names a column of pictures, and this model reads text", hint="--text COL")


def require_classes(data: Dataset) -> None:
    """Raise DataError unless there is something to tell apart: two classes, label sets or numbers."""
    if data.task is Task.REGRESSION:
        if len({data.number(example) for example in data.examples}) < 2:
            raise DataError(
                f"every '{data.column}' of {data.source} is {data.examples[0].label}: there is nothing to learn",
                path=data.source,
                hint="--label COL names another column",
            )
        return
    if data.task is Task.MULTI_LABEL:
        sets = {frozenset(data.labels_of(example)) for example in data.examples}
        if len(sets) < 2:
            raise DataError(
                f"every item of {data.source} has the same labels: there is nothing to learn",
                path=data.source,
                hint=f"write the labels of an item as a{SEPARATOR}b in the column '{data.column}'",
            )
        return
    if len(data.labels) < 2:
        raise DataError(
            f"{data.source} has only the class '{data.labels[0]}'; a classifier needs two or more",
            path=data.source,
            hint="add a class, or use zoo run with the backbone itself for features",
        )


def class_counts(data: Dataset) -> dict[str, int]:
    """Items of each class or label, in the order of `labels`."""
    counts = Counter(label for example in data.examples for label in data.labels_of(example))
    return {label: counts[label] for label in data.labels}
