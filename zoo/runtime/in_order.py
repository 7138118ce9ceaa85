"""Work in the order of the inputs: windows of inputs, results computed ahead by threads, and rows sorted by input."""

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

#: A function that yields batches in any order: the items' indices (from 0), and a row for each item. An item that fails
#: is passed to the Skip with its error. After many failures in succession a batch is empty.
Rows: TypeAlias = Callable[[Iterable[Any], Skip], Iterator[tuple[Sequence[int], Sequence[Any]]]]


class InOrder:
    """The rows of `inputs` with their names, in order. The row of a failed input is its error; `strict` raises it.

    Of an input only the name is kept, until its row is yielded. `answered` counts rows and failures so far, including
    those that wait for an earlier row. The `index` of an error counts from `first`.
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
        """Yields after each batch the inputs that it completes, in order: their names and rows (or ZooErrors)."""
        for indices, rows in self._rows(self._take(), self._fail):
            self._found.update(zip(indices, rows, strict=True))
            self.answered += len(indices)
            yield self._complete()
        yield self._complete()

    def _take(self) -> Iterator[Any]:
        for index, (name, item) in enumerate(self._inputs):
            # `named` only needs to know whether an item is its own name, so other items are not kept.
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
    """`function(item)` for each item, in order; the pool's threads compute at most `depth` results ahead."""
    rest = iter(items)
    waiting: deque[Future[Made]] = deque()
    try:
        while True:
            waiting += [pool.submit(function, item) for item in islice(rest, depth + 1 - len(waiting))]
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        # If the caller stopped early, by an error or a break, work that has not begun is cancelled.
        for future in waiting:
            future.cancel()
