"""Class Workspace: finds the registry row, files, bundle or session of a model reference."""

import os
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.bundle import Bundle
from zoo.data.labels import find_prompt
from zoo.errors import (
    IntegrityError,
    NetworkError,
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
from zoo.schema import Entry, Manifest, WordsPreprocess
from zoo.store.lock import Lock
from zoo.store.store import Store, zoo_home
from zoo.system.files import storage_errors

if TYPE_CHECKING:
    from zoo.export.build import Building
    from zoo.plugin.entry_points import PluginState
    from zoo.plugin.manager import Plugins
    from zoo.registry.bridged import Bridged
    from zoo.runtime.session import Session
    from zoo.words.table import WordTable

#: Exports that run at the same time; each needs about a gigabyte.
EXPORTS = 2


class Workspace:
    """The registry, the store and the plugins of one ZOO_HOME. The verbs are in `zoo.api.Zoo`.

    `home` is ZOO_HOME, `registry` a file that replaces the built-in registry, `offline` forbids remote sources; each
    defaults to its environment variable. `progress` draws bars.
    """

    def __init__(
        self,
        *,
        home: str | Path | None = None,
        registry: str | Path | None = None,
        offline: bool | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.store = Store(Path(home) if home else zoo_home())
        self.offline = os.environ.get("ZOO_OFFLINE", "") not in ("", "0") if offline is None else offline
        self.progress = progress
        self._registry_file = Path(registry) if registry else None

    def __repr__(self) -> str:
        return f"Zoo({str(self.store.home)!r}, {len(self.registry)} models)"

    @cached_property
    def registry(self) -> Registry:
        """Rows of the built-in registry (or the file that replaces it), of ZOO_HOME/registry.yaml and of plugins."""
        return self._shelves[0]

    @property
    def shelves(self) -> "Sequence[PluginState]":
        """The state of each plugin's registry file; a quarantined one adds no rows."""
        return self._shelves[1]

    @cached_property
    def _shelves(self) -> "tuple[Registry, Sequence[PluginState]]":
        return add_shelves(default_registry(self.store.home, os.environ, self._registry_file), os.environ)

    @cached_property
    def lock(self) -> Lock:
        """`zoo.lock`: the sha256 of files that the registry does not pin, recorded at their first pull."""
        return Lock.read(self.store.lock_path)

    @cached_property
    def plugins(self) -> "Plugins":
        """Installed plugins, each loaded when it is first needed."""
        from zoo.plugin.manager import Plugins

        return Plugins()

    @cached_property
    def bridged(self) -> "Bridged":
        """Models of other libraries (`timm/NAME`, `hf/ORG/NAME`): kept entries, and bridges that make new ones.

        A pull keeps the entry of a bridged model under ZOO_HOME.
        """
        from zoo.registry.bridged import Bridged

        return Bridged(
            self.store.bridged,
            prefixes=lambda: self.plugins.prefixes(),
            bridge_for=lambda prefix: self.plugins.bridge(prefix),
            offline=self.offline,
        )

    def entry(self, name: str) -> Entry:
        """The registry row of that name, or the entry of a bridged model: the one kept by a pull, else a new one.

        Raises UnknownEntryError with similar names, and for a bridged model the errors of its bridge.
        """
        reference = self.bridged.reference(name)
        try:
            return self.registry.entry(name) if reference is None else self.bridged.entry(reference)
        except (NotFoundError, OfflineError) as error:
            broken = [file.title for file in self.shelves if file.state == "quarantined"]
            if broken and isinstance(error, UnknownEntryError):
                error.hint = f"{error.hint}; its plugin may be quarantined ({', '.join(broken)}): zoo plugins"
            if (Path(name) / "zoo.json").is_file():
                error.hint = f"did you mean the bundle ./{name}? Or else: {error.hint}"
            raise

    @property
    def entries(self) -> Registry:
        """The registry's rows and the kept entries of bridged models."""
        kept = [each for each in self.bridged.kept() if isinstance(each, Entry)]
        return Registry([*self.registry.values(), *kept])

    @property
    def damaged(self) -> Sequence[ZooError]:
        """Errors of kept entries that cannot be read; `entries` leaves these out."""
        return [each for each in self.bridged.kept() if isinstance(each, ZooError)]

    def trainable(self, model: str) -> Entry:
        """The entry of a model that a head can be trained on. Raises UsageError for a bundle, and as `entry` does."""
        if self.is_path(model):
            Bundle.open(Path(model))
            raise UsageError(f"{model} is a bundle", hint="fine-tune the backbone it came from: zoo show " + model)
        return self.entry(model)

    def rivals(self, models: Sequence[str]) -> dict[str, Entry]:
        """The entries of models to compare, by name, without those that cannot be looked up for want of a network.

        Raises UsageError for no model and for a model that is given twice, the errors of `trainable`, and NetworkError
        if no entry is known.
        """
        found: dict[str, Entry] = {}
        lost: list[NetworkError] = []
        for model in models:
            try:
                entry = self.trainable(model)
            except NetworkError as error:
                lost.append(error)
                continue
            if entry in found.values():
                raise UsageError(f"{model} is given twice", hint="name each model once")
            found[model] = entry
        if not found:
            raise lost[0] if lost else UsageError("no model to compare", hint="zoo list shows the models")
        return found

    def is_path(self, model: str) -> bool:
        """Whether a model reference is a path to a bundle rather than the name of a row or of a bridged model."""
        looks_like_path = model.startswith(".") or "/" in model or os.sep in model
        return looks_like_path and self.bridged.reference(model) is None

    def pull(self, name: str, *, source: str | None = None, trust_first: bool = False) -> Path:
        """Download and verify the missing files of a row; returns their folder. Keeps the entry of a bridged model.

        Raises UnpinnedError, NetworkError, OfflineError, IntegrityError, AccessError.
        """
        entry = self._entry_to_pull(name)
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
        """`pull` without the family's `prepare`."""
        reference = self.bridged.reference(name)
        entry = entry or self._entry_to_pull(name)
        try:
            folder = self._download(entry, source, trust_first)
        except UnpinnedError as error:
            # The hint repeats the reference as it was typed: trusting a model includes its revision.
            error.hint = f"zoo pull {reference or name} --trust-first"
            raise
        if reference is not None:
            with storage_errors(self.store.home):
                self.bridged.keep(reference)
        return folder

    def originals(self, entry: Entry, who: str) -> Path:
        """The folder of an entry's original files, downloaded unless offline. Raises the errors of `pull`.

        `who` is the subject of the error message, such as "the parity check".
        """
        if not self.store.is_pulled(entry, self.lock) and self.offline:
            raise OfflineError(
                f"{who} needs the original files of {entry.name}, which are not here", hint=f"zoo pull {entry.name}"
            )
        return self._download(entry)

    def graph(self, name: str, cut: int | None = None) -> Bundle:
        """The features bundle of a registry row; pulled, exported and checked when it is first needed.

        With `cut`, the bundle of the first `cut` stages, whose outputs are the inputs of the next stage. Raises
        UsageError if the family has fewer stages.
        """
        begun = self._begin_graph(name, cut)
        if isinstance(begun, Bundle):
            return begun
        with begun:
            return begun.wait(self.progress)

    def graphs(self, names: Sequence[str]) -> "dict[str, Bundle | ZooError]":
        """The features bundles of several rows by name, or the errors that `graph` would raise.

        A row is exported while the next is pulled and exported, because an export keeps only one core busy.
        """
        found: dict[str, Bundle | ZooError] = {}
        running: deque[tuple[str, Building]] = deque()

        def finish() -> None:
            name, building = running.popleft()
            try:
                found[name] = building.wait(self.progress)
            except ZooError as error:
                found[name] = error

        with ExitStack() as children:
            for name in names:
                if len(running) == EXPORTS:
                    finish()
                try:
                    begun = self._begin_graph(name)
                except ZooError as error:
                    found[name] = error
                    continue
                if isinstance(begun, Bundle):
                    found[name] = begun
                else:
                    running.append((name, children.enter_context(begun)))
            while running:
                finish()
        return found

    def _begin_graph(self, name: str, cut: int | None = None) -> "Bundle | Building":
        """The kept bundle of `graph`, or its export in a child process. Pulls the row if it is exported."""
        from zoo.export.build import Building

        # Fails for an unusable family before a long download.
        packages = self.plugins.make(self.entry(name), self.store.models).packages
        entry = self.lock.effective(self.entry(name))
        if entry.is_pinned and (self.store.graph_dir(entry, cut) / "zoo.json").is_file():
            return Bundle.open(self.store.graph_dir(entry, cut))
        require(f"exporting {name}", *RUNTIME, *packages)
        folder = self.pull(name)
        entry = self.lock.effective(self.entry(name))
        if (self.store.graph_dir(entry, cut) / "zoo.json").is_file():
            return Bundle.open(self.store.graph_dir(entry, cut))
        return Building(entry, folder, self.store.graph_dir(entry, cut), cut)

    def open(self, model: str) -> Bundle:
        """The bundle at a path, or the features bundle of a registry name."""
        if self.is_path(model):
            return Bundle.open(Path(model))
        return self.graph(model)

    def session(
        self, model: str, device: str | None = None, *, threads: int | None = None, spins: bool | None = None,
        fixed: bool = False,
    ) -> "Session":  # fmt: skip
        """A model loaded on a device (`auto`, `cpu`, `cuda[:N]`, `tensorrt[:N]`; by default ZOO_DEVICE or auto).

        The other arguments and the errors are those of `zoo.runtime.session.Session`.
        """
        from zoo.runtime.device import choose
        from zoo.runtime.session import Session

        device = device or os.environ.get("ZOO_DEVICE") or "auto"
        # Fails for an unusable device before anything is pulled or exported.
        choose(device)
        return Session(
            self.open(model), device, threads=threads, spins=spins, fixed=fixed,
            engines=self.store.engines, optimised=self.store.optimised,
        )  # fmt: skip

    def prompted(self, model: str, device: str | None, prompt: str | None) -> "Session":
        """The session of a model with one of its prompts: see `check_prompt` and `Session.prompted`."""
        self.check_prompt(model, prompt)
        return self.session(model, device).prompted(prompt)

    def check_prompt(self, model: str, prompt: str | None) -> None:
        """Raise UsageError for a prompt that a model does not have, before anything is pulled or exported."""
        if prompt is not None:
            find_prompt(self.facts(model), prompt)

    def facts(self, model: str) -> Entry | Manifest:
        """The registry row or the manifest of a model, known before anything is pulled or exported."""
        return Bundle.open(Path(model)).manifest if self.is_path(model) else self.entry(model)

    def words(self, model: str) -> "WordTable":
        """The word table of a row of word vectors; pulled and prepared when it is first needed.

        Raises UsageError for any other model.
        """
        from zoo.words.table import WordTable

        preprocess = None if self.is_path(model) else self.entry(model).preprocess
        if not isinstance(preprocess, WordsPreprocess):
            hint = "zoo list --task word-vectors shows the models that have them"
            raise UsageError(f"{model} has no word vectors", hint=hint)
        require("nearest words", "numpy")
        entry = self.entry(model)
        # If the table was never prepared, or was changed, the pull below prepares it.
        with suppress(NotFoundError, IntegrityError):
            if (folder := self.store.find(entry, self.lock)) is not None:
                return WordTable.open(folder, lowercase=preprocess.lowercase)
        # Raises the error of a family that cannot be loaded; `pull` alone would ignore that error.
        self.plugins.backbone(entry.family)
        return WordTable.open(self.pull(model), lowercase=preprocess.lowercase)

    def has_words(self, model: str) -> bool:
        """Whether `words` has a table for this model reference."""
        if self.is_path(model):
            return False
        entry = self.entry(model) if self.bridged.reference(model) else self.registry.get(model)
        return entry is not None and isinstance(entry.preprocess, WordsPreprocess)

    def _download(self, entry: Entry, source: str | None = None, trust_first: bool = False) -> Path:
        from zoo.store.pull import pull

        return pull(
            entry, self.store, self.lock, self.plugins.source,
            progress=self.progress, trust_first=trust_first, only=source, offline=self.offline,
        )  # fmt: skip

    def _entry_to_pull(self, name: str) -> Entry:
        """The row of that name, or the entry of a bridged model; a branch or tag is looked up again."""
        reference = self.bridged.reference(name)
        return self.entry(name) if reference is None else self.bridged.entry(reference, ask=True)

    def _prepares(self, entry: Entry) -> bool:
        """Whether the family has a `prepare` method. A family that cannot be loaded does not stop a pull."""
        from zoo.backbone import Backbone

        try:
            return self.plugins.backbone(entry.family).prepare is not Backbone.prepare
        except PluginError:
            return False
