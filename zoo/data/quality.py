"""What a run says about its data before anything is computed from it."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping

from zoo.data.dataset import Dataset, class_counts
from zoo.data.items import SEPARATOR, listed, quoted
from zoo.schema import Task

#: Classes below this many items are named.
FEW = 5
#: The largest class may have this many times the items of the smallest one.
IMBALANCE = 10
BLANKS = re.compile(r"[\s_-]+")


def survey(data: Dataset) -> tuple[str, ...]:
    """Notes on a data set, a line each: what was skipped, labels that look mistyped, rare ones, copies, imbalance."""
    notes = [f"skipped: {listed(data.skipped)}"] if data.skipped else []
    notes += _copies(data)
    if data.task is not Task.REGRESSION:
        counts = class_counts(data)
        notes += [*_spellings(counts), *_rare(counts)]
        if data.task is Task.SINGLE_LABEL:
            notes += [*_imbalance(counts), *_several(counts)]
    return tuple(notes)


def _copies(data: Dataset) -> Iterator[str]:
    first: dict[str, str] = {}
    other: dict[str, tuple[str, str]] = {}
    for example in data.examples:
        known = first.setdefault(example.digest, example.label)
        if set(_parts(data, known)) != set(_parts(data, example.label)):
            other.setdefault(example.digest, (known, example.label))
    if copies := len(data.examples) - len(first):
        yield f"{copies:,} of {len(data.examples):,} items are copies of others; a split keeps copies together"
    if other:
        digest = next(iter(other))
        name = next(example.name for example in data.examples if example.digest == digest)
        what = "numbers" if data.task is Task.REGRESSION else "labels"
        yield (
            f"the same item stands under different {what}, {len(other):,} times: {name} and its copies are "
            f"{' and '.join(quoted(other[digest]))}"
        )


def _parts(data: Dataset, label: str) -> list[str]:
    return [part.strip() for part in label.split(SEPARATOR)] if data.task is Task.MULTI_LABEL else [label]


def _spellings(counts: Mapping[str, int]) -> Iterator[str]:
    alike: dict[str, list[str]] = {}
    for label in counts:
        alike.setdefault(BLANKS.sub("", unicodedata.normalize("NFKC", label).casefold()), []).append(label)
    for labels in alike.values():
        if len(labels) > 1:
            told = (f"{word} ({counts[label]:,})" for label, word in zip(labels, quoted(labels), strict=True))
            yield f"labels that differ only in case, spaces, hyphens or underscores: {', '.join(told)}"


def _rare(counts: Mapping[str, int]) -> Iterator[str]:
    rare = sorted((count, label) for label, count in counts.items() if count < FEW)
    if rare:
        told = (f"{quoted([label])[0]} ({count})" for count, label in rare)
        yield f"labels of fewer than {FEW} items: {listed(told)}"


def _imbalance(counts: Mapping[str, int]) -> Iterator[str]:
    ordered = Counter(counts).most_common()
    (most, many), (least, few) = ordered[0], ordered[-1]
    if many > IMBALANCE * few:
        names = quoted([most, least])
        yield f"{names[0]} has {many:,} items and {names[1]} {few:,}: --class-weights makes every class count alike"


def _several(counts: Mapping[str, int]) -> Iterator[str]:
    joined = [label for label in counts if SEPARATOR in label]
    if joined:
        yield f"labels with '{SEPARATOR}' are taken whole: {listed(quoted(joined))}; --task multi-label reads several"
