"""Answers for raw inputs: labels with scores, features where there is no head, nearest words from a word table.

With `keep_going` an item that cannot be answered does not cost the others theirs: its answer says what is wrong.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zoo.answers import Answer, Failure, labelled
from zoo.encode import check_text
from zoo.errors import ZooError, named
from zoo.metrics import decide
from zoo.progress import SILENT, Progress
from zoo.schema import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.runtime import Session
    from zoo.words import WordTable


def answer(
    session: "Session",
    items: Sequence[Any],
    names: Sequence[str],
    *,
    top: int,
    keep_going: bool,
    progress: Progress = SILENT,
) -> list[Answer]:
    """One answer an item: the `top` best labels, a number, or the features of a bundle without a head."""
    has_scores = "scores" in session.outputs
    output = "scores" if has_scores else "features"

    def facts(row: "NDArray[np.float32]", name: str) -> Answer:
        if not has_scores:
            return Answer(input=name, features=tuple(row.tolist()))
        if session.manifest.task is Task.REGRESSION:
            return Answer(input=name, value=float(row[0]))
        if session.manifest.task is Task.MULTI_LABEL:
            return _several(name, row, session.labels, session.manifest.thresholds, top)
        return labelled(name, row, session.labels, top)

    failures = Failures(names, items, keep_going)
    found = session.infer(items, [output], progress, failures)[output]
    pairs = zip(names, found, strict=True)
    return [failures.of(index) or facts(row, name) for index, (name, row) in enumerate(pairs)]


def nearest_words(
    table: "WordTable", texts: Sequence[str], names: Sequence[str], *, top: int, keep_going: bool
) -> list[Answer]:
    """One answer a text: the `top` words nearest to it, its own left out.

    A text that is a word of the table is that word; any other one is the mean of its known words' vectors, as the
    features graph has it.
    """
    failures = Failures(names, texts, keep_going)
    known: dict[int, list[int]] = {}
    for index, text in enumerate(texts):
        try:
            known[index] = table.ids(check_text(text, index))
        except ZooError as error:
            failures(index, error)
    found = dict(zip(known, table.around(list(known.values()), top), strict=True))
    return [failures.of(index) or Answer(input=name, words=tuple(found[index])) for index, name in enumerate(names)]


def _several(
    name: str, scores: "NDArray[np.float32]", labels: Sequence[str], thresholds: Sequence[float], top: int
) -> Answer:
    """The labels that hold, then the best of the others: `top` of them, or as many as hold."""
    [holds] = decide(Task.MULTI_LABEL, scores[None], thresholds)
    order = sorted(range(len(labels)), key=lambda index: (not holds[index], -scores[index]))
    shown = order[: max(top, int(holds.sum()))]
    return Answer(
        input=name,
        labels=tuple((labels[index], float(scores[index])) for index in shown),
        chosen=tuple(labels[index] for index in order if holds[index]),
    )


class Failures:
    """What is wrong with which item; called as a Session's `skip`. Without `keep_going` the first one is raised."""

    def __init__(self, names: Sequence[str], items: Sequence[object], keep_going: bool) -> None:
        self.names = names
        self.items = items
        self.keep_going = keep_going
        self.found: dict[int, ZooError] = {}

    def __call__(self, index: int, error: ZooError) -> None:
        """Keep the error of the item at this place, or raise it."""
        error = named(error, self.names[index], self.items[index])
        if not self.keep_going:
            raise error
        self.found[index] = error

    def of(self, index: int) -> Answer | None:
        """The answer that says why there is none, None for an item that has one."""
        error = self.found.get(index)
        return None if error is None else Answer(input=self.names[index], error=Failure.of(error))
