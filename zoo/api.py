"""class Zoo: one method for each verb. The command line calls these, and so can a notebook."""

import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from zoo.bundle import Bundle, check_target
from zoo.errors import DeviceError, NotFoundError, UsageError, ZooError
from zoo.extras import REPORT, RUNTIME, TRAINING, require
from zoo.options import BenchOptions, FinetuneOptions, Variant
from zoo.registry.registry import Registry
from zoo.registry.shelves import add_shelves
from zoo.results import Answer, Answered, Answers, Benchmark, Check, Embedded, Evaluation, Ranking, Row, RunResult
from zoo.schema import FileDigest, Outcome, WordsPreprocess
from zoo.workspace import Workspace

if TYPE_CHECKING:
    from zoo.data.inputs import Inputs
    from zoo.plugin.entry_points import PluginState
    from zoo.store.prune import Prunable
    from zoo.store.pull import PlannedFile
    from zoo.testing import Report


class Zoo(Workspace):
    """Every verb, on the models of a `Workspace`, whose arguments it takes."""

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
        from zoo.store.pull import plan

        return plan(self.entry(name), self.store, self.lock, source)

    def verify(self, model: str) -> Sequence[tuple[FileDigest, bool]]:
        """Hash every file of a pulled row or of a bundle again, offline: (expected, whether it is still so).

        Of word vectors also those of the prepared form, where there is one.
        """
        from zoo.store.pull import verify

        if self.is_path(model):
            return Bundle.open(Path(model)).verify()
        entry = self.entry(model)
        results = [(expected, is_same) for expected, is_same, _ in verify(entry, self.store, self.lock)]
        if isinstance(entry.preprocess, WordsPreprocess):
            from zoo.words import table

            results += table.verify(self.store.model_dir(entry, [expected for expected, _ in results]))
        return results

    def prune(self, *, models: bool = False, dry_run: bool = False) -> "Sequence[Prunable]":
        """Remove what can be made again: caches, graphs no row asks for, what broken work left; what became of each.

        `models` are pulled rows, which can be fetched again. What a running process is known to use stays.
        """
        from zoo.store import prune

        rows = Registry(self.lock.effective(entry) for entry in self.shelf.values())
        found = prune.find(self.store, rows, models=models)
        return found if dry_run else prune.remove(self.store, found)

    def finetune(self, model: str, data: str | Path, out: Path, options: FinetuneOptions | None = None) -> Outcome:
        """Train a head on the features of a registry row and write a gated bundle at `out`.

        `data` is a folder, a table, or a table on the Hub (`hf://datasets/ORG/NAME/PATH.parquet`).

        Raises DataError, UsageError, DivergedError, GateError; on any error nothing is written.
        """
        from zoo.data.dataset import is_hub
        from zoo.export import trunk
        from zoo.runtime.device import choose_device
        from zoo.training.finetune import finetune, load
        from zoo.training.write_bundle import Materials

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
        from zoo.evaluation.evaluate import evaluate

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
        from zoo.export.export import check_needs, export
        from zoo.training.refit import refit_head

        require("the parity gate", *RUNTIME)
        if variant is not None:
            # Said before anything is pulled or built for it.
            check_needs(Bundle.open(Path(model)).manifest if self.is_path(model) else self.entry(model), variant)
        source = self.open(model)
        check_target(out, inside=[source.path])
        entry = source.manifest.lineage.entry
        heads = ("safetensors",) if source.manifest.head else ()
        require("the parity gate", *RUNTIME, *self.plugins.make(entry, self.store.models).packages, *heads)
        made = self.plugins.make(entry, self.originals(entry, "the gate"))
        return export(source, out, made, variant, refit_head=refit_head, offline=self.offline, progress=self.progress)

    def run(
        self, model: str, inputs: Any, *, names: Sequence[str] | None = None, device: str | None = None, top: int = 5,
        keep_going: bool = False,
    ) -> RunResult:  # fmt: skip
        """Answers for raw inputs: paths, PIL images or uint8 arrays for pictures, str for texts; one, or any iterable.

        The model is loaded for this call alone: `session(model).run(inputs)` is for many.
        A registry row of word vectors answers with nearest words, searched on the CPU. An input that cannot be read
        is a DataError, a text without a known word a NotFoundError there; with `keep_going` its answer has that
        error, and the others theirs. All answers are held: see `answers`, and `run_to_file`.
        """
        if not self.has_words(model):
            session = self.session(model, device)
            found = session.run(inputs, names=names, top=top, keep_going=keep_going, progress=self.progress)
            return replace(found, model=model)
        from zoo.data.inputs import one_or_more, with_names

        items = one_or_more(inputs)
        each = items if names is None else with_names(list(items), names)
        stream = self.answers(model, each, device=device, top=top, keep_going=keep_going)
        return RunResult(model=model, entry=stream.entry, device=stream.device, answers=tuple(stream))

    def answers(
        self, model: str, inputs: Any, *, device: str | None = None, top: int = 5, keep_going: bool = False
    ) -> Answers:
        """As `run`, for any number of inputs, which may be those of `each_input`: answers come one after another.

        The model is loaded at once; inputs are read as answers are asked for, and neither is kept. Raises what `run`
        does, an input's error when it is come to.
        """
        from zoo.data.inputs import one_or_more
        from zoo.runtime.answers import ByWords, answers

        if self.has_words(model):
            _check_search(device)
            source = ByWords(self.words(model), top)
            found = answers(source, one_or_more(inputs), keep_going=keep_going)
            return Answers(self.entry(model).name, "cpu", None, found)
        session = self.session(model, device)
        found = session.answers(inputs, top=top, keep_going=keep_going)
        return Answers(session.manifest.lineage.entry.name, session.device, session.placement, found)

    def run_to_file(
        self, model: str, inputs: Iterable[Any], out: str | Path, *, device: str | None = None, top: int | None = None,
        resume: bool = False, strict: bool = False,
    ) -> Answered:  # fmt: skip
        """Write the answers for `inputs`, in their order, to a `.csv`, `.jsonl` or `.parquet` file: docs/run.md.

        `inputs` are as for `answers`, and not kept. With labels every score is written; `top` (5 by default) is of
        nearest words. An input that cannot be answered has its error in the output; with `strict` it is raised. With
        `resume` what a break left is continued. Raises DataError without inputs, UsageError for a model without a head
        and for an output that is unfinished or made of other inputs or by another model, AccessError where it cannot be
        written.
        """
        from zoo.outputs import answer_file

        answer_file.check_name(Path(out))
        if self.has_words(model):
            _check_search(device)
            entry = self.lock.effective(self.entry(model))
            answering = answer_file.of_words(self.words(model), entry, 5 if top is None else top)
        else:
            if top is not None:
                raise UsageError("a file has the score of every label: there is no top", hint="leave it out")
            answering = answer_file.of_session(self.session(model, device))
        return answer_file.write_answers(
            answering, inputs, Path(out), model=model, resume=resume, strict=strict, progress=self.progress
        )

    def inputs(
        self, model: str, arguments: Sequence[str], *, text: str | None = None
    ) -> tuple[Sequence[str], Sequence[str]]:
        """(items, names) of command-line arguments for a model: files, folders, globs, texts, `-` for stdin."""
        from zoo.data.inputs import expand

        if self.is_path(model):
            return expand(arguments, Bundle.open(Path(model)).manifest.preprocess, text=text)
        # The row knows it, too: what cannot be read is refused before anything is pulled or exported for it.
        return expand(arguments, self.entry(model).preprocess, text=text)

    def each_input(
        self, model: str, arguments: Sequence[str], *, text: str | None = None, image: str | None = None
    ) -> "Inputs":
        """Command-line arguments as inputs of a model, read as they are asked for: any number of them.

        Files, folders, globs, tables (`text` and `image` name their columns), texts, and `-` for stdin. An input that
        cannot be read is one with an error. Iterating raises DataError for an argument that gives nothing.
        """
        from zoo.data.inputs import Inputs

        # The row knows it, too: what cannot be read is refused before anything is pulled or exported for it.
        known = Bundle.open(Path(model)).manifest.preprocess if self.is_path(model) else self.entry(model).preprocess
        return Inputs(arguments, known, text=text, image=image)

    def embed(
        self, model: str, inputs: Iterable[Any], out: str | Path, *, device: str | None = None, resume: bool = False,
        strict: bool = False,
    ) -> Embedded:  # fmt: skip
        """Write the features of `inputs`, in their order, to a `.npy`, `.parquet` or `.jsonl` file: docs/embed.md.

        `inputs` are what `each_input` gives, or paths, PIL images or uint8 arrays for pictures, str for texts; they are
        taken one after another and not kept. One that cannot be read has its error in the output; with `strict` it is
        raised. With `resume` what a break left is continued. Raises DataError without inputs, UsageError for an output
        that is no file of vectors, unfinished, or made of other inputs or by another model, AccessError where it cannot
        be written.
        """
        from zoo.outputs.embed import embed
        from zoo.outputs.resumable_file import check_name
        from zoo.outputs.vector_file import SUFFIXES

        check_name(Path(out), SUFFIXES)
        return embed(
            self.session(model, device), inputs, Path(out), model=model, resume=resume, strict=strict,
            progress=self.progress,
        )  # fmt: skip

    def similar(
        self, model: str, query: Any, inputs: Iterable[Any], *, device: str | None = None, top: int = 5,
        text: str | None = None, image: str | None = None, index: bool = False,
    ) -> Ranking:  # fmt: skip
        """The `top` of `inputs` whose features are most like those of `query`, by their cosine.

        `inputs` are arguments as for `each_input`, of which any may be a file that `embed` wrote, or a `.npy`. All are
        compared; with `index` a file of more than a million vectors by an index beside it, which is made once. A file
        of another fingerprint than the model's is warned about. Raises DataError for a query that cannot be read, for
        nothing to compare, and for vectors of another length.
        """
        from zoo.outputs.similar import similar

        return similar(
            self.session(model, device), query, list(inputs), lambda each: self.each_input(
                model, [each], text=text, image=image
            ), model=model, top=top, index=index, progress=self.progress,
        )  # fmt: skip

    def analogy(self, model: str, a: str, b: str, c: str, *, device: str | None = None, top: int = 5) -> RunResult:
        """The `top` words nearest to a - b + c, these three left out: "king", "man", "woman" gives "queen".

        Raises UsageError for a model without a table of words, NotFoundError for a word that it does not have.
        """
        from zoo.runtime.answers import check_top

        _check_search(device)
        check_top(top)
        answer = Answer(input=f"{a} - {b} + {c}", words=tuple(self.words(model).analogy(a, b, c, top)))
        return RunResult(model=model, entry=self.entry(model).name, device="cpu", answers=(answer,))

    def bench(self, model: str, options: BenchOptions | None = None) -> Benchmark:
        """Time a registry row's features bundle, or a fine-tuned one, and torch with the same weights if asked for.

        Raises UsageError for a length that the model cannot have and for a family without a torch module.
        """
        from zoo.diagnostics.bench import Rival, bench
        from zoo.runtime.device import choose_device

        options = options or BenchOptions()
        choose_device(options.device)
        require("timing a model", *RUNTIME)
        bundle, rival = self.open(model), None
        if options.against is not None:
            entry = bundle.manifest.lineage.entry
            packages = self.plugins.make(entry, self.store.models).packages
            require(f"timing {options.against}", options.against, *packages, "safetensors")
            rival = Rival(entry, self.originals(entry, options.against))
        return bench(bundle, model, options, rival=rival, progress=self.progress)

    def doctor(self, *, deep: bool = False) -> Sequence[Check]:
        """What is wrong with this environment, and how to mend it; `deep` hashes what was pulled, too.

        Unless offline, the Hub is asked whether it answers. `bug_report` makes a text for an issue of it.
        """
        from zoo.diagnostics import doctor

        return doctor.examine(
            self.store.home, lambda: len(self.registry), lambda: self.damaged, self.plugin_states, offline=self.offline,
            digests=(lambda: doctor.digests(self.shelf, self.store, self.lock, self.progress)) if deep else None,
        )  # fmt: skip

    def bug_report(self, checks: Sequence[Check]) -> str:
        """What `doctor` found as Markdown for an issue: without secrets, home folders as `~`."""
        from zoo.diagnostics.bug_report import bug_report

        return bug_report(checks)

    def plugin_states(self, limit: float = 10.0) -> "Sequence[PluginState]":
        """Every plugin after loading it in a child process, within `limit` seconds each, and every shelf."""
        from zoo.plugin.isolated import load_all

        try:
            shelves = self.shelves
        except ZooError:
            # A registry that cannot be read is no plugin's fault: their shelves are looked at without it.
            shelves = add_shelves(Registry(), os.environ)[1]
        return [*load_all(limit), *shelves]

    def check_plugins(
        self, family: str | None = None, *, rows: Sequence[str] = (), limit: float = 600.0
    ) -> "Sequence[Report]":
        """The conformance check (see zoo.testing) of a family, or of all, each row in a child process.

        `rows` names rows, or kept models of bridges; else the pulled ones are taken, or the smallest that can be
        pulled. Raises PluginError when the family's plugin cannot be loaded, and what `pull` raises.
        """
        from zoo.testing.families import check_families

        require("the conformance check", *RUNTIME, *TRAINING)
        return check_families(
            Registry(self.lock.effective(entry) for entry in self.shelf.values()),
            lambda entry: self.store.is_pulled(entry, self.lock), lambda name: self.fetch(name),
            family=family, rows=rows, limit=limit, progress=self.progress,
        )  # fmt: skip

    def new_plugin(self, name: str, out: Path | None = None) -> "tuple[Path, Sequence[str]]":
        """Write a distribution that gives the family `name`, at `out` or ./zoo-NAME; returns the folder and its files.

        Raises UsageError for a name that cannot be one or is taken, and for a folder that holds something.
        """
        from zoo.plugin.scaffold import write_plugin

        return write_plugin(name, out, self.registry, self.plugins.families())


def _check_search(device: str | None) -> None:
    if device not in (None, "auto", "cpu"):
        raise DeviceError("nearest words are searched on the CPU", device=device, hint="--device cpu, or --device auto")


def version() -> str:
    """The installed version of backbone-zoo."""
    import importlib.metadata

    return importlib.metadata.version("backbone-zoo")
