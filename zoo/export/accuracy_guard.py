"""The accuracy guard: a model in int8 must answer as well as before, on items that it was not trained on."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import msgspec
import onnx

from zoo.bundle import HEAD, MODEL, Bundle, Held, describe_files, read_split
from zoo.data.dataset import Dataset, is_hub, load, load_parts
from zoo.data.items import Example, Item, Unreadable
from zoo.data.labels import reads_pairs
from zoo.data.samples import PARITY_SAMPLES, parity_samples
from zoo.data.split import split
from zoo.errors import DataError, GateError, ZooError
from zoo.evaluation.evaluate import infer_readable, names_of
from zoo.evaluation.metrics import measure
from zoo.export import precision
from zoo.graph import edit, head
from zoo.options import FinetuneOptions, Variant
from zoo.progress import Progress
from zoo.runtime.session import Session
from zoo.schema import PRETRAINED, Guard, Manifest, Metrics, Task

if TYPE_CHECKING:
    from zoo.graph.head import Floats, Layer

#: Items whose activations give the ranges, and batches on which layers are compared when too much accuracy was lost.
CALIBRATED, COMPARED = 128, 4
#: How often layers are left in float, and the fraction of all layers each time.
ROUNDS, PART = 3, 0.1


class HeldOut(NamedTuple):
    """The labelled items that the guard measures on, their name `origin`, and the exact model's metrics on them."""

    data: Dataset
    origin: str
    before: Metrics
    #: Other items, on which the model was trained; there may be none.
    trained: Dataset


class GuardData(NamedTuple):
    """The data for the conversion of `source`, and `max_drop`, the largest accuracy that it may lose.

    calibrate: the items to calibrate with.
    compared: the items that the parity check compares, all readable, and their name in the report.
    held: the items to measure on; None for a model without labels, because its accuracy cannot be measured.
    unreadable: collects the items that cannot be read.
    """

    source: Bundle
    max_drop: float
    calibrate: Sequence[Example]
    compared: tuple[Sequence[Item], str]
    held: HeldOut | None
    unreadable: Unreadable


class Quantised(NamedTuple):
    """A quantised graph, its manifest and metrics, and the layers of its head if the head was fitted again."""

    model: onnx.ModelProto
    manifest: Manifest
    metrics: Metrics
    layers: "list[Layer] | None" = None


class Refitted(NamedTuple):
    """A head that was fitted again: its layers, and the thresholds of a multi-label model."""

    layers: "list[Layer]"
    thresholds: tuple[float, ...]


#: The type of `zoo.training.refit.refit_head`, which callers pass in because export must not import training.
#: (converted bundle, its source, items that the source was trained on, unreadable items) -> the head fitted again.
RefitHead: TypeAlias = Callable[[Bundle, Bundle, Dataset, Unreadable], Refitted]


