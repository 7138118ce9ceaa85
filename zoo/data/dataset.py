"""Data sets: a folder of images, or a table (CSV, JSON lines, Parquet), local or on the Hugging Face Hub."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from zoo.data.folders import read_classes, split_folders
from zoo.data.items import SEPARATOR, Example, Item, Skipped, Unreadable
from zoo.data.labels import known_labels
from zoo.data.tables import DEFAULT_IMAGE, DEFAULT_LABEL, TABLES, parse_number, read_images, read_texts
from zoo.errors import DataError, MissingFileError, UsageError, quote
from zoo.options import DataOptions
from zoo.progress import SILENT, Progress
from zoo.schema import ImagePreprocess, Preprocess, Task
from zoo.system.files import sha256

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The start of the address of a table on the Hub; a Path turns its two slashes into one.
HUB = re.compile(r"hf:/{1,2}")


class Dataset(Struct, frozen=True):
    """Labelled examples, the items that were left out, and the `column` of the labels or numbers."""

    source: str
    examples: tuple[Example, ...]
    task: Task = Task.SINGLE_LABEL
    skipped: tuple[Skipped, ...] = ()
    column: str = DEFAULT_LABEL

    @property
    def labels(self) -> tuple[str, ...]:
        """The sorted classes, or parts of `a|b`, one for each column of scores; for numbers the name of the column."""
        if self.task is Task.REGRESSION:
            return (self.column,)
        return tuple(sorted({label for example in self.examples for label in self.labels_of(example)}))

    def labels_of(self, example: Example) -> tuple[str, ...]:
        """The labels of one example: its class, or the distinct parts of `a|b` in order; none for a number."""
        if self.task is Task.MULTI_LABEL:
            parts = [part.strip() for part in example.label.split(SEPARATOR)]
            return tuple(dict.fromkeys(part for part in parts if part))
        return (example.label,) if self.task is Task.SINGLE_LABEL else ()

    @property
    def items(self) -> list[Item]:
        """The items, as a Session takes them."""
        return [example.item for example in self.examples]

    @property
    def digest(self) -> str:
        """sha256 over the examples' bytes and labels, independent of the order of the examples."""
        rows = sorted((example.digest, example.label) for example in self.examples)
        # sha256_json would give other digests than those that bundles and checkpoints have recorded.
        return sha256(json.dumps(rows))

    def only(self, examples: Iterable[Example]) -> "Dataset":
        """The data set with only these of its examples."""
        return msgspec.structs.replace(self, examples=tuple(examples))

    def readable(self, unreadable: Unreadable) -> "Dataset":
        """The data set without the examples that `unreadable` has found; these are added to `skipped`."""
        found = unreadable.found
        skipped = (found[example] for example in self.examples if example in found)
        left = self.only(example for example in self.examples if example not in found)
        return msgspec.structs.replace(left, skipped=(*self.skipped, *skipped))

    def renamed(self, names: Mapping[str, str]) -> "Dataset":
        """The data set with each label that is a key of `names` replaced by its value."""
        renamed = (
            msgspec.structs.replace(each, label=SEPARATOR.join(names.get(part, part) for part in self.labels_of(each)))
            for each in self.examples
        )
        return self if self.task is Task.REGRESSION else self.only(renamed)

    def targets(self, labels: Sequence[str], advice: str = "") -> "NDArray[Any]":
        """The true answers, in the order of the examples and of `labels`.

        One label: int64 [items], indices into `labels`. Several labels: float32 [items, labels] of 0 and 1. A number:
        float32 [items, 1]. Raises DataError for a cell that is not a finite number, and for a label that is not in
        `labels`; `advice` is added to its hint.
        """
        import numpy as np

        if self.task is Task.REGRESSION:
            return np.asarray([[self.number(example)] for example in self.examples], np.float32).reshape(-1, 1)
        indices = {label: index for index, label in enumerate(labels)}
        rows = [
            [_index(label, indices, example, advice) for label in self.labels_of(example)] for example in self.examples
        ]
        if self.task is Task.SINGLE_LABEL:
            return np.asarray([row[0] for row in rows], np.int64)
        several = np.zeros((len(rows), len(labels)), np.float32)
        for index, row in enumerate(rows):
            several[index, row] = 1
        return several

    def number(self, example: Example) -> float:
        """The number in an example's cell. Raises DataError, naming the example."""
        value = parse_number(example.label)
        if value is None:
            problem = f"{example.name}: '{self.column}' is not a finite number: {quote(example.label)}"
            raise DataError(problem, path=example.name, hint="correct or remove it")
        return value


def _index(label: str, indices: dict[str, int], example: Example, advice: str) -> int:
    if label not in indices:
        problem = f"{example.name} has the label {quote(label)}, which the model does not know"
        raise DataError(problem, path=example.name, hint=known_labels(indices) + advice)
    return indices[label]


