"""Predictions of an evaluation and suspects of a training, as CSV or Parquet tables."""

import io
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import AccessError, UsageError
from zoo.outputs.table import Row, Table, check_name, decimals, plain, score_columns
from zoo.results import Evaluation, Suspect
from zoo.schema import Task
from zoo.system.files import write_atomic

#: Columns before those of the scores.
COLUMNS = ("input", "label", "predicted")


def check_predictions(path: Path, *, inside: Sequence[Path] = (), option: str = "--predictions") -> None:
    """Raise UsageError for a file that cannot be written, MissingExtraError for Parquet without pyarrow.

    `option` is the option that named the file. `inside` are files and folders (the data, the bundle): `path` must not
    be one of them and must not lie in one.
    """
    for read in inside:
        if path.resolve().is_relative_to(read.resolve()):
            raise UsageError(f"{path} would change {read}, which is being read", hint="choose another file")
    check_name(path, (".csv", ".parquet"), option)


def write_predictions(evaluation: Evaluation, path: Path) -> None:
    """Write one row for each evaluated item, as CSV or Parquet by the suffix of `path`.

    The columns are input, label (target in a regression), predicted, then the score of every label. The column of a
    label that has the name of one of the first three is called `score:LABEL`. Raises AccessError if the file cannot be
    written, and the errors of `check_predictions`.
    """
    check_predictions(path)
    _write(path, *_table(evaluation), "--predictions")


def write_suspects(suspects: Sequence[Suspect], path: Path) -> None:
    """Write one row for each suspect: input, label, predicted, about, score; the most suspicious first.

    Raises AccessError if the file cannot be written, and the errors of `check_predictions`.
    """
    check_predictions(path, option="--suspects")
    scores = decimals([suspect.score for suspect in suspects])
    rows: list[Row] = [
        (plain(suspect.name), suspect.label, suspect.predicted, suspect.about, score)
        for suspect, score in zip(suspects, scores, strict=True)
    ]
    _write(path, Table((*COLUMNS, "about", "score"), frozenset(["score"])), rows, "--suspects")


def _write(path: Path, table: Table, rows: Sequence[Row], option: str) -> None:
    if path.suffix.lower() == ".csv":
        data = table.csv([table.columns, *rows])
    else:
        buffer = io.BytesIO()
        table.write_parquet(table.json_lines(rows).splitlines(), buffer, {})
        data = buffer.getvalue()
    try:
        write_atomic(path, data)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}"
        raise AccessError(message, hint=f"choose another file for {option}") from error


def _table(evaluation: Evaluation) -> tuple[Table, list[Row]]:
    names = [plain(answer.input) for answer in evaluation.predictions]
    if evaluation.task is Task.REGRESSION:
        targets = decimals([float(truth) for truth in evaluation.truth])
        values = decimals([answer.labels[0][1] for answer in evaluation.predictions])
        table = Table(("input", "target", "predicted"), frozenset(["target", "predicted"]))
        return table, list(zip(names, targets, values, strict=True))
    columns = score_columns(evaluation.labels, COLUMNS)
    scores = (dict(answer.labels) for answer in evaluation.predictions)
    numbers = (decimals([score[label] for label in evaluation.labels]) for score in scores)
    cells = zip(names, evaluation.truth, evaluation.predicted, numbers, strict=True)
    rows: list[Row] = [(name, truth, predicted, *values) for name, truth, predicted, values in cells]
    return Table((*COLUMNS, *columns), frozenset(columns)), rows
