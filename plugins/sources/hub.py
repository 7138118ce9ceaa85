"""`hf://org/repo@<40-hex commit>/path`: files of the Hugging Face Hub, moved by huggingface_hub itself.

HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE hold. It sends no telemetry and draws no bars of its own.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from zoo.errors import AccessError, IntegrityError, NetworkError, OfflineError, RegistryError, ZooError
from zoo.hookspecs import hookimpl
from zoo.progress import Bar, Progress
from zoo.source import Announced, Source, Want

# Its telemetry off, in this process (where the library may have been imported before) and in those it starts.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
constants.HF_HUB_DISABLE_TELEMETRY = True

URL = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[^/]+)/(?P<path>.+)")
MISSING = {RepositoryNotFoundError: "repository", RevisionNotFoundError: "commit", EntryNotFoundError: "file"}
COMMIT = re.compile(r"[0-9a-f]{40}")


class _File(NamedTuple):
    repo: str
    revision: str
    path: str


class HubSource(Source):
    """Files at a commit of a Hub repository."""

    scheme = "hf"

    def fetch(self, wants: Sequence[Want], progress: Progress) -> None:
        """Download every file beside its partial and move it there: huggingface_hub does not go on with old bytes."""
        for want in wants:
            with progress.task(want.url.rpartition("/")[2], want.size, "B") as bar, _translated(want.url):
                _fetch_one(want, bar)

    def announced(self, url: str) -> Announced | None:
        """Size, and for an LFS file its sha256, as the Hub's listing of the commit says."""
        file = parse(url)
        with _translated(url):
            for info in HfApi().get_paths_info(file.repo, [file.path], revision=file.revision):
                if isinstance(info, RepoFile):
                    return Announced(size=info.size, sha256=info.lfs.sha256 if info.lfs else None)
        return None


def parse(url: str) -> _File:
    """Repository, commit and path of a URL. Raises RegistryError when the revision is not a commit."""
    match = URL.fullmatch(url)
    if match is None:
        raise RegistryError(f"{url} is not hf://org/repo@commit/path", hint="correct the row in the registry")
    if not COMMIT.fullmatch(match["revision"]):
        raise RegistryError(
            f"{url}: {match['revision']} is not a commit: a branch or tag may point to other bytes tomorrow",
            hint="put the 40 hex digits of the commit after the @",
        )
    return _File(match["repo"], match["revision"], match["path"])


def _fetch_one(want: Want, bar: Bar) -> None:
    file = parse(want.url)
    stage = want.partial.parent / "hub"
    shutil.rmtree(stage, ignore_errors=True)
    try:
        path = hf_hub_download(
            file.repo, file.path, revision=file.revision, local_dir=stage, tqdm_class=_meter(want, bar)
        )
        Path(path).replace(want.partial)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _meter(want: Want, bar: Bar) -> type[object]:
    """A class in the shape of tqdm that draws nothing, moves our bar, and stops a file longer than it may be."""

    class Meter:
        def __init__(self, *, total: int | None = None, initial: int = 0, **_: object) -> None:
            self.total = total
            self.n = initial

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def update(self, amount: int) -> None:
            self.n += amount
            bar.advance(amount)
            if want.size is not None and self.n > want.size:
                raise IntegrityError(
                    f"{want.url} sends more than {want.size} bytes",
                    expected=want.size,
                    actual=self.n,
                    hint="the registry or the server is wrong: try another one with --source SCHEME",
                )

        def close(self) -> None:
            pass

        def set_postfix_str(self, text: str, refresh: bool = True) -> None:
            pass

        # With these two the Xet downloader counts its network bytes here and opens no second bar for them.
        def update_transfer(self, amount: int) -> None:
            pass

        def set_transfer_postfix_str(self, text: str, refresh: bool = True) -> None:
            pass

    return Meter


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into zoo's errors; a full or read-only disk stays an OSError."""
    try:
        yield
    except (HfHubHTTPError, EntryNotFoundError, OfflineModeIsEnabled, httpx2.HTTPError) as error:
        raise _translation(url, error) from error
    except OSError as error:
        # The library's own complaints (a short file, missing metadata) carry no errno; the file system's do.
        if error.errno is not None:
            raise
        raise NetworkError(f"{url}: {_first_line(error)}", url=url) from error


def _translation(url: str, error: BaseException) -> ZooError:
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        # Raised for whatever kept the library from asking the Hub.
        return _translation(url, error.__cause__)
    if isinstance(error, OfflineModeIsEnabled):
        return OfflineError(f"{url}: the Hub client is offline", url="hf://", hint="unset HF_HUB_OFFLINE")
    if not isinstance(error, HfHubHTTPError):
        return NetworkError(
            f"{url}: the Hub cannot be reached: {_first_line(error)}",
            url="hf://",
            hint="check the connection, the proxy and HF_ENDPOINT",
        )
    status = error.response.status_code
    if isinstance(error, GatedRepoError) or status in (401, 403):
        return AccessError(
            f"{url}: the Hub denies access (status {status}): the repository is gated, private or not there",
            hint="accept its license on the Hub, then set HF_TOKEN to a token that may read it",
        )
    missing = next((what for kind, what in MISSING.items() if isinstance(error, kind)), None)
    reason = f"no such {missing}" if missing else _first_line(error)
    return NetworkError(f"{url}: {reason} (status {status})", url=url, hint="try --source, or report the row")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@hookimpl
def zoo_register_sources() -> Iterable[type[Source]]:
    """The one scheme of this module."""
    return [HubSource]
