"""Files of answers, one row for each input: the same table as CSV, JSON lines and Parquet.

input           the input's name
label, score    the best label and its score
labels          of a multi-label model: the chosen labels (`a|b`)
value           of a regression: the number
LABEL ...       the score of every label
word1, similarity1, ...   of a word table: the nearest words
token1, score1, ...       of a model that fills masks: the best tokens
error, message  of an input without an answer: the error code and the message
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from zoo.bundle import MODEL
from zoo.data.labels import without_head
from zoo.errors import UsageError
from zoo.outputs.resumable_file import AnswerColumns, LineWriter, NamedRow, OutputRecord, Writer, parquet_writer
from zoo.outputs.table import Row, Table, decimals, plain, score_columns
from zoo.outputs.write_rows import WriteJob, step_of
from zoo.results import Answered, Failure
from zoo.runtime.answers import WORD_WINDOW, ModelAnswerer, WordAnswerer, best_words, check_top, decide
from zoo.schema import Entry, Manifest, Task, TextPreprocess
from zoo.system.files import sha256_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.runtime.session import Session
    from zoo.words.table import WordTable

SUFFIXES = (".csv", ".jsonl", ".parquet")
#: Columns that every file has, before and after those of the answer.
FIRST, LAST = ("input",), ("error", "message")
#: The key of the record in Parquet's metadata.
KEY = b"zoo.answers"
VERB = "run"


class AnswerFormat(NamedTuple):
    """The columns of an answer, the columns among them that hold numbers, and the function that returns its cells."""

    columns: tuple[str, ...]
    numbers: frozenset[str]
    cells: Callable[[Any], Row]

    @property
    def table(self) -> Table:
        """The columns of the file."""
        return Table((*FIRST, *self.columns, *LAST), self.numbers)

    def row(self, named_row: NamedRow) -> Row:
        """The cells of an input in the file."""
        name, row = named_row
        if isinstance(row, Failure):
            return [plain(name), *[None] * len(self.columns), row.code, plain(row.message)]
        return [plain(name), *self.cells(row), None, None]


def of_session(session: "Session", top: int | None = None) -> WriteJob[Answered]:
    """The job that writes labels with every score, numbers, or the `top` best tokens (default 5) for a mask.

    Raises UsageError for a bundle without a head, and for `top` if every score is written.
    """
    manifest = session.manifest
    if "scores" not in session.outputs:
        raise UsageError(
            f"{manifest.name} has no labels: {without_head(manifest)}",
            hint="zoo embed writes features; zoo finetune makes labels",
        )
    is_filler = manifest.task is Task.FILL_MASK
    if top is not None and not is_filler:
        raise UsageError("--top has no effect with -o: files hold the score of every label", hint="leave --top out")
    answer_format = _tokens(session, top or 5) if is_filler else _format(manifest)
    answering = AnswerColumns(
        columns=answer_format.columns, task=manifest.task, labels=manifest.labels, thresholds=manifest.thresholds,
        preprocess=manifest.preprocess,
    )  # fmt: skip
    # The number of tokens for a mask does not affect an answer.
    facts = msgspec.structs.replace(answering, columns=()) if is_filler else answering
    tokenizer = [manifest.preprocess.tokenizer] if isinstance(manifest.preprocess, TextPreprocess) else []
    digests = [(name, session.bundle.digest(name)) for name in (MODEL, *tokenizer, *session.table_files)]
    fresh = OutputRecord(
        verb=VERB, model=manifest.name, fingerprint=sha256_json([digests, facts]),
        precision=manifest.precision, answering=answering,
    )  # fmt: skip
    # The fingerprint covers everything that affects an answer: the model's files, preprocessing, labels and thresholds.
    return WriteJob(
        result=partial(Answered, columns=answer_format.table.columns), rows=ModelAnswerer(session, 1).rows,
        step=step_of(manifest.preprocess), fresh=fresh, open=partial(_open, answer_format),
        description=f"answers by {manifest.name} on {session.device}", entry=manifest.lineage.entry.name,
        device=session.device, placement=session.placement,
    )  # fmt: skip


def of_words(words: "WordTable", entry: Entry, top: int) -> WriteJob[Answered]:
    """The job that writes the `top` nearest words from the table of a registry row."""
    answer_format = _ranked("word", "similarity", top, list)
    digests = sorted((file.path, file.sha256) for file in entry.files)
    fresh = OutputRecord(
        verb=VERB, model=entry.name, fingerprint=sha256_json([digests, entry.preprocess]), precision="fp32",
        dim=words.dim, answering=AnswerColumns(columns=answer_format.columns, preprocess=entry.preprocess),
    )  # fmt: skip
    return WriteJob(
        result=partial(Answered, columns=answer_format.table.columns), rows=WordAnswerer(words, top).rows,
        step=WORD_WINDOW, fresh=fresh, open=partial(_open, answer_format),
        description=f"answers by {entry.name} on cpu",
        entry=entry.name,
    )  # fmt: skip


def _tokens(session: "Session", top: int) -> AnswerFormat:
    check_top(top)
    return _ranked("token", "score", top, partial(best_words, session, top=top))


def _ranked(name: str, value: str, top: int, best: Callable[[Any], Sequence[tuple[str, float]]]) -> AnswerFormat:
    """The format of the `top` best words, which `best` finds in a row of the model."""
    pairs = [(f"{name}{number}", f"{value}{number}") for number in range(1, top + 1)]

    def cells(row: Any) -> Row:
        # A small table may have fewer than `top` words.
        found = best(row)
        numbers = decimals([number for _, number in found])
        filled = [cell for (word, _), number in zip(found, numbers, strict=True) for cell in (plain(word), number)]
        return [*filled, *[None] * (2 * top - len(filled))]

    return AnswerFormat(tuple(cell for pair in pairs for cell in pair), frozenset(number for _, number in pairs), cells)


def _format(manifest: Manifest) -> AnswerFormat:
    """The format of answers from a bundle's scores [labels]."""
    labels = manifest.labels
    if manifest.task is Task.REGRESSION:
        return AnswerFormat(("value",), frozenset(["value"]), lambda scores: decimals(scores[:1]))
    # The same names are reserved in every task, so that the column name of a label does not depend on the task.
    columns = score_columns(labels, {*FIRST, "label", "labels", "score", "value", *LAST})
    if manifest.task is Task.MULTI_LABEL:

        def several(scores: "NDArray[np.float32]") -> Row:
            [holds] = decide(Task.MULTI_LABEL, scores[None], manifest.thresholds)
            chosen = "|".join(label for label, is_held in zip(labels, holds, strict=True) if is_held)
            return [chosen, *decimals(scores)]

        return AnswerFormat(("labels", *columns), frozenset(columns), several)

    def one(scores: "NDArray[np.float32]") -> Row:
        best, numbers = int(scores.argmax()), decimals(scores)
        return [labels[best], numbers[best], *numbers]

    return AnswerFormat(("label", "score", *columns), frozenset(["score", *columns]), one)


def _open(answer_format: AnswerFormat, path: Path, record: OutputRecord) -> Writer:
    open_lines = partial(LineWriter, table=answer_format.table, cells=answer_format.row)
    if path.suffix.lower() != ".parquet":
        return open_lines(path, record)

    def convert(files: Sequence[Path], out: Path, record: OutputRecord) -> None:
        with files[0].open("rb") as lines:
            answer_format.table.write_parquet(lines, out, {KEY: msgspec.json.encode(record)})

    return parquet_writer(path, record, ".jsonl", open_lines, convert)
