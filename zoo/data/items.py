"""The nouns of a data set: a labelled item, and one that cannot be used."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from msgspec import Struct

from zoo.errors import DataError, ZooError, named, short

#: Told the place and the error of an item that cannot be read, which is then left out; or it raises.
Skip: TypeAlias = Callable[[int, DataError], None]

#: A picture's path or its bytes, or a text.
Item: TypeAlias = Path | str | bytes
#: Between the labels of one cell.
SEPARATOR = "|"
#: Names that a message lists before it only counts.
LISTED = 5


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


def listed(names: Iterable[object], limit: int = LISTED) -> str:
    """The first names, and how many more there are."""
    words = [str(name) for name in names]
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more


def quoted(labels: Iterable[str]) -> list[str]:
    """Labels in quotes, fit to be printed inside one line."""
    return [f"'{short(label)}'" for label in labels]


def check_bad(skipped: Sequence[Skipped], total: int, max_bad: float) -> None:
    """Raise DataError when more than `max_bad` (a fraction) of `total` items cannot be used; it names the first."""
    # A product such as 0.29 * 100 lies a little below the whole number that is meant.
    allowed = math.floor(max_bad * total + 1e-9)
    if len(skipped) <= allowed:
        return
    enough = math.ceil(100 * len(skipped) / total - 1e-9) / 100
    remedy = f"--max-bad {enough:g}" if enough < 1 else "give other data"
    raise DataError(
        f"{len(skipped)} of {total} items cannot be used, more than --max-bad {max_bad:g} allows ({allowed}): "
        f"{listed(skipped)}",
        path=skipped[0].name,
        hint=f"repair or remove them, or {remedy}",
    )


class Failures:
    """What is wrong with which item; called as a Session's `skip`. Without `keep_going` the first one is raised."""

    def __init__(self, names: Sequence[str], items: Sequence[object], keep_going: bool) -> None:
        self.names = names
        self.items = items
        self.keep_going = keep_going
        self.found: dict[int, ZooError] = {}

    def __call__(self, index: int, error: ZooError) -> None:
        """Keep the error of the item at this place, or raise it."""
        error = named(error, self.names[index], self.items[index])
        if not self.keep_going:
            raise error
        self.found[index] = error
