"""Pictures through a model in lanes: each thread takes a few from file to answer, and waits for no other one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.data.items import Skip
from zoo.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


class _Answered(NamedTuple):
    """A lot of items: the places of those that were read, the outputs for them, and the others with their error."""

    places: list[int]
    arrays: "dict[str, Floats]"
    refused: list[tuple[int, DataError]]


class Lanes:
    """Pictures, some at a time, each lot on one of the pool's threads from decoding to the outputs of `body`.

    `body` is a session of one thread, which many may run at once. Threads that share one product wait for each other at
    the end of every node: where there is work for all, each is better off with its own. `prepare` makes float32 [1, 3,
    crop, crop] of a picture, the tensor `name` of the body; `lot` are the pictures of a batch, `count` the lanes.
    """

    def __init__(
        self,
        body: Any,
        name: str,
        prepare: "Callable[[Any], Floats]",
        pool: ThreadPoolExecutor,
        *,
        lot: int,
        count: int,
    ) -> None:
        self.body = body
        self.name = name
        self.prepare = prepare
        self.pool = pool
        self.lot = lot
        self.count = count

    def stream(
        self, items: Iterable[Any], outputs: Sequence[str], skip: Skip, first: int = 0
    ) -> "Iterator[tuple[list[int], dict[str, Floats]]]":
        """Batch by batch (places of the items, counted from `first`; the named outputs), in order.

        No places for a lot of which nothing can be read. At most two lots a lane are ahead of their use.
        """
        todo, start = iter(items), first
        waiting: deque[Future[_Answered]] = deque()
        try:
            while True:
                while len(waiting) < 2 * self.count and (lot := list(islice(todo, self.lot))):
                    waiting.append(self.pool.submit(self._answer, start, lot, outputs))
                    start += len(lot)
                if not waiting:
                    return
                found = waiting.popleft().result()
                for place, error in found.refused:
                    skip(place, error)
                yield found.places, found.arrays
        finally:
            # Whoever asked has gone, by an error or by a break: what has not begun need not be done.
            for each in waiting:
                each.cancel()

    def _answer(self, start: int, lot: Sequence[Any], outputs: Sequence[str]) -> _Answered:
        import numpy as np

        places: list[int] = []
        prepared: list[Floats] = []
        refused: list[tuple[int, DataError]] = []
        for place, item in enumerate(lot, start):
            try:
                prepared.append(self.prepare(item))
                places.append(place)
            except DataError as error:
                refused.append((place, error))
        if not places:
            return _Answered(places, {}, refused)
        feeds = {self.name: np.concatenate(prepared)}
        computed = [name for name in outputs if name not in feeds]
        found = dict(zip(computed, self.body.run(computed, feeds) if computed else [], strict=True))
        return _Answered(places, {name: feeds[name] if name in feeds else found[name] for name in outputs}, refused)
