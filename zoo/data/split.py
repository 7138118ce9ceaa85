"""Splits that only the items' bytes and the seed decide, whatever the order of the data; identical items stay together.

Classes are held out one by one, several labels by iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011,
https://doi.org/10.1007/978-3-642-23808-6_10), numbers by the quantiles they lie in.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from zoo.data.dataset import Dataset, check_kind, load, load_parts, require_classes
from zoo.data.items import listed
from zoo.errors import DataError, quote
from zoo.options import FinetuneOptions
from zoo.progress import SILENT, Progress
from zoo.schema import Preprocess, Task
from zoo.system.files import sha256

#: Quantile bins of a number, where there are items enough to hold one out of each.
BINS = 10
OWN_SET = "add items, or give a validation set of your own: --val DATA"


def divide(
    source: str | Path,
    preprocess: Preprocess,
    options: FinetuneOptions,
    *,
    offline: bool = False,
    progress: Progress = SILENT,
) -> tuple[Dataset, Dataset]:
    """(training, held out) of the data at `source`, as `options.val` says.

    A path names the data held out. The default fraction takes the folder `val`, or else `test`, of data that has one;
    any other fraction is held out of the training part. Raises DataError as `zoo.data.dataset.load` and `split` do, for
    a label that only the held-out data has, and for items that are in both.
    """
    if not isinstance(options.val, float):
        check_kind(options.val, preprocess, task=options.task)
    train, *others = _load(source, preprocess, options, offline, progress)
    require_classes(train)
    if not isinstance(options.val, float):
        held = load(
            options.val, preprocess, task=options.task, text=options.text, image=options.image, label=options.label,
            max_bad=options.max_bad, offline=offline, progress=progress,
        )  # fmt: skip
    elif others and options.val == FinetuneOptions().val:
        held = others[0]
        for more in others[1:]:
            progress.note(f"{more.source}: {len(more.examples):,} items are left for zoo evaluate")
    else:
        return split(train, options.val, options.seed)
    both = {example.digest for example in train.examples} & {example.digest for example in held.examples}
    if both:
        names = [example.name for example in held.examples if example.digest in both]
        raise DataError(
            f"{len(both)} items of {held.source} are also in {train.source}: a score on them would mean nothing: "
            f"{listed(names)}",
            path=held.source,
            hint="remove them from one of the two",
        )
    held.targets(train.labels)
    return train, held


def _load(
    source: str | Path, preprocess: Preprocess, options: FinetuneOptions, offline: bool, progress: Progress
) -> list[Dataset]:
    """The parts of a data set in the order `train`, `val`, `test`; often it is the first alone."""
    parts = load_parts(
        source, preprocess, task=options.task, text=options.text, image=options.image, label=options.label,
        max_bad=options.max_bad, offline=offline, progress=progress,
    )  # fmt: skip
    return list(parts.values())


def split(data: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """(training, held out): `fraction` of every class held out, at least one item and never all of them.

    The same of every label where items have several, as far as they allow; a label of one item is only trained on. Of
    numbers `fraction` of each quantile. Raises DataError for one class only, or a class too small to split.
    """
    require_classes(data)
    ways = {Task.SINGLE_LABEL: _classes, Task.MULTI_LABEL: _several, Task.REGRESSION: _numbers}
    held = ways[data.task](data, fraction, seed)
    train = data.only(example for example in data.examples if example.digest not in held)
    # What was skipped is told once, with the training data.
    return train, Dataset(
        data.source, tuple(example for example in data.examples if example.digest in held), data.task, (), data.column
    )


def ranked(digests: Iterable[str], seed: int) -> list[str]:
    """Digests in an order that nothing but themselves and the seed decides."""
    return sorted(digests, key=lambda digest: sha256(f"{seed} {digest}"))


def wish(count: int, fraction: float) -> int:
    """How many of `count` items to hold out: at least one, and one fewer than all."""
    return min(max(round(fraction * count), 1), count - 1)


def _classes(data: Dataset, fraction: float, seed: int) -> set[str]:
    # An item that stands under two labels counts for the first of them: on both sides, it would give itself away.
    owners: dict[str, str] = {}
    for example in data.examples:
        owners[example.digest] = min(example.label, owners.get(example.digest, example.label))
    members: dict[str, list[str]] = {label: [] for label in data.labels}
    for digest, owner in owners.items():
        members[owner].append(digest)
    held: set[str] = set()
    for label, digests in members.items():
        if len(digests) < 2:
            raise DataError(
                f"the class {quote(label)} has {len(digests)} item{'' if len(digests) == 1 else 's'} of its own, "
                "and at least 2 are needed to hold one out",
                path=data.source,
                hint=OWN_SET,
            )
        held.update(ranked(digests, seed)[: wish(len(digests), fraction)])
    return held


def _numbers(data: Dataset, fraction: float, seed: int) -> set[str]:
    values: dict[str, list[float]] = {}
    for example in data.examples:
        values.setdefault(example.digest, []).append(data.number(example))
    count = _enough(data, len(values))
    held, rest = wish(count, fraction), count - wish(count, fraction)
    # Sorting is stable: equal numbers stay in the order that the seed gave them.
    ordered = sorted(ranked(values, seed), key=lambda digest: fmean(values[digest]))
    bins = min(BINS, held, rest)
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
        # A model learns what it is to be judged on; the other way round, a label without an item has no score.
        if held.issuperset(digests):
            held.discard(digests[0])
    if not held:
        spare = [digest for digest in order if all(len(members[label]) > 1 for label in labels[digest])]
        if not spare:
            raise DataError(
                f"every item of {data.source} is the only one of a label, and none can be held out",
                path=data.source,
                hint=OWN_SET,
            )
        held.add(spare[0])
    return held


def iterative_stratification(items: Mapping[str, Sequence[str]], fraction: float) -> set[str]:
    """The keys held out of `items`, which gives each key's labels; the order of the keys breaks ties.

    The rarest label is dealt first, each of its items to the side that still misses most of this label, then most items
    at all: Algorithm 1 of the paper with two subsets. What a side should get of a label is rounded, and neither side
    gets nothing of a label of two items or more.
    """
    members: dict[str, dict[str, None]] = {}
    for key, labels in items.items():
        for label in labels:
            members.setdefault(label, {})[key] = None
    total = wish(len(items), fraction)
    # What is still missing, (training, held out), of every label and altogether.
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
    held = wish(count, fraction) if count > 1 else 0
    return [count - held, held]


def _enough(data: Dataset, count: int) -> int:
    if count < 2:
        raise DataError(
            f"{data.source} has {count} different item, and at least 2 are needed to hold one out",
            path=data.source,
            hint=OWN_SET,
        )
    return count
