"""Fine-tuning: compute the frozen backbone's features once, train a head, and write one checked ONNX file.

With `unfreeze` the last stages are then trained together with the head, on the activations of the stages before them.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from zoo.data.augment import View
from zoo.data.dataset import Dataset, require_classes
from zoo.data.items import Unreadable
from zoo.data.quality import survey
from zoo.data.split import divide
from zoo.errors import DataError, UsageError
from zoo.evaluation.report import Drawing
from zoo.evaluation.suspects import find_suspects
from zoo.export import trunk
from zoo.export.isolated_session import IsolatedSession
from zoo.options import FinetuneOptions
from zoo.progress import SILENT, Progress
from zoo.results import Outcome, Suspect
from zoo.runtime.session import Session
from zoo.schema import ImagePreprocess, Preprocess
from zoo.system.files import staged_dir, storage_errors
from zoo.system.interrupt import noticing
from zoo.training import resume
from zoo.training.activation_cache import Activations
from zoo.training.feature_cache import FeatureCache
from zoo.training.fit_head import fit, is_narrow, training_threads
from zoo.training.folds import group_numbers
from zoo.training.loop import SAVED, TrainingRun
from zoo.training.problem import Problem
from zoo.training.unfreeze import fit_tail
from zoo.training.write_bundle import Features, Materials, Tuned, expectation, write_bundle

if TYPE_CHECKING:
    from zoo.export.reference import Expected
    from zoo.graph.head import Floats


def finetune(materials: Materials, parts: tuple[Dataset, Dataset], out: Path, progress: Progress = SILENT) -> Outcome:
    """Train on `parts` (training, held out) and write a checked bundle at `out`.

    Raises DataError, UsageError, DivergedError, GateError; on any error nothing is written at `out`. On Ctrl-C the
    current step is finished and saved and KeyboardInterrupt is raised; the option `resume` continues from there.
    """
    base, trainings, options = materials.base, materials.trainings, materials.options
    notes = survey(parts[0].only([*parts[0].examples, *parts[1].examples]))
    for note in notes:
        progress.note(note)
    if options.resume:
        # Only the same training can be resumed; this is checked before anything is computed.
        resume.check(trainings, out, resume.identity(base, parts, options), parts=False)
    with Drawing() as drawing:
        features = _features(materials, parts, progress)
        with storage_errors(trainings):
            facts = resume.identity(base, features.parts, options)
            checkpoints = resume.open_run(trainings, out, facts, resume=options.resume)
        # The process that will open the file is started now, so that it imports its runtime during the training.
        with IsolatedSession() as fresh:
            tuned, expected = _train(materials, features, checkpoints, progress)
            with progress.task("merging and checking the ONNX file", None), staged_dir(out) as folder:
                manifest, metrics = write_bundle(folder, tuned, notes, expected, fresh, drawing)
    return Outcome(
        manifest=manifest,
        metrics=metrics,
        curve=tuned.head.curve,
        best_epoch=tuned.head.best_epoch,
        computed=features.computed,
        items=len(features.train) + len(features.held),
        skipped=tuple(map(str, features.skipped)),
        suspects=tuned.suspects,
        learning=tuned.head.learning,
    )


def load(
    preprocess: Preprocess,
    source: str | Path,
    options: FinetuneOptions,
    *,
    offline: bool = False,
    progress: Progress = SILENT,
) -> tuple[Dataset, Dataset]:
    """Returns the training and the held-out part of the data at `source`, each sorted by digest.

    `zoo.data.split.divide` divides the data. Sorting makes the trained model independent of the order of the files.
    Raises UsageError for views of texts.
    """
    if options.augment and not isinstance(preprocess, ImagePreprocess):
        raise UsageError("only images have random views, and this model reads text", hint="leave --augment out")
    train, held = map(in_order, divide(source, preprocess, options, offline=offline, progress=progress))
    return train, held


def in_order(data: Dataset) -> Dataset:
    """The data set, sorted by digest."""
    return data.only(sorted(data.examples, key=lambda example: (example.digest, example.label, example.name)))


def readable_features(
    cache: FeatureCache, parts: Sequence[Dataset], max_bad: float, progress: Progress
) -> "tuple[list[Dataset], Floats]":
    """Returns the parts without their unreadable items, and the features [items, dim] of one part after the other.

    Features in the cache are not computed again. Raises DataError for more than `max_bad` unreadable items, and if none
    is left of a part or of a class.
    """
    examples = [example for part in parts for example in part.examples]
    skipped = [each for part in parts for each in part.skipped]
    unreadable = Unreadable(skipped, len(examples) + len(skipped), max_bad)
    vectors = cache.features(examples, progress, unreadable.skip(examples))
    left = [part.readable(unreadable) for part in parts]
    if unreadable.found:
        check_left(left, parts)
    return left, vectors[unreadable.kept(examples)]


def problem_of(
    features: "Floats", data: Dataset, labels: Sequence[str], options: FinetuneOptions, views: "Sequence[Floats]" = ()
) -> Problem:
    """The problem of a head that learns `data`; copies of an item stay together in all splits."""
    groups = group_numbers([example.digest for example in data.examples])
    return Problem(features, data.targets(labels), len(labels), options, views, groups)


def _features(materials: Materials, parts: tuple[Dataset, Dataset], progress: Progress) -> Features:
    """The features of all readable items and of the views of those to train on."""
    options, session = materials.options, Session(materials.base, materials.options.device)
    cache = FeatureCache(materials.cache, session)
    (train, held), vectors = readable_features(cache, parts, options.max_bad, progress)
    computed, border = cache.computed, len(train.examples)
    views = []
    for k in range(1, options.augment + 1):
        views.append(cache.features(train.examples, progress, view=View(options.seed, k)))
        computed += cache.computed
    return Features((train, held), vectors[:border], vectors[border:], views, computed, session.device)


def check_left(left: Sequence[Dataset], parts: Sequence[Dataset]) -> None:
    """Raise DataError when every item of a part or of a class is unreadable."""
    for now, before in zip(left, parts, strict=True):
        if not now.examples or (now.labels != before.labels and before is parts[0]):
            gone = sorted(set(before.labels) - set(now.labels))
            what = f"the class '{gone[0]}'" if gone else f"{before.source}"
            raise DataError(
                f"no item of {what} can be read: {now.skipped[-1]}", path=before.source, hint="repair or replace them"
            )
    require_classes(left[0])


def _train(
    materials: Materials, features: Features, checkpoints: Path, progress: Progress
) -> "tuple[Tuned, Callable[[], Expected] | None]":
    """Returns the trained model, and a function that returns the file's expected outputs if they are being computed."""
    (train, held), labels, options = features.parts, features.labels, materials.options
    backbone, beside = materials.backbone(), ThreadPoolExecutor(1)
    run = partial(TrainingRun, checkpoints=checkpoints, resume=options.resume, progress=progress)
    expected: Future[Expected] | None = None
    try:
        with noticing() as stop:
            problem = problem_of(features.train, train, labels, options, features.views)
            with training_threads(problem):
                if is_narrow(problem) and not options.unfreeze and backbone.load():
                    # The head trains on one core; another core computes the outputs that the file must give.
                    expected = beside.submit(expectation, materials.base, trunk.only_features(backbone.reference), held)
                trained = fit(problem, run(stop=stop))
                if expected:
                    wait([expected])
            if stop.is_asked:
                raise KeyboardInterrupt(SAVED)
    finally:
        # After an error or a second Ctrl-C, the expected outputs are not needed.
        beside.shutdown(wait=False, cancel_futures=True)
    suspects: tuple[Suspect, ...] = ()
    if trained.left_out is not None:
        suspects = find_suspects(options.task, trained.left_out, problem.targets, labels, train.examples)
    tuned = Tuned(materials=materials, features=features, frozen=materials.base, head=trained, suspects=suspects)
    if options.unfreeze:
        tuned = _unfrozen(tuned, problem, run, progress)
    return tuned, expected.result if expected else None


def _unfrozen(tuned: Tuned, problem: Problem, run: Callable[..., TrainingRun], progress: Progress) -> Tuned:
    """The model with its last stages trained together with the head; unchanged if the inner loss did not fall."""
    materials, features, options = tuned.materials, tuned.features, problem.options
    backbone = materials.backbone()
    cut = trunk.cut_at(backbone, options.unfreeze)
    frozen, tail = materials.trunk(cut), partial(trunk.tail, backbone, cut)
    session, examples = Session(frozen, features.device), features.parts[0].examples
    # Ctrl-C stops the computation of activations at once; the computed ones are kept.
    with (
        Activations(
            materials.cache, session, examples, progress, views=options.augment, seed=options.seed
        ) as activations,
        noticing() as stop,
    ):
        head, stages = fit_tail(problem, tuned.head, activations, tail, run(stop=stop), device=features.device)
    if not head.best_epoch:
        progress.note("training the last stages did not lower the loss: they stay unchanged")
        return tuned
    return replace(tuned, frozen=frozen, head=head, stages=stages)
