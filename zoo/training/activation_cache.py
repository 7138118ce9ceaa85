"""Keeps the tensors that a frozen trunk computes for each item on disk, in half precision: the inputs of the tail.

An item with numbers beyond float16 is kept in float32. Texts are kept without padding. If the whole data set needs more
space than the limit of caches (`zoo.store.caches.limit`), nothing is kept and the trunk runs again for every batch.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.data.augment import View
from zoo.data.items import Example
from zoo.errors import UsageError
from zoo.progress import SILENT, Progress
from zoo.runtime.session import Session
from zoo.schema import ImagePreprocess
from zoo.store import caches
from zoo.store.append_file import NewString, Records
from zoo.training.item_cache import CacheItem, ItemCache, unusable

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

    from zoo.backbone import TensorMap
    from zoo.schema import TensorSpec

#: The largest float16.
HALF_MAX = 65504.0
HALF, SINGLE = 0, 1
MASK, IDS = "attention_mask", "input_ids"
#: Items that are run to estimate the time of an epoch without the cache.
TRIAL_ITEMS = 64


class Activations(ItemCache):
    """The tensors that a tail takes, for every row of a data set, for use in a `with` block.

    Row v * items + i is example i in view v: view 0 is the unchanged item, views 1 to `views` are random. `folder` is
    `Store.features`, and `session` runs the trunk. Inside the block no process removes the cache.
    """

    kind = "activations"

    def __init__(
        self,
        folder: Path,
        session: Session,
        examples: Sequence[Example],
        progress: Progress = SILENT,
        *,
        views: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(folder, session)
        preprocess = session.manifest.preprocess
        self.is_text = not isinstance(preprocess, ImagePreprocess)
        if views and self.is_text:
            raise UsageError("only images have random views", hint="leave --augment out")
        self.examples = examples
        self.progress = progress
        self.views: list[View | None] = [None, *(View(seed, number) for number in range(1, views + 1))]
        self.items = [CacheItem(example, view) for view in self.views for example in examples]
        #: None if the data set is too large: each batch is then computed when it is requested.
        self.records: Records | None = None
        self._specs: tuple[TensorSpec, ...] = session.manifest.outputs
        self._keys = [item.key for item in self.items]
        #: The items by key: items with the same bytes are kept once.
        self._distinct: dict[bytes, CacheItem] = {}
        for key, item in zip(self._keys, self.items, strict=True):
            self._distinct.setdefault(key, item)

    def __enter__(self) -> "Self":
        """Compute the rows that are not in the cache. Rows computed before an error are kept.

        Raises DataError for an unreadable item, AccessError when the disk is full or the folder cannot be written to.
        """
        with ExitStack() as in_use:
            self._fill(in_use)
            self._in_use = in_use.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._in_use.close()

    def batch(self, rows: Sequence[int]) -> "TensorMap":
        """The tensors of these rows by name, float32 [len(rows), ...]; texts are padded with 0 to the longest text.

        For texts also `attention_mask` and `input_ids`, int64 [len(rows), longest]; the mask is 0 at the padding.
        """
        if self.records is not None:
            return self._joined([self._unpacked(self.records, self._keys[row]) for row in rows])
        stream = self.stream([self.items[row] for row in rows])
        found = {index: self._without_padding(arrays) for batch in stream for index, arrays in batch}
        return self._joined([found[index] for index in range(len(rows))])

    @property
    def outputs(self) -> list[str]:
        """The trunk's outputs; for texts also the mask and the token ids."""
        names = [spec.name for spec in self._specs]
        return [*names, MASK, IDS] if self.is_text else names

    def packed(self, name: bytes, arrays: "TensorMap") -> NewString:
        """The record of one item: its tensors, then the token ids of a text; `length` is the number of tokens."""
        import numpy as np

        tensors = self._without_padding(arrays)
        floats = [np.asarray(tensors[spec.name], np.float32) for spec in self._specs]
        # The comparison is False for NaN, so an item with NaN is kept in float32.
        fits = all(array.size == 0 or np.abs(array).max() <= HALF_MAX for array in floats)
        data = b"".join(array.astype(np.float16 if fits else np.float32).tobytes() for array in floats)
        ids = np.asarray(tensors[IDS] if self.is_text else [], np.int32)
        return NewString(name, len(ids), HALF if fits else SINGLE, data + ids.tobytes())

    def _fill(self, in_use: ExitStack) -> None:
        with unusable(self.folder):
            limit = caches.limit(self.folder)
        needed = self._needed(limit)
        for _ in range(2 if needed <= limit else 0):
            with unusable(self.folder):
                in_use.enter_context(caches.in_use(self.folder, self.key))
                records = Records(self.path, self._size, self._distinct)
            missing = [item for name, item in self._distinct.items() if name not in records]
            if not missing or self._make_room(needed * len(missing) // len(self._distinct), limit):
                self.compute(records, missing, self.examples, self.progress)
                self.records = records
                return
            # This removes the trunk's rows of other data too, unless another process uses them.
            in_use.close()
            caches.trim(self.folder, limit - needed)
        self._report_cost(needed, limit)

    def _make_room(self, size: int, limit: int) -> bool:
        """Whether `size` bytes more fit within the limit, after removing caches that are not in use."""
        caches.trim(self.folder, max(0, limit - size))
        return sum(cache.size for cache in caches.caches(self.folder)) + size <= limit

    def _report_cost(self, needed: int, limit: int) -> None:
        """Report the time that the trunk takes per epoch without the cache, measured on a few items."""
        items = self.items[:TRIAL_ITEMS]
        started = time.perf_counter()
        for _ in self.stream(items):
            pass
        seconds = (time.perf_counter() - started) / len(items) * len(self.examples)
        self.progress.note(
            f"activations: {needed / 1e9:.1f} GB would be needed and {limit / 1e9:.1f} GB may be used "
            f"(ZOO_CACHE_LIMIT, and a fifth of the free disk): they are computed again in every epoch, "
            f"about {seconds:,.0f} s each time"
        )

    def _needed(self, limit: int) -> int:
        """Bytes of all distinct rows in half precision; an upper bound instead if the bound is within the limit."""
        preprocess = self.session.manifest.preprocess
        if isinstance(preprocess, ImagePreprocess):
            return len(self._distinct) * self._size(0, HALF)
        most = len(self._distinct) * self._size(preprocess.max_length, HALF)
        if most <= limit:
            return most
        lengths = self.session.lengths([str(item.example.item) for item in self._distinct.values()])
        return sum(self._size(length, HALF) for length in lengths)

    def _size(self, length: int, kind: int) -> int:
        """Bytes of one row: its tensors, and the token ids of a text as int32."""
        width = 2 if kind == HALF else 4
        numbers = sum(prod(_shape(spec, length)) for spec in self._specs)
        return numbers * width + (4 * length if self.is_text else 0)

    def _without_padding(self, tensors: "TensorMap") -> "TensorMap":
        """One item's tensors without the padding of its batch."""
        if not self.is_text:
            return tensors
        length = int(tensors[MASK].sum())
        found = {IDS: tensors[IDS][:length], MASK: tensors[MASK][:length]}
        for spec in self._specs:
            where = tuple(slice(length) if axis == "sequence" else slice(None) for axis in spec.shape[1:])
            found[spec.name] = tensors[spec.name][where]
        return found

    def _unpacked(self, records: Records, name: bytes) -> "TensorMap":
        import numpy as np

        data, length, kind = records.get(name)
        dtype = np.dtype(np.float16 if kind == HALF else np.float32)
        found: dict[str, NDArray[Any]] = {}
        start = 0
        for spec in self._specs:
            shape = _shape(spec, length)
            found[spec.name] = np.frombuffer(data, dtype, prod(shape), start).reshape(shape)
            start += prod(shape) * dtype.itemsize
        if self.is_text:
            found[IDS] = np.frombuffer(data, np.int32, length, start)
            found[MASK] = np.ones(length, np.int32)
        return found

    def _joined(self, rows: "Sequence[TensorMap]") -> "TensorMap":
        """One batch of the rows, padded."""
        import numpy as np

        joined: dict[str, NDArray[Any]] = {}
        for name in self.outputs:
            arrays: Sequence[NDArray[np.generic[Any]]] = [row[name] for row in rows]
            shape = [max(sides) for sides in zip(*(array.shape for array in arrays), strict=True)]
            batch = np.zeros((len(rows), *shape), np.int64 if name in (MASK, IDS) else np.float32)
            for index, array in enumerate(arrays):
                where: tuple[Any, ...] = (index, *(slice(side) for side in array.shape))
                batch[where] = array
            joined[name] = batch
        return joined


def _shape(spec: "TensorSpec", length: int) -> list[int]:
    """The shape of one item's tensor, whose dynamic axes have `length` entries."""
    return [length if isinstance(axis, str) else axis for axis in spec.shape[1:]]
