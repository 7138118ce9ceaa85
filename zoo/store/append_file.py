"""An append-only file of byte strings by key, for data too large for a database: crash-safe and memory-mapped.

`data` holds the strings one after another, `index` a record of 48 bytes for each: key, offset, length, kind. A string
is written and synced before its record. A record counts only if its string follows the one before it and is whole.
Bytes after the last such record, left by a killed process or a full disk, are overwritten. Many processes may append.
"""

import mmap
import os
import struct
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from zoo.system.files import written

RECORD = struct.Struct("<32sQIB3x")


class NewString(NamedTuple):
    """A string to append: its key (32 bytes), and two numbers (32 and 8 bits) that `Records.get` returns with it."""

    key: bytes
    length: int
    kind: int
    data: bytes


class Records:
    """The strings of one folder whose keys are in `wanted` (None: all); `size_of` gives a string's size.

    `size_of(length, kind)` is in bytes. Of two strings with one key the later one counts.
    """

    def __init__(
        self, folder: Path, size_of: Callable[[int, int], int], wanted: Container[bytes] | None = None
    ) -> None:
        self.folder = folder
        self._data, self._index = folder / "data", folder / "index"
        self.size_of = size_of
        self.wanted = wanted
        #: (offset, size, length, kind) of each string.
        self._positions: dict[bytes, tuple[int, int, int, int]] = {}
        #: Bytes of all strings.
        self.size = 0
        self._records = 0
        self._map: mmap.mmap | None = None
        folder.mkdir(parents=True, exist_ok=True)
        for path in (self._data, self._index):
            path.touch()
        self.refresh()

    def __contains__(self, key: bytes) -> bool:
        return key in self._positions

    def refresh(self) -> None:
        """Read the records that other processes have appended."""
        there = self._data.stat().st_size
        with self._index.open("rb") as file:
            file.seek(self._records * RECORD.size)
            index = file.read()
        for key, offset, length, kind in RECORD.iter_unpack(index[: len(index) - len(index) % RECORD.size]):
            size = self.size_of(length, kind)
            if offset != self.size or offset + size > there:
                return
            if self.wanted is None or key in self.wanted:
                self._positions[key] = (offset, size, length, kind)
            self.size += size
            self._records += 1

    def forget(self, key: bytes) -> None:
        """Treat a damaged string as missing, so that `append` accepts its key again."""
        del self._positions[key]

    def append(self, rows: Sequence[NewString]) -> None:
        """Append the rows with new keys. Raises OSError; then none of these rows is appended."""
        with written(self.folder / "writer"):
            self.refresh()
            new = list({row.key: row for row in rows if row.key not in self._positions}.values())
            with _appending(self._data, self.size) as data:
                _write(data, b"".join(row.data for row in new))
            index, offset = bytearray(), self.size
            for row in new:
                index += RECORD.pack(row.key, offset, row.length, row.kind)
                offset += len(row.data)
            with _appending(self._index, self._records * RECORD.size) as file:
                _write(file, bytes(index))
            self.refresh()

    def get(self, key: bytes) -> tuple[memoryview, int, int]:
        """Returns the string, its length and its kind. Raises KeyError."""
        offset, size, length, kind = self._positions[key]
        if self._map is None or len(self._map) < offset + size:
            with self._data.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        return memoryview(self._map)[offset : offset + size], length, kind


@contextmanager
def _appending(path: Path, end: int) -> Iterator[BinaryIO]:
    """The file, truncated at `end` and opened there; synced afterwards, or truncated again after an OSError."""
    with path.open("r+b", buffering=0) as file:
        os.ftruncate(file.fileno(), end)
        file.seek(end)
        try:
            yield file
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), end)
            raise


def _write(file: BinaryIO, data: bytes) -> None:
    """Write all of `data`. One call of `write` may write only a part, for example before the disk is full."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
