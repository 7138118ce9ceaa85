"""Progress on stderr: bars on a terminal; elsewhere a line every ten seconds and a line for each finished task.

The package rich draws the bars; it is imported for the first bar.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zoo_cli.output import human_size, say

from zoo import ProgressBar

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


#: Seconds between two lines of one task without a terminal.
LINE_EVERY = 10.0


class Bars:
    """The progress of the command line: see zoo.Progress."""

    @contextmanager
    def task(self, description: str, total: int | None, unit: str = "it") -> Iterator[ProgressBar]:
        """A bar on a terminal; elsewhere lines with count, rate and remaining time, and one when the task is done."""
        if sys.stderr is not None and sys.stderr.isatty():
            with _rich(unit, is_counted=total is not None) as progress:
                yield _Drawn(progress, description, total)
            return
        bar = _Lines(description, total, unit, self.note)
        yield bar
        bar.end()

    def note(self, text: str) -> None:
        """Print a line on stderr."""
        say(text)


class _Lines:
    """The progress of a task as lines, for logs."""

    def __init__(self, description: str, total: int | None, unit: str, note: Callable[[str], None]) -> None:
        self.description, self.total, self.unit, self.note = description, total, unit, note
        self.done = 0
        self.started = self.reported = time.perf_counter()

    def advance(self, amount: int = 1) -> None:
        self.done += amount
        now = time.perf_counter()
        if now - self.reported < LINE_EVERY or not self.done:
            return
        self.reported, rate = now, self.done / (now - self.started)
        of, left = "", ""
        if self.total is not None:
            of = f" of {self.total:,}" if self.unit != "B" else f" of {human_size(self.total)}"
            left = f", {_time((self.total - self.done) / rate)} left"
        self.note(f"{self.description}: {self._count()}{of}, {self._rate(rate)}{left}")

    def describe(self, text: str) -> None:
        self.description = text

    def end(self) -> None:
        seconds = max(time.perf_counter() - self.started, 1e-9)
        count = f"{self._count()} in " if self.done else ""
        rate = f", {self._rate(self.done / seconds)}" if self.done else ""
        self.note(f"{self.description}: {count}{seconds:.1f} s{rate}")

    def _count(self) -> str:
        return human_size(self.done) if self.unit == "B" else f"{self.done:,} {_units(self.unit, self.done)}"

    def _rate(self, rate: float) -> str:
        return f"{human_size(int(rate))}/s" if self.unit == "B" else _per_second(rate, self.unit)


def _per_second(rate: float, unit: str) -> str:
    """A rate as 120 it/s, 1.2 it/s, or 5.0 s/it if a unit takes longer than a second."""
    if 0 < rate < 1:
        return f"{1 / rate:,.1f} s/{unit}"
    units = _units(unit, rate)
    return f"{rate:,.0f} {units}/s" if rate >= 10 else f"{rate:.1f} {units}/s"


def _units(unit: str, number: float) -> str:
    """The unit after a number: 1 epoch, 2 epochs; `it` has no plural."""
    return unit if unit == "it" or number == 1 else f"{unit}s"


def _time(seconds: float) -> str:
    """Seconds as 7 s, 3:20 or 1:02:03."""
    whole = max(0, round(seconds))
    minutes, hours = whole // 60 % 60, whole // 3600
    if hours:
        return f"{hours}:{minutes:02}:{whole % 60:02}"
    return f"{minutes}:{whole % 60:02}" if minutes else f"{whole} s"


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
            return Text(_per_second(task.speed, unit) if task.speed else "", style="progress.data.speed")

    class Count(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            return Text(f"{task.completed:,.0f} {unit}" if task.completed else "", style="progress.download")

    counts: tuple[bars.ProgressColumn, ...]
    if unit == "B":
        counts = (bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
    elif is_counted:
        counts = (bars.MofNCompleteColumn(), Rate(), bars.TimeRemainingColumn())
    else:
        # A task without a count has neither count nor rate.
        counts = (Count(), Rate())
    description = bars.TextColumn("{task.description}")
    # rich must not redirect stdout: data must go into the pipe, and rich would print them above the bar.
    columns = description, bars.BarColumn(), bars.TimeElapsedColumn(), *counts
    return bars.Progress(*columns, console=Console(stderr=True), redirect_stdout=False)
