"""The verified pull: sources fetch bytes; this module checks them and publishes a row's files if all are right.

Each file is fetched into a partial that only this process writes, then its size and sha256 are checked. Then all files
move into one staged folder, which is synced and renamed. An interrupted pull leaves partials; the next pull continues
from them.
"""

import errno
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from msgspec import Struct

from zoo.errors import (
    AccessError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    OfflineError,
    PluginError,
    UnpinnedError,
    UsageError,
    ZooError,
)
from zoo.progress import SILENT, Progress
from zoo.schema import Entry, FileDigest, WeightFile
from zoo.source import Announced, Source, Want
from zoo.store.lock import Lock, LockedFile
from zoo.store.store import PARTIAL_DATA, Store, pinned_files, write_manifest
from zoo.system.files import NO_SPACE, sha256, sha256_file, staged_dir, storage_errors

SourceFor: TypeAlias = Callable[[str], Source]

#: Schemes that are known to need a network: an offline pull does not load their plugins.
REMOTE_SCHEMES = frozenset({"http", "https", "hf", "pypi"})
#: Errors of the file system that no other source would avoid.
STORAGE_FAULTS = NO_SPACE | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class PlannedFile(Struct, frozen=True, kw_only=True):
    """One file that a pull would fetch unless it is `present`, from `urls` in this order."""

    path: str
    size: int | None
    sha256: str | None
    urls: tuple[str, ...]
    present: bool


class Verified(NamedTuple):
    """One file hashed again: `actual` is its sha256, None when the file is gone."""

    expected: FileDigest
    ok: bool
    actual: str | None


def plan(entry: Entry, store: Store, lock: Lock, only: str | None = None) -> list[PlannedFile]:
    """The files that `pull` would fetch, and their URLs. Raises UsageError if no source has the scheme `only`."""
    row = lock.effective(entry)
    expected = pinned_files(row)
    folder = store.model_dir(row, expected) if expected else None
    files = []
    for file in row.files:
        present = folder is not None and store.holds(folder, file.path, file.size)
        urls = tuple(_candidates(entry, file, only))
        files.append(PlannedFile(path=file.path, size=file.size, sha256=file.sha256, urls=urls, present=present))
    return files


def verify(entry: Entry, store: Store, lock: Lock) -> list[Verified]:
    """Hash every file of a pulled row again, offline. The next pull fetches the damaged ones again.

    Raises NotFoundError when the row was not pulled.
    """
    expected = pinned_files(lock.effective(entry))
    folder = store.model_dir(entry, expected) if expected else None
    if expected is None or folder is None or not folder.is_dir():
        raise NotFoundError(f"{entry.name} is not pulled", hint=f"zoo pull {entry.name}")
    results = []
    for file in expected:
        path = folder / file.path
        actual = sha256_file(path) if path.is_file() else None
        results.append(Verified(file, actual == file.sha256, actual))
    store.distrust(folder, {seen.expected.path for seen in results if not seen.ok})
    return results


def pull(
    entry: Entry,
    store: Store,
    lock: Lock,
    source_for: SourceFor,
    *,
    progress: Progress = SILENT,
    trust_first: bool = False,
    only: str | None = None,
    offline: bool = False,
) -> Path:
    """The folder with the row's files, which are fetched unless all are there.

    `source_for` returns the source of a URL scheme; `only` restricts the pull to one scheme. A file without a known
    digest is fetched only with `trust_first`, and its digest is recorded in the lock.
    Raises UnpinnedError, OfflineError, NetworkError, AccessError, or IntegrityError when a source sent wrong bytes.
    """
    row = lock.effective(entry)
    try:
        ready = store.find(entry, lock)
    except IntegrityError as error:
        progress.note(f"{error.message}; pulling it again")
        ready = None
    if ready is not None:
        return ready
    if not row.is_pinned and not trust_first:
        names = ", ".join(file.path for file in row.files if not file.is_pinned)
        message = f"{entry.name}: neither the registry nor zoo.lock has the sha256 of {names}"
        raise UnpinnedError(message, hint=f"zoo pull {entry.name} --trust-first")
    with storage_errors(store.home), ExitStack() as stack:
        jobs = []
        for listed, file in zip(entry.files, row.files, strict=True):
            urls = _candidates(entry, file, only)
            # A partial is named by the file's digest, so that all sources share it, or by a digest of the first URL.
            partial = stack.enter_context(store.claim_partial(listed.sha256 or sha256(listed.sources[0])))
            jobs.append(_Job(file=file, urls=urls, partial=partial / PARTIAL_DATA))
        _use_local_bytes(jobs, store.copies(entry))
        if offline:
            _keep_local(entry, jobs, source_for)
        _check_space(store.home, jobs)
        _fetch_all(jobs, source_for, progress)
        trusted = {
            job.file.path: LockedFile(sha256=job.digest.sha256, size=job.digest.size, source=job.url)
            for job in jobs
            if job.digest is not None and not job.file.is_pinned
        }
        if trusted:
            lock.record(entry.name, trusted)
        return _publish(entry, store, lock, jobs)


