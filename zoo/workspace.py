"""What every verb starts from: a model reference becomes a registry row, its files, a bundle, a session."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.bundle import Bundle
from zoo.errors import (
    IntegrityError,
    NotFoundError,
    OfflineError,
    PluginError,
    UnknownEntryError,
    UnpinnedError,
    UsageError,
    ZooError,
)
from zoo.extras import RUNTIME, require
from zoo.progress import SILENT, Progress
from zoo.registry.registry import Registry, default_registry
from zoo.registry.shelves import add_shelves
from zoo.schema import Entry, WordsPreprocess
from zoo.store.lock import Lock
from zoo.store.store import Store, zoo_home
from zoo.system.files import storage_errors

if TYPE_CHECKING:
    from zoo.plugin.entry_points import PluginState
    from zoo.plugin.manager import Plugins
    from zoo.registry.bridged import Bridged
    from zoo.runtime.session import Session
    from zoo.words.table import WordTable


class Workspace:
    """The registry, the store and the plugins of one ZOO_HOME, and the models that they give.

    `home` is ZOO_HOME, `registry` a file that replaces the built-in registry file, `offline` forbids remote sources,
    `progress` draws bars; each defaults to the environment's.
    """

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
        from zoo.plugin.manager import Plugins

        return Plugins()

    @cached_property
    def bridged(self) -> "Bridged":
        """Models of other libraries (`timm/NAME`, `hf/ORG/NAME`): the kept ones, and the bridges that make new ones."""
        from zoo.registry.bridged import Bridged

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

    def pull(self, name: str, *, source: str | None = None, trust_first: bool = False) -> Path:
        """Fetch and verify every file of a row; returns their folder. Nothing is fetched that is already there.

        A bridged model's entry is kept from then on. Raises UnpinnedError, NetworkError, OfflineError, IntegrityError,
        AccessError.
        """
        entry = self._asked(name)
        prepares = self._prepares(entry)
        if prepares and not self.store.is_pulled(entry, self.lock):
            require(f"pulling {name}", *self.plugins.make(entry, self.store.models).packages)
        folder = self.fetch(name, entry, source=source, trust_first=trust_first)
        if prepares:
            self.plugins.make(self.lock.effective(entry), folder).prepare(self.progress)
        return folder

    def fetch(
        self, name: str, entry: Entry | None = None, *, source: str | None = None, trust_first: bool = False
    ) -> Path:
        """`pull` without the family's part: only the bytes."""
        from zoo.store.pull import pull

        reference = self.bridged.reference(name)
        entry = entry or self._asked(name)
        try:
            folder = pull(
                entry, self.store, self.lock, self.plugins.source,
                progress=self.progress, trust_first=trust_first, only=source, offline=self.offline,
            )  # fmt: skip
        except UnpinnedError as error:
            # As it was typed: a revision belongs to what is trusted.
            error.hint = f"zoo pull {reference or name} --trust-first"
            raise
        if reference is not None:
            with storage_errors(self.store.home):
                self.bridged.keep(reference)
        return folder

    def originals(self, entry: Entry, who: str) -> Path:
        """The folder of an entry's own files, fetched where they are not here and may be."""
        from zoo.store.pull import pull

        if not self.store.is_pulled(entry, self.lock) and self.offline:
            raise OfflineError(
                f"{who} needs the original files of {entry.name}, which are not here", hint=f"zoo pull {entry.name}"
            )
        return pull(
            entry, self.store, self.lock, self.plugins.source,
            progress=self.progress, trust_first=False, only=None, offline=self.offline,
        )  # fmt: skip

    def graph(self, name: str, cut: int | None = None) -> Bundle:
        """The features bundle of a registry row, pulled, exported and gated the first time it is needed.

        With `cut` its trunk: the first so many stages, whose outputs are the tensors that the next one takes. Raises
        UsageError for a family that has not that many.
        """
        from zoo.export.build import build_in_child

        # Whether the row can be built at all is known without its files: it is asked before a long download.
        packages = self.plugins.make(self.entry(name), self.store.models).packages
        entry = self.lock.effective(self.entry(name))
        if entry.is_pinned and (self.store.graph_dir(entry, cut) / "zoo.json").is_file():
            return Bundle.open(self.store.graph_dir(entry, cut))
        require(f"exporting {name}", *RUNTIME, *packages)
        folder = self.pull(name)
        entry = self.lock.effective(self.entry(name))
        if (self.store.graph_dir(entry, cut) / "zoo.json").is_file():
            return Bundle.open(self.store.graph_dir(entry, cut))
        return build_in_child(entry, folder, self.store.graph_dir(entry, cut), self.progress, cut)

    def open(self, model: str) -> Bundle:
        """The bundle that a model reference means: a path to one, or a registry name's features bundle."""
        if self.is_path(model):
            return Bundle.open(Path(model))
        return self.graph(model)

    def session(
        self, model: str, device: str | None = None, *, threads: int | None = None, spins: bool | None = None,
        fixed: bool = False,
    ) -> "Session":  # fmt: skip
        """A model loaded on a device (`auto`, `cpu`, `cuda[:N]`, `tensorrt[:N]`; ZOO_DEVICE or auto by default).

        The other arguments, and what is raised, are those of `zoo.runtime.session.Session`.
        """
        from zoo.runtime.device import choose
        from zoo.runtime.session import Session

        device = device or os.environ.get("ZOO_DEVICE") or "auto"
        # Said before anything is pulled or built for it.
        choose(device)
        return Session(
            self.open(model), device, threads=threads, spins=spins, fixed=fixed,
            engines=self.store.engines, optimised=self.store.optimised,
        )  # fmt: skip

    def words(self, model: str) -> "WordTable":
        """The word table of a registry row of word vectors, pulled and prepared the first time it is needed.

        Raises UsageError for any other model.
        """
        from zoo.words.table import WordTable

        preprocess = None if self.is_path(model) else self.entry(model).preprocess
        if not isinstance(preprocess, WordsPreprocess):
            raise UsageError(f"{model} has no table of words", hint="zoo list --task word-vectors shows those that do")
        require("nearest words", "numpy")
        entry = self.entry(model)
        try:
            folder = self.store.find(entry, self.lock)
            if folder is not None:
                return WordTable.open(folder, lowercase=preprocess.lowercase)
        except (NotFoundError, IntegrityError):
            # Never prepared, or changed since: the pull says what, and makes it right.
            pass
        # The pull prepares; without the family there is nothing that could, and it says why.
        self.plugins.backbone(entry.family)
        return WordTable.open(self.pull(model), lowercase=preprocess.lowercase)

    def has_words(self, model: str) -> bool:
        """Whether `words` has a table for this model reference."""
        if self.is_path(model):
            return False
        entry = self.entry(model) if self.bridged.reference(model) else self.registry.get(model)
        return entry is not None and isinstance(entry.preprocess, WordsPreprocess)

    def _asked(self, name: str) -> Entry:
        """The entry to pull: for a bridged model what its library says of it now."""
        reference = self.bridged.reference(name)
        return self.entry(name) if reference is None else self.bridged.entry(reference, ask=True)

    def _prepares(self, entry: Entry) -> bool:
        """Whether the family prepares what was pulled. One that cannot be used does not stop a pull."""
        from zoo.backbone import Backbone

        try:
            return self.plugins.backbone(entry.family).prepare is not Backbone.prepare
        except PluginError:
            return False


def _looks_like_path(model: str) -> bool:
    """Whether a model reference has the form of a path; `Workspace.is_path` knows prefixes of bridged models, too."""
    return model.startswith(".") or "/" in model or os.sep in model
