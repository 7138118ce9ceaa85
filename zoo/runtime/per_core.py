"""Many images on a CPU: one single-threaded session for each core."""

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

    With one session on N threads, all threads synchronise after every graph node. With enough images it is faster to
    give each core its own single-threaded session. `body` is such a session, which several threads may run at once;
    `prepare` turns an image into float32 [1, 3, crop, crop], the input `name` of the body.
    """

    body: Any
    name: str
    prepare: "Callable[[Any], Floats]"
    pool: ThreadPoolExecutor
    batch: int
    cores: int

    def stream(
        self, items: Iterable[Any], outputs: Sequence[str], skip: Skip
    ) -> "Iterator[tuple[list[int], dict[str, Floats]]]":
        """Yields the indices of each batch's items and the named outputs, in order; no indices if none could be read.

        At most two batches for each core are computed ahead of their use.
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
        import numpy as np

        found = {index: attempt(self.prepare, item) for index, item in enumerate(items, start)}
        failed = [(index, each) for index, each in found.items() if isinstance(each, DataError)]
        prepared = {index: each for index, each in found.items() if not isinstance(each, DataError)}
        if not prepared:
            return [], {}, failed
        feeds = {self.name: np.concatenate(list(prepared.values()))}
        return list(prepared), outputs_for(outputs, feeds, self.body.run), failed


def outputs_for(
    outputs: Sequence[str], feeds: "dict[str, NDArray[Any]]", run: "Callable[[list[str], Any], Sequence[Floats]]"
) -> "dict[str, Floats]":
    """The named outputs, by name: those that are inputs of the body come from `feeds`, the others from `run`."""
    computed = [name for name in outputs if name not in feeds]
    # If ONNX Runtime is asked for no output, it computes all of them.
    arrays = dict(zip(computed, run(computed, feeds) if computed else [], strict=True))
    return {name: feeds[name] if name in feeds else arrays[name] for name in outputs}
