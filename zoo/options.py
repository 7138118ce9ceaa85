"""What a user asks of each verb: how to export, how to train. Data only."""

import math
from typing import Literal, get_args

from msgspec import Struct

from zoo.errors import UsageError
from zoo.schema import Precision, Task

#: Items that are answered in one call.
BATCHES = (1, 8, 32)


class Variant(Struct, frozen=True, kw_only=True):
    """How a model is exported: in the precision that it has, where none is given.

    `calibrate` is data from which int8 reads ranges; its held-out items judge the result. A table of words and an
    encoder of texts have no ranges: there it only judges. `raw` leaves out preprocessing and head.
    `fuse` writes an encoder in ONNX Runtime's own operators, which nothing else runs.
    At most `max_drop` of the score may be lost (one item, where that is more). `text`, `image`, `label` and `max_bad`
    are read of the data as in `FinetuneOptions`. Raises UsageError for what makes no sense.
    """

    precision: Precision | None = None
    fuse: bool = False
    raw: bool = False
    calibrate: str | None = None
    max_drop: float = 0.01
    text: str | None = None
    image: str | None = None
    label: str | None = None
    max_bad: float = 0.01

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in get_args(Precision):
            raise UsageError(
                f"the precision {self.precision} is not known", hint=f"--precision {', '.join(get_args(Precision))}"
            )
        if not 0 <= self.max_drop < 1:
            raise UsageError(f"--max-drop {self.max_drop} is not a fraction", hint="--max-drop 0.01")
        if not 0 <= self.max_bad < 1:
            raise UsageError(f"--max-bad {self.max_bad} is not a fraction", hint="--max-bad 0.01")
        if self.calibrate and self.precision != "int8":
            raise UsageError("only int8 is calibrated", hint="--precision int8, or leave --calibrate out")


class FinetuneOptions(Struct, frozen=True, kw_only=True):
    """How a model is trained. `val` is a fraction held out of the data, or the path of a data set of its own.

    `lr` and `weight_decay` are searched for on the features where they are None. `batch` is items in a step: where it
    is None 64 to 1,024 of a head's, by how many there are, and 32 of the last stages'; `auto_batch` halves that when
    memory does not suffice. Training stops early after `patience` epochs without a better inner loss. `unfreeze` is how
    many of the last stages are trained with the head, `augment` how many random views of each picture, `max_bad` the
    fraction of the items that may be unreadable.
    Raises UsageError for numbers that make no sense.
    """

    task: Task = Task.SINGLE_LABEL
    epochs: int = 100
    hidden: tuple[int, ...] = ()
    lr: float | None = None
    weight_decay: float | None = None
    batch: int | None = None
    auto_batch: bool = False
    patience: int = 20
    label_smoothing: float = 0.0
    class_weights: bool = False
    unfreeze: int = 0
    augment: int = 0
    seed: int = 0
    val: float | str = 0.2
    max_bad: float = 0.01
    resume: bool = False
    device: str = "auto"
    text: str | None = None
    image: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        positive = {"epochs": self.epochs, "batch": self.batch, "lr": self.lr, "patience": self.patience}
        for name, value in positive.items():
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} must be a positive number, not {value}", hint=f"leave --{name} out")
        if self.task is Task.EMBEDDING:
            raise UsageError("an embedding is not trained", hint="--task single-label, multi-label or regression")
        if self.task is not Task.SINGLE_LABEL and (self.class_weights or self.label_smoothing):
            raise UsageError("--class-weights and --label-smoothing are for one label an item", hint="leave them out")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"--label-smoothing {self.label_smoothing} is not in 0..1", hint="--label-smoothing 0.1")
        if not 0 <= self.max_bad <= 1:
            raise UsageError(f"--max-bad {self.max_bad} is not a fraction", hint="--max-bad 0.01")
        if min(self.unfreeze, self.augment) < 0:
            raise UsageError("--unfreeze and --augment must not be negative", hint="leave them out")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"the seed must be in 0..2**63-1, not {self.seed}", hint="--seed 0")
        if self.weight_decay is not None and not self.weight_decay >= 0:
            raise UsageError(f"weight decay must not be negative, not {self.weight_decay}", hint="--weight-decay")
        if isinstance(self.val, float) and not 0 < self.val < 1:
            raise UsageError(f"--val {self.val} is not a fraction", hint="between 0 and 1, or the path of a data set")


def parse_head(text: str) -> tuple[int, ...]:
    """Hidden layer widths of `linear`, `mlp` (one of 256) or `mlp:512,128`. Raises UsageError."""
    kind, _, widths = text.partition(":")
    if kind == "linear" and not widths:
        return ()
    if kind == "mlp":
        try:
            hidden = tuple(int(width) for width in widths.split(",")) if widths else (256,)
        except ValueError:
            hidden = (0,)
        if min(hidden) > 0:
            return hidden
    raise UsageError(f"unknown head '{text}'", hint="--head linear, --head mlp or --head mlp:512,128")


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
