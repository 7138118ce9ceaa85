"""`zoo compare`: the scores that linear heads on the features of several models reach on the same data.

All items are used: every score is that of heads which did not learn the item. The folds of these heads depend on the
items and the seed only, so all models are measured on the same folds.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from zoo.bundle import Bundle
from zoo.data.dataset import Dataset, require_classes
from zoo.data.dataset import load as load_data
from zoo.data.quality import survey
from zoo.errors import DataError, MissingFileError, UsageError, ZooError
from zoo.evaluation.metrics import measure
from zoo.evaluation.uncertainty import interval, p_value, score_of, terms
from zoo.export.precision_speed import MOST, time_precisions
from zoo.graph.external_data import total_size
from zoo.options import CompareOptions
from zoo.progress import Progress
from zoo.results import Compared, Comparison, Failure
from zoo.runtime.session import Session
from zoo.schema import Entry, ImagePreprocess, Metrics
from zoo.system.interrupt import Interrupt
from zoo.training.feature_cache import FeatureCache
from zoo.training.finetune import check_left, in_order, problem_of, readable_features
from zoo.training.fit_head import fit, training_threads
from zoo.training.loop import TrainingRun

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.evaluation.uncertainty import Terms
    from zoo.graph.head import Floats

#: A p-value from which a difference counts as noise, and a factor from which a model counts as faster.
NOISE, FASTER = 0.05, 1.2
Made = TypeVar("Made")


class Featured(NamedTuple):
    """A model with the features [items, dim] of the items that it could read, and what was measured on the way."""

    model: str
    bundle: Bundle
    device: str
    data: Dataset
    features: "Floats"
    computed: int
    seconds: float
    ms: float
    int8_ms: float | None


class Scored(NamedTuple):
    """A model with the metrics of its heads on the items `seen` [items] that were left out, and their `terms`."""

    featured: Featured
    metrics: Metrics
    seen: "NDArray[np.bool_]"
    terms: "Terms"
    seconds: float


class Attempts:
    """Runs a step for one model after the other; a model whose step fails is reported, and left out of later steps."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.errors: dict[str, ZooError] = {}

    def run(self, models: Mapping[str, Any], step: Callable[[str, Any], Made]) -> dict[str, Made]:
        """The results of `step` by model. Raises an error if no model is left, and reports the others."""
        found: dict[str, Made] = {}
        for model, material in models.items():
            try:
                found[model] = step(model, material)
            except ZooError as error:
                self.errors[model] = error
                if len(models) == 1:
                    # This error is the answer of the whole comparison.
                    raise
                hint = f" ({error.hint})" if error.hint else ""
                self.progress.note(" ".join(f"failed: {model}: {error.message}{hint}".split()))
        if not found:
            raise next(error for model, error in self.errors.items() if model in models)
        return found


def load(
    entries: Mapping[str, Entry], source: str | Path, options: CompareOptions, *, offline: bool, progress: Progress
) -> Dataset:
    """All items of the data at `source`, in an order that does not depend on the files' names.

    Raises UsageError unless all models read images or all read texts, and the errors of `zoo.data.dataset.load` and of
    `require_classes`; they name the model if the data may be of the wrong kind for it.
    """
    kinds = {
        name: "images" if isinstance(each.preprocess, ImagePreprocess) else "texts" for name, each in entries.items()
    }
    (first, kind), *others = kinds.items()
    for name, other in others:
        if other != kind:
            raise UsageError(
                f"{name} reads {other}, and {first} reads {kind}", hint="compare models that read the same data"
            )
    try:
        data = load_data(source, entries[first].preprocess, options, offline=offline, progress=progress)
    except MissingFileError:
        raise
    except UsageError as error:
        error.message = f"{first}: {error.message}"
        error.args = (error.message,)
        raise
    require_classes(data)
    for note in survey(data):
        progress.note(note)
    return in_order(data)


def compare(
    graphs: "Mapping[str, Bundle | ZooError]", data: Dataset, options: CompareOptions, cache: Path, progress: Progress
) -> Comparison:
    """The comparison of the models whose bundles are in `graphs`; a model with an error there is a failure.

    `cache` is the folder of the feature cache, which `zoo finetune` shares. Raises the first error if all models fail.
    """
    attempts = Attempts(progress)

    def featured(model: str, bundle: Bundle | ZooError) -> Featured:
        if isinstance(bundle, ZooError):
            raise bundle
        return _features(model, bundle, data, options, cache, progress)

    models = attempts.run(graphs, featured)
    common = _common(data, list(models.values()))
    scored = attempts.run(models, lambda _, each: _score(each, common, options, progress))
    rows = _rows(options, list(scored.values()))
    choice, why = _choice(rows)
    return Comparison(
        data=data.source,
        task=options.task,
        device=next(iter(models.values())).device,
        items=len(common.examples),
        models=rows,
        choice=choice,
        why=why,
        skipped=tuple(map(str, common.skipped)),
        failures=tuple((model, Failure.of(error)) for model, error in attempts.errors.items()),
    )


