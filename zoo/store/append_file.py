"""An append-only file of byte strings by key, for what is too large for a database: crash-safe, and read by mapping.

`data` holds the strings one after another, `index` a record of 48 bytes for each: key, place, length, kind. A string is
written and synced before its record, and a record counts only while it continues the one before it and its string is
there; what a killed process or a full disk left behind them is overwritten. Several processes may append.
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


class Row(NamedTuple):
    """A string to keep: its key (32 bytes), and two numbers (32 and 8 bits) that `get` returns with it."""

    key: bytes
    length: int
    kind: int
    data: bytes


class _Place(NamedTuple):
    offset: int
    size: int
    length: int
    kind: int


class Records:
    """The strings of one folder whose keys are in `wanted` (None: all); `size_of(length, kind)` is a string's bytes.

    Of two strings with one key the later one counts.
    """

    def __init__(
        self, folder: Path, size_of: Callable[[int, int], int], wanted: Container[bytes] | None = None
    ) -> None:
        self.folder = folder
        self.size_of = size_of
        self.wanted = wanted
        self.places: dict[bytes, _Place] = {}
        #: Bytes of all strings.
        self.size = 0
        self._records = 0
        self._map: mmap.mmap | None = None
        folder.mkdir(parents=True, exist_ok=True)
        for path in (self._data, self._index):
            path.touch()
        self.refresh()

    def __contains__(self, key: bytes) -> bool:
        return key in self.places

    def refresh(self) -> None:
        """Learn what other processes have appended since."""
        there = self._data.stat().st_size
        with self._index.open("rb") as file:
            file.seek(self._records * RECORD.size)
            index = file.read()
        for key, offset, length, kind in RECORD.iter_unpack(index[: len(index) - len(index) % RECORD.size]):
            size = self.size_of(length, kind)
            if offset != self.size or offset + size > there:
                return
            if self.wanted is None or key in self.wanted:
                self.places[key] = _Place(offset, size, length, kind)
            self.size += size
            self._records += 1

    def forget(self, key: bytes) -> None:
        """Take a damaged string for missing, so that `append` accepts it again."""
        del self.places[key]

    def append(self, rows: Sequence[Row]) -> None:
        """Keep the rows whose key is not there yet; all of them, or those before an OSError, which is raised."""
        with written(self.folder / "writer"):
            self.refresh()
            new = list({row.key: row for row in rows if row.key not in self.places}.values())
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
        """(the string, its length, its kind). Raises KeyError."""
        place = self.places[key]
        if self._map is None or len(self._map) < place.offset + place.size:
            with self._data.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        return memoryview(self._map)[place.offset : place.offset + place.size], place.length, place.kind

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _index(self) -> Path:
        return self.folder / "index"


@contextmanager
def _appending(path: Path, end: int) -> Iterator[BinaryIO]:
    """The file from `end` on, with nothing behind it; synced in the end, and cut back if the disk is full."""
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
    """Write all of it: the system may take a part at a time, and a part before the disk is full."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
