"""Entries made by bridges. A pull keeps them under ZOO_HOME/bridged, and later commands need no network for them.

bridged/<prefix>/.../<name>.json holds the entry at one commit. It stays until a pull names another revision.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from zoo.bridge import Bridge, Reference, parse_reference
from zoo.errors import (
    AccessError,
    IntegrityError,
    NotFoundError,
    OfflineError,
    PluginError,
    UsageError,
    ZooError,
)
from zoo.schema import Entry
from zoo.system.files import walk
from zoo.system.records import read_record, write_record

SCHEMA_VERSION = 1
#: Incremented when bridges make other entries of the same model. Entries of form 1 have no head and no prompt.
FORM = 2
DAMAGED = "delete it, and pull the model again"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One kept entry; `revision` is the revision that the user requested, null for the default."""

    schema_version: int
    revision: str | None
    entry: Entry
    form: int = 1

    @property
    def commits(self) -> set[str]:
        """The commits of the entry's files; usually one."""
        urls = [url for file in self.entry.files for url in file.sources]
        return {match[1] for url in urls if (match := re.search(r"@([0-9a-f]{40})/", url))}

    def is_at(self, revision: str) -> bool:
        """Whether `revision` is the requested one, or (the first digits of) the commit of the entry's files."""
        return revision == self.revision or (
            is_commit(revision) and any(commit.startswith(revision) for commit in self.commits)
        )


def is_commit(revision: str) -> bool:
    """Whether a revision looks like (the first digits of) a commit, which never moves."""
    return re.fullmatch(r"[0-9a-f]{7,40}", revision) is not None


class Bridged:
    """The kept entries of one ZOO_HOME, and the bridges that make new ones.

    `prefixes` returns the prefixes of installed bridges, `bridge_for` the bridge of a prefix. Both, and the bridge,
    raise only ZooErrors.
    """

    def __init__(
        self, folder: Path, prefixes: Callable[[], list[str]], bridge_for: Callable[[str], Bridge], *, offline: bool
    ) -> None:
        self.folder = folder
        self._prefixes = prefixes
        self._bridge_for = bridge_for
        self._offline = offline
        self._made: dict[tuple[str, str | None], Entry] = {}

    def reference(self, model: str) -> Reference | None:
        """The reference to a bridged model; None for a registry name or a path. Raises UsageError for `NAME@`."""
        found = parse_reference(model)
        if found is None or not (found.prefix in self._prefixes() or self._path(found.key).is_file()):
            return None
        if found.revision == "":
            raise UsageError(
                f"{model} has no revision after the @", hint=f"{found}, or a branch, tag or commit after the @"
            )
        return found

    def entry(self, reference: Reference, *, ask: bool = False) -> Entry:
        """The kept entry, or a new one if none is kept or another revision is requested.

        With `ask`, and online, a branch or tag is looked up again, because it may have moved.
        Raises OfflineError, PluginError for a bridge that breaks its contract, and the errors of the bridge.
        """
        kept = self._read(self._path(reference.key))
        moves = ask and not self._offline and reference.revision is not None and not is_commit(reference.revision)
        if kept is not None and not moves and (reference.revision is None or kept.is_at(reference.revision)):
            return kept.entry if kept.form == FORM or self._offline else self._renewed(reference, kept)
        name = reference.key, reference.revision
        if name not in self._made:
            self._made[name] = self._make(reference)
        return self._made[name]

    def _renewed(self, reference: Reference, kept: Kept) -> Entry:
        """The entry at the same commit that the bridge makes now; the kept one if that is not possible."""
        name = reference.key, reference.revision
        if name not in self._made:
            try:
                [commit] = kept.commits
                self._made[name] = self._make(reference._replace(revision=commit))
            except (ValueError, ZooError):
                return kept.entry
        return self._made[name]

    def keep(self, reference: Reference) -> None:
        """Write the entry that `entry` made for this reference, if it is not kept already."""
        entry = self._made.pop((reference.key, reference.revision), None)
        if entry is not None:
            content = Kept(schema_version=SCHEMA_VERSION, revision=reference.revision, entry=entry, form=FORM)
            write_record(self._path(reference.key), content, indent=2)

    def kept(self) -> Iterator[Entry | ZooError]:
        """Every kept entry, or the error that `entry` would raise for one that cannot be used."""
        # A name that begins with a dot is a temporary file.
        names = (path for path, _ in walk(self.folder) if path.suffix == ".json" and not path.name.startswith("."))
        for path in sorted(names):
            try:
                kept = self._read(path)
            except (IntegrityError, AccessError) as error:
                yield error
            else:
                if kept is not None:
                    yield kept.entry

    def _path(self, key: str) -> Path:
        return self.folder.joinpath(*key.split("/")[:-1], key.rpartition("/")[2] + ".json")

    def _read(self, path: Path) -> Kept | None:
        kept = read_record(path, Kept, SCHEMA_VERSION, hint=DAMAGED)
        key = path.relative_to(self.folder).as_posix().removesuffix(".json")
        if kept is not None and kept.entry.name != key:
            raise IntegrityError(f"{path} is damaged: it is the entry of {kept.entry.name}", hint=DAMAGED)
        return kept

    def _make(self, reference: Reference) -> Entry:
        bridge = self._bridge_for(reference.prefix)
        if self._offline:
            raise OfflineError(
                f"{reference} was never pulled here and zoo is offline",
                hint=f"zoo pull {reference} --trust-first while online, or copy ZOO_HOME from a machine that has it",
            )
        entry = bridge.entry(reference.name, reference.revision)
        try:
            # The entry must follow the rules of a registry row.
            checked = msgspec.convert(msgspec.to_builtins(entry), Entry)
        except TypeError as error:
            raise PluginError(
                f"the bridge {reference.prefix}/ gives a {type(entry).__name__}, not an Entry",
                plugin=reference.prefix,
                hint="report it to the plugin's author",
            ) from error
        except msgspec.ValidationError as error:
            raise NotFoundError(
                f"{reference} does not fit zoo's schema: {error}", hint="choose another model"
            ) from error
        if checked.name != reference.key:
            raise PluginError(
                f"the bridge {reference.prefix}/ gives {reference} the name '{checked.name}'",
                plugin=reference.prefix,
                hint="report it to the plugin's author",
            )
        return checked
