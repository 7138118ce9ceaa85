"""class Zoo: one method a verb. The command line calls these, and so can a notebook."""

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from zoo.bundle import Bundle, check_target
from zoo.errors import DataError, NotFoundError, OfflineError, UnpinnedError, UsageError
from zoo.extras import RUNTIME, TRAINING, require
from zoo.lock import Lock
from zoo.progress import SILENT, Progress
from zoo.registry import Registry, default_registry, load_registry
from zoo.schema import Entry, FileDigest, FinetuneOptions, Metrics, Outcome
from zoo.store import Store, storage_errors, write_atomic, zoo_home

if TYPE_CHECKING:
    from zoo.bridged import Bridged
    from zoo.download import PlannedFile
    from zoo.manager import Plugins
    from zoo.runtime import Session


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `zoo list`."""

    entry: Entry
    is_pulled: bool


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a model says about one input: labels with scores, best first; the features where there is no head."""

    input: str
    labels: tuple[tuple[str, float], ...] = ()
    features: tuple[float, ...] = ()


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """Answers in the order of the inputs, and the device that really ran."""

    model: str
    entry: str
    device: str
    answers: tuple[Answer, ...]


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle's metrics on labelled data; `trained_on` counts items its head was fitted to."""

    model: str
    data: str
    device: str
    metrics: Metrics
    trained_on: int
    predictions: tuple[Answer, ...]
    truth: tuple[str, ...]


