"""The feature cache: a frozen backbone never runs twice on the same bytes."""

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.data.augment import View
from zoo.data.items import Example, Skip
from zoo.progress import SILENT, Progress
from zoo.store import caches
from zoo.store.append_file import NewString, Records
from zoo.training.item_cache import CacheItem, ItemCache, unusable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.backbone import TensorMap


class FeatureCache(ItemCache):
    """Features of examples by a session's backbone, float32 [items, dim], computed once for each distinct item.

    Each vector is kept in float32 with a CRC-32; a damaged vector is computed again.
    """

    kind = "features"
    outputs = ("features",)

    def features(
        self,
        examples: Sequence[Example],
        progress: Progress = SILENT,
        skip: Skip | None = None,
        view: View | None = None,
    ) -> "NDArray[np.float32]":
        """Features of `examples`, or of their random view `view`, in order; only items new to the cache are run.

        An unreadable item raises DataError; with `skip` it is passed to `skip` with its index, and its row is NaN.
        Raises AccessError when the cache cannot be written; its former contents are kept.
        """
        import numpy as np

        caches.chosen_limit()
        self.computed, dim = 0, self.session.manifest.dim
        found = np.full((len(examples), dim), np.nan, np.float32)
        indices: dict[bytes, list[int]] = {}
        for index, example in enumerate(examples):
            indices.setdefault(CacheItem(example, view).key, []).append(index)
        with unusable(self.path):
            with caches.in_use(self.folder, self.key):
                records = Records(self.path, lambda *_: 4 * dim, indices)

                def is_read(name: bytes) -> bool:
                    if name not in records:
                        return False
                    data, checksum, _ = records.get(name)
                    if zlib.crc32(data) != checksum:
                        records.forget(name)
                        return False
                    found[indices[name]] = np.frombuffer(data, np.float32)
                    return True

                missing = [name for name in indices if not is_read(name)]
                items = [CacheItem(examples[indices[name][0]], view) for name in missing]
                self.compute(records, items, examples, progress, skip)
                for name in missing:
                    is_read(name)
            caches.trim(self.folder, caches.limit(self.folder))
        return found

    def packed(self, name: bytes, arrays: "TensorMap") -> NewString:
        """The vector's bytes and their CRC-32."""
        data = arrays["features"].tobytes()
        return NewString(name, zlib.crc32(data), 0, data)
