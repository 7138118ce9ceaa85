"""The evaluation of a model on labelled data: metrics, a prediction for each item, and the items that were skipped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

import msgspec

from zoo.bundle import Held, read_split
from zoo.data.dataset import Dataset, load
from zoo.data.items import Unreadable
from zoo.data.labels import other_names, own_names, read_label_map, reads_pairs, without_head
from zoo.errors import DataError, UsageError
from zoo.evaluation.metrics import measure, only_seen
from zoo.options import DataOptions
from zoo.progress import SILENT, Progress
from zoo.results import Answer, Evaluation
from zoo.runtime.answers import labelled, predicted_labels
from zoo.schema import PRETRAINED, Entry, Manifest, Metrics, Task

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from zoo.runtime.session import Floats, Session


def _held_out(dataset: Dataset, split: dict[str, Held], model: str) -> Dataset:
    """The items that the fine-tuning of `model` held out. Raises DataError if there are none."""
    held = dataset.only(e for e in dataset.examples if e.digest in split and split[e.digest].held_out)
    if not held.examples:
        raise DataError(
            f"{dataset.source} has none of the items that {model} held out",
            path=dataset.source,
            hint="name the data of the fine-tuning, or measure all of this data without --held-out",
        )
    return held


def check_head(entry: Entry) -> None:
    """Raise UsageError for a row without labels."""
    if entry.head is None:
        raise UsageError(
            f"{entry.name} has no labels: {without_head(entry)}", hint=f"zoo finetune {entry.name} DATA -o DIR"
        )
    _check_measurable(entry.name, entry.head.task, entry)


def _check_measurable(name: str, task: str, entry: Entry) -> None:
    if task == Task.FILL_MASK:
        hint = f"zoo finetune {entry.name} DATA -o DIR"
        raise UsageError(f"{name} fills masks: it has no labels to measure", hint=hint)


def _check_session(session: "Session", model: str, *, held_out: bool) -> None:
    """Raise UsageError, before data are read, for a model without labels or without the items that are asked for."""
    if "scores" not in session.outputs:
        session.scores([])
    manifest = session.manifest
    _check_measurable(manifest.name, manifest.task, manifest.lineage.entry)
    if held_out and manifest.head == PRETRAINED:
        raise UsageError(f"{model} was not fine-tuned: it held out no items", hint="leave --held-out out")


def evaluate(
    session: "Session",
    model: str,
    data: str | Path,
    options: DataOptions,
    *,
    held_out: bool = False,
    labels: str | Path | None = None,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Evaluation:
    """The metrics and predictions of the bundle in `session`, called `model` in messages, on labelled data.

    `options.task` is ignored: the task is that of the model. With `held_out` only items that fine-tuning held out are
    used. `labels` is a file that maps labels of the data to those of the model (see `read_label_map`). Unreadable items
    are left out and listed in the result. Raises DataError for unknown labels and too many unreadable items, UsageError
    for a model without a head.
    """
    _check_session(session, model, held_out=held_out)
    manifest, split = session.manifest, read_split(session.bundle)
    options = msgspec.structs.replace(options, task=manifest.task, pairs=reads_pairs(manifest))
    names = names_of(manifest, labels, progress)
    dataset = load(data, manifest.preprocess, options, offline=offline, progress=progress).renamed(names)
    if held_out:
        dataset = _held_out(dataset, split, model)
    # Raises DataError for unknown labels before any work.
    dataset.targets(session.labels, "" if labels else "; --labels FILE maps other names")
    unreadable = Unreadable(dataset.skipped, len(dataset.skipped) + len(dataset.examples), options.max_bad)
    scores, dataset = infer_readable(session, dataset, "scores", unreadable, progress)
    examples, targets = dataset.examples, dataset.targets(session.labels)
    # A regression model may have no label to name its value.
    columns = tuple(session.labels) or ("value",)
    return Evaluation(
        model=model,
        data=str(data),
        device=session.device,
        task=manifest.task,
        labels=columns,
        metrics=_metrics(manifest, scores, targets),
        trained_on=sum(1 for e in examples if e.digest in split and not split[e.digest].held_out),
        predictions=_Predictions([example.name for example in examples], scores, columns),
        predicted=tuple(predicted_labels(manifest.task, scores, session.labels, manifest.thresholds)),
        truth=tuple(example.label for example in examples),
        skipped=tuple(map(str, dataset.skipped)),
        placement=session.placement,
    )  # fmt: skip


def names_of(manifest: Manifest, labels: str | Path | None, progress: Progress) -> Mapping[str, str]:
    """The model's label by each other name of it, with those of the file `labels`. Raises as `read_label_map` does."""
    given = read_label_map(Path(labels), manifest) if labels else {}
    own = own_names(manifest) if labels else {}
    for name, label in given.items():
        if own.get(name, label) != label:
            progress.note(f"{labels} maps '{name}', which the model knows as '{own[name]}', to '{label}'")
    return {**other_names(manifest), **given}


def _metrics(manifest: Manifest, scores: "Floats", targets: "ArrayLike") -> Metrics:
    """The metrics of a bundle. A classifier that came with the weights may have many more classes than the data."""
    metrics = measure(
        manifest.task, scores, targets, manifest.labels,
        thresholds=manifest.thresholds, class_weights=manifest.class_weights,
    )  # fmt: skip
    return only_seen(metrics) if manifest.head == PRETRAINED else metrics


class _Predictions(Sequence[Answer]):
    """The answers with every score, made as they are read: a thousand labels of many items would fill the memory."""

    def __init__(self, names: Sequence[str], scores: "Floats", labels: Sequence[str]) -> None:
        self.names, self.scores, self.labels = names, scores, labels

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Answer: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Answer]: ...

    def __getitem__(self, index: int | slice) -> Answer | Sequence[Answer]:
        if isinstance(index, slice):
            return _Predictions(self.names[index], self.scores[index], self.labels)
        return labelled(self.names[index], self.scores[index], self.labels, len(self.labels))


def infer_readable(
    session: "Session", data: Dataset, output: str, unreadable: Unreadable, progress: Progress = SILENT
) -> "tuple[Floats, Dataset]":
    """Returns the named output for the readable items of `data`, and these items; `unreadable` collects the others."""
    rows = session.infer(data.items, [output], progress, unreadable.skip(data.examples))[output]
    return rows[unreadable.kept(data.examples)], data.readable(unreadable)
