"""`hf://org/repo@<40-hex commit>/path`: files of the Hugging Face Hub, downloaded by huggingface_hub.

huggingface_hub obeys HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. Its telemetry and progress bars are off.
"""

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.hf_api import RepoFile

from zoo.errors import IntegrityError, RegistryError
from zoo.hookspecs import hookimpl
from zoo.hub import COMMIT, Meter, translated
from zoo.progress import Bar, Progress
from zoo.source import Announced, Source, Want

URL = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[^/]+)/(?P<path>.+)")


class _File(NamedTuple):
    repo: str
    revision: str
    path: str


class HubSource(Source):
    """The source of files at a commit of a Hub repository."""

    scheme = "hf"

    def fetch(self, wants: Sequence[Want], progress: Progress) -> None:
        """Download every file to a folder beside its partial, then move it to the partial; nothing is resumed."""
        for want in wants:
            with progress.task(want.url.rpartition("/")[2], want.size, "B") as bar, translated(want.url):
                _fetch_one(want, bar)

    def announced(self, url: str) -> Announced | None:
        """The size that the Hub lists for the file, and its sha256 if it is an LFS file."""
        file = parse(url)
        with translated(url):
            for info in HfApi().get_paths_info(file.repo, [file.path], revision=file.revision):
                if isinstance(info, RepoFile):
                    return Announced(size=info.size, sha256=info.lfs.sha256 if info.lfs else None)
        return None


def parse(url: str) -> _File:
    """The repository, commit and path in a URL. Raises RegistryError when the revision is not a commit."""
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
    """A meter that advances `bar`, and raises IntegrityError for a file longer than `want.size`."""

    class Moving(Meter):
        def update(self, amount: int) -> None:
            super().update(amount)
            bar.advance(amount)
            if want.size is not None and self.n > want.size:
                raise IntegrityError(
                    f"{want.url} sends more than {want.size} bytes",
                    expected=want.size,
                    actual=self.n,
                    hint="the registry or the server is wrong: try another source with --source SCHEME",
                )

    return Moving


@hookimpl
def zoo_register_sources() -> Iterable[type[Source]]:
    """The scheme of this module."""
    return [HubSource]
