"""The nouns: what a registry row, a bundle's manifest and an outcome are made of. Data only."""

import re
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct, field

Sha256: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Name: TypeAlias = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,63}\Z")]
#: A registry row's name, or that of a bridged model: up to two more parts behind its bridge's prefix.
EntryName: TypeAlias = Annotated[
    str, Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,63}(/[a-z0-9_]([a-z0-9._-]{0,94}[a-z0-9_-])?){0,2}\Z")
]
FilePath: TypeAlias = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=128)]
SourceUrl: TypeAlias = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9+-]*://\S+\Z", max_length=2048)]
Positive: TypeAlias = Annotated[int, Meta(gt=0)]
Rgb: TypeAlias = tuple[float, float, float]
#: Names of tensors: the inputs and outputs of every model, and the images after their preprocessing.
IMAGE, PIXELS, FEATURES, SCORES = "image", "pixels", "features", "scores"
Precision: TypeAlias = Literal["fp32", "fp16", "int8"]


class TensorSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named tensor: numpy dtype name and shape, where a word stands for an axis of any length."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class WeightFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a row. Any source may serve the bytes, only the digest decides; null = not pinned yet."""

    path: FilePath
    sha256: Sha256 | None
    size: Positive | None
    sources: Annotated[tuple[SourceUrl, ...], Meta(min_length=1)]

    @property
    def is_pinned(self) -> bool:
        """Whether the digest is known from the registry itself."""
        return self.sha256 is not None


class ImagePreprocess(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="image", tag_field="kind"):
    """Short side to `resize`, centre crop of `crop`, then (x / 255 - mean) / std on RGB, antialiased."""

    resize: Positive
    crop: Positive
    interpolation: Literal["bilinear", "bicubic"]
    mean: Rgb
    std: Rgb

    def __post_init__(self) -> None:
        if self.crop > self.resize:
            raise ValueError(f"crop ({self.crop}) is larger than resize ({self.resize})")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")


