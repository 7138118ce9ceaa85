"""The Hugging Face Hub for plugins: repositories at a commit, files of data sets, and errors translated into zoo's.

All requests go through huggingface_hub, which obeys HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. Its telemetry is off.
"""

import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.hf_api import ModelInfo
from msgspec import Struct

from zoo.errors import AccessError, IntegrityError, NetworkError, NotFoundError, OfflineError, UsageError, ZooError
from zoo.progress import SILENT, Progress
from zoo.schema import WeightFile

# The variable is for child processes; the constant is for this process, which may have imported the library already.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
constants.HF_HUB_DISABLE_TELEMETRY = True
# Hide the client's log of retries: the last error is raised.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

DATASET = re.compile(r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?/(?P<path>.+)")
COMMIT = re.compile(r"[0-9a-f]{40}")
MISSING = {RepositoryNotFoundError: "repository", RevisionNotFoundError: "commit", EntryNotFoundError: "file"}
#: SPDX ids by the Hub's names for licenses, which are the ids in lower case.
SPDX = {
    word.lower(): word
    for word in (
        *("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0"),
        *("CC-BY-NC-2.0", "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0", "MPL-2.0"),
        *("ISC", "Unlicense", "Zlib", "BSL-1.0", "AFL-3.0", "ECL-2.0", "Artistic-2.0", "WTFPL"),
    )
}
UNREACHED = "check the connection, the proxy and HF_ENDPOINT; or export ZOO_OFFLINE=1 to use only pulled models"
#: Largest configuration file in bytes, since it is read into memory.
MAX_CONFIG = 4_000_000


class Repository(Struct, frozen=True, kw_only=True):
    """A model repository at a commit, as the Hub lists it.

    `sizes` are bytes by path. `license` is an SPDX id, else the Hub's name of the license, else `unknown`. `parameters`
    is the Hub's count for safetensors files.
    """

    name: str
    commit: str
    sizes: Mapping[str, int | None]
    license: str
    parameters: int | None

    @property
    def origin(self) -> str:
        """The repository's web page."""
        return f"https://huggingface.co/{self.name}"

    def file(self, path: str) -> WeightFile:
        """A file as a registry row lists it: not pinned, with its source at this commit."""
        url = f"hf://{self.name}@{self.commit}/{path}"
        return WeightFile(path=path.rpartition("/")[2], sha256=None, size=self.sizes[path] or None, sources=(url,))

    def read(self, path: str) -> bytes:
        """The bytes of a small file.

        Raises NotFoundError, IntegrityError if the file is too large, and the errors of `translated`.
        """
        if path not in self.sizes:
            raise NotFoundError(f"{self.origin} has no file {path}", hint="choose another repository")
        if (size := self.sizes[path] or 0) > MAX_CONFIG:
            raise IntegrityError(f"{self.origin}: {path} has {size} bytes", hint=f"at most {MAX_CONFIG} are read")
        with TemporaryDirectory(prefix="zoo-") as folder, translated(f"hf://{self.name}@{self.commit}/{path}"):
            found = hf_hub_download(self.name, path, revision=self.commit, local_dir=folder, tqdm_class=Meter)
            return Path(found).read_bytes()

    def shapes(self, path: str) -> dict[str, list[int]]:
        """The shape of each tensor in a safetensors file, from its header; the tensors are not downloaded.

        Raises IntegrityError if it is no safetensors file, and the errors of `translated`.
        """
        url = f"hf://{self.name}@{self.commit}/{path}"
        try:
            with translated(url):
                header = HfApi().parse_safetensors_file_metadata(self.name, path, revision=self.commit)
        except SafetensorsParsingError as error:
            raise IntegrityError(f"{url}: {_first_line(error)}", hint="choose another model") from error
        return {name: list(tensor.shape) for name, tensor in header.tensors.items()}


def open_repository(name: str, revision: str | None = None) -> Repository:
    """The model repository `org/name` at a branch, tag or commit (None: the default branch).

    Raises NotFoundError, and the errors of `translated`.
    """
    title = f"hf://{name}" + (f"@{revision}" if revision else "")
    try:
        with translated(title):
            info = HfApi().model_info(name, revision=revision, files_metadata=True)
    except HFValidationError as error:
        raise NotFoundError(f"{title}: not a repository name: {_first_line(error)}", hint="hf/ORG/NAME") from error
    except NetworkError as error:
        missing = _missing(error.__cause__)
        if missing is None:
            raise
        hint = (
            f"https://huggingface.co/{name}/tree/main lists its revisions; leave @{revision} out for the default"
            if missing == MISSING[RevisionNotFoundError]
            else f"look for it on https://huggingface.co/models?search={name.rpartition('/')[2]}"
        )
        raise NotFoundError(f"{title}: no such {missing} on the Hub", hint=hint) from error
    if not COMMIT.fullmatch(info.sha or ""):
        raise NetworkError(f"{title}: the Hub sent no commit", url=title, hint="try again later")
    return Repository(
        name=info.id,
        commit=info.sha or "",
        sizes={each.rfilename: each.size for each in info.siblings or ()},
        license=_license(info),
        parameters=info.safetensors.total if info.safetensors else None,
    )


def dataset_file(url: str, *, offline: bool = False, progress: Progress = SILENT) -> Path:
    """The path, in huggingface_hub's cache, of a file of a data set: `hf://datasets/ORG/NAME[@REVISION]/PATH`.

    With `offline` nothing is downloaded. Raises UsageError for another form, NotFoundError, OfflineError for a file
    that is not in the cache, and the errors of `translated`.
    """
    match = DATASET.fullmatch(url)
    if match is None:
        raise UsageError(
            f"{url} does not name a file of a data set on the Hub",
            hint="hf://datasets/ORG/NAME/PATH.parquet, or NAME@REVISION in place of NAME",
        )
    repo, path = match["repo"], match["path"]
    try:
        copy = try_to_load_from_cache(repo, path, repo_type="dataset", revision=match["revision"])
        with ExitStack() as stack, translated(url, asks=not offline and not isinstance(copy, str)):
            found = hf_hub_download(
                repo, path, repo_type="dataset", revision=match["revision"], local_files_only=offline,
                tqdm_class=_moving(stack, progress, path.rpartition("/")[2]),
            )  # fmt: skip
            return Path(found)
    except HFValidationError as error:
        raise NotFoundError(
            f"{url}: not a repository name: {_first_line(error)}", hint="hf://datasets/ORG/NAME/PATH.parquet"
        ) from error
    except NetworkError as error:
        if offline and isinstance(error.__cause__, LocalEntryNotFoundError):
            raise OfflineError(
                f"{url} is not in the Hub client's cache, and zoo is offline", url=url, hint="unset ZOO_OFFLINE"
            ) from error
        missing = None if isinstance(error.__cause__, LocalEntryNotFoundError) else _missing(error.__cause__)
        if missing is None:
            error.hint = error.hint if isinstance(error, OfflineError) else "check the connection and HF_ENDPOINT"
            raise
        raise NotFoundError(
            f"{url}: no such {missing} on the Hub",
            hint=f"https://huggingface.co/datasets/{repo}/tree/main lists its files",
        ) from error


def _missing(error: BaseException | None) -> str | None:
    """The part of the Hub that is missing (repository, commit or file); None for any other error."""
    return next((noun for kind, noun in MISSING.items() if isinstance(error, kind)), None)


def _moving(stack: ExitStack, progress: Progress, name: str) -> type[object]:
    """A class of meters: each opens a progress bar on `stack` when its download begins, and advances it."""

    class Moving(Meter):
        def __init__(self, *, total: int | None = None, initial: int = 0, **more: object) -> None:
            super().__init__(total=total, initial=initial, **more)
            self.bar = stack.enter_context(progress.task(name, total, "B"))

        def update(self, amount: int) -> None:
            super().update(amount)
            self.bar.advance(amount)

    return Moving


def _license(info: ModelInfo) -> str:
    card = info.card_data
    words = card.get("license") if card is not None else None
    if isinstance(words, str) and words.lower() == "other" and card is not None:
        # For `license: other` the card may have a second field with the license's name.
        words = card.get("license_name") or words
    names = [words] if isinstance(words, str) else [word for word in words or () if isinstance(word, str)]
    return " OR ".join(SPDX.get(name.lower(), name) for name in names) or "unknown"


class Meter:
    """A class with the interface of tqdm that draws nothing."""

    def __init__(self, *, total: int | None = None, initial: int = 0, **_: object) -> None:
        self.total = total
        self.n = initial

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, amount: int) -> None:
        """Count bytes."""
        self.n += amount

    def close(self) -> None:
        """Do nothing: nothing was opened."""

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Draw nothing."""

    # Without these two methods the Xet downloader would open a second bar for network bytes.
    def update_transfer(self, amount: int) -> None:
        """Draw nothing."""

    def set_transfer_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Draw nothing."""


