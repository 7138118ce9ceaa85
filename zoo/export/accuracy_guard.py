"""The accuracy guard: eight bits are worth having only if the model still answers as well, on items it never saw."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import msgspec

from zoo.bundle import MODEL, Bundle, Held, describe_files, read_split
from zoo.data.dataset import Dataset, Item, is_hub, load, load_parts
from zoo.data.items import Example, Skip, Skipped, check_bad
from zoo.data.samples import GATE_SAMPLES, gate_samples
from zoo.data.split import split
from zoo.errors import DataError, GateError, ZooError
from zoo.evaluation.metrics import measure
from zoo.export import precision
from zoo.graph import edit, head
from zoo.options import FinetuneOptions, Variant
from zoo.progress import Progress
from zoo.runtime.session import Session
from zoo.schema import Guard, Manifest, Metrics

if TYPE_CHECKING:
    import onnx

    from zoo.graph.head import Layer

#: Items whose activations give the ranges, and those on which the layers are compared when too much was lost.
CALIBRATED, COMPARED = 128, 4
#: How often layers are taken out, and which part of all of them each time.
ROUNDS, PART = 3, 0.1
#: The part of items that nothing saw which judges.
UNSEEN = 0.2


class Unreadable:
    """Items that turn out to be unreadable once they are used; more than `max_bad` of `total` raise DataError."""

    def __init__(self, skipped: Sequence[Skipped], total: int, max_bad: float) -> None:
        self.skipped, self.total, self.max_bad = skipped, total, max_bad
        self.found: dict[str, Skipped] = {}

    def skip(self, examples: Sequence[Example]) -> Skip:
        """What to tell the runtime that is given the items of `examples`."""

        def told(place: int, error: DataError) -> None:
            example = examples[place]
            self.found[example.digest] = Skipped(example.name, error.message)
            check_bad([*self.skipped, *self.found.values()], self.total, self.max_bad)

        return told

    def readable(self, data: Dataset) -> Dataset:
        """The examples but for those that were found."""
        return data.only(example for example in data.examples if example.digest not in self.found)


class Material(NamedTuple):
    """Items to calibrate with, labelled ones that were trained on, and labelled ones to judge by, with where from.

    `before` is what the exact model scores on the latter. `gate` are those that the parity gate looks at, and what a
    report calls them; all of them can be read. Of the others those that cannot are told to `unreadable`.
    """

    calibrate: Sequence[Example]
    trained: Dataset | None
    held: Dataset | None
    before: Metrics | None
    origin: str
    gate: tuple[Sequence[Item], str]
    unreadable: Unreadable


class Quantised(NamedTuple):
    """What came of it: the graph, the layers of a head that was fitted again, the manifest with what it says of it."""

    model: "onnx.ModelProto"
    layers: "list[Layer] | None"
    manifest: Manifest


class Refitted(NamedTuple):
    """A head fitted again: its layers, and the thresholds of several labels."""

    layers: "list[Layer]"
    thresholds: tuple[float, ...]


#: Fits a head to the features of a converted bundle (first argument) as that of its source (second) was fitted, on the
#: items that it was trained on; see `zoo.training.refit`.
Refit: TypeAlias = Callable[[Bundle, Bundle, Dataset, Unreadable | None], Refitted]


def material(source: Bundle, variant: Variant, *, offline: bool, progress: Progress) -> Material:
    """Read the data of `variant`: what fine-tuning held out judges, what it trained on calibrates.

    Where it held out none of these items it is the data that it was validated on, if that is still there, or else items
    that it has not seen. A folder's parts `val` and `test` do not calibrate. A model without labels is not judged, and
    the parity gate looks at items that did not calibrate where there are enough. Raises DataError for labels that the
    model does not know, for data without an item to judge by or to calibrate with, and for unreadable items.
    """
    manifest = source.manifest
    assert variant.calibrate is not None
    task = manifest.task if manifest.head else FinetuneOptions().task
    parts = load_parts(
        variant.calibrate, manifest.preprocess, task=task, text=variant.text, image=variant.image,
        label=variant.label, max_bad=variant.max_bad, offline=offline, progress=progress,
    )  # fmt: skip
    data, *others = parts.values()
    skipped = [each for part in parts.values() for each in part.skipped]
    everything = [example for part in parts.values() for example in part.examples]
    unreadable = Unreadable(skipped, len(skipped) + len(everything), variant.max_bad)
    session = Session(source, "cpu")
    if manifest.head is None:
        rest, gate, called = _apart(session, data, data.only(e for part in others for e in part.examples), unreadable)
        return Material(_some(rest), None, None, None, data.source, (gate, called), unreadable)
    known = read_split(source)
    whole = msgspec.structs.replace(data, source=variant.calibrate, examples=tuple(everything))
    whole.targets(manifest.labels)
    trained = whole.only(e for e in everything if e.digest in known and not known[e.digest].held_out)
    rest = data.only([*trained.examples, *(e for e in data.examples if e.digest not in known)])
    held, origin = _held(source, whole, trained, known, offline, progress)
    judging = {example.digest for example in held.examples}
    rest = rest.only(example for example in rest.examples if example.digest not in judging)
    if not rest.examples:
        raise DataError(
            f"{whole.source} has nothing but items that judge", path=whole.source, hint="add those it was trained on"
        )
    before = _metrics(session, held, manifest, unreadable)
    held = unreadable.readable(held)
    gate = gate_samples(held)
    return Material(
        _some(rest), trained if trained.examples else None, held, before, origin, (gate, "the held-out items"),
        unreadable,
    )  # fmt: skip


def quantise(
    source: Bundle, plain: Manifest, model: "onnx.ModelProto", data: Material, max_drop: float,
    folder: Path, refit: Refit, progress: Progress,
) -> Quantised:  # fmt: skip
    """The `model` of `source` in eight bits, judged; `folder` holds what a bundle of it has beside the model.

    `plain` is the manifest that it will have. Where more than `max_drop` (or one item) is lost the head is fitted again
    to the new features, then the layers that lose most stay in float. Raises GateError, naming them, when that does not
    save it.
    """
    told = data.unreadable.skip(data.calibrate)
    items = [example.item for example in data.calibrate]
    batches = list(precision.calibration(Session(source, "cpu"), items, told))
    if not batches:
        raise DataError("no item to calibrate with can be read", hint="repair them, or give other data")
    before = data.before
    if data.held is None or before is None:
        return Quantised(precision.int8(model, batches), None, plain)
    excluded: list[str] = []
    ranked: list[str] = []
    for attempt in range(ROUNDS + 1):
        with progress.task("quantising and judging" + f", attempt {attempt + 1}" * bool(attempt), None):
            converted, layers, manifest = precision.int8(model, batches, excluded), None, plain
            candidate = _bundle(converted, plain, folder)
            after = _metrics(Session(candidate, "cpu"), data.held, plain)
            if before.score > after.score and data.trained is not None:
                fitted = refit(candidate, source, data.trained, data.unreadable)
                refitted = msgspec.structs.replace(plain, thresholds=fitted.thresholds)
                converted_again = _with_head(converted, fitted.layers, refitted)
                again = _metrics(Session(_bundle(converted_again, refitted, folder), "cpu"), data.held, refitted)
                if again.score > after.score:
                    after, converted, layers, manifest = again, converted_again, fitted.layers, refitted
        guard = _guard(data.origin, before, after, max_drop, excluded, refitted=layers is not None)
        if _is_kept(guard):
            return Quantised(converted, layers, msgspec.structs.replace(manifest, guard=guard, metrics=after))
        if attempt < ROUNDS:
            # What each does alone does not depend on which others are left out: they are ranked once.
            ranked = ranked or precision.worst_layers(model, batches[:COMPARED])
            excluded = ranked[: max(1, round(PART * len(ranked))) * (attempt + 1)]
            progress.note(
                f"{before.score:.4f} became {after.score:.4f}: these layers stay in float: {', '.join(excluded)}"
            )
    raise GateError(
        f"int8 loses too much: {guard.before:.4f} became {guard.after:.4f} on n = {guard.n} ({data.origin}), at most "
        f"{guard.allowed:.4f} may be lost; the layers that lose most: {', '.join(excluded[:5])}; nothing was written",
        report=guard,
        hint="calibrate with the data that it was trained on, allow more with --max-drop, or export fp32",
    )


def judge(source: Bundle, candidate: Bundle, data: Material, max_drop: float) -> tuple[Guard, Metrics]:
    """What `candidate`, which is `source` in fewer bits, loses on the held-out items, and its metrics there.

    Raises GateError when that is more than `max_drop` (or one item).
    """
    assert data.held is not None
    assert data.before is not None
    after = _metrics(Session(candidate, "cpu"), data.held, source.manifest)
    guard = _guard(data.origin, data.before, after, max_drop)
    if not _is_kept(guard):
        raise GateError(
            f"{candidate.manifest.precision} loses too much: {guard.before:.4f} became {guard.after:.4f} on "
            f"n = {guard.n} ({guard.items}), at most {guard.allowed:.4f} may be lost; nothing was written",
            report=guard,
            hint="allow more with --max-drop, or export fp16",
        )
    return guard, after


def _held(
    source: Bundle, data: Dataset, trained: Dataset, known: Mapping[str, Held], offline: bool, progress: Progress
) -> tuple[Dataset, str]:
    """(the items to judge by, where they are from); none of them was trained on. Raises DataError without any."""
    was_held = {digest for digest, line in known.items() if line.held_out}
    held = data.only(example for example in data.examples if example.digest in was_held)
    if not held.examples:
        # By their digests: whatever lies there by now, only what was held out is taken of it.
        held = _validated_on(source.manifest, offline, progress) or held
        held = held.only(example for example in held.examples if example.digest in was_held)
    if held.examples:
        return held, f"what was held out of {held.source}"
    unseen = data.only(example for example in data.examples if example.digest not in known)
    if not unseen.examples:
        raise DataError(
            f"every item of {data.source} was trained on, and none can judge",
            path=data.source,
            hint="--calibrate data that hold what was held out, or items that it has not seen",
        )
    if trained.examples:
        # They all judge: there are others to calibrate with.
        return unseen, f"items of {data.source} that it has not seen"
    return split(unseen, UNSEEN, 0)[1], f"a fifth of {data.source}, which it has not seen"


def _validated_on(manifest: Manifest, offline: bool, progress: Progress) -> Dataset | None:
    """The data that fine-tuning was given to validate on, where it was given some that can still be read."""
    options = training_options(manifest)
    if isinstance(options.val, float) or not (is_hub(options.val) or Path(options.val).exists()):
        return None
    try:
        return load(
            options.val, manifest.preprocess, task=manifest.task, text=options.text, image=options.image,
            label=options.label, max_bad=options.max_bad, offline=offline, progress=progress,
        )  # fmt: skip
    except ZooError as error:
        # It may have been moved or changed since, and there may be other items to judge by.
        progress.note(f"{options.val}, which held items out, cannot be read: {error.message}")
        return None


def _apart(
    session: Session, data: Dataset, others: Dataset, unreadable: Unreadable
) -> tuple[Dataset, Sequence[Item], str]:
    """(what calibrates of `data`, what the gate looks at, what a report calls that).

    The gate has items of `others`, or else as many as it looks at of `data`, where twice as many are there.
    """
    pool = others if others.examples else data
    gate: Sequence[Item] = []
    chosen: list[Example] = []
    while pool.examples:
        gate, before = gate_samples(pool), len(unreadable.found)
        owners = {id(example.item): example for example in pool.examples}
        chosen = [owners[id(item)] for item in gate]
        session.infer(gate, ["features"], skip=unreadable.skip(chosen))
        if len(unreadable.found) == before:
            break
        pool = unreadable.readable(pool)
    if not pool.examples:
        raise DataError(f"no item of {pool.source} for the gate can be read", path=pool.source, hint="repair them")
    rest = unreadable.readable(data)
    if len(rest.examples) < 2 * GATE_SAMPLES and not others.examples:
        return rest, gate, "the calibration items"
    digests = {example.digest for example in chosen}
    return (
        rest.only(example for example in rest.examples if example.digest not in digests),
        gate,
        "the items that did not calibrate",
    )


def _allowed(before: Metrics, max_drop: float) -> float:
    """What may be lost: one item at least, where the score is made of items."""
    return max(max_drop, 1 / before.n if before.r2 is None else 0)


def _guard(
    origin: str, before: Metrics, after: Metrics, max_drop: float, excluded: Sequence[str] = (), *,
    refitted: bool = False,
) -> Guard:  # fmt: skip
    chosen = ["the head that was fitted again"] * refitted + ["the layers left in float"] * bool(excluded)
    return Guard(
        n=before.n,
        items=origin + (f"; they also chose {' and '.join(chosen)}" if chosen else ""),
        before=before.score,
        after=after.score,
        allowed=_allowed(before, max_drop),
        # Of several labels it would be that of another number than the score.
        interval=after.accuracy_interval if after.micro_f1 is None else None,
        excluded=tuple(excluded),
        refitted=refitted,
    )


def _is_kept(guard: Guard) -> bool:
    return guard.before - guard.after <= guard.allowed + 1e-9


def _some(data: Dataset) -> list[Example]:
    """Some of the items, the same ones whatever their order."""
    return sorted(data.examples, key=lambda example: example.digest)[:CALIBRATED]


def _bundle(model: "onnx.ModelProto", manifest: Manifest, folder: Path) -> Bundle:
    """The model as a bundle in `folder`, to be run."""
    edit.save(model, folder / MODEL)
    return Bundle(folder, msgspec.structs.replace(manifest, files=describe_files(folder)))


def _metrics(session: Session, held: Dataset, manifest: Manifest, unreadable: Unreadable | None = None) -> Metrics:
    """How it does on those of the items that can be read. Raises DataError when none can."""
    skip = unreadable.skip(held.examples) if unreadable else None
    scores = session.infer(held.items, ["scores"], skip=skip)["scores"]
    if unreadable:
        scores = scores[[example.digest not in unreadable.found for example in held.examples]]
        held = unreadable.readable(held)
    if not held.examples:
        raise DataError(f"no item of {held.source} that judges can be read", path=held.source, hint="repair them")
    return measure(
        manifest.task, scores, held.targets(manifest.labels), manifest.labels,
        thresholds=manifest.thresholds, class_weights=manifest.class_weights,
    )  # fmt: skip


def training_options(manifest: Manifest) -> FinetuneOptions:
    """How the model was trained, as far as it was recorded."""
    kept = {
        name: value for name, value in manifest.lineage.options.items() if name in FinetuneOptions.__struct_fields__
    }
    return msgspec.convert(kept, FinetuneOptions)


def _with_head(model: "onnx.ModelProto", layers: "Sequence[Layer]", manifest: Manifest) -> "onnx.ModelProto":
    parts = precision.pieces(model)
    top = head.as_graph(layers, manifest.activation or "softmax")
    return precision.whole(parts._replace(head=top), precision.facts(model))