@dataclass(eq=False)
class _Job:
    """One file to fetch: `urls` are the sources that have not failed, the current one first."""

    file: WeightFile
    urls: list[str]
    partial: Path
    announced: Announced | None = None
    failures: list[ZooError] = field(default_factory=list)
    is_resumed: bool = False
    is_alone: bool = False
    digest: FileDigest | None = None

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def size(self) -> int | None:
        """The expected size, by the row or else by the source; None if unknown."""
        return self.file.size or (self.announced.size if self.announced else None)

    @property
    def sha256(self) -> str | None:
        return self.file.sha256 or (self.announced.sha256 if self.announced else None)

    @property
    def held(self) -> int:
        """Bytes in the partial."""
        return self.partial.stat().st_size if self.partial.exists() else 0

    def problem(self) -> IntegrityError | None:
        """The error in the partial's bytes. If they are right it is None, and `digest` is set."""
        held = self.held
        if held != self.size and (self.size is not None or held == 0):
            found = f"more than {self.size}" if self.size and held > self.size else str(held)
            expected = "at least one" if self.size is None else self.size
            return _wrong_bytes(f"{self.url} sent {found} bytes instead of {expected}", self.size, held)
        actual = sha256_file(self.partial)
        if self.sha256 not in (None, actual):
            message = f"{self.url} sent other bytes: expected sha256 {self.sha256}, got {actual}"
            return _wrong_bytes(message, self.sha256, actual)
        self.digest = FileDigest(path=self.file.path, size=held, sha256=actual)
        return None

    def drop_bytes(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.is_resumed = False


def _candidates(entry: Entry, file: WeightFile, only: str | None) -> list[str]:
    urls = [url for url in file.sources if only in (None, _scheme(url))]
    if not urls:
        schemes = ", ".join(dict.fromkeys(_scheme(url) for url in file.sources))
        raise UsageError(
            f"{entry.name}: {file.path} has no source with the scheme {only}://", hint=f"its sources are: {schemes}"
        )
    return urls


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def _wrong_bytes(message: str, expected: str | int | None, actual: str | int) -> IntegrityError:
    hint = "the registry or the server is wrong: try another source with --source SCHEME, or report the row"
    return IntegrityError(message, expected=expected, actual=actual, hint=hint)


def _use_local_bytes(jobs: Sequence[_Job], copies: dict[str, Path]) -> None:
    """Finish the jobs that need no source: whole partials, and files that another version of the row has."""
    for job in jobs:
        copy = copies.get(job.file.sha256 or "")
        if not job.file.is_pinned:
            # Without a digest, the old bytes may belong to another version of the file.
            job.drop_bytes()
        elif job.size is not None and job.held >= job.size and job.problem() is not None:
            job.drop_bytes()
        if job.digest is None and copy is not None and copy.is_file() and job.held == 0:
            shutil.copyfile(copy, job.partial)
            if job.problem() is not None:
                job.drop_bytes()
        job.is_resumed = job.held > 0


def _keep_local(entry: Entry, jobs: Sequence[_Job], source_for: SourceFor) -> None:
    """Keep only the URLs that need no network. Raises OfflineError naming the files without any."""
    missing = [job for job in jobs if job.digest is None]
    for job in missing:
        job.urls = [url for url in job.urls if _is_local(_scheme(url), source_for)]
    names = ", ".join(job.file.path for job in missing if not job.urls)
    if names:
        raise OfflineError(
            f"{entry.name} is not pulled and zoo is offline: missing {names}",
            hint=f"zoo pull {entry.name} while online, or copy ZOO_HOME from a machine that has it",
        )


def _is_local(scheme: str, source_for: SourceFor) -> bool:
    if scheme in REMOTE_SCHEMES:
        return False
    try:
        return not source_for(scheme).is_remote
    except PluginError:
        return False


def _check_space(home: Path, jobs: Sequence[_Job]) -> None:
    """Raise AccessError when the missing files do not fit on the disk. Unknown sizes count as 0."""
    needed = sum(max(0, (job.size or 0) - job.held) for job in jobs if job.digest is None)
    free = shutil.disk_usage(home).free
    if needed > free:
        raise AccessError(
            f"not enough space in {home}: needs {needed / 1e6:,.1f} MB, has {free / 1e6:,.1f} MB",
            hint="free some space, or set ZOO_HOME to a folder on a larger disk",
        )


def _fetch_all(jobs: Sequence[_Job], source_for: SourceFor, progress: Progress) -> None:
    """Fill every job's partial with the right bytes, source by source. Raises when a file has no source left."""
    while missing := [job for job in jobs if job.digest is None]:
        scheme = _scheme(missing[0].url)
        group = [job for job in missing if _scheme(job.url) == scheme and not job.is_alone] or missing[:1]
        failure = _fetch(group, scheme, source_for, progress)
        blamed = _blamed(group, failure)
        for job in group:
            # If the failure names no file, fetch each file alone to find the one that fails.
            job.is_alone = job.is_alone or (failure is not None and not blamed)
            _settle(job, failure if job in blamed else None, is_done=failure is None, progress=progress)


def _fetch(group: Sequence[_Job], scheme: str, source_for: SourceFor, progress: Progress) -> ZooError | None:
    """Fetch several files from one source. An error that another source may not have is returned, not raised."""
    try:
        source = source_for(scheme)
        # stdout is for the output of the verb, such as JSON: a source prints to stderr.
        with redirect_stdout(sys.stderr):
            for job in group:
                if not job.file.is_pinned:
                    job.announced = source.announced(job.url)
            source.fetch([Want(url=job.url, partial=job.partial, size=job.size) for job in group], progress)
    except (NetworkError, AccessError, IntegrityError, PluginError) as error:
        return error
    except ZooError:
        raise
    except OSError as error:
        if error.errno in STORAGE_FAULTS:
            raise
        return NetworkError(f"{group[0].url}: {error}", url=f"{scheme}://")
    except (Exception, SystemExit) as error:  # A bug in one source must not end the pull.
        return PluginError(f"the source {scheme}:// failed: {type(error).__name__}: {error}", plugin=scheme)
    return None


def _blamed(group: Sequence[_Job], failure: ZooError | None) -> Sequence[_Job]:
    """The jobs that a failure is about: `failure.url` is a file's URL, or the prefix of several (a host, a wheel)."""
    if failure is None or len(group) == 1:
        return group
    url = failure.url if isinstance(failure, NetworkError) else None
    return [job for job in group if url is not None and job.url.startswith(url)]


def _settle(job: _Job, failure: ZooError | None, *, is_done: bool, progress: Progress) -> None:
    """Accept the job's bytes, or go on to its next source; a job that was not reached stays unchanged."""
    if is_done or (job.file.is_pinned and job.size is not None and job.held >= job.size):
        problem = job.problem()
        if problem is None:
            return
        was_resumed = job.is_resumed
        job.drop_bytes()
        if was_resumed:
            progress.note(
                f"{problem.message}; the cause may be bytes of an earlier pull: fetching it again from the start"
            )
            return
        failure = problem
    if failure is None:
        return
    if not job.file.is_pinned:
        job.drop_bytes()
    job.failures.append(failure)
    if len(job.urls) == 1:
        raise _verdict(job.failures)
    progress.note(f"{failure.message}; trying {job.urls[1]}")
    job.urls.pop(0)
    job.announced = None
    job.is_alone = False
    job.is_resumed = job.held > 0


def _verdict(failures: Sequence[ZooError]) -> ZooError:
    """The error to raise when every source failed: the last about wrong bytes, else access, else network, else any."""
    for kind in (IntegrityError, AccessError, NetworkError):
        for failure in reversed(failures):
            if isinstance(failure, kind):
                return failure
    return failures[-1]


def _publish(entry: Entry, store: Store, lock: Lock, jobs: Sequence[_Job]) -> Path:
    """Publish the files as one folder, unless another process has published them meanwhile; returns the folder."""
    try:
        ready = store.find(entry, lock)
    except IntegrityError:
        ready = None
    if ready is not None:
        for job in jobs:
            job.drop_bytes()
        return ready
    digests = [job.digest for job in jobs if job.digest is not None]
    folder = store.model_dir(entry, digests)
    with staged_dir(folder) as stage:
        for job in jobs:
            shutil.move(job.partial, stage / job.file.path)
        write_manifest(stage, entry, digests)
    return folder
