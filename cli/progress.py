"""Bars on stderr: drawn by rich on a terminal, one line a finished task elsewhere. The first bar imports rich."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zoo_cli.output import human_size

from zoo import ProgressBar

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


class Bars:
    """The command line's progress: see zoo.Progress."""

    @contextmanager
    def task(self, description: str, total: int | None, unit: str = "it") -> Iterator[ProgressBar]:
        """A bar on a terminal; elsewhere a line with count and rate once the task is done."""
        started = time.perf_counter()
        if sys.stderr.isatty():
            with _rich(unit, is_counted=total is not None) as progress:
                yield _Drawn(progress, description, total)
            return
        bar = _Counted()
        yield bar
        seconds = max(time.perf_counter() - started, 1e-9)
        done = human_size(bar.done) if unit == "B" else f"{bar.done:,} {unit}"
        rate = f", {human_size(int(bar.done / seconds))}/s" if unit == "B" else f", {bar.done / seconds:,.0f} {unit}/s"
        self.note(f"{description}: {done + ' in ' if bar.done else ''}{seconds:.1f} s{rate if bar.done else ''}")

    def note(self, text: str) -> None:
        """A line on stderr."""
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is the command line's voice


class _Counted:
    def __init__(self) -> None:
        self.done = 0

    def advance(self, amount: int = 1) -> None:
        self.done += amount

    def describe(self, text: str) -> None:
        pass


class _Drawn:
    def __init__(self, progress: "RichProgress", description: str, total: int | None) -> None:
        self.progress = progress
        self.task = progress.add_task(description, total=total)

    def advance(self, amount: int = 1) -> None:
        self.progress.advance(self.task, amount)

    def describe(self, text: str) -> None:
        self.progress.update(self.task, description=text)


def _rich(unit: str, *, is_counted: bool) -> "RichProgress":
    from rich import progress as bars
    from rich.console import Console
    from rich.text import Text

    class Rate(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "", style="progress.data.speed")

    counts: tuple[bars.ProgressColumn, ...] = ()
    if unit == "B":
        counts = (bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
    elif is_counted:
        counts = (bars.MofNCompleteColumn(), Rate(), bars.TimeRemainingColumn())
    words = bars.TextColumn("{task.description}")
    return bars.Progress(words, bars.BarColumn(), bars.TimeElapsedColumn(), *counts, console=Console(stderr=True))
