"""`zoo.lock`: digests of files that the registry does not pin, recorded when they were first pulled and trusted."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from zoo.schema import Entry, Positive, Sha256, WeightFile
from zoo.system.records import read_record, write_record

SCHEMA_VERSION = 1


class LockedFile(msgspec.Struct, frozen=True, kw_only=True):
    """Digest and size of a trusted file, and the URL that served it."""

    sha256: Sha256
    size: Positive
    source: str


class _LockFile(msgspec.Struct, frozen=True, kw_only=True):
    schema_version: int
    entries: dict[str, dict[str, LockedFile]]


class Lock:
    """One `zoo.lock`, by entry name and file path. It supplies missing digests and never overrules the registry's."""

    def __init__(self, path: Path, entries: Mapping[str, Mapping[str, LockedFile]]) -> None:
        self.path = path
        self.entries = {name: dict(files) for name, files in entries.items()}

    @classmethod
    def read(cls, path: Path) -> "Lock":
        """The lock at `path`, empty if there is no file. Raises IntegrityError or AccessError as `read_record` does."""
        hint = "restore it, or delete it and pull the unpinned rows again with --trust-first"
        content = read_record(path, _LockFile, SCHEMA_VERSION, hint=hint)
        return cls(path, {} if content is None else content.entries)

    def effective(self, entry: Entry) -> Entry:
        """The row; unpinned files get their digest and size from the lock if it has them."""
        locked = self.entries.get(entry.name, {})
        return msgspec.structs.replace(entry, files=tuple(_fill(file, locked.get(file.path)) for file in entry.files))

    def record(self, name: str, files: Mapping[str, LockedFile]) -> None:
        """Add the files of the row `name` to the lock as it is on disk now, and write it."""
        self.entries = Lock.read(self.path).entries
        self.entries.setdefault(name, {}).update(files)
        content = _LockFile(schema_version=SCHEMA_VERSION, entries=self.entries)
        write_record(self.path, content, indent=2)


def _fill(file: WeightFile, known: LockedFile | None) -> WeightFile:
    # The digest is only valid for the URL that served the file: another URL may have other bytes.
    if file.is_pinned or known is None or known.source not in file.sources:
        return file
    return msgspec.structs.replace(file, sha256=known.sha256, size=known.size)