def check_name(url: str) -> None:
    """Raise NetworkError about `url` if the name of the Hub's host is unknown; the client would retry for 23 seconds.

    Offline nothing is looked up, nor behind a proxy, which resolves names itself.
    """
    endpoint, proxies = urlsplit(constants.ENDPOINT), getproxies()
    host = endpoint.hostname or ""
    if constants.HF_HUB_OFFLINE or (not proxies.keys().isdisjoint((endpoint.scheme, "all")) and not proxy_bypass(host)):
        return
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise NetworkError(f"{url}: the Hub cannot be reached: {host}: {error}", url="hf://", hint=UNREACHED) from error


@contextmanager
def translated(url: str, *, asks: bool = True) -> Iterator[None]:
    """Turn errors of huggingface_hub about `url` into OfflineError, AccessError or NetworkError.

    With `asks` the name of the Hub's host is looked up first. Errors of the disk stay OSErrors. The cause of a
    NetworkError shows whether a repository, commit or file is missing.
    """
    if asks:
        check_name(url)
    try:
        yield
    except (HfHubHTTPError, EntryNotFoundError, OfflineModeIsEnabled, httpx2.HTTPError) as error:
        raise _translation(url, error) from error
    except OSError as error:
        # The library's own OSErrors (a short file, missing metadata) have no errno.
        if error.errno is not None:
            raise
        raise NetworkError(f"{url}: {_first_line(error)}", url=url) from error


def _translation(url: str, error: BaseException) -> ZooError:
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        # The cause of this error says why the Hub was not reached.
        return _translation(url, error.__cause__)
    if isinstance(error, OfflineModeIsEnabled):
        return OfflineError(f"{url}: the Hub client is offline", url="hf://", hint="unset HF_HUB_OFFLINE")
    if not isinstance(error, HfHubHTTPError):
        return NetworkError(
            f"{url}: the Hub cannot be reached: {_first_line(error)}",
            url="hf://",
            hint=UNREACHED,
        )
    status = error.response.status_code
    if isinstance(error, GatedRepoError) or status in (401, 403):
        return AccessError(
            f"{url}: the Hub denies access (status {status}): the repository is gated, private or not there",
            hint="accept its license on the Hub, then set HF_TOKEN to a token that may read it",
        )
    missing = _missing(error)
    reason = f"no such {missing}" if missing else _first_line(error)
    return NetworkError(f"{url}: {reason} (status {status})", url=url, hint="try --source, or report the row")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
