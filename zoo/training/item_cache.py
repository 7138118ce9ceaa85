"""Arrays that a session computes once for each distinct item, kept on disk for later runs.

The feature cache and the activation cache share this code. Everything except the item that affects its arrays makes up
the key of a cache (`cache_key`). A cache is a folder, `KEY.features/` or `KEY.activations/`, with the two files of
`zoo.store.append_file`: one byte string for each item, under the sha256 of the item's bytes (and of its random view).
Labels are not part of a key, so after a change of labels nothing is computed again. All caches together have a size
limit; the least recently used are removed first (`zoo.store.caches`).
"""

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from zoo.data.augment import View, Viewed, key
from zoo.data.images import encoder_version
from zoo.data.items import Example, Skip, refuse
from zoo.errors import AccessError, DataError
from zoo.progress import Progress
from zoo.runtime.device import onnxruntime
from zoo.runtime.pixels import resizer_version
from zoo.runtime.session import Session
from zoo.schema import ImagePreprocess, TextPreprocess, WordsPreprocess
from zoo.store.append_file import NewString, Records
from zoo.system.files import sha256

if TYPE_CHECKING:
    from zoo.backbone import TensorMap

#: Items and bytes after which computed arrays are written: an interrupted run loses no more than these.
CHUNK_ITEMS, CHUNK_BYTES = 256, 32_000_000


class CacheItem(NamedTuple):
    """An unchanged example, or one of its random views."""

    example: Example
    view: View | None

    @property
    def key(self) -> bytes:
        """The item's key in a cache, 32 bytes."""
        return bytes.fromhex(key(self.example.digest, self.view))

    @property
    def input(self) -> object:
        """The item as a Session takes it."""
        return self.example.item if self.view is None else Viewed(self.example.item, self.example.digest, self.view)


class ItemCache(ABC):
    """The cache of one session's outputs; subclasses define which outputs are kept, and in which form."""

    #: The name of the contents in messages, and the end of the folder's name.
    kind: ClassVar[str]

    def __init__(self, folder: Path, session: Session) -> None:
        self.session = session
        self.folder = folder
        self.key = cache_key(session)
        self.path = folder / f"{self.key}.{self.kind}"
        #: Items that the last call computed.
        self.computed = 0

    @property
    @abstractmethod
    def outputs(self) -> Sequence[str]:
        """The names of the session's outputs that are needed for an item."""

    @abstractmethod
    def packed(self, name: bytes, arrays: "TensorMap") -> NewString:
        """The record of one item's arrays under the key `name`."""

    def compute(
        self,
        records: Records,
        missing: Sequence[CacheItem],
        examples: Sequence[Example],
        progress: Progress,
        skip: Skip | None = None,
    ) -> None:
        """Compute the `missing` items of `examples` and write them to `records`.

        Without `skip` an unreadable item raises DataError. Otherwise `skip` is called for every example with its bytes.
        """
        if not missing:
            progress.note(f"{self.kind}: all from the cache {self.path}")
            return
        skip = skip or refuse(examples)
        indices = defaultdict[str, list[int]](list)
        for index, example in enumerate(examples):
            indices[example.digest].append(index)

        def skip_copies(item: int, error: DataError) -> None:
            for index in indices[missing[item].example.digest]:
                skip(index, error)

        title = f"{self.kind} by {self.session.manifest.lineage.entry.name} on {self.session.device}"
        pending: list[NewString] = []
        with progress.task(title, len(missing)) as bar:
            try:
                for batch in self.stream(missing, skip_copies):
                    pending += [self.packed(missing[index].key, arrays) for index, arrays in batch]
                    bar.advance(len(batch))
                    if len(pending) >= CHUNK_ITEMS or sum(len(row.data) for row in pending) >= CHUNK_BYTES:
                        pending, full = [], pending
                        self._write(records, full)
            finally:
                # After an unreadable item or Ctrl-C, the items computed so far are still written.
                self._write(records, pending)

    def stream(self, items: Sequence[CacheItem], skip: Skip | None = None) -> "Iterator[list[tuple[int, TensorMap]]]":
        """Yields batches: the index of each item in `items`, and its arrays by name. Errors name the item."""
        skip = skip or refuse([each.example for each in items])
        for indices, arrays in self.session.stream([each.input for each in items], self.outputs, skip):
            yield [(index, {name: array[row] for name, array in arrays.items()}) for row, index in enumerate(indices)]

    def _write(self, records: Records, rows: Sequence[NewString]) -> None:
        if rows:
            with unusable(self.path):
                records.append(rows)
            self.computed += len(rows)


def cache_key(session: Session) -> str:
    """sha256 of everything except the item that affects its arrays.

    It covers the graph (with preprocessing prefix and external data), the tokenizer's bytes, the versions of the
    encoder and its library, the library that resizes, ONNX Runtime's version, the provider, and the names of the
    outputs.
    """
    bundle = session.bundle
    preprocess = bundle.manifest.preprocess
    assert not isinstance(preprocess, WordsPreprocess)
    parts: dict[str, object] = {
        "graph": bundle.digest("model.onnx"),
        "tokenizer": bundle.digest(preprocess.tokenizer) if isinstance(preprocess, TextPreprocess) else None,
        "encoder": encoder_version(preprocess),
        "onnxruntime": onnxruntime().__version__,
        "provider": session.device.partition(":")[0],
        "cut": ",".join(name for name in session.outputs if name != "scores"),
    }
    if isinstance(preprocess, ImagePreprocess):
        parts["resizer"] = resizer_version()
    if session.table_files:
        parts["tables"] = {name: bundle.digest(name) for name in session.table_files}
    # sha256_json would give another key, and every cached feature would be computed again.
    return sha256(json.dumps(parts, sort_keys=True))


@contextmanager
def unusable(path: Path) -> Iterator[None]:
    """Inside, an OSError of the cache at `path` becomes an AccessError."""
    try:
        yield
    except OSError as error:
        raise AccessError(
            f"the cache {path} cannot be used: {error.strerror or error}",
            hint="free some space, or set ZOO_HOME to a folder you can write to",
        ) from error