def load(
    source: str | Path,
    preprocess: Preprocess,
    options: DataOptions | None = None,
    *,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Dataset:
    """The data set at `source`, for a model with this preprocessing.

    A folder with `train`, `val` and `test` is read as one data set; `load_parts` keeps its parts apart. Raises
    MissingFileError; DataError for data of the wrong kind, a missing column, an empty cell or class, more bad items
    than `options` allow; for a table of the Hub also OfflineError, AccessError and NetworkError.
    """
    parts = list(load_parts(source, preprocess, options, offline=offline, progress=progress).values())
    whole = parts[0].only(example for part in parts for example in part.examples)
    skipped = tuple(each for part in parts for each in part.skipped)
    return msgspec.structs.replace(whole, source=str(source), skipped=skipped)


def load_parts(
    source: str | Path,
    preprocess: Preprocess,
    options: DataOptions | None = None,
    *,
    offline: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Dataset]:
    """The parts `train`, `val` and `test` of a folder that has them; all other data as the one part `train`.

    Raises the errors of `load`.
    """
    options = options or DataOptions()
    check_kind(source, preprocess, options)
    path, task, column = _local(source, offline, progress), options.task, options.label or DEFAULT_LABEL
    folders = {"train": path}
    if path.is_dir():
        folders = split_folders(path) or folders
        contents = {part: read_classes(folder, path) for part, folder in folders.items()}
    elif isinstance(preprocess, ImagePreprocess):
        image, has_files = options.image or DEFAULT_IMAGE, not is_hub(source)
        contents = {"train": read_images(path, image, column, task, has_files=has_files)}
    else:
        contents = {"train": read_texts(path, options.text, column, task, pairs=options.pairs)}
    skipped = [each for content in contents.values() for each in content.skipped]
    total = len(skipped) + sum(len(content.examples) for content in contents.values())
    if not total:
        raise DataError(f"{source} has no rows", path=source, hint="give a table with a header and at least one row")
    Unreadable(skipped, total, options.max_bad).check()
    names = {part: str(source) if len(contents) == 1 else str(folders[part]) for part in contents}
    return {
        part: Dataset(names[part], tuple(examples), task, tuple(skipped), column)
        for part, (examples, skipped) in contents.items()
    }


def is_hub(source: str | Path) -> bool:
    """Whether `source` is the address of a table on the Hugging Face Hub."""
    return HUB.match(str(source)) is not None


def _local(source: str | Path, offline: bool, progress: Progress) -> Path:
    if not is_hub(source):
        return Path(source)
    from zoo.hub import dataset_file

    return dataset_file(HUB.sub("hf://", str(source)), offline=offline, progress=progress)


def check_kind(source: str | Path, preprocess: Preprocess, options: DataOptions) -> None:
    """Check the path of data, without reading it.

    Raises MissingFileError for a path that does not exist, DataError for data that the model does not read, and
    UsageError for columns and tasks that such data do not have.
    """
    path, kinds = Path(source), f"{', '.join(TABLES[:-1])} or {TABLES[-1]}"
    reads_images = isinstance(preprocess, ImagePreprocess)
    if not is_hub(source) and not path.exists():
        raise MissingFileError(f"{source}: no such file or folder", path=source, hint="check the path of the data")
    is_table = path.suffix.lower() in TABLES and (is_hub(source) or path.is_file())
    if reads_images and not is_table and not path.is_dir():
        raise DataError(
            f"{source} is neither a folder nor a table; this model reads images",
            path=source,
            hint=f"give a folder, DATA/<class>/*.jpg, or a {kinds} file with a column of images",
        )
    if not reads_images and not is_table:
        raise DataError(f"{source} is not a table; this model reads text", path=source, hint=f"give {kinds}")
    if not is_table and (options.text is not None or options.image is not None or options.label is not None):
        raise UsageError(
            "--text, --image and --label name columns of a table, and a folder has none", hint="leave them out"
        )
    if not is_table and options.task is not Task.SINGLE_LABEL:
        raise UsageError(
            f"a folder gives each image one label, which does not suit --task {options.task}",
            hint="give a table with a column of paths (--image) and one of labels (--label)",
        )
    if reads_images and options.text is not None:
        raise UsageError("--text names a column of texts, and this model reads images", hint="--image COL")
    if not reads_images and options.image is not None:
        raise UsageError("--image names a column of images, and this model reads text", hint="--text COL")


def require_classes(data: Dataset) -> None:
    """Raise DataError unless there are at least two classes, label sets or numbers."""
    seen: set[Any]
    if data.task is Task.REGRESSION:
        seen = {data.number(example) for example in data.examples}
        problem = f"every '{data.column}' of {data.source} is {data.examples[0].label}: there is nothing to learn"
        hint = "--label COL names another column"
    elif data.task is Task.MULTI_LABEL:
        seen = {frozenset(data.labels_of(example)) for example in data.examples}
        problem = f"every item of {data.source} has the same labels: there is nothing to learn"
        hint = f"write the labels of an item as a{SEPARATOR}b in the column '{data.column}'"
    else:
        seen = set(data.labels)
        problem = f"{data.source} has only the class '{data.labels[0]}'; a classifier needs two or more"
        hint = "add a class, or use zoo run with the backbone itself for features"
    if len(seen) < 2:
        raise DataError(problem, path=data.source, hint=hint)


def class_counts(data: Dataset) -> dict[str, int]:
    """The number of items of each class or label, in the order of `labels`."""
    counts = Counter(label for example in data.examples for label in data.labels_of(example))
    return {label: counts[label] for label in data.labels}
