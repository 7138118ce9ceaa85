"""Answers to raw inputs: labels with scores, features of a model without a head, nearest words of a word table.

With `keep_going` the answer to an input that fails holds the error, and the other inputs are answered.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from zoo.data.inputs import Input, Inputs, arriving, named_inputs
from zoo.data.items import Skip
from zoo.data.tokenizers import check_text
from zoo.errors import DataError, DeviceError, UsageError, ZooError, named
from zoo.results import Answer, Failure
from zoo.runtime.in_order import InOrder, windows
from zoo.runtime.pipeline import WINDOW
from zoo.schema import FEATURES, SCORES, Manifest, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.words.table import WordTable

    Floats: TypeAlias = NDArray[np.float32] | NDArray[np.float64]


#: Words that are looked up in the table together.
WORD_WINDOW = 256


def check_top(top: int) -> None:
    """Raise UsageError for a `top` below 1."""
    if top < 1:
        raise UsageError(f"--top must be at least 1, got {top}", hint="--top 5")


class Model(Protocol):
    """The part of a loaded model that answers need: a `zoo.runtime.session.Session`, or a model that runs elsewhere."""

    @property
    def manifest(self) -> Manifest:
        """Task, labels and thresholds."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs: `features`, and `scores` if the model has a head."""

    def rows(self, items: Iterable[Any], output: str, skip: Skip) -> Iterator[tuple[Sequence[int], Sequence[Any]]]:
        """The rows of `output` for the items: see `zoo.runtime.in_order.Rows`."""

    def words(self, ids: Sequence[int]) -> Sequence[str]:
        """The text of each token id, for a model that fills masks."""


class ModelAnswerer:
    """Answers by a model: the `top` best labels, a number, or the features of a model without a head.

    With `features`, answers are the features of any model. `rows` computes the rows of items (see
    `zoo.runtime.in_order.Rows`); `answer` turns a row into an answer.
    """

    def __init__(self, model: Model, top: int, *, features: bool = False) -> None:
        self.model = model
        check_top(top)
        self.top = top
        self.has_scores = SCORES in model.outputs and not features

    def rows(self, items: Iterable[Any], skip: Skip) -> Iterator[tuple[Sequence[int], Sequence[Any]]]:
        """The rows of items: scores float32 [labels], or features [dim]."""
        return self.model.rows(items, SCORES if self.has_scores else FEATURES, skip)

    def answer(self, name: str, row: "NDArray[np.float32]") -> Answer:
        """The answer to the input `name` from its scores or features."""
        manifest = self.model.manifest
        if not self.has_scores:
            return Answer(input=name, features=tuple(row.tolist()))
        if manifest.task is Task.REGRESSION:
            return Answer(input=name, value=float(row[0]))
        if manifest.task is Task.MULTI_LABEL:
            return _multi_label(name, row, manifest, self.top)
        if manifest.task is Task.FILL_MASK:
            return Answer(input=name, labels=tuple(best_words(self.model, row, self.top)))
        return labelled(name, row, manifest.labels, self.top)


class WordAnswerer:
    """Answers by a word table: the `top` words nearest to a text, without the words of the text itself.

    A text that is a word of the table has that word's vector. Any other text has the mean vector of its known words.
    """

    def __init__(self, table: "WordTable", top: int) -> None:
        self.table = table
        check_top(top)
        self.top = top

    def rows(self, items: Iterable[Any], skip: Skip) -> Iterator[tuple[Sequence[int], Sequence[Any]]]:
        """The rows of items: lists of (word, similarity), the nearest word first."""
        for start, window in windows(items, WORD_WINDOW):
            known: dict[int, list[int]] = {}
            for index, text in enumerate(window, start):
                try:
                    known[index] = self.table.ids(check_text(text))
                except ZooError as error:
                    skip(index, error)  # type: ignore[arg-type]
            yield list(known), self.table.around(list(known.values()), self.top)

    def answer(self, name: str, row: list[tuple[str, float]]) -> Answer:
        """The answer to the input `name` from its nearest words."""
        return Answer(input=name, words=tuple(row))


#: Both classes have the methods `rows` and `answer`.
Answerer: TypeAlias = ModelAnswerer | WordAnswerer


