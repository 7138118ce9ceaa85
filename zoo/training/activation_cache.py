"""What a frozen trunk gives for each item, computed once and kept on disk in half precision: the input of the tail.

Numbers beyond float16 keep an item in float32. Texts are kept without padding. Where the whole data set would take
more than caches may (`zoo.store.caches.limit`), nothing is kept and the trunk runs again whenever a batch is asked for.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import finalize

from zoo.data.augment import View, Viewed, key
from zoo.data.dataset import Example
from zoo.data.items import Skip
from zoo.errors import DataError, UsageError, named, naming
from zoo.progress import SILENT, Progress
from zoo.runtime.session import Session
from zoo.schema import ImagePreprocess, TensorSpec
from zoo.store import caches
from zoo.store.append_file import Records, Row
from zoo.training.feature_cache import cache_key, unusable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zoo.backbone import TensorMap

FOLDER = "activations"
#: Bytes that are computed before they are written: what an interrupted run loses at most.
CHUNK = 32_000_000
#: The largest float16.
HALF_MAX = 65504.0
HALF, SINGLE = 0, 1
MASK, IDS = "attention_mask", "input_ids"
#: Items whose time tells what an epoch takes where nothing is kept.
TRIED = 64


class Activations:
    """The tensors that a tail takes, for every row of a data set; made by `open`, to be closed after use.

    Row v * items + i is example i in view v: view 0 is the item as it is, 1 to `views` are the random ones.
    """

    def __init__(
        self, folder: Path, session: Session, examples: Sequence[Example], views: int = 0, seed: int = 0
    ) -> None:
        if views and not isinstance(session.manifest.preprocess, ImagePreprocess):
            raise UsageError("only pictures have random views", hint="leave --augment out")
        self.session = session
        self.folder = folder
        self.examples = examples
        self.views: list[View | None] = [None, *(View(seed, number) for number in range(1, views + 1))]
        #: What the trunk computes for a row.
        self.shapes: tuple[TensorSpec, ...] = session.manifest.outputs
        self.is_text = not isinstance(session.manifest.preprocess, ImagePreprocess)
        #: False where the data set is too large: each batch is then computed when it is asked for.
        self.is_cached = True
        #: Rows that the last `open` computed; bytes on disk that all rows take, in half precision.
        self.computed = 0
        self.nbytes = 0
        #: What the trunk costs in an epoch of one row for each example, 0 where everything is kept.
        self.seconds_per_epoch = 0.0
        self._bad: set[str] = set()
        self._stack = ExitStack()
        self._close = finalize(self, self._stack.close)
        self._records: Records | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        session: Session,
        examples: Sequence[Example],
        progress: Progress = SILENT,
        *,
        views: int = 0,
        seed: int = 0,
        skip: Skip | None = None,
    ) -> "Activations":
        """Compute what is missing in `folder` (`Store.features`) with `session`, a trunk's, and open it.

        An example that cannot be read is told to `skip` by its place, and no batch may have its rows; without
        `skip` that is a DataError. Where nothing is kept, unreadable items are found only when a batch needs them.
        Raises AccessError when the disk is full or the folder cannot be written to: what was computed before is kept.
        """
        self = cls(folder, session, examples, views, seed)
        try:
            self._fill(progress, skip)
        except BaseException:
            self.close()
            raise
        return self

    def __len__(self) -> int:
        return len(self.views) * len(self.examples)

    def __enter__(self) -> "Activations":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes remove what is kept, when they need the space."""
        self._close()

    def batch(self, rows: Sequence[int]) -> "TensorMap":
        """The tensors of these rows, float32 [len(rows), ...] by name; texts padded with 0 to the longest of the batch.

        Of texts also `attention_mask` and `input_ids`, int64 [len(rows), longest], the mask 0 at the padding.
        """
        if self._records is None:
            return self._joined(self._recomputed(rows))
        return self._joined([self._unpacked(self._key(row)) for row in rows])

    def _fill(self, progress: Progress, skip: Skip | None) -> None:
        with unusable(self.folder):
            limit = caches.limit(self.folder)
        self.nbytes = self._needed(limit)
        if self.nbytes > limit:
            self._do_without(progress, limit)
            return
        records, missing = self._opened()
        if not self._make_room(len(missing), limit):
            # What is kept of other data by the same trunk goes too, where nobody else uses it.
            self._stack.close()
            caches.trim(self.folder, limit - self.nbytes)
            records, missing = self._opened()
            if not self._make_room(len(missing), limit):
                self._stack.close()
                self._do_without(progress, limit)
                return
        if missing:
            self._compute(records, missing, progress, skip)
        else:
            progress.note(f"activations: all from the cache {records.folder}")
        self._records = records

    def _opened(self) -> tuple[Records, list[int]]:
        """What is kept so far, held from now on, and the rows that it lacks, one for each distinct item."""
        name = cache_key(self.session)
        with unusable(self.folder):
            self._stack.enter_context(caches.in_use(self.folder, name))
            records = Records(self.folder / f"{name}.{FOLDER}", self._size)
        keys = {self._key(row): row for row in reversed(range(len(self)))}
        return records, sorted(row for each, row in keys.items() if each not in records)

    def _make_room(self, missing: int, limit: int) -> bool:
        """Whether so many rows more may be kept, after caches that nobody uses made room for them."""
        new = self.nbytes * missing // max(1, len({self._key(row) for row in range(len(self))}))
        if not new:
            return True
        caches.trim(self.folder, max(0, limit - new))
        return sum(cache.size for cache in caches.caches(self.folder)) + new <= limit

    def _compute(self, records: Records, missing: Sequence[int], progress: Progress, skip: Skip | None) -> None:
        def refuse(place: int, error: DataError) -> None:
            bad = self.examples[missing[place] % len(self.examples)]
            if skip is None:
                raise error
            if bad.digest in self._bad:
                # In another view it was no picture either.
                return
            self._bad.add(bad.digest)
            named(error, bad.name, bad.item)
            for number, example in enumerate(self.examples):
                if example.digest == bad.digest:
                    error.index = number
                    skip(number, error)

        def keep(rows: list[Row]) -> None:
            with unusable(self.folder):
                records.append(rows)
            self.computed += len(rows)

        items, names = self._items(missing), [self.examples[row % len(self.examples)].name for row in missing]
        what = f"activations by {self.session.manifest.name} on {self.session.device}"
        pending: list[Row] = []
        with naming(names, items), progress.task(what, len(missing)) as bar:
            try:
                for positions, arrays in self.session.stream(items, self._names(), refuse):
                    for place, position in enumerate(positions):
                        row = self._cut({name: array[place] for name, array in arrays.items()})
                        pending.append(self._packed(self._key(missing[position]), row))
                    bar.advance(len(positions))
                    if sum(len(row.data) for row in pending) >= CHUNK:
                        pending, full = [], pending
                        keep(full)
            finally:
                # An item that cannot be read, or Ctrl-C, must not cost the items before it.
                keep(pending)

    def _do_without(self, progress: Progress, limit: int) -> None:
        """Say what it costs that nothing is kept, measured on a few items."""
        self.is_cached = False
        rows = list(range(min(TRIED, len(self))))
        started = time.perf_counter()
        for _ in self.session.stream(self._items(rows), self._names(), lambda place, error: None):
            pass
        self.seconds_per_epoch = (time.perf_counter() - started) / max(1, len(rows)) * len(self.examples)
        progress.note(
            f"activations: {self.nbytes / 1e9:.1f} GB would be needed and {limit / 1e9:.1f} GB may be used "
            f"(ZOO_CACHE_LIMIT, and a fifth of the free disk): they are computed again in every epoch, "
            f"about {self.seconds_per_epoch:,.0f} s each time"
        )

    def _recomputed(self, rows: Sequence[int]) -> "list[TensorMap]":
        found: dict[int, TensorMap] = {}
        names = [self.examples[row % len(self.examples)].name for row in rows]
        items = self._items(rows)
        with naming(names, items):
            for positions, arrays in self.session.stream(items, self._names()):
                for place, position in enumerate(positions):
                    found[position] = self._cut({name: array[place] for name, array in arrays.items()})
        return [found[position] for position in range(len(rows))]

    def _items(self, rows: Sequence[int]) -> list[Any]:
        """What a Session takes for each of these rows."""
        pairs = [(self.views[row // len(self.examples)], self.examples[row % len(self.examples)]) for row in rows]
        return [example.item if view is None else Viewed(example.item, example.digest, view) for view, example in pairs]

    def _key(self, row: int) -> bytes:
        view, example = self.views[row // len(self.examples)], self.examples[row % len(self.examples)]
        return bytes.fromhex(key(example.digest, view))

    def _names(self) -> list[str]:
        names = [spec.name for spec in self.shapes]
        return [*names, MASK, IDS] if self.is_text else names

    def _needed(self, limit: int) -> int:
        """Bytes of all distinct rows in half precision; an upper bound of them where that is within the limit."""
        rows = len({self._key(row) for row in range(len(self))})
        if not self.is_text:
            return rows * self._size(0, HALF)
        preprocess = self.session.manifest.preprocess
        assert not isinstance(preprocess, ImagePreprocess)
        most = rows * self._size(preprocess.max_length, HALF)
        if most <= limit:
            return most
        distinct = {example.digest: example.item for example in self.examples}
        lengths = self.session.lengths([str(item) for item in distinct.values()])
        return sum(self._size(length, HALF) for length in lengths)

    def _size(self, length: int, kind: int) -> int:
        """Bytes of one row: its tensors one after another, of a text then its token ids as int32."""
        width = 2 if kind == HALF else 4
        numbers = sum(prod(_shape(spec, length)) for spec in self.shapes)
        return numbers * width + (4 * length if self.is_text else 0)

    def _cut(self, tensors: "TensorMap") -> "TensorMap":
        """One item's tensors without the padding of its batch."""
        if not self.is_text:
            return tensors
        length = int(tensors[MASK].sum())
        found = {IDS: tensors[IDS][:length], MASK: tensors[MASK][:length]}
        for spec in self.shapes:
            where = tuple(slice(length) if axis == "sequence" else slice(None) for axis in spec.shape[1:])
            found[spec.name] = tensors[spec.name][where]
        return found

    def _packed(self, name: bytes, tensors: "TensorMap") -> Row:
        import numpy as np

        arrays = [np.asarray(tensors[spec.name], np.float32) for spec in self.shapes]
        # Written so that what is no number goes the way that keeps it.
        fits = all(array.size == 0 or np.abs(array).max() <= HALF_MAX for array in arrays)
        data = b"".join(array.astype(np.float16 if fits else np.float32).tobytes() for array in arrays)
        length = 0
        if self.is_text:
            length = len(tensors[IDS])
            data += np.asarray(tensors[IDS], np.int32).tobytes()
        return Row(name, length, HALF if fits else SINGLE, data)

    def _unpacked(self, name: bytes) -> "TensorMap":
        import numpy as np

        assert self._records is not None
        data, length, kind = self._records.get(name)
        dtype = np.dtype(np.float16 if kind == HALF else np.float32)
        found: dict[str, NDArray[Any]] = {}
        start = 0
        for spec in self.shapes:
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
        for name in self._names():
            arrays: Sequence[NDArray[np.generic[Any]]] = [row[name] for row in rows]
            shape = [max(sides) for sides in zip(*(array.shape for array in arrays), strict=True)]
            batch = np.zeros((len(rows), *shape), np.int64 if name in (MASK, IDS) else np.float32)
            for place, array in enumerate(arrays):
                where: tuple[Any, ...] = (place, *(slice(side) for side in array.shape))
                batch[where] = array
            joined[name] = batch
        return joined


def _shape(spec: TensorSpec, length: int) -> list[int]:
    """The shape of one item's tensor; `length` is what an axis of any length is long."""
    return [length if isinstance(axis, str) else axis for axis in spec.shape[1:]]
