"""The labels of heads that come with weights: the lists that rows name, and the other names of their labels."""

import csv
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo.errors import DataError, MissingFileError
from zoo.schema import PRETRAINED, Entry, Manifest, PretrainedHead, Task, TextPreprocess

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = Path(__file__).resolve().parents[1] / "assets" / "imagenet-1k.csv"


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


def read_label_map(path: Path, manifest: Manifest) -> "Mapping[str, str]":
    """The model's label by the name that data use for it, from a CSV file of two columns: name in the data, label.

    The second column may have a label's second name, such as a WordNet id. The first row may be a header. Raises
    MissingFileError, and DataError for another number of columns, an unknown label, and a name with two labels.
    """
    try:
        rows = [row for row in csv.reader(path.read_text("utf-8-sig").splitlines()) if row]
    except (OSError, UnicodeDecodeError) as error:
        if not path.exists():
            raise MissingFileError(f"{path}: no such file", path=path, hint="check the path of --labels") from error
        raise DataError(f"{path} cannot be read: {error}", path=path, hint="give a CSV file in UTF-8") from error
    others, found = other_names(manifest), dict[str, str]()
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            problem = f"{path}:{number} has {len(row)} columns instead of two"
            raise DataError(problem, path=path, hint="write the name in the data, a comma, the model's label")
        name, given = (cell.strip() for cell in row)
        label = others.get(given, given)
        if label not in manifest.labels:
            if number == 1:
                # A header.
                continue
            problem = f"{path}:{number} maps '{name}' to '{given}', which is not a label of {manifest.name}"
            raise DataError(problem, path=path, hint=f"zoo show {manifest.lineage.entry.name} --json lists its labels")
        if found.setdefault(name, label) != label:
            problem = f"{path}:{number} maps '{name}' to '{label}', an earlier row to '{found[name]}'"
            raise DataError(problem, path=path, hint="remove one of the rows")
    return found


def reads_pairs(model: Entry | Manifest) -> bool:
    """Whether a model reads pairs of texts: the classifiers of texts that come with the weights do."""
    if not isinstance(model.preprocess, TextPreprocess):
        return False
    if isinstance(model, Manifest):
        return model.head == PRETRAINED and model.task is not Task.FILL_MASK
    return model.head is not None and model.head.task != "fill-mask"