def load_guard_data(source: Bundle, variant: Variant, *, offline: bool, progress: Progress) -> GuardData:
    """Read `variant.calibrate` and divide it into items to calibrate with and items to measure the accuracy on.

    Items that fine-tuning trained on calibrate; items that it held out are measured. If the data have no held-out
    item, the guard measures on the data that fine-tuning validated on, or else on items that the model has not seen.
    The parts `val` and `test` of a folder do not calibrate. The accuracy of a model without labels, or with a
    classifier from the weights that lacks a label of the data, is not measured: its parity check compares items that
    did not calibrate, if there are enough.

    Raises DataError for labels that the model does not know, for data without items to measure on or to calibrate with,
    and for unreadable items.
    """
    manifest = source.manifest
    assert variant.calibrate is not None
    task = manifest.task if manifest.head else FinetuneOptions().task
    reading = msgspec.structs.replace(variant.reading(task), pairs=reads_pairs(manifest))
    names = names_of(manifest, variant.labels, progress)
    parts = load_parts(variant.calibrate, manifest.preprocess, reading, offline=offline, progress=progress)
    data, *others = (part.renamed(names) for part in parts.values())
    skipped = [each for part in (data, *others) for each in part.skipped]
    everything = [example for part in (data, *others) for example in part.examples]
    unreadable = Unreadable(skipped, len(skipped) + len(everything), variant.max_bad)
    session = Session(source, "cpu")
    lacks_labels = manifest.head == PRETRAINED and not _knows(manifest, everything, data)
    if lacks_labels:
        problem = f"{variant.calibrate} has labels that {manifest.name} does not know"
        progress.note(f"the accuracy is not measured: {problem}; --labels FILE maps names to its labels")
    if manifest.head is None or lacks_labels:
        rest, compared = _split_compared(
            session, data, data.only(e for part in others for e in part.examples), unreadable
        )
        return GuardData(source, variant.max_drop, _some(rest), compared, None, unreadable)
    known = read_split(source)
    whole = msgspec.structs.replace(data, source=variant.calibrate, examples=tuple(everything))
    whole.targets(manifest.labels)
    trained = whole.only(e for e in everything if e.digest in known and not known[e.digest].held_out)
    held, origin = _held(source, whole, trained, known, offline, progress)
    measured = {example.digest for example in held.examples}
    candidates = [*trained.examples, *(e for e in data.examples if e.digest not in known)]
    calibrate = data.only(example for example in candidates if example.digest not in measured)
    if not calibrate.examples:
        problem = f"{whole.source} holds only held-out items; calibration needs others"
        raise DataError(problem, path=whole.source, hint="add items that the model was trained on")
    scores, held = infer_readable(session, held, "scores", unreadable)
    if not held.examples:
        raise DataError(f"no held-out item of {held.source} can be read", path=held.source, hint="repair the items")
    measured_on = HeldOut(held, origin, _metrics(scores, held, manifest), trained)
    compared = parity_samples(held), "the held-out items"
    return GuardData(source, variant.max_drop, _some(calibrate), compared, measured_on, unreadable)


def _knows(manifest: Manifest, examples: Sequence[Example], data: Dataset) -> bool:
    """Whether a classifier that came with the weights has every label of the data, so that accuracy can be measured."""
    return manifest.task is Task.REGRESSION or {
        label for example in examples for label in data.labels_of(example)
    } <= set(manifest.labels)


def quantise(
    data: GuardData, plain: Manifest, model: onnx.ModelProto, folder: Path, refit_head: RefitHead, progress: Progress
) -> Manifest:
    """Write the `model` of `data.source` in int8 into `folder`, which holds the other files of the bundle.

    Returns the manifest `plain` with the metrics and the guard. If any accuracy is lost, the head is fitted again to
    the new features. If more than `max_drop` (or one item) is lost, the layers that lose most stay in float. Raises
    GateError, which names these layers, if too much is still lost.
    """
    items = [example.item for example in data.calibrate]
    batches = list(precision.calibration(Session(data.source, "cpu"), items, data.unreadable.skip(data.calibrate)))
    if not batches:
        raise DataError("no item to calibrate with can be read", hint="repair them, or give other data")
    held = data.held
    if held is None:
        edit.save(precision.int8(model, batches), folder / MODEL)
        return plain
    excluded: list[str] = []
    ranked: list[str] = []
    for attempt in range(ROUNDS + 1):
        with progress.task("quantising and measuring the accuracy" + f", attempt {attempt + 1}" * bool(attempt), None):
            converted = precision.int8(model, batches, excluded)
            found = _measured(data, held, plain, converted, folder, refit_head)
        guard = _guard(held, found.metrics, data.max_drop, excluded, refitted=found.layers is not None)
        if _is_kept(guard):
            edit.save(found.model, folder / MODEL)
            if found.layers is not None:
                head.save(found.layers, folder / HEAD)
            return msgspec.structs.replace(found.manifest, guard=guard, metrics=found.metrics)
        if attempt < ROUNDS:
            # The error of a single quantised layer does not depend on the excluded layers, so layers are ranked once.
            ranked = ranked or precision.worst_layers(model, batches[:COMPARED])
            excluded = ranked[: max(1, round(PART * len(ranked))) * (attempt + 1)]
            progress.note(
                f"{guard.before:.4f} became {guard.after:.4f}: these layers stay in float: {', '.join(excluded)}"
            )
    layers = f" (the layers that lose most: {', '.join(excluded[:5])})"
    hint = "calibrate with the data that the model was trained on, allow more with --max-drop, or export fp32"
    raise _too_much(guard, "int8", held.origin, layers, hint=hint)


