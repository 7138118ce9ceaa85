"""A table of an evaluation's predictions, as CSV or Parquet."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.errors import AccessError, UsageError
from zoo.extras import require
from zoo.outputs.answer_file import score_columns
from zoo.results import Evaluation
from zoo.schema import Task
from zoo.system.files import write_atomic

#: Columns before those of the scores.
COLUMNS = ("input", "label", "predicted")


def check_predictions(path: Path, *, inside: Sequence[Path] = ()) -> None:
    """Raise UsageError for a file that `write_predictions` cannot write, MissingExtraError where a package lacks.

    `inside` are files and folders (the data, the bundle) that the file must neither replace nor lie in.
    """
    suffix = path.suffix.lower()
    for read in inside:
        if path.resolve().is_relative_to(read.resolve()):
            raise UsageError(f"{path} would change {read}, which is being read", hint="choose another file")
    if suffix not in (".csv", ".parquet"):
        raise UsageError(f"{path} is neither .csv nor .parquet", hint="--predictions FILE.csv or FILE.parquet")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="--predictions FILE.csv or FILE.parquet")
    if suffix == ".parquet":
        require("writing Parquet", "pyarrow")


def write_predictions(evaluation: Evaluation, path: Path) -> None:
    """Write a table with a row an item, as CSV or Parquet by the suffix.

    The columns are input, label (of a number: target), predicted, then every label's score; a label that is called
    like one of the first three has `score:` before it, as often as no other label is called so. Raises as `check_predictions` does, and AccessError.
    """
    check_predictions(path)
    rows = list(zip(evaluation.predictions, evaluation.truth, evaluation.predicted, strict=True))
    is_number = evaluation.task is Task.REGRESSION
    table: dict[str, list[Any]] = {
        "input": [answer.input for answer, _, _ in rows],
        "target" if is_number else "label": [float(truth) if is_number else truth for _, truth, _ in rows],
        "predicted": [answer.labels[0][1] if is_number else said for answer, _, said in rows],
    }
    if not is_number:
        scores = [dict(answer.labels) for answer, _, _ in rows]
        for label, column in zip(evaluation.labels, score_columns(evaluation.labels, COLUMNS), strict=True):
            table[column] = [row[label] for row in scores]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (_csv if path.suffix.lower() == ".csv" else _parquet)(table))
    except OSError as error:
        raise AccessError(
            f"{path} cannot be written: {error.strerror or error}", hint="choose another file for --predictions"
        ) from error


def _csv(table: dict[str, list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    for row in zip(*table.values(), strict=True):
        writer.writerow([f"{cell:.7g}" if isinstance(cell, float) else cell for cell in row])
    return text.getvalue().encode()


def _parquet(table: dict[str, list[Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    numbers = {name: pyarrow.float32() for name, cells in table.items() if cells and isinstance(cells[0], float)}
    arrays = {name: pyarrow.array(cells, numbers.get(name, pyarrow.string())) for name, cells in table.items()}
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(arrays), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data
