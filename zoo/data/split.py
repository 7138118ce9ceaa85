"""Splits of data into training and held-out items. Only the items' bytes and the seed decide; copies stay together.

Classes are split one by one, several labels by iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011,
https://doi.org/10.1007/978-3-642-23808-6_10), numbers by their quantiles.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import msgspec

from zoo.data.dataset import Dataset, check_kind, load, load_parts, require_classes
from zoo.data.items import listed
from zoo.errors import DataError, counted, quote
from zoo.options import FinetuneOptions
from zoo.progress import SILENT, Progress
from zoo.schema import Preprocess, Task
from zoo.system.files import sha256

TOO_FEW = "and at least 2 are needed to hold one out"


def divide(
    source: str | Path,
    preprocess: Preprocess,
    options: FinetuneOptions,
    *,
    offline: bool = False,
    progress: Progress = SILENT,
) -> tuple[Dataset, Dataset]:
    """Returns the training and the held-out part of the data at `source`.

    If `options.val` is a path, its data are held out. With the default fraction the folder `val`, or else `test`, is
    held out if there is one; any other fraction is held out of the training part. Raises the errors of
    `zoo.data.dataset.load` and of `split`, and DataError for a label that only the held-out part has and for items that
    are in both parts.
    """
    if not isinstance(options.val, float):
        check_kind(options.val, preprocess, options)
    train, *others = load_parts(source, preprocess, options, offline=offline, progress=progress).values()
    require_classes(train)
    if not isinstance(options.val, float):
        held = load(options.val, preprocess, options, offline=offline, progress=progress)
    elif others and options.val == FinetuneOptions().val:
        held = others[0]
        for more in others[1:]:
            progress.note(f"{more.source} ({counted(len(more.examples), 'item')}) is left for zoo evaluate")
    else:
        return split(train, options.val, options.seed)
    both = {example.digest for example in train.examples} & {example.digest for example in held.examples}
    if both:
        names = [example.name for example in held.examples if example.digest in both]
        raise DataError(
            f"{train.source} and {held.source} share {counted(len(both), 'item')}, so the score would be too good: "
            f"{listed(names)}",
            path=held.source,
            hint="remove them from one of the two",
        )
    held.targets(train.labels)
    return train, held


def split(data: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Returns the training and the held-out part of `data`.

    Held out is `fraction` of every class, label or quantile: at least one item, and never all. With several labels an
    item, this is only approximate, and a label of a single item stays in the training part. Raises DataError for a
    single class and for a class that is too small to split.
    """
    require_classes(data)
    ways = {Task.SINGLE_LABEL: _classes, Task.MULTI_LABEL: _several, Task.REGRESSION: _numbers}
    held = ways[data.task](data, fraction, seed)
    train, rest = (data.only(e for e in data.examples if (e.digest in held) is is_held) for is_held in (False, True))
    # Skipped items are listed once, with the training data.
    return train, msgspec.structs.replace(rest, skipped=())


def ranked(digests: Iterable[str], seed: int) -> list[str]:
    """Digests in a pseudo-random order that only the digests and the seed decide."""
    return sorted(digests, key=lambda digest: sha256(f"{seed} {digest}"))


def held_count(count: int, fraction: float) -> int:
    """The number of held-out items of `count`: at least one, and at most all but one."""
    return min(max(round(fraction * count), 1), count - 1)


def _classes(data: Dataset, fraction: float, seed: int) -> set[str]:
    # An item that is listed with two labels counts for the first label, so that both copies are on one side.
    owners: dict[str, str] = {}
    for example in data.examples:
        owners[example.digest] = min(example.label, owners.get(example.digest, example.label))
    members: dict[str, list[str]] = {label: [] for label in data.labels}
    for digest, owner in owners.items():
        members[owner].append(digest)
    held: set[str] = set()
    for label, digests in members.items():
        if len(digests) < 2:
            count = counted(len(digests), "item")
            raise _cannot_split(data, f"the class {quote(label)} has {count} of its own, {TOO_FEW}")
        held.update(ranked(digests, seed)[: held_count(len(digests), fraction)])
    return held