def guard_of(candidate: Bundle, data: GuardData) -> tuple[Guard, Metrics]:
    """The guard of `candidate`, the quantised form of `data.source`, and its metrics on the held-out items.

    Raises GateError if it loses more accuracy than `max_drop` (or one item).
    """
    assert data.held is not None
    after = _run(candidate, data.held.data, data.source.manifest)
    guard = _guard(data.held, after, data.max_drop)
    if not _is_kept(guard):
        hint = "allow more with --max-drop, or export fp16"
        raise _too_much(guard, candidate.manifest.precision, data.held.origin, hint=hint)
    return guard, after


def _measured(
    data: GuardData, held: HeldOut, plain: Manifest, model: onnx.ModelProto, folder: Path, refit_head: RefitHead
) -> Quantised:
    """The converted `model` with its metrics, and with its head fitted again if the new head scores higher."""
    candidate = save_bundle(model, plain, folder)
    found = Quantised(model, plain, _run(candidate, held.data, plain))
    if not (held.before.score > found.metrics.score and held.trained.examples):
        return found
    fitted = refit_head(candidate, data.source, held.trained, data.unreadable)
    manifest = msgspec.structs.replace(plain, thresholds=fitted.thresholds)
    refitted = _with_head(model, fitted.layers, manifest)
    metrics = _run(save_bundle(refitted, manifest, folder), held.data, manifest)
    return Quantised(refitted, manifest, metrics, fitted.layers) if metrics.score > found.metrics.score else found


def _held(
    source: Bundle, data: Dataset, trained: Dataset, known: Mapping[str, Held], offline: bool, progress: Progress
) -> tuple[Dataset, str]:
    """Returns the items to measure on, none of which was trained on, and their name. Raises DataError without any."""
    was_held = {digest for digest, line in known.items() if line.held_out}
    held = data.only(example for example in data.examples if example.digest in was_held)
    if not held.examples:
        # The data may have changed since fine-tuning, so only items with the digest of a held-out item are taken.
        held = _validated_on(source.manifest, offline, progress) or held
        held = held.only(example for example in held.examples if example.digest in was_held)
    if held.examples:
        return held, f"held-out items of {held.source}"
    unseen = data.only(example for example in data.examples if example.digest not in known)
    if not unseen.examples:
        raise DataError(
            f"the model was trained on every item of {data.source}; the guard needs others",
            path=data.source,
            hint="--calibrate DATA that has the held-out items, or items that the model has not seen",
        )
    if trained.examples:
        # The trained items calibrate, so all unseen items can be measured.
        return unseen, f"items of {data.source} that it has not seen"
    try:
        return split(unseen, 0.2, 0)[1], f"a fifth of {data.source}, which it has not seen"
    except DataError as error:
        # The hints of `split` name options of fine-tuning.
        error.hint = "--calibrate DATA with two labels or more, and two items or more of each"
        raise


def _validated_on(manifest: Manifest, offline: bool, progress: Progress) -> Dataset | None:
    """The data set that fine-tuning got as `--val`; None if it got a fraction or if the data cannot be read now."""
    options = training_options(manifest)
    if isinstance(options.val, float) or not (is_hub(options.val) or Path(options.val).exists()):
        return None
    try:
        return load(options.val, manifest.preprocess, options, offline=offline, progress=progress)
    except ZooError as error:
        # The data may have moved or changed, and there may be other items to measure on.
        progress.note(f"{options.val}, the validation data of fine-tuning, cannot be read: {error.message}")
        return None


