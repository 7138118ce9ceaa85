"""Work in the order of the inputs: windows of inputs, results computed ahead on threads, and rows put back in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeAlias, TypeVar

from zoo.data.inputs import Input
from zoo.data.items import Skip
from zoo.errors import DataError, ZooError, named

Given = TypeVar("Given")
Made = TypeVar("Made")

#: Yields (indices of the items, a row for each) batch by batch, in any order; indices count from 0. An item that fails
#: is passed to the Skip with its error. A batch is empty after many failures in succession.
Rows: TypeAlias = Callable[[Iterable[Any], Skip], Iterator[tuple[Sequence[int], Sequence[Any]]]]


class InOrder:
    """The rows of `inputs` with their names, in order. The row of a failed input is its error; `strict` raises it.

    Only the name of an input is kept, and only until its row is passed on. `answered` counts rows and failures so far,
    also those that wait for an earlier one. The `index` of an error counts from `first`.
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
        """Yields after each batch the name and the row (or ZooError) of every input that it completes; perhaps none."""
        for indices, rows in self._rows(self._take(), self._fail):
            self._found.update(zip(indices, rows, strict=True))
            self.answered += len(indices)
            yield self._complete()
        yield self._complete()

    def _take(self) -> Iterator[Any]:
        for index, (name, item) in enumerate(self._inputs):
            # `named` needs no more of an item than whether it is its own name.
            self._waiting[index] = Input(name, item if isinstance(item, str) and item == name else None)
            yield item

    def _fail(self, index: int, error: ZooError) -> None:
        error = named(error, *self._waiting[index])
        if isinstance(error, DataError):
            error.index = self._first + index
        if self._strict:
            raise error
        self._found[index] = error
        self.answered += 1

    def _complete(self) -> list[tuple[str, Any]]:
        complete = []
        while self._next in self._found:
            complete.append((self._waiting.pop(self._next).name, self._found.pop(self._next)))
            self._next += 1
        return complete


def windows(items: Iterable[Given], size: int) -> Iterator[tuple[int, list[Given]]]:
    """Yields windows of at most `size` items, each with the index of its first item; items are taken as needed."""
    rest, start = iter(items), 0
    while window := list(islice(rest, size)):
        yield start, window
        start += len(window)


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[Given], Made], items: Iterable[Given], depth: int
) -> Iterator[Made]:
    """function(item) for each item, in order, computed on the pool's threads at most `depth` results ahead."""
    rest = iter(items)
    waiting: deque[Future[Made]] = deque()
    try:
        while True:
            waiting += [pool.submit(function, item) for item in islice(rest, depth + 1 - len(waiting))]
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        # The caller stopped early, by an error or a break: work that has not begun is not needed.
        for future in waiting:
            future.cancel()
