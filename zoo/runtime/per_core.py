"""Many images on a CPU: one thread for each core, all of them on one single-threaded session."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.data.items import Skip, attempt
from zoo.errors import DataError
from zoo.runtime.in_order import ahead, windows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


class PerCore(NamedTuple):
    """Runs each batch of images on one thread of `pool`, from decoding to the outputs.

    With one session on N threads, all threads synchronise after every graph node. With enough images it is faster if
    each core runs its own batch on a single thread.

    body: a session without threads of its own; several threads may run it at once.
    prepare, join: turn an image into an array, and a batch of these arrays into the input `name` of the body.
    """

    body: Any
    name: str
    prepare: "Callable[[Any], NDArray[Any]]"
    join: "Callable[[Sequence[NDArray[Any]]], Floats]"
    pool: ThreadPoolExecutor
    batch: int
    cores: int

    def stream(
        self, items: Iterable[Any], outputs: Sequence[str], skip: Skip
    ) -> "Iterator[tuple[list[int], dict[str, Floats]]]":
        """Yields the indices of each batch's items and the named outputs, in order.

        There are no indices if no item of a batch can be read. At most two batches per core are computed ahead.
        """
        batches = windows(items, self.batch)
        answered = ahead(self.pool, lambda batch: self._answer(*batch, outputs), batches, 2 * self.cores - 1)
        for indices, arrays, failed in answered:
            for index, error in failed:
                skip(index, error)
            yield indices, arrays

    def _answer(
        self, start: int, items: Sequence[Any], outputs: Sequence[str]
    ) -> "tuple[list[int], dict[str, Floats], list[tuple[int, DataError]]]":
        """Returns the indices of a batch's readable images, their outputs, and the index and error of the others."""
        found = {index: attempt(self.prepare, item) for index, item in enumerate(items, start)}
        failed = [(index, each) for index, each in found.items() if isinstance(each, DataError)]
        prepared = {index: each for index, each in found.items() if not isinstance(each, DataError)}
        if not prepared:
            return [], {}, failed
        feeds = {self.name: self.join(list(prepared.values()))}
        return list(prepared), outputs_for(outputs, feeds, self.body.run), failed


def outputs_for(
    outputs: Sequence[str], feeds: "dict[str, NDArray[Any]]", run: "Callable[[list[str], Any], Sequence[Floats]]"
) -> "dict[str, Floats]":
    """The named outputs, by name; names of inputs of the body are taken from `feeds`, the others computed by `run`."""
    computed = [name for name in outputs if name not in feeds]
    # `run` is not called without outputs, because ONNX Runtime would then compute all of them.
    arrays = dict(zip(computed, run(computed, feeds) if computed else [], strict=True))
    return {name: feeds[name] if name in feeds else arrays[name] for name in outputs}
