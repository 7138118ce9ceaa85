"""The evaluation of a model on labelled data: metrics, a prediction for each item, and the items that were skipped."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zoo.bundle import Held, read_split
from zoo.data.dataset import Dataset, load
from zoo.data.items import Unreadable
from zoo.errors import DataError
from zoo.evaluation.metrics import measure
from zoo.options import DataOptions
from zoo.progress import SILENT, Progress
from zoo.results import Evaluation
from zoo.runtime.answers import labelled, predicted_labels

if TYPE_CHECKING:
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


def evaluate(
    session: "Session",
    model: str,
    data: str | Path,
    options: DataOptions,
    *,
    held_out: bool = False,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Evaluation:
    """The metrics and predictions of the bundle in `session`, called `model` in messages, on labelled data.

    `options.task` is ignored: the task is that of the model. With `held_out` only items that fine-tuning held out are
    used. Unreadable items are left out and listed in the result. Raises DataError for unknown labels and too many
    unreadable items, UsageError for a model without a head.
    """
    if "scores" not in session.outputs:
        # Raises the UsageError before the data is read.
        session.scores([])
    manifest, split = session.manifest, read_split(session.bundle)
    options = msgspec.structs.replace(options, task=manifest.task)
    dataset = load(data, manifest.preprocess, options, offline=offline, progress=progress)
    if held_out:
        dataset = _held_out(dataset, split, model)
    # Raises DataError for unknown labels before any work.
    dataset.targets(session.labels)
    unreadable = Unreadable(dataset.skipped, len(dataset.skipped) + len(dataset.examples), options.max_bad)
    scores, dataset = infer_readable(session, dataset, "scores", unreadable, progress)
    examples, targets = dataset.examples, dataset.targets(session.labels)
    # A regression model may have no label to name its value.
    names = tuple(session.labels) or ("value",)
    return Evaluation(
        model=model,
        data=str(data),
        device=session.device,
        task=manifest.task,
        labels=names,
        metrics=measure(
            manifest.task, scores, targets, session.labels,
            thresholds=manifest.thresholds, class_weights=manifest.class_weights,
        ),
        trained_on=sum(1 for e in examples if e.digest in split and not split[e.digest].held_out),
        predictions=tuple(labelled(e.name, row, names, len(names)) for e, row in zip(examples, scores, strict=True)),
        predicted=tuple(predicted_labels(manifest.task, scores, session.labels, manifest.thresholds)),
        truth=tuple(example.label for example in examples),
        skipped=tuple(map(str, dataset.skipped)),
        placement=session.placement,
    )  # fmt: skip


def infer_readable(
    session: "Session", data: Dataset, output: str, unreadable: Unreadable, progress: Progress = SILENT
) -> "tuple[Floats, Dataset]":
    """Returns the named output for the readable items of `data`, and these items; `unreadable` collects the others."""
    rows = session.infer(data.items, [output], progress, unreadable.skip(data.examples))[output]
    return rows[unreadable.kept(data.examples)], data.readable(unreadable)
