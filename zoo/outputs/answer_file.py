"""Files of answers, one row for each input: CSV, JSON lines and Parquet, the same table in each.

input           as it was named
label, score    the best label and its score;  labels: of several the ones that hold (`a|b`);  value: of a number
LABEL ...       the score of every label;  word1, similarity1, ...: the nearest words
error, message  the code of what is wrong with the input, and what that is
"""

import csv
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from zoo.bundle import MODEL
from zoo.errors import UsageError
from zoo.outputs import resumable_file
from zoo.outputs.resumable_file import GROUP, Answering, Found, LineWriter, ParquetWriter, Record, Writer, plain
from zoo.outputs.write_rows import Kind, into_file, step_of
from zoo.progress import SILENT, Progress
from zoo.results import Answered, Failure, Placement
from zoo.runtime.answers import WORDS, ByModel, ByWords, decide
from zoo.schema import Entry, Manifest, Task, TextPreprocess
from zoo.system.files import sha256_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.runtime.session import Session
    from zoo.words.table import WordTable

SUFFIXES = (".csv", ".jsonl", ".parquet")
#: Columns that every file has, or may have; a label that is called like one has `score:` before it.
FIRST, LAST = ("input",), ("error", "message")
RESERVED = {*FIRST, "label", "labels", "score", "value", *LAST}
#: The key of the record in Parquet's metadata.
KEY = b"zoo.answers"
VERB = "run"


class Form(NamedTuple):
    """How one answer is written: the columns between FIRST and LAST, and what stands in them.

    `words` are those columns that hold no number. `cells` makes them of a row, numbers as the shortest decimals that
    float32 reads back as the same.
    """

    columns: tuple[str, ...]
    words: frozenset[str]
    cells: Callable[[Any], Sequence[str]]


class Source(NamedTuple):
    """Who answers into a file, and in which form."""

    kind: Kind
    entry: str
    device: str
    placement: Placement | None
    columns: tuple[str, ...]


def check_name(path: Path) -> None:
    """Raise UsageError for a name that no file of answers has, MissingExtraError for Parquet without pyarrow."""
    resumable_file.check_name(path, SUFFIXES)


def of_session(session: "Session") -> Source:
    """Labels with every score, or a number. Raises UsageError for a bundle without a head."""
    manifest = session.manifest
    if "scores" not in session.outputs:
        raise UsageError(
            f"{manifest.name} has no labels: it was not fine-tuned",
            hint="zoo embed writes features; zoo finetune makes labels",
        )
    form = _form(manifest)
    answering = Answering(
        columns=form.columns, task=manifest.task, labels=manifest.labels, thresholds=manifest.thresholds,
        preprocess=manifest.preprocess,
    )  # fmt: skip
    tokenizer = [manifest.preprocess.tokenizer] if isinstance(manifest.preprocess, TextPreprocess) else []
    digests = [(name, session.bundle.digest(name)) for name in (MODEL, *tokenizer, *session.table_files)]
    fresh = Record(
        verb=VERB, model=manifest.name, fingerprint=_fingerprint([digests, answering]),
        precision=manifest.precision, answering=answering,
    )  # fmt: skip
    what = f"answers by {manifest.name} on {session.device}"
    kind = Kind(ByModel(session, 1).rows, step_of(manifest.preprocess), fresh, partial(_open, form), what)
    columns = (*FIRST, *form.columns, *LAST)
    return Source(kind, manifest.lineage.entry.name, session.device, session.placement, columns)


def of_words(table: "WordTable", entry: Entry, top: int) -> Source:
    """The `top` nearest words from the table of a registry row."""
    pairs = [(f"word{number}", f"similarity{number}") for number in range(1, top + 1)]

    def cells(found: Sequence[tuple[str, float]]) -> list[str]:
        # A small table may have fewer words than were asked for.
        filled = [*found, *[("", None)] * (top - len(found))]
        return [cell for word, value in filled for cell in (word, "" if value is None else _number(value))]

    form = Form(tuple(name for pair in pairs for name in pair), frozenset(word for word, _ in pairs), cells)
    answering = Answering(columns=form.columns, preprocess=entry.preprocess)
    digests = sorted((file.path, file.sha256) for file in entry.files)
    fresh = Record(
        verb=VERB, model=entry.name, fingerprint=_fingerprint([digests, entry.preprocess]), precision="fp32",
        dim=table.dim, answering=answering,
    )  # fmt: skip
    kind = Kind(ByWords(table, top).rows, WORDS, fresh, partial(_open, form), f"answers by {entry.name} on cpu")
    return Source(kind, entry.name, "cpu", None, (*FIRST, *form.columns, *LAST))


