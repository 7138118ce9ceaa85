"""`file:///path`: files on this machine or on a mounted share; they are also available offline."""

import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from zoo.errors import NetworkError
from zoo.hookspecs import hookimpl
from zoo.progress import Progress
from zoo.source import Source, Want

CHUNK = 1 << 20


class FileSource(Source):
    """The source that copies local files."""

    scheme = "file"
    is_remote = False

    def fetch(self, wants: Sequence[Want], progress: Progress) -> None:
        """Copy every file from its start. Raises NetworkError for a missing or unreadable file, a pipe or a device."""
        for want in wants:
            path = _path(want.url)
            try:
                # The type is checked before opening, because a pipe would block and a device may never end.
                if not stat.S_ISREG(path.stat().st_mode):
                    raise NetworkError(f"{path} is not a regular file", url=want.url, hint="name the file itself")
                source = path.open("rb")
            except OSError as error:
                reason = error.strerror or str(error)
                raise NetworkError(
                    f"{path} cannot be read: {reason}",
                    url=want.url,
                    hint="check the path, and that the share is mounted",
                ) from error
            with source, want.partial.open("wb") as target, progress.task(path.name, want.size, "B") as bar:
                left = None if want.size is None else want.size + 1
                while chunk := source.read(CHUNK if left is None else min(CHUNK, left)):
                    target.write(chunk)
                    bar.advance(len(chunk))
                    left = None if left is None else left - len(chunk)


def _path(url: str) -> Path:
    parts = urlsplit(url)
    path = Path(url2pathname(parts.path))
    if parts.netloc not in ("", "localhost") or not path.is_absolute():
        raise NetworkError(f"{url} does not name a file of this machine", url=url, hint="file:///absolute/path")
    return path


@hookimpl
def zoo_register_sources() -> Iterable[type[Source]]:
    """The scheme of this module."""
    return [FileSource]
