"""What zoo keeps on disk under ZOO_HOME, and where.

models/<entry>/<16 hex of the files' digests>/   a pulled row: real files, and manifest.json that was written last
partials/<key>/                                  what an interrupted pull left of one file
graphs/  features/  optimised/  engines/  bridged/  zoo.lock
"""

import os
import shutil
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, structs
from platformdirs import user_cache_path

from zoo.errors import IntegrityError
from zoo.schema import Entry, FileDigest
from zoo.system.files import is_abandoned, remove_abandoned, sha256_file, sha256_json, signature, try_rename
from zoo.system.records import find_record, write_record

if TYPE_CHECKING:
    from zoo.store.lock import Lock


MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
#: Raised whenever zoo.export.build would make another graph of the same row: it is part of the kept graph's key.
GRAPH_VERSION = 2
#: What a training is of, beside its checkpoints.
RUN = "run.json"
#: The file inside a partial's folder; a source may keep notes of its own beside it.
PARTIAL_DATA = "data"


def zoo_home() -> Path:
    """The folder ZOO_HOME names, else the platform's cache folder for backbone-zoo."""
    chosen = os.environ.get("ZOO_HOME")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("backbone-zoo")


class StoredFile(FileDigest, frozen=True, kw_only=True):
    """A pulled file with its modification time, so that a look at the folder notices a change without reading it."""

    mtime_ns: int


class StoreManifest(Struct, frozen=True, kw_only=True):
    """`manifest.json` of a pulled row; a folder without it is not a pulled row."""

    schema_version: int
    entry: str
    files: tuple[StoredFile, ...]


class Store:
    """The folders under one ZOO_HOME. Reading never writes, so a read-only home with the models in it works."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = zoo_home() if home is None else home

    @property
    def models(self) -> Path:
        """Pulled rows."""
        return self.home / "models"

    @property
    def graphs(self) -> Path:
        """Features graphs made from registry rows."""
        return self.home / "graphs"

    @property
    def features(self) -> Path:
        """Cached features."""
        return self.home / "features"

    @property
    def optimised(self) -> Path:
        """Graphs as ONNX Runtime optimised them."""
        return self.home / "optimised"

    @property
    def engines(self) -> Path:
        """Engines that TensorRT built, a file of its own for each device and release in it: one takes minutes."""
        return self.home / "engines"

    @property
    def trainings(self) -> Path:
        """Checkpoints of trainings, one folder for each bundle that they write."""
        return self.home / "training"

    @property
    def bridged(self) -> Path:
        """Entries that bridges made of other libraries' models."""
        return self.home / "bridged"

    @property
    def partials(self) -> Path:
        """Files that are not whole yet."""
        return self.home / "partials"

    @property
    def lock_path(self) -> Path:
        """Where the digests that were trusted here are recorded."""
        return self.home / "zoo.lock"

    def model_dir(self, entry: Entry, digests: Sequence[FileDigest]) -> Path:
        """The folder that a row with these very files has, whether it was pulled or not."""
        pairs = sorted((file.path, file.sha256) for file in digests)
        return self.models / entry.name / sha256_json(pairs)[:16]

    def graph_dir(self, entry: Entry, cut: int | None = None) -> Path:
        """The folder of a row's features graph, or with `cut` of its trunk, whether it was made or not."""
        return self.graphs / f"{entry.name}-{graph_key(entry, cut)[:16]}"

    def find(self, entry: Entry, lock: "Lock") -> Path | None:
        """The folder with every file of the row, unchanged since it was pulled; None when it was not pulled.

        A file whose size or time differs is hashed again. Raises IntegrityError when its bytes are not the pinned ones.
        """
        expected = pinned_files(lock.effective(entry))
        if expected is None:
            return None
        folder = self.model_dir(entry, expected)
        manifest = find_record(folder / MANIFEST, StoreManifest, SCHEMA_VERSION)
        if manifest is None:
            return None
        recorded = {(file.path, file.sha256) for file in manifest.files}
        if recorded != {(file.path, file.sha256) for file in expected}:
            return None
        if not all((folder / file.path).exists() for file in manifest.files):
            return None
        changed = [file for file in manifest.files if not is_untouched(folder / file.path, file)]
        for file in changed:
            _check_bytes(folder / file.path, file, entry.name)
        if changed:
            # Only a saving for the next look-up; a read-only home does without it.
            with suppress(OSError):
                write_manifest(folder, entry, expected)
        return folder

    def is_pulled(self, entry: Entry, lock: "Lock") -> bool:
        """Whether every file of the row is there in its full size, by looking at the folder alone."""
        expected = pinned_files(lock.effective(entry))
        if expected is None:
            return False
        folder = self.model_dir(entry, expected)
        return (folder / MANIFEST).is_file() and all(self.holds(folder, file.path, file.size) for file in expected)

    def holds(self, folder: Path, path: str, size: int | None) -> bool:
        """Whether a file of that size (None or 0 = any) lies in a pulled folder."""
        try:
            status = (folder / path).lstat()
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and size in (None, 0, status.st_size)

    def distrust(self, folder: Path, paths: Collection[str]) -> None:
        """Have these files of a pulled folder hashed again by the next `find`, whatever their size and time say."""
        manifest = find_record(folder / MANIFEST, StoreManifest, SCHEMA_VERSION)
        if manifest is None or not paths:
            return
        files = [structs.replace(file, mtime_ns=0) if file.path in paths else file for file in manifest.files]
        # A read-only home cannot be mended by a pull either.
        with suppress(OSError):
            write_record(folder / MANIFEST, structs.replace(manifest, files=tuple(files)), indent=2)

    def copies(self, entry: Entry) -> dict[str, Path]:
        """Files by sha256 that any pulled version of the row claims to hold; their bytes are not checked here."""
        found: dict[str, Path] = {}
        for folder in sorted((self.models / entry.name).glob("*")):
            manifest = find_record(folder / MANIFEST, StoreManifest, SCHEMA_VERSION)
            found |= {file.sha256: folder / file.path for file in manifest.files} if manifest else {}
        return found

    @contextmanager
    def claim_partial(self, key: str) -> Iterator[Path]:
        """A folder in `partials` that this process alone writes to, holding what an earlier pull of `key` left.

        What was left is taken over by a rename, which one process alone can win, and given back under the plain name
        at the end. Thus pulls of the same file never write into each other's bytes, and no lock is needed.
        """
        self.partials.mkdir(parents=True, exist_ok=True)
        mine = self.partials / f"{key}.{signature()}"
        left = [path for path in self.partials.iterdir() if path.name == key or is_abandoned(path, f"{key}.")]
        left.sort(key=_partial_size, reverse=True)
        if not any(try_rename(path, mine) for path in left):
            mine.mkdir()
        # A rename keeps the old time, by which others would take this folder for abandoned.
        os.utime(mine)
        remove_abandoned(self.partials, prefix=f"{key}.")
        try:
            yield mine
        finally:
            if _partial_size(mine) <= 0 or not try_rename(mine, self.partials / key):
                shutil.rmtree(mine, ignore_errors=True)


