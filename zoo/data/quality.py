"""Notes on the quality of a data set, which are shown before anything is computed."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping

from zoo.data.dataset import Dataset, class_counts
from zoo.data.items import SEPARATOR, Example, listed
from zoo.errors import counted, quote
from zoo.schema import Task

#: Classes with fewer items are named.
FEW_ITEMS = 5
#: The allowed ratio of the largest class to the smallest.
IMBALANCE = 10


def survey(data: Dataset) -> tuple[str, ...]:
    """Notes on a data set, one line each: skipped items, copies, labels that look mistyped, rare labels, imbalance."""
    notes = [f"skipped: {listed(data.skipped)}"] if data.skipped else []
    notes += _copies(data)
    if data.task is not Task.REGRESSION:
        counts = class_counts(data)
        notes += [*_spellings(counts), *_rare(counts)]
        if data.task is Task.SINGLE_LABEL:
            notes += [*_imbalance(counts), *_several(counts)]
    return tuple(notes)


def _copies(data: Dataset) -> Iterator[str]:
    def meaning(example: Example) -> object:
        return set(data.labels_of(example)) if data.task is Task.MULTI_LABEL else example.label

    first: dict[str, Example] = {}
    conflicts: dict[str, Example] = {}
    for example in data.examples:
        if meaning(first.setdefault(example.digest, example)) != meaning(example):
            conflicts.setdefault(example.digest, example)
    if copies := len(data.examples) - len(first):
        yield f"{counted(copies, 'duplicate')} among {len(data.examples):,} items; a split keeps duplicates together"
    if conflicts:
        digest, example = next(iter(conflicts.items()))
        kind = "numbers" if data.task is Task.REGRESSION else "labels"
        yield (
            f"{counted(len(conflicts), 'item')} with different {kind}: {first[digest].name} and its copies are "
            f"{quote(first[digest].label)} and {quote(example.label)}"
        )


def _spellings(counts: Mapping[str, int]) -> Iterator[str]:
    alike: dict[str, list[str]] = {}
    for label in counts:
        alike.setdefault(re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", label).casefold()), []).append(label)
    for labels in alike.values():
        if len(labels) > 1:
            counted = (f"{quote(label)} ({counts[label]:,})" for label in labels)
            yield f"labels that differ only in case, spaces, hyphens or underscores: {', '.join(counted)}"


def _rare(counts: Mapping[str, int]) -> Iterator[str]:
    rare = sorted((count, label) for label, count in counts.items() if count < FEW_ITEMS)
    if rare:
        counted = (f"{quote(label)} ({count})" for count, label in rare)
        yield f"labels of fewer than {FEW_ITEMS} items: {listed(counted)}"


def _imbalance(counts: Mapping[str, int]) -> Iterator[str]:
    ordered = Counter(counts).most_common()
    (most, many), (least, few) = ordered[0], ordered[-1]
    if many > IMBALANCE * few:
        more = f"{quote(most)} has {many:,} items and {quote(least)} {few:,}"
        yield f"{more}: --class-weights makes every class count alike"


def _several(counts: Mapping[str, int]) -> Iterator[str]:
    if joined := [quote(label) for label in counts if SEPARATOR in label]:
        yield f"each label with '{SEPARATOR}' counts as one: {listed(joined)}; --task multi-label splits them"