def _split_compared(
    session: Session, data: Dataset, others: Dataset, unreadable: Unreadable
) -> tuple[Dataset, tuple[Sequence[Item], str]]:
    """Returns the calibration items, and the items that the parity check compares with their name in the report.

    The parity check gets items of `others`. If `others` is empty, it gets items of `data`. These do not calibrate,
    unless too few items would be left.
    """
    pool = others if others.examples else data
    while pool.examples:
        owners = {id(example.item): example for example in pool.examples}
        chosen = pool.only(owners[id(item)] for item in parity_samples(pool))
        compared = infer_readable(session, chosen, "features", unreadable)[1]
        if compared.examples == chosen.examples:
            break
        pool = pool.readable(unreadable)
    else:
        raise DataError(
            f"no item of {pool.source} for the parity check can be read", path=pool.source, hint="repair the items"
        )
    rest = data.readable(unreadable)
    if len(rest.examples) < 2 * PARITY_SAMPLES and not others.examples:
        return rest, (compared.items, "the calibration items")
    digests = {example.digest for example in compared.examples}
    calibrate = rest.only(example for example in rest.examples if example.digest not in digests)
    return calibrate, (compared.items, "the items that did not calibrate")


def _guard(
    held: HeldOut, after: Metrics, max_drop: float, excluded: Sequence[str] = (), *, refitted: bool = False
) -> Guard:
    before = held.before
    chosen = ["the head that was fitted again"] * refitted + ["the layers left in float"] * bool(excluded)
    return Guard(
        n=before.n,
        items=held.origin + (f"; they also chose {' and '.join(chosen)}" if chosen else ""),
        before=before.score,
        after=after.score,
        allowed=_allowed(before, max_drop),
        # The interval is that of the accuracy. With several labels the score is a macro-F1, so no interval is shown.
        interval=after.accuracy_interval if after.micro_f1 is None else None,
        excluded=tuple(excluded),
        refitted=refitted,
    )


def _allowed(before: Metrics, max_drop: float) -> float:
    """The largest allowed loss of the score: at least one item, unless the score is an R squared."""
    return max(max_drop, 1 / before.n if before.r2 is None else 0)


def _is_kept(guard: Guard) -> bool:
    return guard.before - guard.after <= guard.allowed + 1e-9


def _too_much(guard: Guard, precision: str, origin: str, layers: str = "", *, hint: str) -> GateError:
    return GateError(
        f"{precision} loses too much: {guard.before:.4f} became {guard.after:.4f} on n = {guard.n} ({origin}), at most "
        f"{guard.allowed:.4f} may be lost{layers}; nothing was written",
        report=guard,
        hint=hint,
    )


def _some(data: Dataset) -> list[Example]:
    """At most CALIBRATED of the items; the choice does not depend on the order of the data."""
    return sorted(data.examples, key=lambda example: example.digest)[:CALIBRATED]


def save_bundle(model: onnx.ModelProto, manifest: Manifest, folder: Path) -> Bundle:
    """The model as a bundle in `folder`, which a session can open."""
    edit.save(model, folder / MODEL)
    return Bundle(folder, msgspec.structs.replace(manifest, files=describe_files(folder)))


def _run(bundle: Bundle, held: Dataset, manifest: Manifest) -> Metrics:
    """The metrics of the bundle on `held`, with the labels and thresholds of `manifest`."""
    return _metrics(Session(bundle, "cpu").infer(held.items, ["scores"])["scores"], held, manifest)


def _metrics(scores: "Floats", held: Dataset, manifest: Manifest) -> Metrics:
    return measure(
        manifest.task, scores, held.targets(manifest.labels), manifest.labels,
        thresholds=manifest.thresholds, class_weights=manifest.class_weights,
    )  # fmt: skip


def training_options(manifest: Manifest) -> FinetuneOptions:
    """The recorded options of the model's training; defaults for those that are not recorded."""
    return msgspec.convert(manifest.lineage.options, FinetuneOptions)


def _with_head(model: onnx.ModelProto, layers: "Sequence[Layer]", manifest: Manifest) -> onnx.ModelProto:
    top = head.as_graph(layers, manifest.activation or "softmax")
    return precision.join_parts(precision.split_parts(model)._replace(head=top), edit.metadata_of(model))