def _numbers(data: Dataset, fraction: float, seed: int) -> set[str]:
    values: dict[str, list[float]] = {}
    for example in data.examples:
        values.setdefault(example.digest, []).append(data.number(example))
    count = _enough(data, len(values))
    held, rest = held_count(count, fraction), count - held_count(count, fraction)
    # Sorting is stable: equal numbers stay in the order that the seed gave them.
    ordered = sorted(ranked(values, seed), key=lambda digest: fmean(values[digest]))
    bins = min(10, held, rest)
    chosen: set[str] = set()
    for number in range(bins):
        members = ordered[count * number // bins : count * (number + 1) // bins]
        wanted = held * (number + 1) // bins - held * number // bins
        chosen.update(ranked(members, seed)[:wanted])
    return chosen


def _several(data: Dataset, fraction: float, seed: int) -> set[str]:
    labels: dict[str, set[str]] = {}
    for example in data.examples:
        labels.setdefault(example.digest, set()).update(data.labels_of(example))
    _enough(data, len(labels))
    order = ranked(labels, seed)
    held = iterative_stratification({digest: sorted(labels[digest]) for digest in order}, fraction)
    members: dict[str, list[str]] = {}
    for digest in order:
        for label in sorted(labels[digest]):
            members.setdefault(label, []).append(digest)
    for _, digests in sorted(members.items()):
        # Every held-out label must also be trained on. A label that is only trained on is allowed, but has no score.
        if held.issuperset(digests):
            held.discard(digests[0])
    if not held:
        spare = [digest for digest in order if all(len(members[label]) > 1 for label in labels[digest])]
        if not spare:
            raise _cannot_split(
                data, f"every item of {data.source} is the only one of a label, and none can be held out"
            )
        held.add(spare[0])
    return held


def iterative_stratification(items: Mapping[str, Sequence[str]], fraction: float) -> set[str]:
    """The keys to hold out of `items`, which maps keys to labels; the order of the keys breaks ties.

    Algorithm 1 of the paper with two subsets. The items of the rarest label are dealt first, each to the side that
    lacks more items of this label or, if both lack equally many, more items in all. The wanted counts are rounded, and
    each side wants at least one item of a label that has two or more.
    """
    members: dict[str, dict[str, None]] = {}
    for key, labels in items.items():
        for label in labels:
            members.setdefault(label, {})[key] = None
    total = held_count(len(items), fraction)
    # The numbers of items that (training, held out) still lack, of every label and in all.
    missing = {label: _sides(len(keys), fraction) for label, keys in members.items()}
    room = [len(items) - total, total]
    held: set[str] = set()
    left = dict.fromkeys(items)

    def deal(key: str, side: int) -> None:
        del left[key]
        room[side] -= 1
        for label in items[key]:
            missing[label][side] -= 1
            del members[label][key]
        if side:
            held.add(key)

    while any(members.values()):
        rarest = min((label for label, keys in members.items() if keys), key=lambda label: (len(members[label]), label))
        for key in list(members[rarest]):
            deal(key, int((missing[rarest][1], room[1]) > (missing[rarest][0], room[0])))
    for key in list(left):
        deal(key, int(room[1] > room[0]))
    return held


def _sides(count: int, fraction: float) -> list[int]:
    held = held_count(count, fraction) if count > 1 else 0
    return [count - held, held]


def _enough(data: Dataset, count: int) -> int:
    if count < 2:
        raise _cannot_split(data, f"{data.source} has {counted(count, 'different item')}, {TOO_FEW}")
    return count


def _cannot_split(data: Dataset, problem: str) -> DataError:
    return DataError(problem, path=data.source, hint="add items, or give a validation set of your own: --val DATA")
