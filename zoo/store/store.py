"""The folders under ZOO_HOME, and the files of pulled rows.

models/<entry>/<16 hex of the files' digests>/   a pulled row: its files, and manifest.json, which is written last
partials/<key>/                                  the bytes of one file that an interrupted pull had received
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
#: Part of a graph's key: increment it when zoo.export.build makes a different graph of the same row.
GRAPH_VERSION = 4
#: The options and data of a training, beside its checkpoints.
RUN = "run.json"
#: The schema version of this file.
RUN_SCHEMA = 1
#: The file inside a partial's folder; a source may keep files of its own beside it.
PARTIAL_DATA = "data"


def zoo_home() -> Path:
    """The folder that ZOO_HOME names, else the platform's cache folder for backbone-zoo."""
    chosen = os.environ.get("ZOO_HOME")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("backbone-zoo")


class StoredFile(FileDigest, frozen=True, kw_only=True):
    """A pulled file with its modification time, which shows a change without reading the file."""

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
        #: Pulled rows.
        self.models = self.home / "models"
        #: Files of unfinished pulls.
        self.partials = self.home / "partials"
        #: Feature graphs made from registry rows.
        self.graphs = self.home / "graphs"
        #: Cached features.
        self.features = self.home / "features"
        #: Graphs optimised by ONNX Runtime.
        self.optimised = self.home / "optimised"
        #: TensorRT engines, each built in minutes: one file for each device and release.
        self.engines = self.home / "engines"
        #: Checkpoints: one folder for each bundle that a training writes.
        self.trainings = self.home / "training"
        #: Entries that bridges made of other libraries' models.
        self.bridged = self.home / "bridged"
        #: Digests that a user of this home trusted.
        self.lock_path = self.home / "zoo.lock"

    def model_dir(self, entry: Entry, digests: Sequence[FileDigest]) -> Path:
        """The folder for a row with exactly these files; it need not exist."""
        pairs = sorted((file.path, file.sha256) for file in digests)
        return self.models / entry.name / sha256_json(pairs)[:16]

    def graph_dir(self, entry: Entry, cut: int | None = None) -> Path:
        """The folder for a row's feature graph, or for its first `cut` stages; it need not exist."""
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
        pinned = {(file.path, file.sha256) for file in expected}
        if manifest is None or {(file.path, file.sha256) for file in manifest.files} != pinned:
            return None
        if not all((folder / file.path).exists() for file in manifest.files):
            return None
        changed = [file for file in manifest.files if not is_untouched(folder / file.path, file)]
        for file in changed:
            _check_bytes(folder / file.path, file, entry.name)
        if changed:
            # Record the new times to save hashing at the next look-up. This fails in a read-only home.
            with suppress(OSError):
                write_manifest(folder, entry, expected)
        return folder

    def is_pulled(self, entry: Entry, lock: "Lock") -> bool:
        """Whether every file of the row exists with its full size; no file is read."""
        expected = pinned_files(lock.effective(entry))
        if expected is None:
            return False
        folder = self.model_dir(entry, expected)
        return (folder / MANIFEST).is_file() and all(self.holds(folder, file.path, file.size) for file in expected)

    def holds(self, folder: Path, path: str, size: int | None) -> bool:
        """Whether a pulled folder has a regular file of this size (None or 0 = any)."""
        try:
            status = (folder / path).lstat()
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and size in (None, 0, status.st_size)

    def distrust(self, folder: Path, paths: Collection[str]) -> None:
        """Make the next `find` hash these files of a pulled folder again, even if size and time are unchanged."""
        manifest = find_record(folder / MANIFEST, StoreManifest, SCHEMA_VERSION)
        if manifest is None or not paths:
            return
        files = [structs.replace(file, mtime_ns=0) if file.path in paths else file for file in manifest.files]
        # This fails in a read-only home, which a pull could not repair either.
        with suppress(OSError):
            write_record(folder / MANIFEST, structs.replace(manifest, files=tuple(files)), indent=2)

    def copies(self, entry: Entry) -> dict[str, Path]:
        """Files by sha256 in all pulled versions of the row, by their manifests; the bytes are not checked."""
        found: dict[str, Path] = {}
        for folder in sorted((self.models / entry.name).glob("*")):
            manifest = find_record(folder / MANIFEST, StoreManifest, SCHEMA_VERSION)
            found |= {file.sha256: folder / file.path for file in manifest.files} if manifest else {}
        return found

    @contextmanager
    def claim_partial(self, key: str) -> Iterator[Path]:
        """A folder in `partials` that only this process writes to, with the bytes that an earlier pull of `key` left.

        The earlier folder is taken over by a rename, which succeeds for only one process, and renamed back to `key` at
        the end. So two pulls of one file never write to the same file, and no lock is needed.
        """
        self.partials.mkdir(parents=True, exist_ok=True)
        mine = self.partials / f"{key}.{signature()}"
        left = [path for path in self.partials.iterdir() if path.name == key or is_abandoned(path, f"{key}.")]
        left.sort(key=_partial_size, reverse=True)
        if not any(try_rename(path, mine) for path in left):
            mine.mkdir()
        # A rename keeps the old time, which would make the folder look abandoned.
        os.utime(mine)
        remove_abandoned(self.partials, prefix=f"{key}.")
        try:
            yield mine
        finally:
            if _partial_size(mine) <= 0 or not try_rename(mine, self.partials / key):
                shutil.rmtree(mine, ignore_errors=True)


def pinned_files(row: Entry) -> tuple[FileDigest, ...] | None:
    """Path, size (0 = unknown) and sha256 of every file of a row; None if a digest is unknown."""
    known = [FileDigest(path=file.path, size=file.size or 0, sha256=file.sha256) for file in row.files if file.sha256]
    return tuple(known) if len(known) == len(row.files) else None


def write_manifest(folder: Path, entry: Entry, files: Sequence[FileDigest]) -> None:
    """Write the manifest, which makes `folder` a pulled row. Call this after all files are written."""
    stored = tuple(stored_file(folder, file.path, file.sha256) for file in files)
    manifest = StoreManifest(schema_version=SCHEMA_VERSION, entry=entry.name, files=stored)
    write_record(folder / MANIFEST, manifest, indent=2)


def stored_file(folder: Path, name: str, sha256: str) -> StoredFile:
    """The record of the file `name` of a folder. Raises OSError."""
    status = (folder / name).stat()
    return StoredFile(path=name, size=status.st_size, sha256=sha256, mtime_ns=status.st_mtime_ns)


def is_untouched(path: Path, file: StoredFile) -> bool:
    """Whether `path` is a regular file of the recorded size and time; its bytes are not read. Raises OSError."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns)


def _check_bytes(path: Path, file: StoredFile, name: str) -> None:
    # A link may point to bytes that change later, and ONNX Runtime refuses some links.
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
    """sha256 of everything that decides the feature graph of a row, or of its first `cut` stages."""
    files = [(file.path, file.sha256) for file in entry.files]
    last = (entry.head,) if cut is None else (cut,)
    return sha256_json((entry.family, entry.config, entry.preprocess, files, GRAPH_VERSION, *last))
