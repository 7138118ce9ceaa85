"""How zoo writes to a disk: beside, synced, then renamed, so that nothing half-written is ever seen."""

import errno
import hashlib
import mmap
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from zoo.errors import AccessError

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed, and so needs no lock
    fcntl = None  # type: ignore[assignment]

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: A writer on another machine cannot be asked whether it lives: after this long without a write it is taken for dead.
ABANDONED_AFTER = 24 * 3600.0
#: How often two processes may overtake each other between two renames before one gives up.
RENAME_TRIES = 50


def sha256(data: "str | bytes | mmap.mmap") -> str:
    """The sha256 of bytes, or of a text in UTF-8, as 64 hex digits."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def sha256_json(facts: object) -> str:
    """The sha256 of plain data or structs as JSON, whatever the order of the keys in their dictionaries."""
    return sha256(msgspec.json.encode(facts, order="deterministic"))


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, as 64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_file(path: Path) -> mmap.mmap | bytes:
    """The bytes of a plain file, memory-mapped and read-only. Raises OSError, also for a link."""
    # A pipe would keep the opening waiting for a writer.
    flags = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        # An empty file cannot be mapped.
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) if status.st_size else b""
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a reader, or a crash, sees the old bytes or the new ones and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{signature()}.new")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_dir(path.parent)


@contextmanager
def staged_dir(target: Path) -> Iterator[Path]:
    """A fresh folder that becomes `target` when the block succeeds and leaves no trace when it does not.

    Every file in it is synced first. A folder that was there before is replaced whole, and restored if that fails.
    """
    # A link to a folder stays a link: what it points to is replaced.
    target = target.resolve()
    temporary = target.parent / f".{target.name}.{signature()}.new"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _sync_tree(temporary)
        _replace_dir(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_dir(target.parent)
    remove_abandoned(target.parent, prefix=f".{target.name}.")


@contextmanager
def storage_errors(home: Path) -> Iterator[None]:
    """Turn what the file system refuses under `home` into an AccessError whose hint names ZOO_HOME."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in NO_SPACE:
            hint = "free some space, or set ZOO_HOME to a folder on a larger disk"
        else:
            hint = "set ZOO_HOME to a folder that you may write to"
        raise AccessError(f"cannot write under {home}: {reason}", hint=hint) from error


@contextmanager
def room_for(out: Path) -> Iterator[None]:
    """Turn a disk that is full while `out` is written into an AccessError that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        # The file that such an error names may be the one that was copied from.
        raise AccessError(
            f"cannot write {out}: {os.strerror(error.errno)}", hint="free some space, or choose another -o"
        ) from error


def signature() -> str:
    """Who writes a temporary: host, process, and a word that makes the name unique."""
    return f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", platform.node())[:32] or "host"


def is_abandoned(path: Path, prefix: str) -> bool:
    """Whether `path` is a temporary named `prefix` + signature whose writer is gone."""
    match = re.fullmatch(r"(\w+)-(\d+)-[0-9a-f]{8}(\.new|\.old)?", path.name.removeprefix(prefix))
    if not path.name.startswith(prefix) or match is None:
        return False
    if match[1] == _host() and not _is_running(int(match[2])):
        return True
    try:
        newest = max(item.stat().st_mtime for item in (path, *path.glob("*")))
    except OSError:
        return False
    return time.time() - newest > ABANDONED_AFTER


def _is_running(pid: int) -> bool:
    if os.name == "nt":
        # Signal 0 would interrupt the process there; the age decides instead.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove every temporary of `parent` named `prefix` + signature whose writer is gone."""
    for path in parent.iterdir():
        if is_abandoned(path, prefix):
            # Renamed first: removing in place could empty a folder that another process is taking over.
            doomed = path.with_name(f"{prefix}{signature()}.old")
            if try_rename(path, doomed):
                shutil.rmtree(doomed, ignore_errors=True)


def try_rename(source: Path, target: Path) -> bool:
    """Rename, and say whether the file system let it."""
    try:
        source.rename(target)
    except OSError:
        return False
    return True


def _replace_dir(new: Path, target: Path) -> None:
    if target.is_file():
        raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", str(target))
    for _ in range(RENAME_TRIES):
        aside = target.with_name(f".{target.name}.{signature()}.old")
        was_there = try_rename(target, aside)
        try:
            new.rename(target)
        except OSError as error:
            if was_there and not try_rename(aside, target):
                shutil.rmtree(aside, ignore_errors=True)
            # Another process put its folder there between the two renames: ours replaces it in turn.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            shutil.rmtree(aside, ignore_errors=True)
            return
    raise OSError(errno.EBUSY, "other processes keep replacing it", str(target))


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            with (Path(parent) / name).open("r+b") as file:
                os.fsync(file.fileno())
        _sync_dir(Path(parent))


def _sync_dir(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Hold the file `path` alone, waiting for others. Raises OSError."""
    with path.open("a+b") as file:
        hold(file, exclusive=True)
        yield


def hold(file: IO[bytes], *, exclusive: bool) -> None:
    """Lock an open file until it is closed, waiting for whoever holds it now; shared locks may be many."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)


def try_lock(file: IO[bytes]) -> bool:
    """Hold an open file alone until it is closed, and say whether nobody else holds it."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
