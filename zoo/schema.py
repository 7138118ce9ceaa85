"""Structs of registry rows, of a bundle's manifest and of a training's outcome. Data only."""

import re
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta, Struct, field

Sha256: TypeAlias = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Name: TypeAlias = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,63}\Z")]
#: Name of a registry row, or of a bridged model: the bridge's prefix and one or two more parts.
EntryName: TypeAlias = Annotated[
    str, Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,63}(/[a-z0-9_]([a-z0-9._-]{0,94}[a-z0-9_-])?){0,2}\Z")
]
FilePath: TypeAlias = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=128)]
SourceUrl: TypeAlias = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9+-]*://\S+\Z", max_length=2048)]
Positive: TypeAlias = Annotated[int, Meta(gt=0)]
Rgb: TypeAlias = tuple[float, float, float]
#: Tensor names: raw images, preprocessed images, and the outputs of every model.
IMAGE, PIXELS, FEATURES, SCORES = "image", "pixels", "features", "scores"
Precision: TypeAlias = Literal["fp32", "fp16", "int8"]
Activation: TypeAlias = Literal["softmax", "sigmoid", "identity"]


class TensorSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tensor's name, numpy dtype name and shape; a string in the shape names an axis of any length."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class WeightFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a row. `sources` are tried in order; `sha256` and `size` (bytes) are None until they are pinned."""

    path: FilePath
    sha256: Sha256 | None
    size: Positive | None
    sources: Annotated[tuple[SourceUrl, ...], Meta(min_length=1)]

    @property
    def is_pinned(self) -> bool:
        """Whether the registry has the file's sha256."""
        return self.sha256 is not None


class ImagePreprocess(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, tag="image", tag_field="kind"
):
    """The preprocessing of an image: resize, crop, normalise.

    The short side is resized to `resize` pixels with antialiasing; with `squash` both sides are, so that the image is
    distorted. The width is resized first, as in Pillow up to 12; Pillow 13 resizes some tall images height first. The
    centre of `crop` x `crop` pixels is normalised: (x / 255 - mean) / std, in RGB. Half a pixel in the offset of the
    centre is rounded to even, as torchvision does; with `floor` it is dropped, as transformers does.
    """

    resize: Positive
    crop: Positive
    interpolation: Literal["bilinear", "bicubic"]
    mean: Rgb
    std: Rgb
    squash: bool = False
    floor: bool = False

    def __post_init__(self) -> None:
        if self.crop > self.resize:
            raise ValueError(f"crop ({self.crop}) is larger than resize ({self.resize})")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image after resizing, before the crop; the long side is truncated."""
        if self.squash:
            return self.resize, self.resize
        short = min(height, width)
        return self.resize * height // short, self.resize * width // short

    def offset(self, resized: int) -> int:
        """The first pixel of the crop on a side of `resized` pixels."""
        margin = resized - self.crop
        return margin // 2 if self.floor else round(margin / 2)


class WordPiece(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of BERT's WordPiece tokenizer with a `vocab.txt`; `strip_accents` None means the value of `lowercase`."""

    lowercase: bool
    strip_accents: bool | None = None
    chinese_chars: bool = True


class TextPreprocess(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, tag="text", tag_field="kind"
):
    """The preprocessing of a text, and the pooling of its tokens' features.

    `tokenizer` is a `tokenizer.json`, or a `vocab.txt` with the options `wordpiece`. A text is truncated at
    `max_length` tokens, special tokens included, and refused if all tokens are `unknown_token`. With `normalize`,
    features are scaled to L2 norm 1.
    `prompts` are texts by name; the one called `prompt` is put before each text unless the user names another. A model
    that fills masks fills the `mask_token` of a text. With `segments` the graph also takes `token_type_ids` of pairs.
    """

    tokenizer: FilePath
    max_length: Positive
    pooling: Literal["mean", "cls"]
    normalize: bool
    unknown_token: str | None = None
    wordpiece: WordPiece | None = None
    prompts: dict[str, str] = {}
    prompt: str | None = None
    mask_token: str | None = None
    segments: bool = False

    def __post_init__(self) -> None:
        if self.tokenizer.endswith(".txt") != (self.wordpiece is not None):
            raise ValueError("wordpiece is required with a vocab.txt tokenizer, and not allowed with any other")