def answers(answerer: Answerer, inputs: Iterable[Any], *, keep_going: bool) -> Iterator[Answer]:
    """The answers to the inputs, in order; each as soon as it and all earlier answers are computed.

    A model takes a window of inputs at a time. Inputs from a pipe are answered as soon as they arrive.
    """
    parts: Iterable[Iterable[Any]] = [inputs]
    if isinstance(inputs, Inputs) and inputs.is_piped:
        # Few images at a time: the pipe may be mixed with a table, whose images are in memory.
        parts = arriving(inputs, 64 if inputs.reads_images else WINDOW)
    first = 0
    for part in parts:
        ordered = InOrder(answerer.rows, named_inputs(part), strict=not keep_going, first=first)
        for found in ordered:
            for name, row in found:
                if isinstance(row, ZooError):
                    yield Answer(input=name, error=Failure.of(row))
                else:
                    yield answerer.answer(name, row)
        first += ordered.answered


def check_search(device: str | None, prompt: str | None = None) -> None:
    """Raise DeviceError for a device that does not search nearest words, UsageError for a prompt."""
    if prompt is not None:
        raise UsageError("--prompt has no effect on nearest words", hint="leave --prompt out")
    if device not in (None, "auto", "cpu"):
        raise DeviceError(
            f"{device} cannot be used: nearest words are searched on the CPU",
            device=device,
            hint="run it with --device cpu or --device auto",
        )


def answer_one(answerer: Answerer, each: Input, *, keep_going: bool) -> Answer:
    """The answer to one input, without the queues of `answers`. Raises the errors of `answers`."""
    wrong: list[ZooError] = []
    for _, rows in answerer.rows([each.item], lambda _, error: wrong.append(error)):
        for row in rows:
            return answerer.answer(each.name, row)
    error = named(wrong[0], *each)
    if not keep_going:
        if isinstance(error, DataError):
            error.index = 0
        raise error
    return Answer(input=each.name, error=Failure.of(error))


def best_words(model: Model, scores: "NDArray[np.float32]", top: int) -> list[tuple[str, float]]:
    """The `top` best tokens for a mask, as text, with their scores [vocabulary]."""
    best = scores.argsort()[::-1][:top].tolist()
    return list(zip(model.words(best), scores[best].tolist(), strict=True))


def _multi_label(name: str, scores: "NDArray[np.float32]", manifest: Manifest, top: int) -> Answer:
    """The answer with the chosen labels, then the best of the others: `top` labels, or more if more are chosen."""
    labels = manifest.labels
    [chosen] = decide(Task.MULTI_LABEL, scores[None], manifest.thresholds)
    order = sorted(range(len(labels)), key=lambda index: (not chosen[index], -scores[index]))
    shown = order[: max(top, int(chosen.sum()))]
    return Answer(
        input=name,
        labels=tuple((labels[index], float(scores[index])) for index in shown),
        chosen=tuple(labels[index] for index in order if chosen[index]),
    )


def labelled(name: str, scores: Any, labels: Sequence[str], top: int) -> Answer:
    """The answer with the `top` best labels of one input, from its scores [labels]."""
    best = scores.argsort()[::-1][:top]
    return Answer(input=name, labels=tuple((labels[index], float(scores[index])) for index in best))


def decide(task: Task, scores: "Floats", thresholds: Sequence[float] = ()) -> "NDArray[Any]":
    """The predictions for scores [items, labels], in the form of the task's targets: see `measure`.

    A multi-label model chooses each label whose score reaches its threshold (0.5 if there are no thresholds).
    """
    import numpy as np

    if task is Task.REGRESSION:
        return np.asarray(scores)
    if task is Task.MULTI_LABEL:
        return np.asarray(scores >= np.asarray(thresholds or [0.5] * scores.shape[1], scores.dtype))
    return np.asarray(scores.argmax(1))


def predicted_labels(
    task: Task, scores: "Floats", labels: Sequence[str], thresholds: Sequence[float] = ()
) -> list[str]:
    """The predictions for scores [items, labels], as text in data files: a label, labels joined by `|`, or a number."""
    decided = decide(task, scores, thresholds).tolist()
    if task is Task.REGRESSION:
        return [f"{value:.7g}" for [value] in decided]
    if task is Task.MULTI_LABEL:
        return ["|".join(label for label, holds in zip(labels, row, strict=True) if holds) for row in decided]
    return [labels[index] for index in decided]