class Zoo:
    """The registry, the store and the plugins, and every verb on them.

    `home` is ZOO_HOME, `registry` a file that replaces the shelf, `offline` forbids remote sources, `progress` draws
    bars; each defaults to the environment's.
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
        """The shelf: the built-in rows and those of ZOO_HOME/registry.yaml, or the file that replaces them."""
        if self._registry_file is not None:
            return load_registry([self._registry_file])
        return default_registry(self.store.home, os.environ)

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

    def list(
        self, pattern: str | None = None, *, family: str | None = None, task: str | None = None,
        license: str | None = None, pulled: bool = False,
    ) -> tuple[Row, ...]:  # fmt: skip
        """Rows of the registry, and kept models, whose name matches `pattern` (a glob or a part) and the filters."""
        found = Registry([*self.registry.values(), *self.bridged.entries()]).search(
            pattern, family=family, task=task, license=license
        )
        rows = [Row(entry=entry, is_pulled=self.store.is_pulled(entry, self.lock)) for entry in found]
        return tuple(row for row in rows if row.is_pulled or not pulled)

    def entry(self, name: str) -> Entry:
        """The registry row of that name, or the entry of a bridged model: the kept one, or one made now.

        Raises UnknownEntryError, with the nearest names, and for a bridged model what its bridge raises.
        """
        reference = self.bridged.reference(name)
        return self.registry.entry(name) if reference is None else self.bridged.entry(reference)

    def is_path(self, model: str) -> bool:
        """Whether a model reference is a path to a bundle rather than the name of a row or of a bridged model."""
        return is_path(model) and self.bridged.reference(model) is None

    def plan(self, name: str, *, source: str | None = None) -> "Sequence[PlannedFile]":
        """What `pull` would fetch, file by file."""
        from zoo.download import plan

        return plan(self.entry(name), self.store, self.lock, source)

    def pull(self, name: str, *, source: str | None = None, trust_first: bool = False) -> Path:
        """Fetch and verify every file of a row; returns their folder. Nothing is fetched that is already there.

        A bridged model's entry is kept from then on. Raises UnpinnedError, NetworkError, OfflineError, IntegrityError,
        AccessError.
        """
        from zoo.download import pull

        reference = self.bridged.reference(name)
        entry = self.registry.entry(name) if reference is None else self.bridged.entry(reference, ask=True)
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
        """Hash every file of a pulled row or of a bundle again, offline: (expected, whether it is still so)."""
        from zoo.download import verify

        if self.is_path(model):
            return Bundle.open(Path(model)).verify()
        return [(expected, is_same) for expected, is_same, _ in verify(self.entry(model), self.store, self.lock)]

    def graph(self, name: str) -> Bundle:
        """The features bundle of a registry row, pulled, exported and gated the first time it is needed."""
        from zoo.build import build_in_child, graph_key

        # Whether the row can be built at all is known without its files: it is asked before a long download.
        family = self.plugins.backbone(self.entry(name).family)
        family(self.entry(name), self.store.models)
        entry = self.lock.effective(self.entry(name))
        target = self.store.graphs / f"{entry.name}-{graph_key(entry)[:16]}"
        if entry.is_pinned and (target / "zoo.json").is_file():
            return Bundle.open(target)
        require(f"exporting {name}", *RUNTIME, *TRAINING)
        folder = self.pull(name)
        entry = self.lock.effective(self.entry(name))
        target = self.store.graphs / f"{entry.name}-{graph_key(entry)[:16]}"
        if (target / "zoo.json").is_file():
            return Bundle.open(target)
        return build_in_child(entry, folder, target, self.progress)

    def open(self, model: str) -> Bundle:
        """The bundle that a model reference means: a path to one, or a registry name's features bundle."""
        if self.is_path(model):
            return Bundle.open(Path(model))
        try:
            return self.graph(model)
        except NotFoundError as error:
            if (Path(model) / "zoo.json").is_file():
                error.hint = f"did you mean the bundle ./{model}?"
            raise

    def session(self, model: str, device: str | None = None) -> "Session":
        """A model loaded on a device (`auto`, `cpu`, `cuda:N`; ZOO_DEVICE or auto by default)."""
        from zoo.runtime import Session

        return Session(self.open(model), device or os.environ.get("ZOO_DEVICE") or "auto")

    def inputs(
        self, model: str, arguments: Sequence[str], *, text: str | None = None
    ) -> tuple[Sequence[str], Sequence[str]]:
        """(items, names) of command-line arguments for a model: files, folders, globs, texts, `-` for stdin."""
        from zoo.inputs import expand

        return expand(arguments, self.open(model).manifest.preprocess, text=text)

    def run(
        self,
        model: str,
        inputs: Iterable[Any],
        *,
        names: Sequence[str] | None = None,
        device: str | None = None,
        top: int = 5,
    ) -> RunResult:
        """Answers for raw inputs: paths, PIL images or uint8 arrays for pictures, str for texts."""
        session = self.session(model, device)
        items = list(inputs)
        names = names or [str(item) if isinstance(item, str | Path) else f"#{i}" for i, item in enumerate(items)]
        if "scores" in session.outputs:
            scores = session.scores(items, self.progress)
            answers = [_labelled(name, row, session.labels, top) for name, row in zip(names, scores, strict=True)]
        else:
            features = session.features(items, self.progress)
            answers = [Answer(input=n, features=tuple(row.tolist())) for n, row in zip(names, features, strict=True)]
        return RunResult(
            model=model, entry=session.manifest.lineage.entry.name, device=session.device, answers=tuple(answers)
        )

    def finetune(self, model: str, data: Path, out: Path, options: FinetuneOptions | None = None) -> Outcome:
        """Train a head on the features of a registry row and write a gated bundle at `out`.

        Raises DataError, UsageError, DivergedError, GateError; on any error nothing is written.
        """
        from zoo.finetune import finetune

        check_target(out, inside=[data])
        options = options or FinetuneOptions()
        if self.is_path(model):
            raise UsageError(f"{model} is a bundle", hint="fine-tune the backbone it came from: zoo show " + model)
        entry = self.entry(model)
        require("fine-tuning", *RUNTIME, *TRAINING)
        _check_exists(data)
        base = self.graph(model)
        family = self.plugins.backbone(entry.family)
        folder = self.pull(model)
        return finetune(
            base, data, out, options,
            backbone=lambda: family(self.lock.effective(entry), folder),
            cache=self.store.features, progress=self.progress,
        )  # fmt: skip

    def evaluate(
        self, model: str, data: Path, *, held_out: bool = False, text: str | None = None, label: str | None = None,
        device: str | None = None,
    ) -> Evaluation:  # fmt: skip
        """Run the exported file on labelled data; `held_out` keeps only the items that fine-tuning held out.

        Raises DataError for labels the model does not know, UsageError for a model without a head.
        """
        from zoo.data import Dataset, load
        from zoo.evaluate import measure
        from zoo.finetune import read_split

        session = self.session(model, device)
        if "scores" not in session.outputs:
            # Said before the data is read, whose labels it could not know anyway.
            session.scores([])
        dataset = load(data, session.manifest.preprocess, text=text, label=label)
        split = read_split(session.bundle)
        if held_out:
            kept = tuple(e for e in dataset.examples if e.digest in split and split[e.digest].held_out)
            if not kept:
                raise DataError(f"{data} has none of the items that {model} held out", path=data)
            dataset = Dataset(dataset.source, kept)
        targets = dataset.targets(session.labels)
        scores = session.scores(dataset.items, self.progress)
        rows = zip(dataset.examples, scores, strict=True)
        return Evaluation(
            model=model,
            data=str(data),
            device=session.device,
            metrics=measure(scores, targets, session.labels),
            trained_on=sum(1 for e in dataset.examples if e.digest in split and not split[e.digest].held_out),
            predictions=tuple(
                _labelled(example.name, row, session.labels, len(session.labels)) for example, row in rows
            ),
            truth=tuple(example.label for example in dataset.examples),
        )

    def export(self, model: str, out: Path) -> Bundle:
        """Write a registry row's features bundle, or a fine-tuned bundle, at `out` after checking it again.

        Raises GateError, with nothing written, when the file differs from the family's own arithmetic.
        """
        from zoo.download import pull
        from zoo.export import export

        require("the parity gate", *RUNTIME, *TRAINING)
        source = self.open(model)
        check_target(out, inside=[source.path])
        entry = source.manifest.lineage.entry
        if not self.store.is_pulled(entry, self.lock) and self.offline:
            raise OfflineError(
                f"the gate needs the original files of {entry.name}, which are not here", hint=f"zoo pull {entry.name}"
            )
        folder = pull(
            entry, self.store, self.lock, self.plugins.source,
            progress=self.progress, trust_first=False, only=None, offline=self.offline,
        )  # fmt: skip
        return export(source, out, self.plugins.backbone(entry.family)(entry, folder), self.progress)


