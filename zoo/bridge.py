"""The interface of a bridge plugin, which makes a registry entry from the name of another library's model.

Such a model is called PREFIX/NAME or PREFIX/ORG/NAME, optionally followed by @REVISION.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from zoo.schema import Entry


class Bridge(ABC):
    """Makes entries of another library's models.

    Raises NotFoundError, NetworkError, OfflineError, AccessError; UsageError for a model that an entry cannot describe.
    """

    prefix: ClassVar[str]

    @abstractmethod
    def entry(self, name: str, revision: str | None) -> Entry:
        """The entry of the library's model `name` at a revision (None: the default one); may use the network.

        The entry's `name` is `PREFIX/name` in lower case. The sources of its files name one immutable version, and its
        `config` holds all that the family needs to build the model offline.
        """


class Reference(NamedTuple):
    """The name of a bridged model as the user gave it."""

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
    """The parts of `prefix/name[@revision]`; None for other forms, such as ./folder or a plain name."""
    name, at, revision = text.partition("@")
    prefix, slash, rest = name.partition("/")
    parts = rest.split("/")
    if not slash or prefix.startswith(".") or not prefix or not 1 <= len(parts) <= 2 or not all(parts):
        return None
    return Reference(prefix, rest, revision if at else None)
