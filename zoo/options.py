"""Options of exporting, training and timing, checked when they are created."""

import math
from typing import Literal, get_args

from msgspec import Struct
from msgspec.structs import asdict

from zoo.errors import UsageError
from zoo.schema import TRAINED_TASKS, Precision, Task

#: Batch sizes that `zoo bench` times.
BATCHES = (1, 8, 32)
#: The default of `--max-drop`: how much of the score int8 may lose.
MAX_DROP = 0.01


#: The fraction of the items that may be unreadable, unless the user gives another one.
MAX_BAD = 0.01


class DataOptions(Struct, frozen=True, kw_only=True):
    """How labelled data is read. Raises UsageError for invalid values.

    `task`: the kind of the labels.
    `text`, `image`, `label`: the columns of a table.
    `max_bad`: the fraction of the items that may be unreadable.
    `pairs`: whether a table may have the column `text_pair`.
    """

    task: Task = Task.SINGLE_LABEL
    text: str | None = None
    image: str | None = None
    label: str | None = None
    max_bad: float = MAX_BAD
    pairs: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad <= 1:
            raise UsageError(f"--max-bad must be in [0, 1], got {self.max_bad}", hint=f"--max-bad {MAX_BAD}")


class Variant(Struct, frozen=True, kw_only=True):
    """How a model is exported. Raises UsageError for invalid values.

    `precision`: None keeps the precision of the model.
    `calibrate`: data for int8. Image models read value ranges from it; its held-out items measure the accuracy.
    `raw`: the backbone alone, without preprocessing and head.
    `fuse`: with operators that only ONNX Runtime has (text encoders).
    `max_drop`: how much of the score int8 may lose (at least one item).
    `text`, `image`, `label`, `max_bad`: as in FinetuneOptions, for `calibrate`.
    `labels`: a CSV file that maps labels of `calibrate` to those of the model, as in `Zoo.evaluate`.

    A column, and a `max_drop` or `max_bad` other than the default, need `calibrate`.
    """

    precision: Precision | None = None
    fuse: bool = False
    raw: bool = False
    calibrate: str | None = None
    max_drop: float = MAX_DROP
    text: str | None = None
    image: str | None = None
    label: str | None = None
    labels: str | None = None
    max_bad: float = MAX_BAD

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise UsageError(f"unknown --precision {self.precision}", hint=f"--precision {known}")
        self.reading()
        if not 0 <= self.max_drop < 1:
            raise UsageError(f"--max-drop must be in [0, 1), got {self.max_drop}", hint=f"--max-drop {MAX_DROP}")
        if self.calibrate and self.precision != "int8":
            raise UsageError("--calibrate needs --precision int8", hint="--precision int8, or leave --calibrate out")
        given = {"text": self.text, "image": self.image, "label": self.label, "labels": self.labels}
        unused = [f"--{name}" for name, column in given.items() if column is not None]
        # A user who gives the default value cannot be distinguished from one who gives none.
        if self.max_bad != MAX_BAD:
            unused.append("--max-bad")
        if self.max_drop != MAX_DROP:
            unused.insert(0, "--max-drop")
        if unused and not self.calibrate:
            needed = "--precision int8" if unused[0] == "--max-drop" and self.precision != "int8" else "--calibrate"
            raise UsageError(f"{unused[0]} needs {needed}", hint=f"give {needed}, or leave {unused[0]} out")

    def reading(self, task: Task = Task.SINGLE_LABEL) -> DataOptions:
        """How the data of `calibrate` is read. Raises UsageError."""
        return DataOptions(task=task, text=self.text, image=self.image, label=self.label, max_bad=self.max_bad)


