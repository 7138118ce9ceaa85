"""Fine-tuning: compute the frozen backbone's features once, train a head, and write one checked ONNX file.

With `unfreeze` the last stages are then trained together with the head, on the activations of the stages before them.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo.bundle import Bundle
from zoo.data.augment import View
from zoo.data.dataset import Dataset, require_classes
from zoo.data.items import Unreadable
from zoo.data.quality import survey
from zoo.data.split import divide
from zoo.errors import DataError, UsageError
from zoo.evaluation.report import Drawing
from zoo.export import trunk
from zoo.export.isolated_session import IsolatedSession
from zoo.graph import head
from zoo.options import FinetuneOptions
from zoo.progress import SILENT, Progress
from zoo.runtime.session import Session
from zoo.schema import ImagePreprocess, Manifest, Metrics, Outcome, Preprocess
from zoo.system.files import staged_dir, storage_errors
from zoo.system.interrupt import Interrupt, noticing
from zoo.training import resume, write_bundle
from zoo.training.activation_cache import Activations
from zoo.training.feature_cache import FeatureCache
from zoo.training.fit_head import TrainedHead, fit, is_narrow, training_threads
from zoo.training.loop import SAVED, TrainingRun
from zoo.training.problem import Problem
from zoo.training.unfreeze import fit_tail
from zoo.training.write_bundle import Materials, Tuned

if TYPE_CHECKING:
    from zoo.export.reference import Expected
    from zoo.graph.head import Floats


class Known(NamedTuple):
    """The readable items of both parts (training, held out) and the features [items, dim] of them and their views.

    `computed` counts the features that were not in the cache; `device` is where the backbone ran.
    """

    parts: tuple[Dataset, Dataset]
    train: "Floats"
    held: "Floats"
    views: "Sequence[Floats]"
    computed: int
    device: str

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the training items."""
        return self.parts[0].labels


def finetune(
    materials: Materials,
    parts: tuple[Dataset, Dataset],
    out: Path,
    options: FinetuneOptions,
    progress: Progress = SILENT,
) -> Outcome:
    """Train on `parts` (training, held out) and write a checked bundle at `out`.

    Raises DataError, UsageError, DivergedError, GateError; on any error nothing is written at `out`. On Ctrl-C the step
    is finished and saved, KeyboardInterrupt is raised, and `options.resume` continues from there.
    """
    notes = survey(parts[0].only([*parts[0].examples, *parts[1].examples]))
    for note in notes:
        progress.note(note)
    if options.resume:
        # Checked before anything is computed: only the same training can be resumed.
        resume.check(
            materials.trainings, out, resume.identity(materials.base, parts, parts[0].labels, options), parts=False
        )
    with Drawing() as drawing:
        known = _known(materials, parts, options, progress)
        facts = resume.identity(materials.base, known.parts, known.labels, options)
        with storage_errors(materials.trainings):
            checkpoints = resume.open_run(materials.trainings, out, facts, resume=options.resume)
        # The process that will open the file imports its runtime during the training.
        with IsolatedSession() as fresh:
            model, expected = _train(materials, known, options, checkpoints, progress)
            with progress.task("merging and checking the ONNX file", None), staged_dir(out) as folder:
                write = partial(write_bundle.write_model, expected=expected, fresh=fresh)
                manifest, metrics = _write(folder, materials, model, known, options, notes, write, drawing)
    train, held = known.parts
    return Outcome(
        manifest=manifest,
        metrics=metrics,
        curve=model.head.curve,
        best_epoch=model.head.best_epoch,
        computed=known.computed,
        items=len(train.examples) + len(held.examples),
        skipped=tuple(str(each) for each in (*train.skipped, *held.skipped)),
    )


def load(
    preprocess: Preprocess,
    source: str | Path,
    options: FinetuneOptions,
    *,
    offline: bool = False,
    progress: Progress = SILENT,
) -> tuple[Dataset, Dataset]:
    """(training, held out) of the data at `source`, divided by `zoo.data.split.divide`, sorted by digest.

    Sorted because files found in another order must train the same model. Raises UsageError for views of texts.
    """
    if options.augment and not isinstance(preprocess, ImagePreprocess):
        raise UsageError("only images have random views, and this model reads text", hint="leave --augment out")
    train, held = (
        part.only(sorted(part.examples, key=lambda example: (example.digest, example.label, example.name)))
        for part in divide(source, preprocess, options, offline=offline, progress=progress)
    )
    return train, held


def _known(materials: Materials, parts: tuple[Dataset, Dataset], options: FinetuneOptions, progress: Progress) -> Known:
    """The features of all readable items, from the cache where it has them."""
    session = Session(materials.base, options.device)
    cache = FeatureCache(materials.cache, session)
    parts, (vectors, held), computed = _features(cache, parts, options, progress)
    views = []
    for number in range(options.augment):
        views.append(cache.features(parts[0].examples, progress, view=View(options.seed, number + 1)))
        computed += cache.computed
    return Known(parts, vectors, held, views, computed, session.device)


