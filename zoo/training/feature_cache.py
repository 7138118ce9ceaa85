"""The feature cache: a frozen backbone never runs twice on the same bytes.

One SQLite file for each way of computing features, keyed by everything that decides the numbers (`cache_key`); in it
one row an item, keyed by the sha256 of the item's bytes (and of its random view). Labels never enter, so new labels
cost nothing. What all caches take together is bounded (`zoo.store.caches`): those that were not used for longest go
first.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.data.augment import View, Viewed, key
from zoo.data.dataset import Example
from zoo.data.images import encoder_version
from zoo.data.items import Skip
from zoo.errors import AccessError, DataError, named, naming
from zoo.progress import SILENT, Progress
from zoo.runtime.device import onnxruntime
from zoo.runtime.session import Session
from zoo.schema import TextPreprocess, WordsPreprocess
from zoo.store import caches
from zoo.system.files import sha256

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Items written in one transaction: what an interrupted run loses at most.
CHUNK = 256
#: SQLite's default limit of host parameters in one statement is 999 in old builds.
LOOKUP = 900
#: Seconds to wait for other processes that write to the same cache.
PATIENCE = 60.0


def cache_key(session: Session) -> str:
    """sha256 over all that decides a feature's numbers beside the item itself.

    The features graph (preprocessing prefix and external data included), the tokenizer's bytes, the encoder's version
    and that of its library, ONNX Runtime's version, the provider, and where the graph is cut.
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
    if session.table_files:
        parts["tables"] = {name: bundle.digest(name) for name in session.table_files}
    return sha256(json.dumps(parts, sort_keys=True))


class FeatureCache:
    """Features of examples by a session's backbone, float32 [items, dim], computed once for each distinct item."""

    def __init__(self, folder: Path, session: Session) -> None:
        self.session = session
        self.folder = folder
        self.key = cache_key(session)
        self.path = folder / f"{self.key}.sqlite"
        #: Items that the last call had to compute.
        self.computed = 0

    def features(
        self,
        examples: Sequence[Example],
        progress: Progress = SILENT,
        skip: Skip | None = None,
        view: View | None = None,
    ) -> "NDArray[np.float32]":
        """Features in the order of `examples`, or of their random view `view`; only what no earlier run computed runs.

        An item that cannot be read raises DataError; with `skip` that is told instead, with the item's place, and its
        row is NaN. Raises AccessError when the cache cannot be written: what it held before is still there.
        """
        caches.chosen_limit()
        with unusable(self.path), caches.in_use(self.folder, self.key):
            try:
                found = self._found(examples, progress, skip, view)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                # Not a whole database any more. It is a cache: what it held can be computed again.
                self.path.unlink()
                found = self._found(examples, progress, skip, view)
        with unusable(self.path):
            caches.trim(self.folder, caches.limit(self.folder))
        return found

    def _found(
        self, examples: Sequence[Example], progress: Progress, skip: Skip | None, view: View | None
    ) -> "NDArray[np.float32]":
        import numpy as np

        places: dict[str, list[int]] = {}
        for place, example in enumerate(examples):
            places.setdefault(key(example.digest, view), []).append(place)
        found = np.full((len(examples), self.session.manifest.dim), np.nan, np.float32)
        with self._database() as database:
            known = set(_present(database, list(places)))
            missing = {each: rows for each, rows in places.items() if each not in known}
            self.computed = len(missing)
            self._compute(database, examples, missing, progress, skip, view)
            for each, vector in _read(database, list(places)):
                found[places[each]] = np.frombuffer(vector, np.float32)
        return found

    def _compute(
        self,
        database: sqlite3.Connection,
        examples: Sequence[Example],
        missing: dict[str, list[int]],
        progress: Progress,
        skip: Skip | None,
        view: View | None,
    ) -> None:
        """Compute and keep what is `missing`: keys, with the places of the examples that have them."""
        if not missing:
            progress.note(f"features: all from the cache {self.path}")
            return
        keys, places = list(missing), list(missing.values())
        firsts = [examples[rows[0]] for rows in places]
        names, items = [example.name for example in firsts], [_viewed(example, view) for example in firsts]

        def refuse(position: int, error: DataError) -> None:
            if skip is None:
                raise error
            self.computed -= 1
            named(error, names[position], firsts[position].item)
            for place in places[position]:
                error.index = place
                skip(place, error)

        what = f"features by {self.session.manifest.lineage.entry.name} on {self.session.device}"
        with naming(names, items), progress.task(what, len(missing)) as bar:
            # Kept here until they are written: an open transaction would lock other processes out meanwhile.
            rows: list[tuple[bytes, bytes]] = []
            try:
                for positions, arrays in self.session.stream(items, ["features"], refuse):
                    vectors = zip(positions, arrays["features"], strict=True)
                    rows += [(bytes.fromhex(keys[position]), vector.tobytes()) for position, vector in vectors]
                    bar.advance(len(positions))
                    if len(rows) >= CHUNK:
                        _write(database, rows)
                        rows = []
            finally:
                # An item that cannot be read, or Ctrl-C, must not cost the items before it.
                _write(database, rows)

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with closing(self._open()) as database:
            yield database

    def _open(self) -> sqlite3.Connection:
        try:
            return _connect(self.path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            # Not a database any more. It is a cache: what it held can be computed again.
            self.path.unlink()
            return _connect(self.path)


@contextmanager
def unusable(path: Path) -> Iterator[None]:
    """Turn what the disk refuses of a cache at `path` into an AccessError."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AccessError(
            f"the feature cache {path} cannot be used: {reason}",
            hint="free some space, or set ZOO_HOME to a folder you can write to",
        ) from error


def _viewed(example: Example, view: View | None) -> object:
    return example.item if view is None else Viewed(example.item, example.digest, view)


def _connect(path: Path) -> sqlite3.Connection:
    """An open cache. Processes that make the same file at once are waited for.

    SQLite's own waiting leaves out the switch to a write-ahead log (https://www.sqlite.org/wal.html, "sometimes
    queries return SQLITE_BUSY in WAL mode"), so the whole of opening is tried again.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return _try_connect(path)
        except sqlite3.OperationalError as error:
            # The low byte is the code, the rest says more about it.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _try_connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=PATIENCE)
    try:
        # A write-ahead log keeps readers and a writer apart, and transactions whole across a crash.
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS features (item BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"
        )
    except sqlite3.Error:
        database.close()
        raise
    return database


def _write(database: sqlite3.Connection, rows: Sequence[tuple[bytes, bytes]]) -> None:
    with database:
        database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", rows)


def _present(database: sqlite3.Connection, digests: Sequence[str]) -> Iterator[str]:
    for (item,) in _select(database, "item", digests):
        yield item.hex()


def _read(database: sqlite3.Connection, digests: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for item, vector in _select(database, "item, vector", digests):
        yield item.hex(), vector


def _select(database: sqlite3.Connection, columns: str, digests: Sequence[str]) -> Iterator[tuple[bytes, ...]]:
    distinct = [bytes.fromhex(digest) for digest in dict.fromkeys(digests)]
    for start in range(0, len(distinct), LOOKUP):
        chunk = distinct[start : start + LOOKUP]
        marks = ",".join("?" * len(chunk))
        yield from database.execute(f"SELECT {columns} FROM features WHERE item IN ({marks})", chunk)
