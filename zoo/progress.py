"""Interfaces for the progress of long work: zoo counts units, and the caller draws the bars."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Bar(Protocol):
    """The progress bar of one task."""

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units as done."""

    def describe(self, text: str) -> None:
        """Replace the text beside the bar."""


class Progress(Protocol):
    """A factory of progress bars; the command line draws them with rich."""

    def task(self, description: str, total: int | None, unit: str = "it") -> AbstractContextManager[Bar]:
        """A bar of `total` units (`it`, `epoch` or `B`); None if the total is unknown."""

    def note(self, text: str) -> None:
        """Print one line beside the bars."""


class Silent:
    """A Progress, and a Bar, that draw nothing: the default of the Python interface."""

    def task(self, description: str, total: int | None, unit: str = "it") -> AbstractContextManager[Bar]:
        """A bar that draws nothing."""
        return nullcontext(self)

    def note(self, text: str) -> None:
        """Print nothing."""

    def advance(self, amount: int = 1) -> None:
        """Draw nothing."""

    def describe(self, text: str) -> None:
        """Draw nothing."""


SILENT: Progress = Silent()