def version() -> str:
    """The installed version of backbone-zoo."""
    import importlib.metadata

    return importlib.metadata.version("backbone-zoo")


def to_json(data: Any) -> str:
    """Compact JSON of any of zoo's nouns, or of plain data holding them."""
    return msgspec.json.encode(data).decode()


def write_predictions(evaluation: Evaluation, path: Path) -> None:
    """Write a CSV with a row an item: input, true label, predicted label, then every class's score."""
    import csv
    import io

    labels = sorted(evaluation.metrics.per_class)
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["input", "label", "predicted", *labels])
    for answer, truth in zip(evaluation.predictions, evaluation.truth, strict=True):
        scores = dict(answer.labels)
        table.writerow([answer.input, truth, answer.labels[0][0], *(f"{scores[label]:.7g}" for label in labels)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue().encode())


def is_path(model: str) -> bool:
    """Whether a model reference has the form of a path; `Zoo.is_path` knows prefixes of bridged models, too."""
    return model.startswith(".") or "/" in model or os.sep in model


def _labelled(name: str, scores: Any, labels: Sequence[str], top: int) -> Answer:
    best = scores.argsort()[::-1][:top]
    return Answer(input=name, labels=tuple((labels[index], float(scores[index])) for index in best))


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise NotFoundError(f"{path}: no such file or folder", hint="check the path of the data")
