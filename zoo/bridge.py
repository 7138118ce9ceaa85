"""What a bridge plugin is: a library's name of a model in, a registry entry out, made on the fly.

And how such a model is called: PREFIX/NAME or PREFIX/ORG/NAME, with @REVISION behind it where one is wanted.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from zoo.schema import Entry


class Bridge(ABC):
    """Makes entries of another library's models.

    Raises NotFoundError, NetworkError, OfflineError, AccessError; UsageError for a model that cannot be expressed.
    """

    prefix: ClassVar[str]

    @abstractmethod
    def entry(self, name: str, revision: str | None) -> Entry:
        """The entry of the library's model `name` at a revision, its default one unless given; may use the network.

        Its `name` is `PREFIX/name` in lower case. Its files' sources say one immutable version, and its `config` what
        the family needs to build it without asking again.
        """


class Reference(NamedTuple):
    """A bridged model as somebody typed it."""

    prefix: str
    name: str
    revision: str | None

    @property
    def key(self) -> str:
        """The entry's name."""
        return f"{self.prefix}/{self.name}".lower()

    def __str__(self) -> str:
        return f"{self.prefix}/{self.name}" + (f"@{self.revision}" if self.revision else "")


def parse_reference(text: str) -> Reference | None:
    """The parts of `prefix/name[@revision]`; None for what has not that form, such as ./folder or a plain name."""
    name, at, revision = text.partition("@")
    prefix, slash, rest = name.partition("/")
    parts = rest.split("/")
    if not slash or prefix.startswith(".") or not prefix or not 1 <= len(parts) <= 2 or not all(parts):
        return None
    return Reference(prefix, rest, revision if at else None)