def _train(
    materials: Materials, known: Known, options: FinetuneOptions, checkpoints: Path, progress: Progress
) -> "tuple[Tuned, Callable[[], Expected] | None]":
    """(the trained model, the file's expected answers if they are computed already)."""
    train, held = known.parts
    backbone, beside = materials.backbone(), ThreadPoolExecutor(1)
    expected: Future[Expected] | None = None
    try:
        with noticing() as stop:
            problem = Problem(known.train, train.targets(known.labels), len(known.labels), options, known.views)
            with training_threads(problem):
                if is_narrow(problem) and not options.unfreeze and backbone.load():
                    # The head trains on one core; another one computes the answers that the file must give.
                    expected = beside.submit(write_bundle.expectation, materials.base, backbone.reference, held)
                trained = fit(problem, _run(stop, checkpoints, options, progress))
                if expected:
                    wait([expected])
            if stop.is_asked:
                raise KeyboardInterrupt(SAVED)
    finally:
        # After an error, or a second Ctrl-C, no file is compared with the expected answers.
        beside.shutdown(wait=False, cancel_futures=True)
    if options.unfreeze:
        return _unfrozen(materials, problem, trained, known, checkpoints, progress), None
    return Tuned(frozen=materials.base, head=trained, labels=known.labels), expected.result if expected else None


def _write(
    folder: Path,
    materials: Materials,
    model: Tuned,
    known: Known,
    options: FinetuneOptions,
    notes: Sequence[str],
    write_model: "Callable[..., Manifest]",
    drawing: Drawing,
) -> tuple[Manifest, Metrics]:
    """Write the whole bundle; the report is drawn at the same time, once its numbers are known."""
    held, report = known.parts[1], None
    report_on = partial(write_bundle.report_on, materials.base.manifest, model, known.parts, options, notes)
    if model.stages is None:
        scores = head.apply(model.head.layers, known.held, model.head.activation)
        drawing.begin(report := report_on(scores, known.held))
    draft = write_model(folder, materials.base, materials.backbone(), model, known.parts, options)
    if report is None:
        # The features differ from those in the cache: the file itself computes them.
        found = Session(Bundle(folder, draft), options.device).infer(held.items, ["scores", "features"])
        drawing.begin(report := report_on(found["scores"], found["features"]))
    return write_bundle.write_records(folder, draft, model, known.parts, report, drawing), report.metrics


def _features(
    cache: FeatureCache, parts: tuple[Dataset, Dataset], options: FinetuneOptions, progress: Progress
) -> "tuple[tuple[Dataset, Dataset], tuple[Floats, Floats], int]":
    """(parts without unreadable items, their features, the number of items that were computed)."""
    examples = [*parts[0].examples, *parts[1].examples]
    skipped = [*parts[0].skipped, *parts[1].skipped]
    unreadable = Unreadable(skipped, len(examples) + len(skipped), options.max_bad)
    vectors = cache.features(examples, progress, unreadable.skip(examples))
    train, held = (part.readable(unreadable) for part in parts)
    if unreadable.found:
        _check_left((train, held), parts)
    vectors, border = vectors[unreadable.kept(examples)], len(train.examples)
    return (train, held), (vectors[:border], vectors[border:]), cache.computed


def _check_left(left: Sequence[Dataset], parts: Sequence[Dataset]) -> None:
    """Raise DataError when the unreadable items were all that a part or a class had."""
    for now, before in zip(left, parts, strict=True):
        if not now.examples or (now.labels != before.labels and before is parts[0]):
            gone = sorted(set(before.labels) - set(now.labels))
            what = f"the class '{gone[0]}'" if gone else f"{before.source}"
            raise DataError(
                f"no item of {what} can be read: {now.skipped[-1]}", path=before.source, hint="repair or replace them"
            )
    require_classes(left[0])


def _unfrozen(
    materials: Materials,
    problem: Problem,
    trained: TrainedHead,
    known: Known,
    checkpoints: Path,
    progress: Progress,
) -> Tuned:
    """The model with its last stages trained together with the head; the head alone if that lowered no loss."""
    options, backbone = problem.options, materials.backbone()
    cut = trunk.cut_at(backbone, options.unfreeze)
    frozen = materials.trunk(cut)
    session = Session(frozen, known.device)
    # Ctrl-C stops the computing of activations at once, and keeps the computed ones.
    with (
        Activations.open(
            materials.cache, session, known.parts[0].examples, progress, views=options.augment, seed=options.seed
        ) as activations,
        noticing() as stop,
    ):
        run = _run(stop, checkpoints, options, progress)
        top, stages = fit_tail(
            problem, trained, activations, lambda: trunk.tail(backbone, cut), run, device=known.device
        )
    if not top.best_epoch:
        progress.note(f"training the last {options.unfreeze} stages brought no better loss: they stay as they were")
        return Tuned(frozen=materials.base, head=trained, labels=known.labels)
    return Tuned(frozen=frozen, head=top, labels=known.labels, stages=stages)


def _run(stop: Interrupt, checkpoints: Path, options: FinetuneOptions, progress: Progress) -> TrainingRun:
    return TrainingRun(stop=stop, checkpoints=checkpoints, resume=options.resume, progress=progress)
