"""The labels of heads that come with weights: the lists that rows name, and the other names of their labels."""

import csv
import difflib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo.errors import DataError, MissingFileError, UsageError, counted, quote
from zoo.schema import PRETRAINED, Entry, Manifest, PretrainedHead, Task, TextPreprocess, WordsPreprocess

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

FILE = Path(__file__).resolve().parents[1] / "assets" / "imagenet-1k.csv"
#: The number of labels that an error lists.
SHOWN = 20
#: The header that a file of names may have: docs/data.md.
HEADER = ["mine", "model"]
TWO_COLUMNS = "write the name in the data, a comma, the model's label"


class LabelList(NamedTuple):
    """The labels of a head in the order of its scores, and their second names (WordNet ids), if any."""

    names: tuple[str, ...]
    ids: tuple[str, ...] = ()


class ImageNet(NamedTuple):
    """The 1,000 classes of ILSVRC 2012 in their usual order: WordNet ids, names, and WordNet's lists of synonyms.

    Names are those of torchvision, which are unique. The synonyms ("tench, Tinca tinca") are the names of these classes
    on the Hub. Two of them are equal: "crane" is a bird and a machine.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    synonyms: tuple[str, ...]


@cache
def imagenet() -> ImageNet:
    """The classes of ImageNet-1k. zoo/assets/LICENSE.md has the origin of the file."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return ImageNet(*zip(*list(csv.reader(file))[1:], strict=True))


def labels_of(head: PretrainedHead) -> LabelList:
    """The labels of a head, and their ids."""
    if head.labels == "imagenet-1k":
        return LabelList(imagenet().names, imagenet().ids)
    return LabelList(tuple(head.labels), head.ids)


def label_names(head: PretrainedHead) -> tuple[str, ...]:
    """The labels of a head, in the order of its scores."""
    return labels_of(head).names


def count_outputs(head: PretrainedHead) -> int:
    """The number of scores of a head."""
    return head.outputs or len(labels_of(head).names)


def other_names(manifest: Manifest) -> "Mapping[str, str]":
    """The label of a model by each of its other names: WordNet ids, and for these also WordNet's synonyms."""
    if not manifest.label_ids:
        return {}
    known = dict(zip(manifest.label_ids, manifest.labels, strict=True))
    classes = imagenet()
    synonyms = {text: known[key] for key, text in zip(classes.ids, classes.synonyms, strict=True) if key in known}
    # A label is never another label's second name.
    return {name: label for name, label in (synonyms | known).items() if name not in manifest.labels}


def own_names(manifest: Manifest) -> "Mapping[str, str]":
    """The label of a model by each name that it knows: the labels, and `other_names`."""
    return {label: label for label in manifest.labels} | dict(other_names(manifest))


def known_labels(labels: "Iterable[str]", wrong: str = "") -> str:
    """A hint that names the labels closest to `wrong`; without a close one, the first labels."""
    labels = list(labels)
    if near := difflib.get_close_matches(wrong, labels, n=3):
        return f"did you mean {' or '.join(near)}?"
    more = f" and {len(labels) - SHOWN:,} more" if len(labels) > SHOWN else ""
    return f"known labels: {', '.join(labels[:SHOWN])}{more}"


def read_label_map(path: Path, manifest: Manifest) -> "Mapping[str, str]":
    """The model's label by the name that data use for it, from a CSV file of two columns: name in the data, label.

    The second column may have a label's second name, such as a WordNet id. The first row may be the header
    `mine,model`. Raises MissingFileError, and DataError for a file without rows, another number of columns, an unknown
    label, and a name with two labels.
    """
    own, found, is_first = own_names(manifest), dict[str, str](), True
    for line, row in map_rows(path):
        if len(row) != 2:
            raise _wrong_columns(path, line, row)
        name, given = (cell.strip() for cell in row)
        is_header, is_first = is_first and given not in own and [name.lower(), given.lower()] == HEADER, False
        if is_header:
            continue
        if given not in own:
            problem = f"{path}:{line} maps {quote(name)} to {quote(given)}, which is not a label of {manifest.name}"
            raise DataError(problem, path=path, hint=known_labels(manifest.labels, given))
        label = own[given]
        if found.setdefault(name, label) != label:
            problem = f"{path}:{line} maps {quote(name)} to '{label}', an earlier row to '{found[name]}'"
            raise DataError(problem, path=path, hint="remove one of the rows")
    if not found:
        raise DataError(f"{path} maps no label", path=path, hint=TWO_COLUMNS)
    return found


def map_rows(path: Path) -> "Iterator[tuple[int, list[str]]]":
    """Yields the last line and the cells of each row of a file of names that is not blank.

    Raises MissingFileError, and DataError for a file that is not CSV.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder", path=path, hint="--labels takes a CSV file")
    try:
        # The reader needs the line ends as they are: a cell in quotes may contain some.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                yield from ((reader.line_num, row) for row in reader if any(map(str.strip, row)))
            except csv.Error as error:
                problem = f"{path}:{reader.line_num} is not CSV: {error}"
                raise DataError(problem, path=path, hint=TWO_COLUMNS) from error
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file", path=path, hint="check the path of --labels") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", path=path, hint="give a CSV file in UTF-8") from error


def _wrong_columns(path: Path, line: int, row: "Sequence[str]") -> DataError:
    problem = f"{path}:{line} has {counted(len(row), 'column')} instead of two"
    others = [name for mark, name in ((";", "semicolon"), ("\t", "tab")) if any(mark in cell for cell in row)]
    hint = f"write a comma between the columns, not a {others[0]}" if others else TWO_COLUMNS
    return DataError(problem, path=path, hint=hint)


def ranks(model: Entry | Manifest) -> bool:
    """Whether the answers of a model are a ranking: labels, tokens for a mask, or a word table's nearest words."""
    if isinstance(model, Manifest):
        return model.head is not None and model.task is not Task.REGRESSION
    if model.head is None:
        return isinstance(model.preprocess, WordsPreprocess)
    return model.head.task != "regression"


def find_prompt(model: Entry | Manifest, name: str) -> str:
    """The text of a model's prompt. Raises UsageError for a name that the model does not have."""
    known = model.preprocess.prompts if isinstance(model.preprocess, TextPreprocess) else {}
    if name not in known:
        hint = f"--prompt {' or '.join(sorted(known))}" if known else "leave --prompt out"
        raise UsageError(f"{model.name} has no prompt called {quote(name)}", hint=hint)
    return known[name]


def reads_pairs(model: Entry | Manifest) -> bool:
    """Whether a model reads pairs of texts: the classifiers of texts that come with the weights do."""
    if not isinstance(model.preprocess, TextPreprocess):
        return False
    if isinstance(model, Manifest):
        return model.head == PRETRAINED and model.task is not Task.FILL_MASK
    return model.head is not None and model.head.task != "fill-mask"


def without_head(model: Entry | Manifest) -> str:
    """The reason why a model without a head has none, for messages."""
    entry = model.lineage.entry if isinstance(model, Manifest) else model
    if entry.no_head is not None:
        return entry.no_head
    if entry.head is not None:
        return "it is a bare backbone (--raw)"
    # Earlier versions wrote neither field, also for models that have labels now; rows of plugins may have neither.
    if entry is not model:
        return f"its row names no classifier. If an earlier zoo wrote it: zoo export {entry.name} -o DIR"
    if "/" in entry.name:
        return f"its entry names no classifier. If an earlier zoo pulled it: zoo pull {entry.name}"
    return "its weights have no classifier"
