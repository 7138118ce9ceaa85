"""Atomic writes (to a temporary file that is synced and then renamed), digests, and file locks."""

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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import msgspec

from zoo.errors import AccessError
from zoo.schema import FileDigest

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed, and so needs no lock
    fcntl = None  # type: ignore[assignment]

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: Seconds without a write after which another machine's temporary counts as abandoned: its processes are unknown here.
ABANDONED_AFTER = 24 * 3600.0
#: The number of attempts to replace a folder that other processes replace at the same time.
RENAME_TRIES = 50


def sha256(data: "str | bytes | mmap.mmap") -> str:
    """The sha256 of bytes, or of a text in UTF-8, as 64 hex digits."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def sha256_json(facts: object) -> str:
    """The sha256 of plain data or structs as JSON, independent of the order of the keys in dictionaries."""
    return sha256(msgspec.json.encode(facts, order="deterministic"))


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, as 64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_unchanged(path: Path, file: FileDigest) -> bool:
    """Whether `path` is a regular file, not a link, of the recorded size and sha256."""
    try:
        found = path.lstat()
        return stat.S_ISREG(found.st_mode) and found.st_size == file.size and sha256_file(path) == file.sha256
    except OSError:
        return False


def map_file(path: Path) -> mmap.mmap | bytes:
    """The bytes of a regular file, memory-mapped and read-only. Raises OSError, also for a link."""
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    flags = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        # An empty file cannot be mapped.
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) if status.st_size else b""
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`. Readers see the old bytes or the new ones, also after a crash."""
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
    """A new folder that is synced and becomes `target` when the block succeeds, and is removed when it fails.

    An existing folder is replaced as a whole, and restored if that fails.
    """
    # If `target` is a link to a folder, replace that folder and keep the link.
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
    """Turn an OSError under `home` into an AccessError whose hint names ZOO_HOME."""
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
    """Turn the OSError of a full disk, while `out` is written, into an AccessError."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        # The error's own file name is left out: it may be the source of a copy.
        raise AccessError(
            f"cannot write {out}: {os.strerror(error.errno)}", hint="free some space, or choose another -o"
        ) from error


def signature() -> str:
    """The writer of a temporary: host, process id, and 8 random hex digits."""
    return f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", platform.node())[:32] or "host"


def walk(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """`path` and every file and folder below it, with their status.

    Files that another process removes meanwhile are left out. A symbolic link has its own status and is not followed.
    """
    with suppress(OSError):
        yield path, path.lstat()
    for parent, folders, names in os.walk(path):
        for name in (*folders, *names):
            with suppress(OSError):
                yield Path(parent, name), Path(parent, name).lstat()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 if there is none."""
    return sum(0 if stat.S_ISDIR(status.st_mode) else status.st_size for _, status in walk(path))


def is_abandoned(path: Path, prefix: str) -> bool:
    """Whether `path` is a temporary named `prefix` + signature of a process that ended."""
    match = re.fullmatch(r"(\w+)-(\d+)-[0-9a-f]{8}(\.new|\.old)?", path.name.removeprefix(prefix))
    if not path.name.startswith(prefix) or match is None:
        return False
    if match[1] == _host() and not _is_running(int(match[2])):
        return True
    newest = max((status.st_mtime for _, status in walk(path)), default=time.time())
    return time.time() - newest > ABANDONED_AFTER


def _is_running(pid: int) -> bool:
    if os.name == "nt":
        # On Windows signal 0 would interrupt the process; the age of the files decides instead.
        return True
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove every temporary of `parent` named `prefix` + signature of a process that ended."""
    for path in parent.iterdir():
        if is_abandoned(path, prefix):
            # Rename it first: another process may be taking over the same folder.
            doomed = path.with_name(f"{prefix}{signature()}.old")
            if try_rename(path, doomed):
                shutil.rmtree(doomed, ignore_errors=True)


def try_rename(source: Path, target: Path) -> bool:
    """Rename; returns whether it succeeded."""
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
            # Between the two renames another process put its folder there: try to replace that folder.
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
    """Hold an exclusive lock on the file `path`, waiting for other holders. Raises OSError."""
    with path.open("a+b") as file:
        hold(file, exclusive=True)
        yield


def hold(file: IO[bytes], *, exclusive: bool) -> None:
    """Lock an open file until it is closed, waiting for other holders; a shared lock may have several holders."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)


def try_lock(file: IO[bytes]) -> bool:
    """Lock an open file exclusively until it is closed; returns False if another process holds it."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
