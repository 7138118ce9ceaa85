"""Answers for raw inputs: labels with scores, features where there is no head, nearest words from a word table.

With `keep_going` an item that cannot be answered does not cost the others theirs: its answer says what is wrong.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from zoo.data.inputs import Input, Inputs, arriving, named_inputs
from zoo.data.items import Skip
from zoo.data.tokenizers import check_text
from zoo.errors import DataError, UsageError, ZooError, named
from zoo.results import Answer, Failure
from zoo.runtime.in_order import InOrder
from zoo.runtime.pipeline import WINDOW, windows
from zoo.schema import Manifest, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.words.table import WordTable

    Floats: TypeAlias = NDArray[np.float32] | NDArray[np.float64]


#: The score from which a label of several holds, where no thresholds were chosen.
THRESHOLD = 0.5


#: Words whose neighbours are looked for at a time.
WORDS = 256
#: Pictures, or lines that name them, that are taken from a pipe at a time.
PICTURES = 64


def check_top(top: int) -> int:
    """The same number. Raises UsageError below one."""
    if top < 1:
        raise UsageError(f"--top must be at least 1, got {top}", hint="--top 5")
    return top


class Source(Protocol):
    """Who answers."""

    def rows(self, items: Iterable[Any], skip: Skip) -> Iterator[tuple[Sequence[int], Sequence[Any]]]:
        """As `zoo.runtime.in_order.Rows`."""

    def answer(self, name: str, row: Any) -> Answer:
        """What a row says of the input of this name."""


class Model(Protocol):
    """A loaded model, as far as answers need it: a `zoo.runtime.session.Session`, or one that computes elsewhere."""

    @property
    def manifest(self) -> Manifest:
        """Task, labels and thresholds."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs: `features`, and `scores` where there is a head."""

    def rows(self, items: Iterable[Any], output: str, skip: Skip) -> Iterator[tuple[Sequence[int], Sequence[Any]]]:
        """Batch by batch (indices of the items, the rows of `output` for them)."""


class ByModel:
    """A session's answers: the `top` best labels, a number, or the features of a bundle without a head."""

    def __init__(self, model: Model, top: int) -> None:
        self.model = model
        self.top = check_top(top)
        self.has_scores = "scores" in model.outputs

    def rows(self, items: Iterable[Any], skip: Skip) -> Iterator[tuple[Sequence[int], Sequence[Any]]]:
        """Scores float32 [labels], or features [dim]."""
        return self.model.rows(items, "scores" if self.has_scores else "features", skip)

    def answer(self, name: str, row: "NDArray[np.float32]") -> Answer:
        """As `Source` has it."""
        manifest = self.model.manifest
        if not self.has_scores:
            return Answer(input=name, features=tuple(row.tolist()))
        if manifest.task is Task.REGRESSION:
            return Answer(input=name, value=float(row[0]))
        if manifest.task is Task.MULTI_LABEL:
            return _several(name, row, manifest.labels, manifest.thresholds, self.top)
        return labelled(name, row, manifest.labels, self.top)


class ByWords:
    """A word table's answers: the `top` words nearest to a text, its own left out.

    A text that is a word of the table is that word; any other one is the mean of its known words' vectors, as the
    features graph has it.
    """

    def __init__(self, table: "WordTable", top: int) -> None:
        self.table = table
        self.top = check_top(top)

    def rows(self, items: Iterable[Any], skip: Skip) -> Iterator[tuple[Sequence[int], Sequence[Any]]]:
        """(word, similarity), the nearest first."""
        for start, window in windows(items, WORDS):
            known: dict[int, list[int]] = {}
            for index, text in enumerate(window, start):
                try:
                    known[index] = self.table.ids(check_text(text, index))
                except ZooError as error:
                    skip(index, error)  # type: ignore[arg-type]
            yield list(known), self.table.around(list(known.values()), self.top)

    def answer(self, name: str, row: list[tuple[str, float]]) -> Answer:
        """As `Source` has it."""
        return Answer(input=name, words=tuple(row))


def answers(source: Source, inputs: Iterable[Any], *, keep_going: bool) -> Iterator[Answer]:
    """An answer for each input, in order, as soon as it and those before it are there.

    A model takes a window of inputs at a time; of those that come from a pipe it takes what has come.
    """
    parts: Iterable[Iterable[Any]] = [inputs]
    if isinstance(inputs, Inputs) and inputs.is_piped:
        # Beside a pipe there may be a table of pictures.
        parts = arriving(inputs, PICTURES if inputs.reads_pictures else WINDOW)
    first = 0
    for part in parts:
        ordered = InOrder(source.rows, named_inputs(part), strict=not keep_going, first=first)
        for found in ordered:
            for name, row in found:
                if isinstance(row, ZooError):
                    yield Answer(input=name, error=Failure.of(row))
                else:
                    yield source.answer(name, row)
        first += ordered.answered


def answer_one(source: Source, each: Input, *, keep_going: bool) -> Answer:
    """As `answers`, for one input alone."""
    wrong: list[ZooError] = []
    for _, rows in source.rows([each.item], lambda _, error: wrong.append(error)):
        for row in rows:
            return source.answer(each.name, row)
    error = named(wrong[0], *each)
    if not keep_going:
        if isinstance(error, DataError):
            error.index = 0
        raise error
    return Answer(input=each.name, error=Failure.of(error))


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


def labelled(name: str, scores: Any, labels: Sequence[str], top: int) -> Answer:
    """The `top` best of the scores [labels] of one input."""
    best = scores.argsort()[::-1][:top]
    return Answer(input=name, labels=tuple((labels[index], float(scores[index])) for index in best))


def decide(task: Task, scores: "Floats", thresholds: Sequence[float] = ()) -> "NDArray[Any]":
    """What scores [items, labels] say, in the form of the targets of `task`: see `measure`."""
    import numpy as np

    if task is Task.REGRESSION:
        return np.asarray(scores)
    if task is Task.MULTI_LABEL:
        return np.asarray(scores >= np.asarray(thresholds or [THRESHOLD] * scores.shape[1], scores.dtype))
    return np.asarray(scores.argmax(1))


def predicted_labels(
    task: Task, scores: "Floats", labels: Sequence[str], thresholds: Sequence[float] = ()
) -> list[str]:
    """What scores [items, labels] say, as data is written: a label, labels joined by `|`, or a number."""
    decided = decide(task, scores, thresholds).tolist()
    if task is Task.REGRESSION:
        return [f"{value:.7g}" for [value] in decided]
    if task is Task.MULTI_LABEL:
        return ["|".join(label for label, holds in zip(labels, row, strict=True) if holds) for row in decided]
    return [labels[index] for index in decided]