class WordsPreprocess(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="words", tag_field="kind"):
    """A table of word vectors; a text's features are the mean of the vectors of its first `max_length` words.

    `words` is the file that lists the words, None if the table's file contains them. `unknown` decides about a word
    that is not in the table: it is left out (`skip`), or counts as a zero vector (`zero`) or as `unknown_token`
    (`token`).
    """

    table: FilePath
    words: FilePath | None = None
    lowercase: bool
    max_length: Positive = 512
    unknown: Literal["skip", "zero", "token"] = "skip"
    unknown_token: Annotated[str, Meta(min_length=1)] | None = None

    def __post_init__(self) -> None:
        if (self.unknown == "token") != (self.unknown_token is not None):
            raise ValueError("unknown_token is required with unknown: token, and not allowed with any other")


Preprocess: TypeAlias = ImagePreprocess | TextPreprocess | WordsPreprocess


def input_specs(preprocess: Preprocess) -> tuple[TensorSpec, ...]:
    """The input tensors of the features graph for this preprocessing."""
    if isinstance(preprocess, ImagePreprocess):
        shape = ("batch", 3, preprocess.crop, preprocess.crop)
        return (TensorSpec(name=PIXELS, dtype="float32", shape=shape),)
    segments = ("token_type_ids",) if isinstance(preprocess, TextPreprocess) and preprocess.segments else ()
    names = ("input_ids", "attention_mask", *segments)
    return tuple(TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in names)


