"""Results of the verbs, for use in Python and for the command line to print."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from zoo.errors import ZooError, counted
from zoo.schema import Entry, Manifest, Metrics, Task


class Row(Struct, frozen=True, kw_only=True):
    """One line of `zoo list`."""

    entry: Entry
    is_pulled: bool


class Check(Struct, frozen=True):
    """One line of `zoo doctor`: what was checked, its state, what was `found`, and the command that fixes it.

    `warn` means that something works only in part, or not for long; `fail` is a fault with an exit code.
    """

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str | None = None
    exit_code: int = 0


class Failure(Struct, frozen=True, kw_only=True):
    """Code, message and hint of the error of one input."""

    code: str
    message: str
    hint: str | None

    @staticmethod
    def of(error: ZooError) -> "Failure":
        """The code, message and hint of `error`."""
        return Failure(code=error.code, message=error.message, hint=error.hint)


class Answer(Struct, frozen=True, kw_only=True):
    """A model's answer for one input. Exactly the fields that fit the model are set.

    `labels`: labels with scores, best first; for multi-label the `chosen` ones (score at or above the threshold) first.
    `features`: the feature vector, if the model has no head.
    `words`: nearest words with cosine similarities, for word vectors.
    `value`: the number, for regression.
    `error`: set instead if the input failed.
    """

    input: str
    labels: tuple[tuple[str, float], ...] = ()
    features: tuple[float, ...] = ()
    words: tuple[tuple[str, float], ...] = ()
    chosen: tuple[str, ...] | None = None
    value: float | None = None
    error: Failure | None = None


class Placement(Struct, frozen=True, kw_only=True):
    """Where a model runs: the device that was `asked` for and the one `used` (`cpu`, `cuda:0`, `tensorrt:0`).

    `why` is the reason for the CPU if `auto` chose it. `nodes` counts the graph's nodes for each provider of ONNX
    Runtime (`CUDA`, `CPU`), as the runtime reports them. Images are always resized on the CPU, outside that graph.
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
        nodes = (f"{counted(count, 'node')} on {name}" for name, count in self.nodes.items())
        return f"{self.used} ({', '.join(nodes)})"


class RunResult(Struct, frozen=True, kw_only=True):
    """Answers in the order of the inputs, and the `device` that ran; `placement` explains the choice of the device."""

    model: str
    entry: str
    device: str
    answers: tuple[Answer, ...]
    placement: Placement | None = None


class Answers(Struct, frozen=True, eq=False):
    """An iterator over answers in the order of the inputs; it can be used once.

    Inputs are read as answers are consumed. `entry` is the registry row of the model, `device` the device that runs;
    `placement` explains the choice of the device. `no_head` is the reason why answers are features although labels were
    asked for. `is_measurable` is true if the answers are labels or numbers that `zoo evaluate` can measure.
    """

    entry: str
    device: str
    placement: Placement | None
    found: Iterator[Answer]
    no_head: str | None = None
    is_measurable: bool = False

    def __iter__(self) -> Iterator[Answer]:
        return self.found