class WordPiece(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How BERT's tokenizer reads a text before it looks for the pieces of a `vocab.txt`; null = as `lowercase`."""

    lowercase: bool
    strip_accents: bool | None = None
    chinese_chars: bool = True


class TextPreprocess(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, tag="text", tag_field="kind"
):
    """Tokens by the file `tokenizer`, cut at `max_length` (special tokens included), pooled, L2 if `normalize`.

    The tokenizer is a `tokenizer.json`, or a `vocab.txt`, and then `wordpiece` says how it is used.
    With `unknown_token` a text that holds nothing but this token is refused: it says nothing the model knows.
    """

    tokenizer: FilePath
    max_length: Positive
    pooling: Literal["mean", "cls"]
    normalize: bool
    unknown_token: str | None = None
    wordpiece: WordPiece | None = None

    def __post_init__(self) -> None:
        if self.tokenizer.endswith(".txt") != (self.wordpiece is not None):
            raise ValueError("wordpiece belongs to a tokenizer that is a vocab.txt, and only to one")


class WordsPreprocess(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="words", tag_field="kind"):
    """A table of word vectors; a text is the mean of the vectors of its first `max_length` words.

    `words` is the list of its words, null where the table's file holds them itself. A word that is not in the table is
    left out (`skip`), counts as zeros (`zero`), or as the word `unknown_token` (`token`).
    """

    table: FilePath
    words: FilePath | None = None
    lowercase: bool
    max_length: Positive = 512
    unknown: Literal["skip", "zero", "token"] = "skip"
    unknown_token: Annotated[str, Meta(min_length=1)] | None = None

    def __post_init__(self) -> None:
        if (self.unknown == "token") != (self.unknown_token is not None):
            raise ValueError("unknown_token is what unknown: token needs, and nothing else")


Preprocess: TypeAlias = ImagePreprocess | TextPreprocess | WordsPreprocess


def input_specs(preprocess: Preprocess) -> tuple[TensorSpec, ...]:
    """The tensors that a family's features graph takes, given how raw input is prepared."""
    if isinstance(preprocess, ImagePreprocess):
        shape = ("batch", 3, preprocess.crop, preprocess.crop)
        return (TensorSpec(name="pixels", dtype="float32", shape=shape),)
    names = ("input_ids", "attention_mask")
    return tuple(TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in names)


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of the registry: a pretrained backbone, where its bytes are and how its input is prepared."""

    name: EntryName
    family: Name
    task: Literal["image-features", "text-features", "word-vectors"]
    description: str
    license: Annotated[str, Meta(min_length=2)]
    params: Positive
    dim: Positive
    preprocess: Preprocess
    files: Annotated[tuple[WeightFile, ...], Meta(min_length=1)]
    config: dict[str, Any] = field(default_factory=dict)
    origin: str | None = None
    notes: str | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that the family's features graph takes."""
        return input_specs(self.preprocess)

    @property
    def is_pinned(self) -> bool:
        """Whether every file's digest is known from the registry itself."""
        return all(file.is_pinned for file in self.files)

    @property
    def size(self) -> int | None:
        """Bytes of all files together, None when one of them is unknown."""
        sizes = [file.size for file in self.files]
        return sum(size for size in sizes if size is not None) if None not in sizes else None


class Task(StrEnum):
    """What a bundle answers."""

    SINGLE_LABEL = "single-label"
    MULTI_LABEL = "multi-label"
    REGRESSION = "regression"
    EMBEDDING = "embedding"


class FileDigest(Struct, frozen=True, kw_only=True):
    """A file of a bundle or of a pulled row: its name, bytes and sha256."""

    path: str
    size: int
    sha256: str


class HeadSpec(Struct, frozen=True, kw_only=True):
    """The trained layers on top of the features: hidden widths (none = linear) and how they were fitted.

    `scaling` of the input, learning rate and weight decay are those that the search chose, or the options gave.
    """

    hidden: tuple[int, ...]
    scaling: str
    lr: float | None = None
    weight_decay: float | None = None


class ParityCheck(Struct, frozen=True, kw_only=True):
    """One comparison of the exported file with the family's own arithmetic."""

    name: str
    batch: int
    value: float
    bound: float
    passed: bool


class Parity(Struct, frozen=True, kw_only=True):
    """The gate's report: on which samples, every check with its bound."""

    samples: str
    checks: tuple[ParityCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every check held."""
        return all(check.passed for check in self.checks)


class Metrics(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Quality of a model on `n` items: fractions in 0..1, `confusion[true][predicted]` in items.

    One label an item: all down to `calibration_error` (ECE, after correcting for class weights; `top5` from six labels
    on). Several: `accuracy` is the share of items whose set of labels is exactly right, and there is no confusion.
    A number: `mae` and `rmse` in the target's unit, `r2` at most 1.
    """

    n: int
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    macro_f1: float | None = None
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] = ()
    top5: float | None = None
    calibration_error: float | None = None
    micro_f1: float | None = None
    mae: float | None = None
    rmse: float | None = None
    r2: float | None = None

    @property
    def score(self) -> float:
        """The one number that a floor is set on: accuracy, macro-F1 of several labels, or R squared."""
        best = self.r2 if self.r2 is not None else self.macro_f1 if self.micro_f1 is not None else self.accuracy
        assert best is not None
        return best


class Guard(Struct, frozen=True, kw_only=True):
    """What a lower precision costs: the score (`Metrics.score`) of both files on the same `n` held-out items.

    At most `allowed` may be lost; `interval` is that of the score after, where it is a share. `excluded` are layers
    that stay in float, the head was `refitted` to the new features. `items` says where they come from.
    """

    n: int
    items: str
    before: float
    after: float
    allowed: float
    interval: tuple[float, float] | None = None
    excluded: tuple[str, ...] = ()
    refitted: bool = False


class Lineage(Struct, frozen=True, kw_only=True):
    """Where a bundle comes from: the entry with the digests of its files, the data, the options, the versions."""

    entry: Entry
    weights: tuple[FileDigest, ...]
    versions: dict[str, str]
    data: str | None = None
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


class Manifest(Struct, frozen=True, kw_only=True):
    """`zoo.json`: all that is needed to run, check and trace a bundle without its plugin, torch or the registry."""

    schema_version: int
    name: str
    task: Task
    precision: Precision
    preprocess: Preprocess
    dim: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    license: str
    files: tuple[FileDigest, ...]
    lineage: Lineage
    parity: Parity
    activation: Literal["softmax", "sigmoid", "identity"] | None = None
    labels: tuple[str, ...] = ()
    #: Several labels: the score from which each one holds.
    thresholds: tuple[float, ...] = ()
    #: One label: what each class counted in the loss; empty where all counted alike.
    class_weights: tuple[float, ...] = ()
    #: Stages of the backbone that were trained with the head, counted from the last one.
    unfrozen: int = 0
    cut: str | None = None
    head: HeadSpec | None = None
    metrics: Metrics | None = None
    guard: Guard | None = None
    #: Written in ONNX Runtime's own operators.
    fused: bool = False


class Epoch(Struct, frozen=True, kw_only=True):
    """One line of the learning curve, on the inner split of the training.

    Losses are mean cross-entropies in nats, of a number mean squared errors of the standardised target; the score is
    that of `Metrics.score`.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_score: float


class Outcome(Struct, frozen=True, kw_only=True):
    """What a fine-tuning run made: the bundle's manifest, how it was trained, how many features were new.

    `skipped` are the items that were left out, each with the reason.
    """

    manifest: Manifest
    metrics: Metrics
    curve: tuple[Epoch, ...]
    best_epoch: int
    computed: int
    items: int
    skipped: tuple[str, ...] = ()


class ExportOptions(Struct, frozen=True, kw_only=True):
    """How a family writes its features graph.

    With `cut` only the first so many stages: the graph's outputs are then the tensors that the next stage takes.
    """

    opset: int = 20
    ir_version: int = 10
    cut: int | None = None


def canonical(name: str) -> str:
    """`name` as it is compared: punctuation and upper case do not tell two names apart."""
    return re.sub(r"[-_.]+", "-", name).lower()
