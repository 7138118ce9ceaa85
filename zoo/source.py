"""What a source plugin is: a way to get bytes by URL. It moves bytes; the core decides whether they are right."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from msgspec import Struct

from zoo.progress import Progress


class Want(Struct, frozen=True, kw_only=True):
    """A file to fetch: fill `partial` with the bytes of `url`, from its present length on where the source can.

    `size` is the exact size in bytes when it is known: a source should stop one byte past it.
    """

    url: str
    partial: Path
    size: int | None = None


class Announced(Struct, frozen=True, kw_only=True):
    """What a source says about a file without sending it; a digest is only ever compared, never trusted alone."""

    size: int | None = None
    sha256: str | None = None


class Source(ABC):
    """Fetches URLs of one scheme.

    A source is used from one thread, raises NetworkError, OfflineError or AccessError when it cannot deliver, and
    leaves in `partial` what it got so far.
    """

    scheme: ClassVar[str]
    #: False for a source that reaches no network (file://): it stays usable offline.
    is_remote: ClassVar[bool] = True

    @abstractmethod
    def fetch(self, wants: Sequence[Want], progress: Progress) -> None:
        """Fill every want's `partial`. All wants are of this scheme, so one archive can serve several of them."""

    def announced(self, url: str) -> Announced | None:
        """Size and digest that the remote announces for `url`, or None. Asked only for unpinned files."""
        return None