class PretrainedHead(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The head that a row's weights contain: its task, the activation of its scores, and their labels.

    `labels` are the names of the scores, or the name of a list of zoo.data.labels. `ids` are second names of the
    labels, such as WordNet ids. `outputs` is the number of scores of a head without labels: a number, or the vocabulary
    of a model that fills masks.
    """

    task: Literal["single-label", "multi-label", "regression", "fill-mask"] = "single-label"
    activation: Activation = "softmax"
    labels: Literal["imagenet-1k"] | tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    outputs: Positive | None = None

    def __post_init__(self) -> None:
        if not self.labels and self.outputs is None:
            raise ValueError("a head needs labels, or the number of its outputs")
        if not isinstance(self.labels, str) and len(set(self.labels)) < len(self.labels):
            raise ValueError("two labels of a head are equal")
        if self.ids and len(self.ids) != len(self.labels):
            raise ValueError(f"{len(self.ids)} ids for {len(self.labels)} labels")


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of the registry: a pretrained backbone, its files and the preprocessing of its input.

    `head` is the head in the weights that zoo exports with the backbone. `no_head` is the reason why weights have none,
    or one that zoo does not export.
    """

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
    head: PretrainedHead | None = None
    no_head: str | None = None
    origin: str | None = None
    notes: str | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The input tensors of the family's features graph."""
        return input_specs(self.preprocess)

    @property
    def is_pinned(self) -> bool:
        """Whether the registry has the sha256 of every file."""
        return all(file.is_pinned for file in self.files)

    @property
    def size(self) -> int | None:
        """Total bytes of all files, None if the size of one is unknown."""
        sizes = [file.size for file in self.files]
        return sum(size for size in sizes if size is not None) if None not in sizes else None


class Task(StrEnum):
    """The kind of answer that a bundle gives; EMBEDDING is a bundle without a head.

    The scores of FILL_MASK are the probabilities of all tokens for the first mask of a text.
    """

    SINGLE_LABEL = "single-label"
    MULTI_LABEL = "multi-label"
    REGRESSION = "regression"
    EMBEDDING = "embedding"
    FILL_MASK = "fill-mask"


#: The tasks that fine-tuning trains a head for.
TRAINED_TASKS = (Task.SINGLE_LABEL, Task.MULTI_LABEL, Task.REGRESSION)
#: `Manifest.head` of a head that came with the weights.
PRETRAINED: Final = "pretrained"


class FileDigest(Struct, frozen=True, kw_only=True):
    """A file of a bundle or of a pulled row: its name, bytes and sha256."""

    path: str
    size: int
    sha256: str


class HeadSpec(Struct, frozen=True, kw_only=True):
    """The trained layers on top of the features: hidden widths (none = linear), and how they were trained.

    `scaling` of the inputs, `lr` and `weight_decay` come from the search or from the options.
    """

    hidden: tuple[int, ...]
    scaling: str
    lr: float | None = None
    weight_decay: float | None = None


#: The name of the check of predicted classes, whose value is a number of rows.
CHANGED = "top-1 (rows that differ)"


class ParityCheck(Struct, frozen=True, kw_only=True):
    """One comparison of the exported file with the original model: `value` must be at most `bound`."""

    name: str
    batch: int
    value: float
    bound: float
    passed: bool

    @property
    def may_change(self) -> int | None:
        """How many predictions may change, if this is the check of predicted classes."""
        return int(self.bound) if self.name == CHANGED else None


class Parity(Struct, frozen=True, kw_only=True):
    """All parity checks of an exported file, and a description of the `samples` they used."""

    samples: str
    checks: tuple[ParityCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


class Metrics(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Quality of a model on `n` items: fractions in 0..1, `confusion[true][predicted]` in items.

    Single-label: the fields up to `nll`; `top5` only with six labels or more. `calibration_error` (expected) and `nll`
    (mean negative log-likelihood, in nats) are of scores without the effect of class weights.
    Multi-label: no confusion; `accuracy` is the fraction of items with exactly the right labels; `nll` is the mean over
    items and labels.
    Regression: `mae` and `rmse` in the target's unit, `r2` at most 1.
    """

    n: int
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    macro_f1: float | None = None
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] = ()
    top5: float | None = None
    calibration_error: float | None = None
    nll: float | None = None
    micro_f1: float | None = None
    mae: float | None = None
    rmse: float | None = None
    r2: float | None = None

    @property
    def score(self) -> float:
        """The number that `--fail-under` compares: accuracy, macro-F1 (multi-label) or R squared (regression)."""
        best = self.r2 if self.r2 is not None else self.macro_f1 if self.micro_f1 is not None else self.accuracy
        assert best is not None
        return best


class Guard(Struct, frozen=True, kw_only=True):
    """The cost of a lower precision: `Metrics.score` before and after on the same `n` held-out items.

    At most `allowed` may be lost. `interval` is the confidence interval of `after` if that is an accuracy. `items`
    describes the items. `excluded` are the layers that stay in float. `refitted` is true if the head was fitted again,
    to the new features.
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
    """The origin of a bundle: the registry row, its files' checksums, package versions, data and training options."""

    entry: Entry
    weights: tuple[FileDigest, ...]
    versions: dict[str, str]
    data: str | None = None
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


class Manifest(Struct, frozen=True, kw_only=True):
    """`zoo.json`: everything needed to run, verify and trace a bundle without its plugin, torch or the registry."""

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
    activation: Activation | None = None
    labels: tuple[str, ...] = ()
    #: Second names of the labels, such as WordNet ids.
    label_ids: tuple[str, ...] = ()
    #: Multi-label: the score from which each label is chosen.
    thresholds: tuple[float, ...] = ()
    #: Single-label: the weight of each class in the loss; empty if all are equal.
    class_weights: tuple[float, ...] = ()
    #: How many of the last stages of the backbone were trained with the head.
    unfrozen: int = 0
    cut: str | None = None
    head: HeadSpec | Literal["pretrained"] | None = None
    metrics: Metrics | None = None
    guard: Guard | None = None
    #: Whether the file uses ONNX Runtime's own operators.
    fused: bool = False


class ExportOptions(Struct, frozen=True, kw_only=True):
    """How a family writes its features graph.

    With `cut`, only the first `cut` stages are written; the graph's outputs are then the inputs of the next stage. With
    `head`, the graph has a second output: the `scores` [batch, outputs] of the head that `entry.head` describes.
    """

    opset: int = 20
    ir_version: int = 10
    cut: int | None = None
    head: bool = False


def canonical(name: str) -> str:
    """`name` in lower case, with `-` for runs of `-`, `_` and `.`: names with one canonical form count as equal."""
    return re.sub(r"[-_.]+", "-", name).lower()
