"""The evaluation of a model on labelled data: metrics, a prediction for each item, and the items that were skipped."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.bundle import read_split
from zoo.data.dataset import Dataset, load
from zoo.data.items import Failures
from zoo.errors import DataError, UsageError, ZooError
from zoo.evaluation.metrics import measure
from zoo.progress import SILENT, Progress
from zoo.results import Evaluation
from zoo.runtime.answers import labelled, predicted_labels
from zoo.schema import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.runtime.session import Session


def evaluate(
    session: "Session",
    model: str,
    data: str | Path,
    *,
    held_out: bool = False,
    max_bad: float = 0.0,
    text: str | None = None,
    image: str | None = None,
    label: str | None = None,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Evaluation:
    """The metrics and predictions of the bundle in `session` on labelled data.

    model: the name of the bundle in messages.
    held_out: use only the items that fine-tuning held out.
    max_bad: the fraction of items that may be unreadable; they are left out and listed in the result.

    Raises DataError for labels that the model does not know and for more unreadable items, UsageError for a model
    without a head.
    """
    if "scores" not in session.outputs:
        # Raises the UsageError before the data is read.
        session.scores([])
    if not 0 <= max_bad <= 1:
        raise UsageError(f"--max-bad must be between 0 and 1, got {max_bad}", hint="--max-bad 0.01")
    manifest = session.manifest
    dataset = load(
        data, manifest.preprocess, task=manifest.task, text=text, image=image, label=label, max_bad=max_bad,
        offline=offline, progress=progress,
    )  # fmt: skip
    split = read_split(session.bundle)
    if held_out:
        dataset = dataset.only(e for e in dataset.examples if e.digest in split and split[e.digest].held_out)
        if not dataset.examples:
            raise DataError(f"{data} has none of the items that {model} held out", path=data)
    # Unknown labels are an error before any work.
    dataset.targets(session.labels)
    scores, failures = _scores(session, dataset, max_bad, progress)
    left = [index for index in range(len(dataset.examples)) if index not in failures]
    examples, scores = [dataset.examples[index] for index in left], scores[left]
    targets = dataset.only(examples).targets(session.labels)
    # A regression may have no label that could name its value.
    names = ("value",) if manifest.task is Task.REGRESSION and not session.labels else tuple(session.labels)
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
        skipped=(*map(str, dataset.skipped), *(failures[index].message for index in sorted(failures))),
        placement=session.placement,
    )  # fmt: skip


def _scores(
    session: "Session", dataset: Dataset, max_bad: float, progress: Progress
) -> "tuple[NDArray[np.float32], dict[int, ZooError]]":
    """Scores [items, labels], and the error of each item without scores by its index. Raises DataError for too many."""
    names = [example.name for example in dataset.examples]
    failures = Failures(names, dataset.items, keep_going=max_bad > 0)
    before, total = len(dataset.skipped), len(dataset.skipped) + len(names)
    # 1e-9: as a float, 0.29 * 100 is a little below 29. At least one item must be left.
    allowed = min(math.floor(max_bad * total + 1e-9), total - 1)

    def skip(index: int, error: ZooError) -> None:
        failures(index, error)
        if before + len(failures.found) > allowed:
            raise DataError(
                f"more than {allowed} of {total} items cannot be read, the last of them: {error.message}",
                path=names[index],
                hint=f"repair or remove them, or a larger --max-bad than {max_bad:g}",
            )

    scores = session.infer(dataset.items, ["scores"], progress, skip)["scores"]
    return scores, failures.found
