"""How long work tells how far it is: the core counts, the caller draws."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """One running piece of work."""

    def advance(self, amount: int = 1) -> None:
        """Say that `amount` more units are done."""

    def describe(self, text: str) -> None:
        """Replace the words beside the bar."""


class Progress(Protocol):
    """Where bars come from; the command line draws them with rich, a notebook may do as it likes."""

    def task(self, description: str, total: int | None, unit: str = "it") -> AbstractContextManager[Bar]:
        """A bar of `total` units (`it`, `B`); None when the total is unknown."""

    def note(self, text: str) -> None:
        """A line worth reading once, beside the bars."""


class _SilentBar:
    def advance(self, amount: int = 1) -> None:
        pass

    def describe(self, text: str) -> None:
        pass


class Silent:
    """No bars: the default of the Python interface."""

    @contextmanager
    def task(self, description: str, total: int | None, unit: str = "it") -> Iterator[Bar]:
        """A bar that draws nothing."""
        yield _SilentBar()

    def note(self, text: str) -> None:
        """Nothing is said."""


SILENT: Progress = Silent()
