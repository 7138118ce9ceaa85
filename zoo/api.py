"""class Zoo: one method for each verb of the command line."""

import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from zoo.bundle import Bundle, check_target
from zoo.data.labels import reads_pairs, without_head
from zoo.errors import UsageError, ZooError
from zoo.extras import REPORT, RUNTIME, TRAINING, require
from zoo.options import BenchOptions, CompareOptions, DataOptions, FinetuneOptions, Variant
from zoo.registry.registry import Registry
from zoo.registry.shelves import add_shelves
from zoo.results import (
    Answer,
    Answered,
    Answers,
    Benchmark,
    Check,
    Comparison,
    Embedded,
    Evaluation,
    Outcome,
    Ranking,
    Row,
    RunResult,
)
from zoo.schema import SCORES, FileDigest, HeadSpec, Task, WordsPreprocess
from zoo.workspace import Workspace

if TYPE_CHECKING:
    from zoo.data.inputs import Inputs
    from zoo.plugin.entry_points import PluginState
    from zoo.store.prune import Prunable
    from zoo.store.pull import PlannedFile
    from zoo.testing import Report


class Zoo(Workspace):
    """The Python interface of zoo: one method for each verb."""

    def list(
        self, pattern: str | None = None, *, family: str | None = None, task: str | None = None,
        license: str | None = None, pulled: bool = False,
    ) -> tuple[Row, ...]:  # fmt: skip
        """Registry rows and kept bridged models that match `pattern` (a glob or a part of the name) and the filters."""
        found = self.entries.search(pattern, family=family, task=task, license=license)
        rows = [Row(entry=entry, is_pulled=self.store.is_pulled(entry, self.lock)) for entry in found]
        return tuple(row for row in rows if row.is_pulled or not pulled)

    def plan(self, name: str, *, source: str | None = None) -> "Sequence[PlannedFile]":
        """The files that `pull` would download."""
        from zoo.store.pull import plan

        return plan(self.entry(name), self.store, self.lock, source)

    def verify(self, model: str) -> Sequence[tuple[FileDigest, bool]]:
        """Hash every file of a pulled row or of a bundle again, offline: pairs (expected, whether it matches).

        For word vectors this includes the files that `prepare` wrote.
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
        """Remove caches, unused graphs and leftovers of crashed runs; returns a record of each, with its state.

        `models` also removes pulled rows. With `dry_run` nothing is removed. Files used by a running process stay.
        """
        from zoo.store import prune

        rows = Registry(self.lock.effective(entry) for entry in self.entries.values())
        found = prune.find(self.store, rows, models=models)
        return found if dry_run else prune.remove(self.store, found)

    def finetune(self, model: str, data: str | Path, out: Path, options: FinetuneOptions | None = None) -> Outcome:
        """Train a head on the features of a registry row and write a checked bundle at `out`.

        `data` is a folder, a table, or a table on the Hub (`hf://datasets/ORG/NAME/PATH.parquet`). Raises
        MissingFileError, DataError, UsageError, DivergedError, GateError; after an error nothing is written.
        """
        from zoo.data.dataset import is_hub
        from zoo.export import trunk
        from zoo.runtime.device import choose_device
        from zoo.training.finetune import finetune, load
        from zoo.training.write_bundle import Materials

        check_target(out, inside=[] if is_hub(data) else [Path(data)])
        options = options or FinetuneOptions()
        entry = self.trainable(model)
        require("fine-tuning", *RUNTIME, *TRAINING, *REPORT)
        choose_device(options.device)
        parts = load(entry.preprocess, data, options, offline=self.offline, progress=self.progress)
        folder = self.pull(model)
        backbone = cache(lambda: self.plugins.make(self.lock.effective(entry), folder))
        if options.unfreeze:
            # Fails for too many stages before anything is computed.
            trunk.cut_at(backbone(), options.unfreeze)
        base = self.graph(model)
        materials = Materials(
            options=options, base=base, trunk=lambda cut: self.graph(model, cut), backbone=backbone,
            cache=self.store.features, trainings=self.store.trainings,
        )  # fmt: skip
        return finetune(materials, parts, out, self.progress)

    def compare(self, data: str | Path, models: Sequence[str], options: CompareOptions | None = None) -> Comparison:
        """The scores that heads on the features of several registry rows reach on the items of `data`, best first.

        A model that fails is in `failures`. Raises UsageError for bundles, for a model that is given twice and for
        models that read different things, the errors of `finetune` for the data, and the first error if all fail.
        """
        from zoo.runtime.device import choose_device
        from zoo.training.compare import compare, load

        options = options or CompareOptions()
        entries = self.rivals(models)
        require("comparing models", *RUNTIME, *TRAINING)
        choose_device(options.device)
        items = load(entries, data, options, offline=self.offline, progress=self.progress)
        return compare(self.graphs(models), items, options, self.store.features, self.progress)

    def evaluate(
        self, model: str, data: str | Path, options: DataOptions | None = None, *, held_out: bool = False,
        labels: str | Path | None = None, device: str | None = None,
    ) -> Evaluation:  # fmt: skip
        """Metrics of a bundle, or of a row whose weights have a classifier, on labelled data.

        By default no item may be unreadable. With `held_out` only items that fine-tuning held out are used. `labels` is
        a CSV file that maps labels of the data to those of the model. Raises DataError for labels that the model does
        not have, UsageError for a model without a head.
        """
        from zoo.evaluation.evaluate import check_head, evaluate

        if not self.is_path(model):  # fails before anything is pulled or exported
            check_head(self.entry(model))
        options = options or DataOptions(max_bad=0)
        return evaluate(
            self.session(model, device), model, data, options,
            held_out=held_out, labels=labels, offline=self.offline, progress=self.progress,
        )  # fmt: skip

    def export(self, model: str, out: Path, variant: Variant | None = None) -> Bundle:
        """Export a registry row or a fine-tuned bundle as a new bundle at `out`, in the precision of `variant`.

        Raises GateError, and writes nothing, if the file differs from the original model or loses too much accuracy.
        """
        require("exporting", *RUNTIME)

        from zoo.export.export import check_needs, export
        from zoo.training.refit import refit_head

        if variant is not None:
            # Fails for missing data or packages before anything is pulled or exported.
            check_needs(Bundle.open(Path(model)).manifest if self.is_path(model) else self.entry(model), variant)
        source = self.open(model)
        check_target(out, inside=[source.path])
        entry = source.manifest.lineage.entry
        heads = ("safetensors",) if isinstance(source.manifest.head, HeadSpec) else ()
        require("exporting", *RUNTIME, *self.plugins.make(entry, self.store.models).packages, *heads)
        made = self.plugins.make(entry, self.originals(entry, "the parity check"))
        return export(source, out, made, variant, refit_head=refit_head, offline=self.offline, progress=self.progress)

    def run(
        self, model: str, inputs: Any, *, names: Sequence[str] | None = None, device: str | None = None, top: int = 5,
        keep_going: bool = False, features: bool = False, prompt: str | None = None,
    ) -> RunResult:  # fmt: skip
        """The answers for one input or an iterable of inputs, all held in memory.

        Inputs are paths, PIL images or uint8 arrays for image models, str for text models. A registry row of word
        vectors answers with nearest words, on the CPU. With `features` every answer is the feature vector; `prompt`
        names a prompt of the model. For several calls, `session(model)` loads the model once.

        Raises DataError for an unreadable input and for a text without a known word, NotFoundError if the whole input
        is one unknown word and nearest words are searched. With `keep_going` the error is in the answer instead.
        """
        if features or not self.has_words(model):
            session = self.prompted(model, device, prompt)
            found = session.run(
                inputs, names=names, top=top, keep_going=keep_going, features=features, progress=self.progress
            )
            return replace(found, model=model)
        from zoo.data.inputs import one_or_more, with_names

        items = one_or_more(inputs)
        each = items if names is None else with_names(list(items), names)
        stream = self.answers(model, each, device=device, top=top, keep_going=keep_going, prompt=prompt)
        return RunResult(model=model, entry=stream.entry, device=stream.device, answers=tuple(stream))

    def answers(
        self, model: str, inputs: Any, *, device: str | None = None, top: int = 5, keep_going: bool = False,
        features: bool = False, prompt: str | None = None,
    ) -> Answers:  # fmt: skip
        """An iterator over answers, for any number of inputs; inputs may be those of `each_input`.

        The model is loaded at once. Inputs are read as answers are consumed, and none is kept. Raises the errors of
        `run`; the error of an input is raised when its answer is due.
        """
        from zoo.data.inputs import one_or_more
        from zoo.runtime.answers import WordAnswerer, answers, check_search

        if self.has_words(model) and not features:
            check_search(device, prompt)
            answerer = WordAnswerer(self.words(model), top)
            found = answers(answerer, one_or_more(inputs), keep_going=keep_going)
            return Answers(self.entry(model).name, "cpu", None, found)
        session = self.prompted(model, device, prompt)
        found = session.answers(inputs, top=top, keep_going=keep_going, features=features)
        reason = None if features or SCORES in session.outputs else without_head(self.facts(model))
        is_measurable = SCORES in session.outputs and not features and session.manifest.task is not Task.FILL_MASK
        name = session.manifest.lineage.entry.name
        return Answers(name, session.device, session.placement, found, reason, is_measurable)

    def run_to_file(
        self, model: str, inputs: Iterable[Any], out: str | Path, *, device: str | None = None, top: int | None = None,
        resume: bool = False, strict: bool = False,
    ) -> Answered:  # fmt: skip
        """Write the answers for `inputs` (as in `answers`) to a `.csv`, `.jsonl` or `.parquet` file: docs/run.md.

        `top` is the number of nearest words (default 5); for a classifier every score is written. The error of an input
        is written into the file; with `strict` it is raised. `resume` continues an unfinished file.

        Raises DataError if there are no inputs; UsageError for a model without a head, an unfinished output (without
        `resume`), and an output of other inputs or another model; AccessError for an output that is not writable.
        """
        from zoo.outputs import answer_file
        from zoo.outputs.table import check_name
        from zoo.outputs.write_rows import write_rows
        from zoo.runtime.answers import check_search

        check_name(Path(out), answer_file.SUFFIXES)
        if self.has_words(model):
            check_search(device)
            entry = self.lock.effective(self.entry(model))
            job = answer_file.of_words(self.words(model), entry, 5 if top is None else top)
        else:
            job = answer_file.of_session(self.session(model, device), top)
        return write_rows(job, inputs, Path(out), model=model, resume=resume, strict=strict, progress=self.progress)

    def inputs(
        self, model: str, arguments: Sequence[str], *, text: str | None = None
    ) -> tuple[Sequence[str], Sequence[str]]:
        """The items, and their names, that command-line arguments mean: files, folders, globs, texts, `-` for stdin."""
        from zoo.data.inputs import expand

        return expand(arguments, self.facts(model).preprocess, text=text)

    def each_input(
        self, model: str, arguments: Sequence[str], *, text: str | None = None, image: str | None = None,
        pair: str | None = None,
    ) -> "Inputs":  # fmt: skip
        """An iterable over the inputs named by command-line arguments, of any number, read one by one.

        Arguments are files, folders, globs, tables (`text` and `image` name the columns), texts, and `-` for stdin. An
        unreadable input is an Input with an error. `pair` is the second text of every input; raises UsageError if the
        model reads none. Iterating raises DataError for an argument without inputs.
        """
        from zoo.data.inputs import Inputs

        facts = self.facts(model)
        if pair is not None and not reads_pairs(facts):
            raise UsageError(f"{facts.name} does not read pairs of texts", hint="leave --pair out")
        return Inputs(arguments, facts.preprocess, text=text, image=image, pair=pair, pairs=reads_pairs(facts))

    def embed(
        self, model: str, inputs: Iterable[Any], out: str | Path, *, device: str | None = None, resume: bool = False,
        strict: bool = False, prompt: str | None = None,
    ) -> Embedded:  # fmt: skip
        """Write the features of `inputs` (as in `answers`) to a `.npy`, `.parquet` or `.jsonl` file: docs/embed.md.

        `prompt` names a prompt of the model. `resume`, `strict` and the errors are those of `run_to_file`.
        """
        from zoo.outputs.embed import embed
        from zoo.outputs.table import check_name
        from zoo.outputs.vector_file import SUFFIXES

        check_name(Path(out), SUFFIXES)
        self.check_prompt(model, prompt)
        return embed(
            self.session(model, device), inputs, Path(out), model=model, prompt=prompt, resume=resume, strict=strict,
            progress=self.progress,
        )  # fmt: skip

    def similar(
        self, model: str, query: Any, inputs: Iterable[Any], *, device: str | None = None, top: int = 5,
        index: bool = False, prompt: str | None = None, **columns: str | None,
    ) -> Ranking:  # fmt: skip
        """The `top` inputs most similar to `query`, by the cosine similarity of their features.

        `inputs` are arguments of `each_input` (whose `columns` are `text` and `image`), files of `embed`, or `.npy`
        files. `prompt` names the prompt of `query`; inputs have the default one. All vectors are compared. With
        `index`, a file of more than a million vectors is searched approximately; the index is built once, beside the
        file. Raises DataError for an unreadable query, no inputs, or vectors of another length.
        """
        from zoo.outputs.similar import Query, similar

        self.check_prompt(model, prompt)
        return similar(
            self.session(model, device), Query(query, prompt), list(inputs),
            lambda each: self.each_input(model, [each], **columns),
            model=model, top=top, index=index, progress=self.progress,
        )  # fmt: skip

    def analogy(self, model: str, a: str, b: str, c: str, *, device: str | None = None, top: int = 5) -> RunResult:
        """The `top` words nearest to a - b + c, without these three: "king", "man", "woman" gives "queen".

        Raises UsageError for a model without word vectors, NotFoundError for a word that is not in its table.
        """
        from zoo.runtime.answers import check_search, check_top

        check_search(device)
        check_top(top)
        answer = Answer(input=f"{a} - {b} + {c}", words=tuple(self.words(model).analogy(a, b, c, top)))
        return RunResult(model=model, entry=self.entry(model).name, device="cpu", answers=(answer,))

    def bench(self, model: str, options: BenchOptions | None = None) -> Benchmark:
        """Time measurements of a registry row or a bundle; with `options.against` also of the same network in torch.

        Raises UsageError for a length above the model's limit and for a family without a torch module.
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
        """Checks of this environment, with the command that fixes each fault; `deep` also hashes all pulled files.

        Unless offline, this connects to the Hub. `bug_report` makes Markdown of the checks.
        """
        from zoo.diagnostics import doctor

        return doctor.examine(
            self.store.home, lambda: len(self.registry), lambda: self.damaged, self.plugin_states, offline=self.offline,
            digests=(lambda: doctor.digests(self.entries, self.store, self.lock, self.progress)) if deep else None,
        )  # fmt: skip

    def bug_report(self, checks: Sequence[Check]) -> str:
        """The checks of `doctor` as Markdown for an issue: without secrets, home folders as `~`."""
        from zoo.diagnostics.bug_report import bug_report

        return bug_report(checks)

    def plugin_states(self, limit: float = 10.0) -> "Sequence[PluginState]":
        """The state of every plugin, loaded in a child process within `limit` seconds, and of every registry file."""
        from zoo.plugin.child import load_all

        try:
            shelves = self.shelves
        except ZooError:
            # The plugins' registry files can be checked even if the registry itself is unreadable.
            shelves = add_shelves(Registry(), os.environ)[1]
        return [*load_all(limit), *shelves]

    def check_plugins(
        self, family: str | None = None, *, rows: Sequence[str] = (), limit: float = 600.0
    ) -> "Sequence[Report]":
        """Reports of the conformance check (see zoo.testing) for one family or all; each row runs in a child process.

        `rows` are names of rows or kept bridged models; by default the pulled ones, else the smallest that can be
        pulled. Raises PluginError if the family's plugin cannot be loaded, and the errors of `pull`.
        """
        from zoo.testing.families import check_families

        require("the conformance check", *RUNTIME, *TRAINING)
        return check_families(
            Registry(self.lock.effective(entry) for entry in self.entries.values()),
            lambda entry: self.store.is_pulled(entry, self.lock), lambda name: self.fetch(name),
            family=family, rows=rows, limit=limit, progress=self.progress,
        )  # fmt: skip

    def new_plugin(self, name: str, out: Path | None = None) -> "tuple[Path, Sequence[str]]":
        """Write a distribution with the family `name` at `out` or ./zoo-NAME; returns the folder and its files.

        Raises UsageError for an invalid or taken name, and for a folder that is not empty.
        """
        from zoo.plugin.scaffold import write_plugin

        return write_plugin(name, out, self.registry, self.plugins.families())
