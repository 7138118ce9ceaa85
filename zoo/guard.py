"""The accuracy guard: eight bits are worth having only if the model still answers as well, on items it never saw."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from zoo import graph, precision
from zoo.bundle import MODEL, Bundle, describe_files, read_split
from zoo.data import Dataset, Item, load
from zoo.errors import DataError, GateError
from zoo.metrics import measure
from zoo.options import FinetuneOptions, Variant
from zoo.progress import Progress
from zoo.runtime import Session
from zoo.schema import Guard, Manifest, Metrics
from zoo.split import split
from zoo.tuned import gate_samples

if TYPE_CHECKING:
    import onnx

    from zoo.fit import TrainedHead
    from zoo.objective import Layer

#: Items whose activations give the ranges, and those on which the layers are compared when too much was lost.
CALIBRATED, COMPARED = 128, 8
#: How often layers are taken out, and which part of all of them each time.
ROUNDS, PART = 3, 0.1


class Material(NamedTuple):
    """Items to calibrate with, labelled ones that were trained on, and labelled ones to judge by, with where from.

    `gate` are those that the parity gate looks at, and what a report calls them.
    """

    calibrate: Sequence[Item]
    trained: Dataset | None
    held: Dataset | None
    origin: str
    gate: tuple[Sequence[Item], str]


class Quantised(NamedTuple):
    """What came of it: the graph, the layers of a head that was fitted again, the manifest with what it says of it."""

    model: "onnx.ModelProto"
    layers: "list[Layer] | None"
    manifest: Manifest


def material(source: Bundle, variant: Variant, *, offline: bool, progress: Progress) -> Material:
    """Read the data of `variant`: what fine-tuning held out judges, the rest calibrates.

    Where it held out none of these items it is the data that it was validated on, if that is still there, or else a
    fifth of them. A model without labels is not judged. Raises DataError for labels that the model does not know.
    """
    manifest = source.manifest
    assert variant.calibrate is not None
    task = manifest.task if manifest.head else FinetuneOptions().task

    def read(path: str) -> Dataset:
        return load(
            path, manifest.preprocess, task=task, text=variant.text, image=variant.image,
            label=variant.label, max_bad=variant.max_bad, offline=offline, progress=progress,
        )  # fmt: skip

    data = read(variant.calibrate)
    if manifest.head is None:
        return Material(_some(data), None, None, data.source, (gate_samples(data), "the calibration items"))
    data.targets(manifest.labels)
    known = read_split(source)
    was_held = {digest for digest, line in known.items() if line.held_out}
    held = data.only(example for example in data.examples if example.digest in was_held)
    rest = data.only(example for example in data.examples if example.digest not in was_held)
    own = manifest.lineage.options.get("val")
    if not held.examples and isinstance(own, str) and Path(own).exists():
        # By their digests: whatever lies at that path by now, only what was held out is taken of it.
        held = read(own)
        held = held.only(example for example in held.examples if example.digest in was_held)
    origin = f"what was held out of {held.source}"
    if not held.examples:
        rest, held = split(data, FinetuneOptions().val, 0)  # type: ignore[arg-type]
        origin = f"a fifth of {data.source}, of which fine-tuning held out nothing"
    if not rest.examples:
        raise DataError(
            f"{data.source} has nothing but items that were held out",
            path=data.source,
            hint="add those it was trained on",
        )
    trained = rest.only(e for e in rest.examples if e.digest in known)
    gate = gate_samples(held), "the held-out items"
    return Material(_some(rest), trained if trained.examples else None, held, origin, gate)


def quantise(
    source: Bundle, plain: Manifest, model: "onnx.ModelProto", data: Material, max_drop: float,
    folder: Path, progress: Progress,
) -> Quantised:  # fmt: skip
    """The `model` of `source` in eight bits, judged; `folder` holds what a bundle of it has beside the model.

    `plain` is the manifest that it will have. Where more than `max_drop` (or one item) is lost the head is fitted again
    to the new features, then the layers that lose most stay in float. Raises GateError, naming them, when that does not
    save it.
    """
    session = Session(source, "cpu")
    batches = list(precision.calibration(session, data.calibrate))
    if data.held is None:
        return Quantised(precision.int8(model, batches), None, plain)
    before = _metrics(session, data.held, plain)
    # One item, where the score is made of items.
    allowed = max(max_drop, 1 / before.n if before.r2 is None else 0)
    excluded: list[str] = []
    for attempt in range(ROUNDS + 1):
        with progress.task("quantising and judging" + f", attempt {attempt + 1}" * bool(attempt), None):
            converted, layers, manifest = precision.int8(model, batches, excluded), None, plain
            candidate = _bundle(converted, plain, folder)
            after = _metrics(Session(candidate, "cpu"), data.held, plain)
            if before.score > after.score and data.trained is not None:
                fitted = _refitted(candidate, source, data.trained)
                refitted = msgspec.structs.replace(plain, thresholds=fitted.thresholds)
                converted_again = _with_head(converted, fitted.layers, refitted)
                again = _metrics(Session(_bundle(converted_again, refitted, folder), "cpu"), data.held, refitted)
                if again.score > after.score:
                    after, converted, layers, manifest = again, converted_again, fitted.layers, refitted
        guard = Guard(
            n=before.n, items=data.origin, before=before.score, after=after.score, allowed=allowed,
            interval=after.accuracy_interval, excluded=tuple(excluded), refitted=layers is not None,
        )  # fmt: skip
        if before.score - after.score <= allowed + 1e-9:
            return Quantised(converted, layers, msgspec.structs.replace(manifest, guard=guard, metrics=after))
        if attempt < ROUNDS:
            ranked = precision.worst_layers(model, batches[:COMPARED], excluded)
            excluded += ranked[: max(1, round(PART * (len(ranked) + len(excluded))))]
            progress.note(
                f"{before.score:.4f} became {after.score:.4f}: these layers stay in float: {', '.join(excluded)}"
            )
    raise GateError(
        f"int8 loses too much: {guard.before:.4f} became {guard.after:.4f} on n = {guard.n} ({guard.items}), at most "
        f"{allowed:.4f} may be lost; the layers that lose most: {', '.join(excluded[:5])}; nothing was written",
        report=guard,
        hint="calibrate with the data that it was trained on, allow more with --max-drop, or export fp32",
    )


def judge(source: Bundle, candidate: Bundle, data: Material, max_drop: float) -> tuple[Guard, Metrics]:
    """What `candidate`, which is `source` in fewer bits, loses on the held-out items, and its metrics there.

    Raises GateError when that is more than `max_drop` (or one item).
    """
    assert data.held is not None
    before, after = (_metrics(Session(each, "cpu"), data.held, source.manifest) for each in (source, candidate))
    allowed = max(max_drop, 1 / before.n)
    guard = Guard(
        n=before.n, items=data.origin, before=before.score, after=after.score, allowed=allowed,
        interval=after.accuracy_interval,
    )  # fmt: skip
    if before.score - after.score > allowed + 1e-9:
        raise GateError(
            f"{candidate.manifest.precision} loses too much: {before.score:.4f} became {after.score:.4f} on "
            f"n = {before.n} ({data.origin}), at most {allowed:.4f} may be lost; nothing was written",
            report=guard,
            hint="allow more with --max-drop, or export fp16",
        )
    return guard, after


def _some(data: Dataset) -> list[Item]:
    """Some of the items, the same ones whatever their order."""
    return [example.item for example in sorted(data.examples, key=lambda example: example.digest)[:CALIBRATED]]


def _bundle(model: "onnx.ModelProto", manifest: Manifest, folder: Path) -> Bundle:
    """The model as a bundle in `folder`, to be run."""
    graph.save(model, folder / MODEL)
    return Bundle(folder, msgspec.structs.replace(manifest, files=describe_files(folder)))


def _metrics(session: Session, held: Dataset, manifest: Manifest) -> Metrics:
    return measure(
        manifest.task, session.scores(held.items), held.targets(manifest.labels), manifest.labels,
        thresholds=manifest.thresholds, class_weights=manifest.class_weights,
    )  # fmt: skip


def _refitted(candidate: Bundle, source: Bundle, trained: Dataset) -> "TrainedHead":
    """The head fitted to the candidate's own features of what it was trained on, as it was fitted before."""
    from zoo.fit import Problem, fit
    from zoo.interrupt import Interrupt

    manifest, spec = source.manifest, source.manifest.head
    assert spec is not None
    kept = {
        name: value for name, value in manifest.lineage.options.items() if name in FinetuneOptions.__struct_fields__
    }
    options = msgspec.convert(
        {**kept, "lr": spec.lr, "weight_decay": spec.weight_decay, "unfreeze": 0, "augment": 0}, FinetuneOptions
    )
    features = Session(candidate, "cpu").features(trained.items)
    problem = Problem(features, trained.targets(manifest.labels), len(manifest.labels) or 1, options)
    return fit(problem, Interrupt())


def _with_head(model: "onnx.ModelProto", layers: "Sequence[Layer]", manifest: Manifest) -> "onnx.ModelProto":
    parts = precision.pieces(model)
    top = graph.head(layers, manifest.activation or "softmax")
    return precision.whole(parts._replace(head=top), precision.facts(model))