class FinetuneOptions(DataOptions, frozen=True, kw_only=True):
    """How labelled data is read and a model is trained on it. Raises UsageError for invalid values.

    `hidden`: widths of the head's hidden layers; none for a linear head.
    `lr`, `weight_decay`: None chooses them by a search on the features. A linear head is solved, and `weight_decay` is
    its strength of regularisation for each item, unless `lr` or `batch` ask for training in steps.
    `batch`: items in a step; None means 64 to 1,024 for a head (by the number of items) and 32 for the last stages.
    `auto_batch`: halve `batch` when memory runs out.
    `patience`: stop after this number of epochs without a better loss on the inner validation part.
    `unfreeze`: the number of last stages that are trained with the head.
    `augment`: the number of random views that are added for each image.
    `val`: the fraction of the data that is held out, or the path of a data set to hold out.
    """

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
    resume: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        positive = {"epochs": self.epochs, "batch": self.batch, "lr": self.lr, "patience": self.patience}
        for name, value in positive.items():
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"--{name} must be positive, got {value}", hint=f"leave --{name} out")
        if self.task not in TRAINED_TASKS:
            raise UsageError(
                f"--task {self.task} cannot be trained", hint="--task single-label, multi-label or regression"
            )
        if self.task is not Task.SINGLE_LABEL and (self.class_weights or self.label_smoothing):
            raise UsageError("--class-weights and --label-smoothing need --task single-label", hint="leave them out")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"--label-smoothing must be in [0, 1), got {self.label_smoothing}", hint="0.1 is usual")
        if min(self.unfreeze, self.augment) < 0:
            given = f"{self.unfreeze} and {self.augment}"
            raise UsageError(f"--unfreeze and --augment must be at least 0, got {given}", hint="leave them out")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed must be from 0 to 2**63-1, got {self.seed}", hint="--seed 0")
        if self.weight_decay is not None and not self.weight_decay >= 0:
            raise UsageError(f"--weight-decay must be at least 0, got {self.weight_decay}", hint="--weight-decay auto")
        if isinstance(self.val, float) and not 0 < self.val < 1:
            raise UsageError(
                f"--val must be above 0 and below 1, got {self.val:g}", hint="--val 0.2, or the path of a data set"
            )
        super().__post_init__()


class CompareOptions(DataOptions, frozen=True, kw_only=True):
    """How labelled data is read and models are compared on it. Raises UsageError for invalid values.

    `seed`, `device`: as in FinetuneOptions.
    """

    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        # Raises for values with which no head can be trained.
        self.training()

    def training(self) -> FinetuneOptions:
        """The options with which `zoo finetune` solves the same heads."""
        return FinetuneOptions(**asdict(self))


def parse_head(text: str) -> tuple[int, ...]:
    """Hidden layer widths of `linear` (none), `mlp` (256) or `mlp:512,128`. Raises UsageError."""
    kind, _, widths = text.partition(":")
    if kind == "linear" and not widths:
        return ()
    hint = "--head linear, --head mlp or --head mlp:512,128"
    if kind == "mlp":
        try:
            hidden = tuple(int(width) for width in widths.split(",")) if widths else (256,)
        except ValueError as error:
            raise UsageError(f"--head {text}: widths must be whole numbers", hint=hint) from error
        if min(hidden) > 0:
            return hidden
        raise UsageError(f"--head {text}: widths must be at least 1", hint=hint)
    raise UsageError(f"unknown head '{text}'", hint=hint)


class BenchOptions(Struct, frozen=True, kw_only=True):
    """How a model is timed: `rounds` rounds of `seconds` for each system and batch size. Raises UsageError.

    `against`: a second system to time.
    `threads`: threads that compute; None means one for each core.
    `length`: tokens of each text; None means 32, or the model's limit if that is less.
    """

    device: str = "auto"
    against: Literal["torch"] | None = None
    rounds: int = 5
    seconds: float = 1.0
    threads: int | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        if self.against not in (None, "torch"):
            raise UsageError(f"--against must be torch, got {self.against}", hint="--against torch")
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"--seconds must be positive, got {self.seconds:g}", hint="--seconds 1")
        for name, value in (("rounds", self.rounds), ("threads", self.threads), ("length", self.length)):
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}", hint=f"leave --{name} out")
