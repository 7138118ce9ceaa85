"""Caches in a folder: their disk limit, which of them are in use, and which are removed first.

A cache is all files and folders with one key: `KEY.features/` or `KEY.activations/`, and `KEY.lock`. Each process that
uses the cache holds a shared flock(2) on the lock file; the time of this file is the time of the last use. Only a cache
without a holder is removed.
"""

import os
import re
import shutil
import stat
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from msgspec import Struct

from zoo.errors import UsageError
from zoo.system.files import hold, size_of, try_lock, walk

#: Bytes that all caches may take together, and the largest share of the disk space that is free if none exists.
LIMIT, SHARE = 4_000_000_000, 0.2
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Cache(Struct, frozen=True, order=True):
    """One cache of a folder: when it was last used (seconds since the epoch), its key, files and bytes."""

    used: float
    key: str
    paths: tuple[Path, ...]
    size: int


def chosen_limit() -> int:
    """Bytes that caches may take: ZOO_CACHE_LIMIT (`500MB`, `10GB` or bytes), else 4 GB. Raises UsageError."""
    text = os.environ.get("ZOO_CACHE_LIMIT", "")
    if not text.strip():
        return LIMIT
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.strip().upper())
    if match is None or match[2] not in UNITS:
        raise UsageError(f"ZOO_CACHE_LIMIT must be a size, got {text!a}", hint="ZOO_CACHE_LIMIT=4GB, 500MB or bytes")
    return int(float(match[1]) * UNITS[match[2]])


def limit(folder: Path) -> int:
    """Bytes that the caches in `folder` may take: `chosen_limit`, but at most a fifth of the free disk space."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free + sum(cache.size for cache in caches(folder))
    return min(chosen_limit(), int(SHARE * free))


def caches(folder: Path) -> list[Cache]:
    """The caches in `folder`, the least recently used first."""
    found: defaultdict[str, list[Path]] = defaultdict(list)
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in folder.iterdir():
            found[path.name.partition(".")[0]].append(path)
    return sorted(_cache(key, paths) for key, paths in found.items() if key)


@contextmanager
def in_use(folder: Path, key: str) -> Iterator[None]:
    """Hold the cache `key` of `folder`, so that no process removes it, and record the time of use. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.lock"
    while True:
        with path.open("a+b") as file:
            hold(file, exclusive=False)
            # Another process may have removed the cache, and this file, after it was opened and before it was locked.
            if not _is_at(file, path):
                continue
            os.utime(path)
            yield
            return


def remove(folder: Path, cache: Cache) -> bool:
    """Remove a cache unless a process uses it; returns whether it was removed."""
    lock = folder / f"{cache.key}.lock"
    try:
        with lock.open("a+b") as file:
            if not try_lock(file) or not _is_at(file, lock):
                return False
            for path in cache.paths:
                if path != lock:
                    _remove(path)
            # Remove the lock file last, while it is locked: a process that waits for the lock then sees the removal.
            _remove(lock)
    except OSError:
        return False
    return True


def trim(folder: Path, size: int) -> int:
    """Remove unused caches, oldest first, until all take at most `size` bytes; returns the bytes freed."""
    found = caches(folder)
    total, freed = sum(cache.size for cache in found), 0
    for cache in found:
        if total - freed <= size:
            break
        freed += cache.size if remove(folder, cache) else 0
    return freed


def _cache(key: str, paths: list[Path]) -> Cache:
    used, size = 0.0, 0
    for path in paths:
        size += size_of(path)
        for _, status in walk(path):
            used = max(used, 0.0 if stat.S_ISDIR(status.st_mode) else status.st_mtime)
    return Cache(min(used, time.time()), key, tuple(paths), size)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_at(file: IO[bytes], path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
