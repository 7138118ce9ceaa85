"""class Zoo: one method a verb. The command line calls these, and so can a notebook."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.answering import Answering
from zoo.answers import Benchmark, Evaluation, Row
from zoo.bundle import Bundle, check_target
from zoo.disk import storage_errors
from zoo.errors import (
    NotFoundError,
    OfflineError,
    PluginError,
    UnpinnedError,
    UsageError,
)
from zoo.extras import REPORT, RUNTIME, TRAINING, require
from zoo.options import BenchOptions, FinetuneOptions, Variant
from zoo.registry import Registry
from zoo.schema import Entry, FileDigest, Outcome, WordsPreprocess
from zoo.vectors import Vectors

if TYPE_CHECKING:
    from zoo.download import PlannedFile
    from zoo.prune import Prunable
    from zoo.runtime import Session
    from zoo.testing import Report


class Zoo(Answering, Vectors):
    """The registry, the store and the plugins, and every verb on them.

    `home` is ZOO_HOME, `registry` a file that replaces the built-in shelf, `offline` forbids remote sources, `progress`
    draws bars; each defaults to the environment's.
    """

    def check_plugins(
        self, family: str | None = None, *, rows: Sequence[str] = (), limit: float = 600.0
    ) -> "Sequence[Report]":
        """The conformance check (see zoo.testing) of a family, or of all, each row in a child process.

        `rows` names rows, or kept models of bridges; else the pulled ones are taken, or the smallest that can be
        pulled. Raises PluginError when the family's plugin cannot be loaded, and what `pull` raises.
        """
        from zoo.survey import check_families

        require("the conformance check", *RUNTIME, *TRAINING)
        return check_families(
            Registry(self.lock.effective(entry) for entry in self.shelf.values()),
            lambda entry: self.store.is_pulled(entry, self.lock), lambda name: self._fetch(name, self._asked(name)),
            family=family, rows=rows, limit=limit, progress=self.progress,
        )  # fmt: skip

    def list(
        self, pattern: str | None = None, *, family: str | None = None, task: str | None = None,
        license: str | None = None, pulled: bool = False,
    ) -> tuple[Row, ...]:  # fmt: skip
        """Rows of the registry, and kept models, whose name matches `pattern` (a glob or a part) and the filters."""
        found = self.shelf.search(pattern, family=family, task=task, license=license)
        rows = [Row(entry=entry, is_pulled=self.store.is_pulled(entry, self.lock)) for entry in found]
        return tuple(row for row in rows if row.is_pulled or not pulled)

    def plan(self, name: str, *, source: str | None = None) -> "Sequence[PlannedFile]":
        """What `pull` would fetch, file by file."""
        from zoo.download import plan

        return plan(self.entry(name), self.store, self.lock, source)

    def pull(self, name: str, *, source: str | None = None, trust_first: bool = False) -> Path:
        """Fetch and verify every file of a row; returns their folder. Nothing is fetched that is already there.

        A bridged model's entry is kept from then on. Raises UnpinnedError, NetworkError, OfflineError, IntegrityError,
        AccessError.
        """
        entry = self._asked(name)
        prepares = self._prepares(entry)
        if prepares and not self.store.is_pulled(entry, self.lock):
            require(f"pulling {name}", *self.plugins.make(entry, self.store.models).packages)
        folder = self._fetch(name, entry, source=source, trust_first=trust_first)
        if prepares:
            self.plugins.make(self.lock.effective(entry), folder).prepare(self.progress)
        return folder

    def _asked(self, name: str) -> Entry:
        """The entry to pull: for a bridged model what its library says of it now."""
        reference = self.bridged.reference(name)
        return self.entry(name) if reference is None else self.bridged.entry(reference, ask=True)

    def _fetch(self, name: str, entry: Entry, *, source: str | None = None, trust_first: bool = False) -> Path:
        """`pull` without the family's part: only the bytes."""
        from zoo.download import pull

        reference = self.bridged.reference(name)
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

    def verify(self, model: str) -> Sequence[tuple[FileDigest, bool]]:
        """Hash every file of a pulled row or of a bundle again, offline: (expected, whether it is still so).

        Of word vectors also those of the prepared form, where there is one.
        """
        from zoo.download import verify

        if self.is_path(model):
            return Bundle.open(Path(model)).verify()
        entry = self.entry(model)
        results = [(expected, is_same) for expected, is_same, _ in verify(entry, self.store, self.lock)]
        if isinstance(entry.preprocess, WordsPreprocess):
            from zoo import words

            results += words.verify(self.store.model_dir(entry, [expected for expected, _ in results]))
        return results

    def prune(self, *, models: bool = False, dry_run: bool = False) -> "Sequence[Prunable]":
        """Remove what can be made again: caches, graphs no row asks for, what broken work left; what became of each.

        `models` are pulled rows, which can be fetched again. What a running process is known to use stays.
        """
        from zoo import prune

        rows = Registry(self.lock.effective(entry) for entry in self.shelf.values())
        found = prune.find(self.store, rows, models=models)
        return found if dry_run else prune.remove(self.store, found)

    def graph(self, name: str, cut: int | None = None) -> Bundle:
        """The features bundle of a registry row, pulled, exported and gated the first time it is needed.

        With `cut` its trunk: the first so many stages, whose outputs are the tensors that the next one takes. Raises
        UsageError for a family that has not that many.
        """
        from zoo.build import build_in_child

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

        The other arguments, and what is raised, are those of `zoo.runtime.Session`.
        """
        from zoo.device import choose
        from zoo.runtime import Session

        device = device or os.environ.get("ZOO_DEVICE") or "auto"
        # Said before anything is pulled or built for it.
        choose(device)
        return Session(
            self.open(model), device, threads=threads, spins=spins, fixed=fixed,
            engines=self.store.engines, optimised=self.store.optimised,
        )  # fmt: skip

    def finetune(self, model: str, data: str | Path, out: Path, options: FinetuneOptions | None = None) -> Outcome:
        """Train a head on the features of a registry row and write a gated bundle at `out`.

        `data` is a folder, a table, or a table on the Hub (`hf://datasets/ORG/NAME/PATH.parquet`).

        Raises DataError, UsageError, DivergedError, GateError; on any error nothing is written.
        """
        from zoo import trunk
        from zoo.data import is_hub
        from zoo.device import choose_device
        from zoo.finetune import finetune, load
        from zoo.tuned import Materials

        check_target(out, inside=[] if is_hub(data) else [Path(data)])
        options = options or FinetuneOptions()
        if self.is_path(model):
            raise UsageError(f"{model} is a bundle", hint="fine-tune the backbone it came from: zoo show " + model)
        entry = self.entry(model)
        require("fine-tuning", *RUNTIME, *TRAINING, *REPORT)
        choose_device(options.device)
        if not is_hub(data) and not Path(data).exists():
            raise NotFoundError(f"{data}: no such file or folder", hint="check the path of the data")
        parts = load(entry.preprocess, data, options, offline=self.offline, progress=self.progress)
        folder = self.pull(model)
        backbone = cache(lambda: self.plugins.make(self.lock.effective(entry), folder))
        if options.unfreeze:
            # Whether so many stages can be trained is said before anything is computed.
            trunk.cut_at(backbone(), options.unfreeze)
        base = self.graph(model)
        materials = Materials(
            base=base, trunk=lambda cut: self.graph(model, cut), backbone=backbone,
            cache=self.store.features, trainings=self.store.trainings,
        )  # fmt: skip
        return finetune(materials, parts, out, options, self.progress)

    def evaluate(
        self, model: str, data: str | Path, *, held_out: bool = False, max_bad: float = 0.0, text: str | None = None,
        image: str | None = None, label: str | None = None, device: str | None = None,
    ) -> Evaluation:  # fmt: skip
        """Run the exported file on labelled data; `held_out` keeps only the items that fine-tuning held out.

        `max_bad` is the fraction of the items that may be unreadable. Raises DataError for labels the model does not
        know, UsageError for a model without a head.
        """
        from zoo.evaluate import evaluate

        return evaluate(
            self.session(model, device), model, data,
            held_out=held_out, max_bad=max_bad, text=text, image=image, label=label, offline=self.offline,
            progress=self.progress,
        )  # fmt: skip

    def export(self, model: str, out: Path, variant: Variant | None = None) -> Bundle:
        """Write a registry row's features bundle, or a fine-tuned bundle, at `out` after checking it again.

        `variant` says in which precision. Raises GateError, with nothing written, when the file differs from the
        family's own arithmetic or loses too much accuracy.
        """
        from zoo.export import check_needs, export
        from zoo.refit import refit

        require("the parity gate", *RUNTIME)
        if variant is not None:
            # Said before anything is pulled or built for it.
            check_needs(Bundle.open(Path(model)).manifest if self.is_path(model) else self.entry(model), variant)
        source = self.open(model)
        check_target(out, inside=[source.path])
        entry = source.manifest.lineage.entry
        heads = ("safetensors",) if source.manifest.head else ()
        require("the parity gate", *RUNTIME, *self.plugins.make(entry, self.store.models).packages, *heads)
        made = self.plugins.make(entry, self._originals(entry, "the gate"))
        return export(source, out, made, variant, refit=refit, offline=self.offline, progress=self.progress)

    def bench(self, model: str, options: BenchOptions | None = None) -> Benchmark:
        """Time a registry row's features bundle, or a fine-tuned one, and torch with the same weights if asked for.

        Raises UsageError for a length that the model cannot have and for a family without a torch module.
        """
        from zoo.bench import Rival, bench
        from zoo.device import choose_device

        options = options or BenchOptions()
        choose_device(options.device)
        require("timing a model", *RUNTIME)
        bundle, rival = self.open(model), None
        if options.against is not None:
            entry = bundle.manifest.lineage.entry
            packages = self.plugins.make(entry, self.store.models).packages
            require(f"timing {options.against}", options.against, *packages, "safetensors")
            rival = Rival(entry, self._originals(entry, options.against))
        return bench(bundle, model, options, rival=rival, progress=self.progress)

    def _originals(self, entry: Entry, who: str) -> Path:
        """The folder of an entry's own files, fetched where they are not here and may be."""
        from zoo.download import pull

        if not self.store.is_pulled(entry, self.lock) and self.offline:
            raise OfflineError(
                f"{who} needs the original files of {entry.name}, which are not here", hint=f"zoo pull {entry.name}"
            )
        return pull(
            entry, self.store, self.lock, self.plugins.source,
            progress=self.progress, trust_first=False, only=None, offline=self.offline,
        )  # fmt: skip

    def _prepares(self, entry: Entry) -> bool:
        """Whether the family prepares what was pulled. One that cannot be used does not stop a pull."""
        from zoo.backbone import Backbone

        try:
            return self.plugins.backbone(entry.family).prepare is not Backbone.prepare
        except PluginError:
            return False


def version() -> str:
    """The installed version of backbone-zoo."""
    import importlib.metadata

    return importlib.metadata.version("backbone-zoo")