def _features(
    model: str, bundle: Bundle, data: Dataset, options: CompareOptions, folder: Path, progress: Progress
) -> Featured:
    session = Session(bundle, options.device)
    cache, begun = FeatureCache(folder, session), time.perf_counter()
    [left], features = readable_features(cache, [data], options.max_bad, progress)
    seconds = time.perf_counter() - begun
    items = Random(options.seed).sample(left.items, min(MOST, len(left.items)))
    with progress.task(f"timing {model}", None):
        ms, int8_ms = time_precisions(session, items)
    return Featured(model, bundle, session.device, left, features, cache.computed, seconds, ms, int8_ms)


def _common(data: Dataset, models: Sequence[Featured]) -> Dataset:
    """The items that all models could read. Raises DataError if none is left of a class."""
    readable = set.intersection(*(set(each.data.examples) for each in models))
    skipped = dict.fromkeys(skipped for each in models for skipped in each.data.skipped)
    left = Dataset(
        data.source, tuple(each for each in data.examples if each in readable), data.task, tuple(skipped), data.column
    )
    if skipped:
        check_left([left], [data])
    return left


def _score(each: Featured, data: Dataset, options: CompareOptions, progress: Progress) -> Scored:
    """Fits the head that `zoo finetune` fits to these items. Raises DataError if no item can be left out."""
    import numpy as np

    kept, training, labels = set(data.examples), options.training(), data.labels
    features = each.features[[example in kept for example in each.data.examples]]
    problem = problem_of(features, data, labels, training)
    # The context imports torch, which the seconds of the first head should not contain.
    with training_threads(problem):
        begun = time.perf_counter()
        head = fit(problem, TrainingRun(stop=Interrupt(), progress=progress))
        seconds = time.perf_counter() - begun
    assert head.left_out is not None
    seen = np.atleast_1d(np.isfinite(head.left_out).all(axis=1))
    if not seen.any():
        text = f"{data.source} has only copies of one item, and none can be left out"
        raise DataError(text, path=data.source, hint="add items")
    scores, targets = head.left_out[seen], problem.targets[seen]
    metrics = measure(options.task, scores, targets, labels, thresholds=head.thresholds)
    return Scored(each, metrics, seen, terms(options.task, scores, targets, head.thresholds), seconds)


def _rows(options: CompareOptions, models: Sequence[Scored]) -> tuple[Compared, ...]:
    """The models, best first; of models with equal scores the faster one is first."""
    ordered = sorted(models, key=lambda each: (-each.metrics.score, each.featured.ms))
    best, rows, task = ordered[0], [], options.task
    for each in ordered:
        # Of very many items, each model may leave out others.
        both = best.seen & each.seen
        first, second = best.terms[both[best.seen]], each.terms[both[each.seen]]
        chance = p_value(task, first, second) if both.any() else 1.0
        behind = score_of(task, first.sum(0)) - score_of(task, second.sum(0)) if both.any() else 0.0
        featured = each.featured
        rows.append(
            Compared(
                model=featured.model,
                entry=featured.bundle.manifest.lineage.entry.name,
                metrics=each.metrics,
                interval=interval(task, each.terms),
                behind=float(behind),
                p_value=chance,
                is_within_noise=chance >= NOISE,
                size=total_size(featured.bundle.model),
                dim=featured.bundle.manifest.dim,
                computed=featured.computed,
                feature_seconds=featured.seconds,
                head_seconds=each.seconds,
                ms=featured.ms,
                int8_ms=featured.int8_ms,
            )
        )
    return tuple(rows)


def _choice(rows: Sequence[Compared]) -> tuple[str, str]:
    """Returns the model to take, the fastest of those that score no worse than the best, and why."""
    best, alike = rows[0], [each for each in rows if each.is_within_noise]
    if len(rows) == 1:
        return best.model, f"{best.model} is the only model that was compared"
    fastest = min(alike, key=lambda each: each.ms)
    times = best.ms / fastest.ms
    if times >= FASTER:
        factor = f"{times:.1f}" if times < 10 else f"{times:.0f}"
        return fastest.model, f"{fastest.model} is within the noise of {best.model} and {factor} x faster"
    if len(alike) == 1:
        return best.model, f"{best.model} scores higher than the others by more than the noise"
    return best.model, f"{best.model} has the highest score, and no model within the noise of it is clearly faster"
