"""Labelled items, and class Unreadable, which collects the items that cannot be read."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

from msgspec import Struct

from zoo.errors import DataError, ZooError, named

#: A function that gets the index and the error of an unreadable item. It returns to leave the item out, or raises.
Skip: TypeAlias = Callable[[int, DataError], None]


class TextPair(NamedTuple):
    """Two texts that are one input, for classifiers of pairs: a premise and a hypothesis, a query and a document."""

    text: str
    pair: str


#: An image's path or its bytes, a text, or a pair of texts.
Item: TypeAlias = Path | str | bytes | TextPair
#: Separates the labels of one cell.
SEPARATOR = "|"
Made = TypeVar("Made")


class Example(Struct, frozen=True):
    """One item: `name` for messages, `label` the cell or the folder's name, `digest` the sha256 of the item's bytes."""

    name: str
    item: Item
    label: str
    digest: str


class Skipped(Struct, frozen=True):
    """An item that is left out, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def attempt(function: Callable[..., Made], *arguments: Any) -> Made | DataError:
    """The result of `function`, or the DataError that it raises."""
    try:
        return function(*arguments)
    except DataError as error:
        return error


def listed(names: Iterable[object], limit: int = 5) -> str:
    """The first `limit` names, and the number of the others, as text."""
    words = [str(name) for name in names]
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more


class Unreadable:
    """Collects the examples that turn out to be unreadable, and raises DataError when there are too many.

    Args:
        skipped: items of the same data that were left out before.
        total: all items of the data, those in `skipped` included.
        max_bad: the fraction of `total` that may be unreadable; one item must always be left.
    """

    def __init__(self, skipped: Sequence[Skipped], total: int, max_bad: float) -> None:
        self.skipped, self.total, self.max_bad = skipped, total, max_bad
        self.found: dict[Example, Skipped] = {}

    def skip(self, examples: Sequence[Example]) -> Skip:
        """A function for the argument `skip` of a Session that reads `examples`: it records each unreadable one."""

        def collect(index: int, error: ZooError) -> None:
            example = examples[index]
            # Keep only the name: `skipped.jsonl` may be published, and must not show paths.
            path = f"{example.item}: " if isinstance(example.item, Path) else ""
            self.found[example] = Skipped(example.name, error.message.removeprefix(path))
            self.check()

        return collect

    def kept(self, examples: Sequence[Example]) -> list[bool]:
        """For each example, whether it is kept, because it had no error so far."""
        return [example not in self.found for example in examples]

    def check(self) -> None:
        """Raise DataError, naming the first bad items, if there are more than `max_bad` allows."""
        # 1e-9 corrects the rounding of a product: 0.29 * 100 is a little below 29.
        allowed = min(math.floor(self.max_bad * self.total + 1e-9), self.total - 1)
        count = len(self.skipped) + len(self.found)
        if count <= allowed:
            return
        bad = [*self.skipped, *self.found.values()]
        share = math.ceil(100 * count / self.total - 1e-9) / 100
        problem = f"{count} of {self.total} items cannot be used"
        if count < self.total:
            problem += f", more than --max-bad {self.max_bad:g} allows ({allowed})"
        raise DataError(
            f"{problem}: {listed(bad)}",
            path=bad[0].name,
            hint=f"repair or remove them, or {f'--max-bad {share:g}' if share < 1 else 'give other data'}",
        )


def refuse(examples: Sequence[Example]) -> Skip:
    """The `skip` for a Session that raises the error of the first unreadable example, with its name and index."""

    def fail(index: int, error: ZooError) -> None:
        if isinstance(error, DataError):
            error.index = index
        raise named(error, examples[index].name, examples[index].item)

    return fail