class Epoch(Struct, frozen=True, kw_only=True):
    """One point of the learning curve; `val_loss` and `val_score` are of items that were not trained on.

    An epoch of a linear head is a `strength` of regularisation (for each item), solved to its optimum and calibrated.
    Losses are mean cross-entropy in nats, for regression the mean squared error of the standardised target; with class
    weights the `val_loss` of a linear head is 1 - macro-F1. `val_score` is `Metrics.score`.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_score: float
    strength: float | None = None


class Suspect(Struct, frozen=True, kw_only=True):
    """A training item that is probably mislabelled; `place` is its index.

    `predicted` is the answer of heads that did not learn the item. `score` is their score for the item's own label
    (with several labels: for its most doubtful one, `about`, being as it is); in a regression it is the error.
    """

    place: int
    name: str
    label: str
    predicted: str
    about: str = ""
    score: float


class LearningPoint(Struct, frozen=True):
    """The loss and the score on items left out when only `items` of the training items are learned."""

    items: int
    loss: float
    score: float


class Outcome(Struct, frozen=True, kw_only=True):
    """The result of fine-tuning: the bundle's manifest, the learning curve, and `skipped` items with their reasons.

    `computed` counts the `items` whose features were not in the cache. `suspects` are training items that are probably
    mislabelled, the most suspicious first. `learning` shows whether more items would help.
    """

    manifest: Manifest
    metrics: Metrics
    curve: tuple[Epoch, ...]
    best_epoch: int
    computed: int
    items: int
    skipped: tuple[str, ...] = ()
    suspects: tuple[Suspect, ...] = ()
    learning: tuple[LearningPoint, ...] = ()


class Compared(Struct, frozen=True, kw_only=True):
    """One model of a comparison; `metrics` are of items that the heads did not learn (out-of-fold scores).

    `interval` is the 95 % interval of `metrics.score`. `behind` is by how much the best model scores more on the same
    items, `p_value` the chance of such a difference between equally good models, and `is_within_noise` is true from 5 %
    on. `size` is that of the ONNX graph in bytes, `dim` the number of features. `computed` counts the items whose
    features were not in the cache. `ms` and `int8_ms` are milliseconds for one item on the comparison's device; int8 is
    None where the model or the device has none.
    """

    model: str
    entry: str
    metrics: Metrics
    interval: tuple[float, float]
    behind: float
    p_value: float
    is_within_noise: bool
    size: int
    dim: int
    computed: int
    feature_seconds: float
    head_seconds: float
    ms: float
    int8_ms: float | None = None


class Comparison(Struct, frozen=True, kw_only=True):
    """The result of `zoo compare`: `models` best first, the `choice` among them, and in one sentence `why`.

    `items` counts the items that all models could read; `skipped` are the others, with their reasons. `failures` are
    models that could not be compared, with the reason.
    """

    data: str
    task: Task
    device: str
    items: int
    models: tuple[Compared, ...]
    choice: str
    why: str
    skipped: tuple[str, ...] = ()
    failures: tuple[tuple[str, Failure], ...] = ()


class Evaluation(Struct, frozen=True, kw_only=True):
    """A bundle's metrics on labelled data; `trained_on` counts the items that its head was trained on.

    For each item, `predictions` has the scores of all labels, `predicted` the model's answer and `truth` the true label
    (several labels are joined by `|`). `skipped` has one line for each unreadable item.
    """

    model: str
    data: str
    device: str
    task: Task
    labels: tuple[str, ...]
    metrics: Metrics
    trained_on: int
    predictions: Sequence[Answer]
    predicted: tuple[str, ...]
    truth: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    placement: Placement | None = None


class Written(Struct, frozen=True, kw_only=True):
    """The file that a verb wrote at `out`: `rows` of the `inputs` have a row, the others failed.

    `resumed` counts inputs that were written before. `failures` are the first inputs that failed in this run, with the
    reason; the file has all of them. `fingerprint` identifies the model.
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
        """How many inputs failed."""
        return self.inputs - self.rows


class Embedded(Written, frozen=True, kw_only=True):
    """The file that `embed` wrote: vectors of `dim` numbers."""

    dim: int


class Answered(Written, frozen=True, kw_only=True):
    """The file that `run_to_file` wrote: for each input a row of `columns`."""

    columns: tuple[str, ...]


class Ranking(Struct, frozen=True, kw_only=True):
    """The inputs most similar to `query`, best first, with their cosine similarities.

    `compared` counts the vectors that were compared. `warnings` are reasons to doubt the comparison. `failed` counts
    unreadable inputs, `failures` are the first of them. `approximate` is true if an index was used, which can miss
    matches.
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
    """Compact JSON of any struct of zoo, or of plain data that contains some."""
    try:
        return msgspec.json.encode(data).decode()
    except UnicodeEncodeError:
        # A file name or text whose bytes are not UTF-8: Python's own encoder writes escapes.
        return json.dumps(msgspec.to_builtins(data), separators=(",", ":"))


class Timing(Struct, frozen=True, kw_only=True):
    """Milliseconds of one call of `system` with `batch` items: the median of the rounds' medians, and their range.

    `of_peak` is the fraction of the machine's measured float32 peak, None if the multiply-adds are unknown.
    """

    system: str
    batch: int
    ms: float
    low: float
    high: float
    per_second: float
    of_peak: float | None = None


class ColdStart(Struct, frozen=True, kw_only=True):
    """Seconds from the start of a process to the first answer of `system`: median and range."""

    system: str
    seconds: float
    low: float
    high: float


class Verdict(Struct, frozen=True, kw_only=True):
    """Which system is faster at `batch`, by the factor `times`; None if the ranges of the rounds overlap."""

    batch: int
    winner: str | None
    loser: str | None
    times: float


class Benchmark(Struct, frozen=True, kw_only=True):
    """The result of `zoo bench`: `size` of the graph in bytes, `macs` multiply-adds for one item, `peak` in GFLOP/s.

    `peak_is` describes the measurement of `peak`. `load` is the machine's load average before the start. `rival` is the
    system that `verdicts` compare with.
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
