"""What a model says of inputs, put back into their order: batches come shortest text first, and failures by the way."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from zoo.data.inputs import Input
from zoo.data.items import Skip
from zoo.errors import DataError, ZooError, named

#: Batch by batch (positions of the items, a row for each), positions from 0; a failure is told instead. Batches may be
#: empty: the sign that many items in succession have failed.
Rows: TypeAlias = Callable[[Iterable[Any], Skip], Iterator[tuple[Sequence[int], Sequence[Any]]]]


class InOrder:
    """The rows of `inputs` with their names, in order. A failure is its input's row; with `strict` it is raised.

    Of an input that was taken only the name is held, and only until its row is passed on. `answered` counts the rows
    and failures that are there, those among them that wait for an earlier one. An error's `index` counts from `first`.
    """

    def __init__(self, rows: Rows, inputs: Iterable[Input], *, strict: bool, first: int = 0) -> None:
        self.answered = 0
        self._first = first
        self._rows = rows
        self._inputs = inputs
        self._strict = strict
        self._waiting: dict[int, Input] = {}
        self._found: dict[int, Any] = {}
        self._next = 0

    def __iter__(self) -> Iterator[list[tuple[str, Any]]]:
        """Once a batch (name, row or ZooError) of the inputs that are answered up to there, perhaps none."""
        for positions, rows in self._rows(self._take(), self._fail):
            self._found.update(zip(positions, rows, strict=True))
            self.answered += len(positions)
            yield self._whole()
        yield self._whole()

    def _take(self) -> Iterator[Any]:
        for position, (name, item) in enumerate(self._inputs):
            # An error of a text that is its own name need not name it; nothing else of an item is asked later.
            self._waiting[position] = Input(name, item if isinstance(item, str) and item == name else None)
            yield item

    def _fail(self, position: int, error: ZooError) -> None:
        error = named(error, *self._waiting[position])
        if isinstance(error, DataError):
            error.index = self._first + position
        if self._strict:
            raise error
        self._found[position] = error
        self.answered += 1

    def _whole(self) -> list[tuple[str, Any]]:
        whole = []
        while self._next in self._found:
            whole.append((self._waiting.pop(self._next).name, self._found.pop(self._next)))
            self._next += 1
        return whole
