"""Quality of predictions: accuracy with its interval, macro-F1, per-class precision and recall, confusion."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.answers import Evaluation, labelled
from zoo.bundle import read_split
from zoo.data import load
from zoo.disk import write_atomic
from zoo.errors import DataError, naming
from zoo.progress import SILENT, Progress
from zoo.runtime import Session
from zoo.schema import Metrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Two-sided 95 %.
Z = 1.959964


def evaluate(
    session: Session,
    model: str,
    data: str | Path,
    *,
    held_out: bool = False,
    text: str | None = None,
    label: str | None = None,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Evaluation:
    """Run the bundle in `session`, called `model`, on labelled data; `held_out` keeps what fine-tuning held out.

    Raises DataError for labels the model does not know, UsageError for a model without a head.
    """
    if "scores" not in session.outputs:
        # Said before the data is read, whose labels it could not know anyway.
        session.scores([])
    dataset = load(data, session.manifest.preprocess, text=text, label=label, offline=offline, progress=progress)
    split = read_split(session.bundle)
    if held_out:
        kept = tuple(e for e in dataset.examples if e.digest in split and split[e.digest].held_out)
        if not kept:
            raise DataError(f"{data} has none of the items that {model} held out", path=data)
        dataset = dataset.only(kept)
    targets = dataset.targets(session.labels).tolist()
    with naming([example.name for example in dataset.examples], dataset.items):
        scores = session.scores(dataset.items, progress)
    rows = zip(dataset.examples, scores, strict=True)
    return Evaluation(
        model=model,
        data=str(data),
        device=session.device,
        metrics=measure(scores, targets, session.labels),
        trained_on=sum(1 for e in dataset.examples if e.digest in split and not split[e.digest].held_out),
        predictions=tuple(labelled(example.name, row, session.labels, len(session.labels)) for example, row in rows),
        truth=tuple(example.label for example in dataset.examples),
    )


def measure(scores: "NDArray[np.float32]", targets: Sequence[int], labels: Sequence[str]) -> Metrics:
    """Metrics of class scores [items, labels] against the true positions in `labels`."""
    import numpy as np

    predicted = scores.argmax(1)
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (np.asarray(targets), predicted), 1)
    hits = confusion.diagonal()
    per_class = {
        label: {
            "precision": _ratio(hits[index], confusion[:, index].sum()),
            "recall": _ratio(hits[index], confusion[index].sum()),
            "f1": _ratio(2 * hits[index], confusion[:, index].sum() + confusion[index].sum()),
            "n": float(confusion[index].sum()),
        }
        for index, label in enumerate(labels)
    }
    present = [label for index, label in enumerate(labels) if confusion[index].any() or confusion[:, index].any()]
    return Metrics(
        n=len(targets),
        accuracy=_ratio(hits.sum(), len(targets)),
        accuracy_interval=wilson(int(hits.sum()), len(targets)),
        macro_f1=sum(per_class[label]["f1"] for label in present) / len(present),
        per_class=per_class,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def write_predictions(evaluation: "Evaluation", path: Path) -> None:
    """Write a CSV with a row an item: input, true label, predicted label, then every class's score."""
    labels = sorted(evaluation.metrics.per_class)
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["input", "label", "predicted", *labels])
    for answer, truth in zip(evaluation.predictions, evaluation.truth, strict=True):
        scores = dict(answer.labels)
        table.writerow([answer.input, truth, answer.labels[0][0], *(f"{scores[label]:.7g}" for label in labels)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue().encode())


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson, JASA 22, 1927): honest for small n and near 0 and 1."""
    share, z2 = hits / n, Z * Z
    centre = share + z2 / (2 * n)
    margin = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = ((centre + sign * margin) / (1 + z2 / n) for sign in (-1, 1))
    # At 0 and 1 the interval ends there, and rounding must not say otherwise.
    return (low if hits else 0.0), (high if hits < n else 1.0)


def _ratio(part: "int | np.int64", whole: "int | np.int64") -> float:
    return float(part) / float(whole) if whole else 0.0
