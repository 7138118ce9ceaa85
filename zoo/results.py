"""What the verbs answer with, for a notebook to use and the command line to print."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from msgspec import Struct

from zoo.errors import ZooError
from zoo.schema import Entry, Metrics, Task


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `zoo list`."""

    entry: Entry
    is_pulled: bool


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `zoo doctor`: what was looked at, its state, what was found, and the command that mends it.

    `warn` says what does not work here, or not for long; `fail` is a fault, and has an exit code.
    """

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str | None = None
    exit_code: int = 0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why one input has no answer: what the error would have said."""

    code: str
    message: str
    hint: str | None

    @staticmethod
    def of(error: ZooError) -> "Failure":
        """The failure that an error is."""
        return Failure(code=error.code, message=error.message, hint=error.hint)

    def as_error(self) -> ZooError:
        """The error again, to be raised."""
        return ZooError.restore(self.code, self.message, self.hint)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a model says about one input: labels with scores, best first; the features where there is no head.

    Where several labels may hold, `chosen` are those that do, at or above their thresholds: they come first. A model
    of a number answers with its `value`. `words` are the nearest words with their cosine similarities, where a table
    of word vectors was asked. An input that cannot be read has an `error` instead.
    """

    input: str
    labels: tuple[tuple[str, float], ...] = ()
    features: tuple[float, ...] = ()
    words: tuple[tuple[str, float], ...] = ()
    chosen: tuple[str, ...] | None = None
    value: float | None = None
    error: Failure | None = None


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model runs: `used` (`cpu`, `cuda:0`, `tensorrt:0`) is what was made of what was `asked`.

    `why` says what stood against a better device, where `auto` took the CPU. `nodes` are those of the graph by ONNX
    Runtime's provider (`CUDA`, `CPU`), as the runtime reports them: pictures are resized on the CPU before it, always.
    """

    asked: str
    used: str
    why: str | None = None
    nodes: dict[str, int] = {}

    def __str__(self) -> str:
        if self.why is not None:
            return f"{self.used} ({self.asked}: {self.why})"
        if self.used == "cpu":
            return self.used
        return f"{self.used} ({', '.join(f'{count} nodes on {name}' for name, count in self.nodes.items())})"


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """Answers in the order of the inputs, and the device that really ran; `placement` says how it came to it."""

    model: str
    entry: str
    device: str
    answers: tuple[Answer, ...]
    placement: Placement | None = None


class Answers:
    """Answers one after another, in the order of the inputs, while these are read: to be gone through once.

    `entry` is the registry row behind the model, `device` what it really runs on, `placement` how it came to it.
    """

    def __init__(self, entry: str, device: str, placement: Placement | None, found: Iterator[Answer]) -> None:
        self.entry = entry
        self.device = device
        self.placement = placement
        self._found = found

    def __iter__(self) -> Iterator[Answer]:
        return self._found


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle's metrics on labelled data; `trained_on` counts items its head was fitted to.

    An item has its score of every one of `labels` in `predictions`, what is answered in `predicted` and what is so in
    `truth`, several labels joined by `|`. `skipped` are lines on the items that could not be read. `placement` is as of
    a RunResult.
    """

    model: str
    data: str
    device: str
    task: Task
    labels: tuple[str, ...]
    metrics: Metrics
    trained_on: int
    predictions: tuple[Answer, ...]
    predicted: tuple[str, ...]
    truth: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    placement: Placement | None = None


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What a verb wrote at `out`: of `inputs` inputs `rows` have one; the others failed.

    `resumed` of the inputs were there before. `failures` are the names of the first that failed in this run, each with
    the reason; the output has them all. `fingerprint` is of what made the rows, `placement` as of a RunResult.
    """

    model: str
    entry: str
    device: str
    out: str
    fingerprint: str
    inputs: int
    rows: int
    resumed: int = 0
    failures: tuple[tuple[str, Failure], ...] = ()
    placement: Placement | None = None

    @property
    def failed(self) -> int:
        """How many inputs have no row."""
        return self.inputs - self.rows


class Embedded(Written, frozen=True, kw_only=True):
    """What `embed` wrote: vectors, each of `dim` numbers."""

    dim: int


class Answered(Written, frozen=True, kw_only=True):
    """What `run_to_file` wrote: a row of `columns` an input."""

    columns: tuple[str, ...]


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs most like `query`, best first, each with its cosine similarity; `compared` is how many there were.

    `warnings` say what may be wrong with comparing them, `failures` which inputs could not be read: the first of
    `failed`. `approximate` is whether an index was asked, which may miss some. `placement` is as of a RunResult.
    """

    model: str
    query: str
    device: str
    compared: int
    matches: tuple[tuple[str, float], ...]
    warnings: tuple[str, ...] = ()
    failed: int = 0
    failures: tuple[tuple[str, Failure], ...] = ()
    approximate: bool = False
    placement: Placement | None = None


def to_json(data: Any) -> str:
    """Compact JSON of any of zoo's nouns, or of plain data holding them."""
    try:
        return msgspec.json.encode(data).decode()
    except UnicodeEncodeError:
        # The name of a file, or a text, whose bytes are no UTF-8: Python's own encoder writes escapes.
        return json.dumps(msgspec.to_builtins(data), separators=(",", ":"))


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