def write_answers(
    source: Source,
    inputs: Iterable[Any],
    out: Path,
    *,
    model: str,
    resume: bool = False,
    strict: bool = False,
    progress: Progress = SILENT,
) -> Answered:
    """Write the answers for `inputs` to `out`. Raises as `zoo.outputs.write_rows.into_file`."""
    done = into_file(source.kind, inputs, out, resume=resume, strict=strict, progress=progress)
    return Answered(
        model=model, entry=source.entry, device=source.device, placement=source.placement, out=str(out),
        fingerprint=done.record.fingerprint, columns=source.columns, inputs=done.record.inputs, rows=done.record.rows,
        resumed=done.resumed, failures=done.failures,
    )  # fmt: skip


def _fingerprint(parts: list[object]) -> str:
    """sha256 over all that decides an answer: the model's files, preprocessing, labels and thresholds."""
    return sha256_json(parts)


def _form(manifest: Manifest) -> Form:
    """The form of a bundle's scores [labels]."""
    labels = manifest.labels
    if manifest.task is Task.REGRESSION:
        return Form(("value",), frozenset(), lambda scores: [_number(scores[0])])
    columns = score_columns(labels)
    if manifest.task is Task.MULTI_LABEL:

        def several(scores: "NDArray[np.float32]") -> list[str]:
            [holds] = decide(Task.MULTI_LABEL, scores[None], manifest.thresholds)
            chosen = "|".join(label for label, is_held in zip(labels, holds, strict=True) if is_held)
            return [chosen, *scores.astype("U").tolist()]

        return Form(("labels", *columns), frozenset(["labels"]), several)

    def one(scores: "NDArray[np.float32]") -> list[str]:
        best = int(scores.argmax())
        numbers: list[str] = scores.astype("U").tolist()
        return [labels[best], numbers[best], *numbers]

    return Form(("label", "score", *columns), frozenset(["label"]), one)


def score_columns(labels: Sequence[str], reserved: Collection[str] = RESERVED) -> tuple[str, ...]:
    """A column for each label: its own name, with `score:` before it as often as it takes to be nobody else's."""
    taken, columns = {*reserved, *labels}, []
    for label in labels:
        column = label
        while column in reserved or (column != label and column in taken):
            column = f"score:{column}"
        taken.add(column)
        columns.append(column)
    return tuple(columns)


def _number(value: Any) -> str:
    import numpy as np

    return str(np.float32(value).astype("U"))


def _open(form: Form, path: Path, record: Record) -> Writer:
    """As `zoo.outputs.resumable_file.OpenWriter`."""
    if path.suffix.lower() == ".csv":
        header = _table([[*FIRST, *form.columns, *LAST]])
        return LineWriter(path, record, lambda found: _table(_csv_rows(form, found)), header)
    if path.suffix.lower() == ".jsonl":
        return LineWriter(path, record, partial(_json_lines, form))

    def spool(path: Path, record: Record) -> Writer:
        return LineWriter(path, record, partial(_json_lines, form))

    return ParquetWriter(path, record, ".jsonl", spool, partial(_write_parquet, form))


def _csv_rows(form: Form, found: Sequence[Found]) -> Iterator[list[str]]:
    for name, row in found:
        if isinstance(row, Failure):
            yield [plain(name), *[""] * len(form.columns), row.code, plain(row.message)]
        else:
            yield [plain(name), *form.cells(row), "", ""]


def _table(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _json_lines(form: Form, found: Sequence[Found]) -> bytes:
    return b"".join(msgspec.json.encode(_facts(form, name, row)) + b"\n" for name, row in found)


def _facts(form: Form, name: str, row: Any) -> dict[str, object]:
    """What an input's line has: nothing stands for an empty cell."""
    if isinstance(row, Failure):
        return {"input": plain(name), "error": row.code, "message": plain(row.message)}
    cells = zip(form.columns, form.cells(row), strict=True)
    facts = {key: cell if key in form.words else msgspec.Raw(cell.encode()) for key, cell in cells if cell}
    # Several labels of which none holds are an answer, too.
    return {"input": plain(name), **({"labels": ""} if "labels" in form.words else {}), **facts}


def _write_parquet(form: Form, spool: Sequence[Path], out: Path, record: Record) -> None:
    import pyarrow
    from pyarrow import parquet

    names = (*FIRST, *form.columns, *LAST)
    kinds = [
        pyarrow.string() if name not in form.columns or name in form.words else pyarrow.float32() for name in names
    ]
    schema = pyarrow.schema(list(zip(names, kinds, strict=True)), {KEY: msgspec.json.encode(record)})
    [path] = spool
    with path.open("rb") as lines, parquet.ParquetWriter(out, schema) as writer:
        while group := [msgspec.json.decode(line) for _, line in zip(range(GROUP), lines, strict=False)]:
            columns = [
                pyarrow.array([line.get(name) for line in group], kind) for name, kind in zip(names, kinds, strict=True)
            ]
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))