def pinned_files(row: Entry) -> tuple[FileDigest, ...] | None:
    """Path, size (0 = not known) and sha256 of every file of a row, None when one of the digests is not known."""
    known = [FileDigest(path=file.path, size=file.size or 0, sha256=file.sha256) for file in row.files if file.sha256]
    return tuple(known) if len(known) == len(row.files) else None


def write_manifest(folder: Path, entry: Entry, files: Sequence[FileDigest]) -> None:
    """Record the files of a pulled row as they lie in `folder`: what makes it one, so it is written last."""
    stored = []
    for file in files:
        status = (folder / file.path).stat()
        stored.append(
            StoredFile(path=file.path, size=status.st_size, sha256=file.sha256, mtime_ns=status.st_mtime_ns),
        )
    manifest = StoreManifest(schema_version=SCHEMA_VERSION, entry=entry.name, files=tuple(stored))
    write_record(folder / MANIFEST, manifest, indent=2)


def is_untouched(path: Path, file: StoredFile) -> bool:
    """Whether a plain file of the recorded size and time lies there; its bytes are not read."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns)


def _check_bytes(path: Path, file: StoredFile, name: str) -> None:
    # A link could point at bytes that change later, and the runtimes refuse some of them.
    actual = sha256_file(path) if stat.S_ISREG(path.lstat().st_mode) else "a link"
    if actual != file.sha256:
        raise IntegrityError(
            f"{path} has changed since it was pulled: expected sha256 {file.sha256}, got {actual}",
            expected=file.sha256,
            actual=actual,
            hint=f"zoo pull {name}",
        )


def _partial_size(folder: Path) -> int:
    try:
        return (folder / PARTIAL_DATA).stat().st_size
    except OSError:
        return -1


def graph_key(entry: Entry, cut: int | None = None) -> str:
    """sha256 over all of the row that shapes its features bundle: files' digests, family, preprocessing, config.

    With `cut` that of its trunk, the first so many stages.
    """
    shaping = (
        entry.family,
        entry.config,
        entry.preprocess,
        [(file.path, file.sha256) for file in entry.files],
        GRAPH_VERSION,
        *(() if cut is None else (cut,)),
    )
    return sha256_json(shaping)
