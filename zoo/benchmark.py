"""What `zoo bench` is asked and what it answers. Data only."""

import math
from typing import Literal

from msgspec import Struct

from zoo.errors import UsageError

#: Items that are answered in one call.
BATCHES = (1, 8, 32)


class BenchOptions(Struct, frozen=True, kw_only=True):
    """How a model is timed: in `rounds` turns of `seconds` for each system and batch.

    `length` is tokens of each text (32, or the model's limit where that is less), `threads` those that compute (all
    cores by default), `against` a rival that is timed beside. Raises UsageError for what makes no sense.
    """

    device: str = "auto"
    against: Literal["torch"] | None = None
    rounds: int = 5
    seconds: float = 1.0
    threads: int | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        if self.against not in (None, "torch"):
            raise UsageError(f"'{self.against}' is nothing to compare with", hint="--against torch")
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"--seconds {self.seconds:g} is no time", hint="--seconds 1")
        for name, value in (("rounds", self.rounds), ("threads", self.threads), ("length", self.length)):
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be 1 or more, not {value}", hint=f"leave --{name} out")


class Timing(Struct, frozen=True, kw_only=True):
    """Milliseconds of one call of `system` with `batch` items: the median of the rounds' medians, and their range.

    `of_peak` is the fraction of the machine's measured float32 peak, None where the multiply-adds are not known.
    """

    system: str
    batch: int
    ms: float
    low: float
    high: float
    per_second: float
    of_peak: float | None = None


class ColdStart(Struct, frozen=True, kw_only=True):
    """Seconds from the start of a process to the first answer of `system`: the median, and the range."""

    system: str
    seconds: float
    low: float
    high: float


class Verdict(Struct, frozen=True, kw_only=True):
    """Which system is faster at `batch`, and how many `times`; None where the rounds' ranges overlap."""

    batch: int
    winner: str | None
    loser: str | None
    times: float


class Benchmark(Struct, frozen=True, kw_only=True):
    """What `zoo bench` found. `size` is bytes of the graph, `macs` multiply-adds an item, `peak` in GFLOP/s.

    `load` is how busy the machine was before, in processes. `rival` is what `verdicts` compare with.
    """

    model: str
    entry: str
    precision: str
    device: str
    threads: int
    size: int
    length: int | None
    macs: int | None
    peak: float
    peak_is: str
    rounds: int
    seconds: float
    load: float
    versions: dict[str, str]
    cold: tuple[ColdStart, ...]
    timings: tuple[Timing, ...]
    rival: str | None = None
    verdicts: tuple[Verdict, ...] = ()
