"""The labels of heads that come with weights: the lists that rows name, and the other names of their labels."""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

from zoo.schema import PretrainedHead

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


def count_outputs(head: PretrainedHead) -> int:
    """The number of scores of a head."""
    return head.outputs or len(labels_of(head).names)
