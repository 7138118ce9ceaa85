"""What a Zoo works with (the store, the registry, the plugins), and what of it does not work."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.answers import Check
from zoo.errors import NotFoundError, OfflineError, UnknownEntryError, ZooError
from zoo.lock import Lock
from zoo.progress import SILENT, Progress
from zoo.registry import Registry, default_registry
from zoo.schema import Entry
from zoo.shelves import add_shelves
from zoo.store import Store, zoo_home

if TYPE_CHECKING:
    from zoo.bridged import Bridged
    from zoo.manager import Plugins
    from zoo.points import PluginState


class Environment:
    """The base of `Zoo`: see there for the arguments."""

    def __init__(
        self,
        *,
        home: Path | None = None,
        registry: Path | None = None,
        offline: bool | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.store = Store(home or zoo_home())
        self.offline = os.environ.get("ZOO_OFFLINE", "") not in ("", "0") if offline is None else offline
        self.progress = progress
        self._registry_file = registry

    def __repr__(self) -> str:
        return f"Zoo({str(self.store.home)!r}, {len(self.registry)} models)"

    @cached_property
    def registry(self) -> Registry:
        """The rows: the built-in shelf, or the file that replaces it; ZOO_HOME/registry.yaml and plugins add theirs."""
        return self._shelves[0]

    @property
    def shelves(self) -> "Sequence[PluginState]":
        """The shelves of plugins; one that is quarantined adds no row."""
        return self._shelves[1]

    @cached_property
    def _shelves(self) -> "tuple[Registry, Sequence[PluginState]]":
        return add_shelves(default_registry(self.store.home, os.environ, self._registry_file), os.environ)

    @cached_property
    def lock(self) -> Lock:
        """Digests recorded when unpinned rows were first pulled."""
        return Lock.read(self.store.lock_path)

    @cached_property
    def plugins(self) -> "Plugins":
        """Installed families and sources, each loaded when it is first needed."""
        from zoo.manager import Plugins

        return Plugins()

    @cached_property
    def bridged(self) -> "Bridged":
        """Models of other libraries (`timm/NAME`, `hf/ORG/NAME`): the kept ones, and the bridges that make new ones."""
        from zoo.bridged import Bridged

        return Bridged(
            self.store.bridged,
            prefixes=lambda: self.plugins.prefixes(),
            bridge_for=lambda prefix: self.plugins.bridge(prefix),
            offline=self.offline,
        )

    def entry(self, name: str) -> Entry:
        """The registry row of that name, or the entry of a bridged model: the kept one, or one made now.

        Raises UnknownEntryError, with the nearest names, and for a bridged model what its bridge raises.
        """
        reference = self.bridged.reference(name)
        try:
            return self.registry.entry(name) if reference is None else self.bridged.entry(reference)
        except (NotFoundError, OfflineError) as error:
            broken = [shelf.title for shelf in self.shelves if shelf.state == "quarantined"]
            if broken and isinstance(error, UnknownEntryError):
                error.hint = f"{error.hint}; its shelf may be quarantined ({', '.join(broken)}): zoo plugins"
            if (Path(name) / "zoo.json").is_file():
                error.hint = f"did you mean the bundle ./{name}? Or else: {error.hint}"
            raise

    @property
    def shelf(self) -> Registry:
        """The registry's rows, and the kept models of bridges."""
        return Registry([*self.registry.values(), *self.bridged.entries()])

    @property
    def damaged(self) -> Sequence[ZooError]:
        """What is wrong with kept models of bridges: these are not on the shelf."""
        return list(self.bridged.damaged())

    def is_path(self, model: str) -> bool:
        """Whether a model reference is a path to a bundle rather than the name of a row or of a bridged model."""
        return _looks_like_path(model) and self.bridged.reference(model) is None

    def plugin_states(self, limit: float = 10.0) -> "Sequence[PluginState]":
        """Every plugin after loading it in a child process, within `limit` seconds each, and every shelf."""
        from zoo.probe import load_all

        try:
            shelves = self.shelves
        except ZooError:
            # A registry that cannot be read is no plugin's fault: their shelves are looked at without it.
            shelves = add_shelves(Registry(), os.environ)[1]
        return [*load_all(limit), *shelves]

    def new_plugin(self, name: str, out: Path | None = None) -> "tuple[Path, Sequence[str]]":
        """Write a distribution that gives the family `name`, at `out` or ./zoo-NAME; returns the folder and its files.

        Raises UsageError for a name that cannot be one or is taken, and for a folder that holds something.
        """
        from zoo.scaffold import write_plugin

        return write_plugin(name, out, self.registry, self.plugins.families())

    def doctor(self, *, deep: bool = False) -> Sequence[Check]:
        """What is wrong with this environment, and how to mend it; `deep` hashes what was pulled, too.

        Unless offline, the Hub is asked whether it answers. `bug_report` makes a text for an issue of it.
        """
        from zoo import doctor

        return doctor.examine(
            self.store.home, lambda: len(self.registry), lambda: self.damaged, self.plugin_states, offline=self.offline,
            digests=(lambda: doctor.digests(self.shelf, self.store, self.lock, self.progress)) if deep else None,
        )  # fmt: skip

    def bug_report(self, checks: Sequence[Check]) -> str:
        """What `doctor` found as Markdown for an issue: without secrets, home folders as `~`."""
        from zoo.paste import bug_report

        return bug_report(checks)


def _looks_like_path(model: str) -> bool:
    """Whether a model reference has the form of a path; `Zoo.is_path` knows prefixes of bridged models, too."""
    return model.startswith(".") or "/" in model or os.sep in model
