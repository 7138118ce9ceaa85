"""The interface of a source plugin, which fetches bytes by URL. The core checks the bytes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from msgspec import Struct

from zoo.progress import Progress


class Want(Struct, frozen=True, kw_only=True):
    """A file to fetch: the bytes of `url` go into `partial`.

    `partial` may hold the file's first bytes; a source that can resume appends the rest. `size` is the exact size in
    bytes if it is known. A source should stop one byte after it, which shows that the file is too long.
    """

    url: str
    partial: Path
    size: int | None = None


class Announced(Struct, frozen=True, kw_only=True):
    """Size and digest of a file that its source announces.

    The digest is only compared with other digests, never trusted alone.
    """

    size: int | None = None
    sha256: str | None = None


class Source(ABC):
    """Fetches URLs of one scheme, in one thread.

    Raises NetworkError, OfflineError or AccessError when it cannot deliver; `partial` then keeps the bytes so far.
    """

    scheme: ClassVar[str]
    #: False for a source without network (file://), which can be used offline.
    is_remote: ClassVar[bool] = True

    @abstractmethod
    def fetch(self, wants: Sequence[Want], progress: Progress) -> None:
        """Fill every want's `partial`. All wants have this scheme; one archive may hold several of them."""

    def announced(self, url: str) -> Announced | None:
        """Size and digest of `url` that the server announces, or None. Called only for unpinned files."""
        return None
