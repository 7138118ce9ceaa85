"""zoo evaluate --predictions: column names are unique, and both formats have the same numbers."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo import Answer, Evaluation, Metrics, Task, write_predictions

METRICS = Metrics(n=2)


def evaluation(labels: tuple[str, ...], scores: list[list[float]], **more: Any) -> Evaluation:
    """An evaluation of two items with these scores; the first label is true, the best one is predicted."""
    answers = [
        Answer(input=f"item {number}", labels=tuple(zip(labels, row, strict=True))) for number, row in enumerate(scores)
    ]
    best = tuple(labels[int(np.argmax(row))] for row in scores)
    facts = {
        "model": "m", "data": "d", "device": "cpu", "task": Task.SINGLE_LABEL, "labels": labels, "metrics": METRICS,
        "trained_on": 0, "predictions": tuple(answers), "predicted": best, "truth": (labels[0],) * len(scores),
    }  # fmt: skip
    return Evaluation(**{**facts, **more})


def table(path: Path) -> tuple[list[str], list[list[Any]]]:
    """Returns the column names and the rows as another program reads them."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        found = parquet.read_table(path)
        return found.column_names, [list(row) for row in zip(*(c.to_pylist() for c in found.columns), strict=True)]
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        (("label", "score:label"), ["score:score:label", "score:label"]),
        (("score:input", "input", "score"), ["score:input", "score:score:input", "score"]),
        (("predicted", "b"), ["score:predicted", "b"]),
    ],
)
def test_no_two_columns_share_a_name(tmp_path: Path, labels: tuple[str, ...], columns: list[str], suffix: str) -> None:
    scores = np.random.default_rng(0).random((2, len(labels))).astype(np.float32)
    write_predictions(evaluation(labels, scores.tolist()), tmp_path / f"p.{suffix}")
    header, rows = table(tmp_path / f"p.{suffix}")
    assert header == ["input", "label", "predicted", *columns]
    assert [row[:2] for row in rows] == [["item 0", labels[0]], ["item 1", labels[0]]]
    np.testing.assert_allclose([[float(cell) for cell in row[3:]] for row in rows], scores, rtol=1e-6)
