"""A bundle's model in another form: fused, in half floats or eight bits, without preprocessing and head."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import onnx

from zoo import external, graph, guard, head, narrow, precision
from zoo.bundle import HEAD, MODEL, Bundle, describe_files
from zoo.data import Item
from zoo.errors import UsageError
from zoo.options import Variant
from zoo.progress import Progress
from zoo.schema import Entry, ImagePreprocess, Manifest, Precision, Task, TextPreprocess, WordsPreprocess
from zoo.trunk import TAIL_FILE


class Converted(NamedTuple):
    """The manifest with what changed in it, and the user's own items (and their name) where the gate wants those.

    Ranges were read from the user's data: of anything else eight bits of pictures promise nothing.
    """

    manifest: Manifest
    own: tuple[Sequence[Item], str] | None = None


def check_needs(model: Entry | Manifest, variant: Variant) -> None:
    """Raise UsageError when what `variant` asks for needs data that it does not name, or another kind of model."""
    entry = model if isinstance(model, Entry) else model.lineage.entry
    has_head = isinstance(model, Manifest) and model.head is not None
    if isinstance(model, Manifest) and variant.precision in (None, model.precision) and not variant.fuse:
        return
    is_image = isinstance(entry.preprocess, ImagePreprocess)
    if variant.fuse and not isinstance(entry.preprocess, TextPreprocess):
        raise UsageError(f"there is no attention to fuse in {entry.name}", hint="leave --fuse out")
    if variant.precision != "int8" or variant.calibrate or has_table(entry):
        return
    if is_image:
        raise UsageError("int8 needs data to read ranges from", hint="--calibrate DATA, as it was fine-tuned on")
    if has_head:
        raise UsageError("int8 needs data to be judged by", hint="--calibrate DATA, as it was fine-tuned on")


def convert(source: Bundle, variant: Variant, folder: Path, *, offline: bool, progress: Progress) -> Converted:
    """Write the model as `variant` says into `folder`, which holds what else a bundle of it has.

    Raises UsageError and DataError for data that do not fit, GateError when eight bits lose too much.
    """
    converted = _precision(source, variant, folder, offline, progress)
    return converted._replace(manifest=_bare(converted.manifest, folder)) if variant.raw else converted


def has_table(entry: Entry) -> bool:
    """Whether the model is a table of words: only that is then converted."""
    return isinstance(entry.preprocess, WordsPreprocess)


def is_raw(manifest: Manifest) -> bool:
    """Whether the graph is given pixels, and not pictures."""
    return graph.PIXELS in {spec.name for spec in manifest.inputs}


def rewritten(source: Bundle, variant: Variant) -> set[str]:
    """Files beside the model that the conversion writes itself."""
    if variant.precision in (None, source.manifest.precision):
        return set()
    return {tensor.file for tensor in external.references(source.read_model())}


def _precision(source: Bundle, variant: Variant, folder: Path, offline: bool, progress: Progress) -> Converted:
    manifest = source.manifest
    wanted = variant.precision or manifest.precision
    is_same = wanted == manifest.precision
    if is_same and not variant.fuse:
        shutil.copyfile(source.path / MODEL, folder / MODEL)
        return Converted(manifest)
    if has_table(manifest.lineage.entry):
        return Converted(_narrow(source, wanted, variant, folder, offline, progress))
    model = onnx.load_from_string(source.read_model())
    if variant.fuse:
        with progress.task("fusing", None):
            model = precision.fused(model, manifest.lineage.entry.family)
        manifest = msgspec.structs.replace(manifest, fused=True)
    if wanted == "int8" and not is_same:
        return _int8(source, manifest, model, variant, folder, offline, progress)
    if wanted == "fp16" and not is_same:
        with progress.task("converting to half precision", None):
            model = precision.fp16(model)
    graph.save(model, folder / MODEL)
    return Converted(msgspec.structs.replace(manifest, precision=wanted))


def _int8(
    source: Bundle, manifest: Manifest, model: onnx.ModelProto, variant: Variant, folder: Path,
    offline: bool, progress: Progress,
) -> Converted:  # fmt: skip
    if not variant.calibrate:
        with progress.task("converting to eight bits", None):
            graph.save(precision.int8(model, []), folder / MODEL)
        return Converted(msgspec.structs.replace(manifest, precision="int8"))
    data = guard.material(source, variant, offline=offline, progress=progress)
    plain = msgspec.structs.replace(manifest, precision="int8")
    found = guard.quantise(source, plain, model, data, variant.max_drop, folder, progress)
    graph.save(found.model, folder / MODEL)
    if found.layers is not None:
        head.save(found.layers, folder / HEAD)
    return Converted(found.manifest, data.gate)


def _bare(draft: Manifest, folder: Path) -> Manifest:
    """Cut the model in `folder` down to its backbone, and remove what tells of the rest."""
    model = onnx.load(folder / MODEL, load_external_data=False)
    body = precision.pieces(model).body
    graph.describe(body, {name: fact for name, fact in precision.facts(model).items() if name != "zoo.labels"})
    graph.save(body, folder / MODEL)
    kept = {MODEL, TAIL_FILE, *(tensor.file for tensor in external.references(body))}
    if isinstance(draft.preprocess, TextPreprocess):
        kept.add(draft.preprocess.tokenizer)
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    inputs, outputs = graph.tensor_specs(body)
    return msgspec.structs.replace(
        draft, task=Task.EMBEDDING, inputs=inputs, outputs=outputs, activation=None, labels=(), thresholds=(),
        class_weights=(), cut=None, head=None, metrics=None,
    )  # fmt: skip


def _narrow(
    source: Bundle, wanted: Precision, variant: Variant, folder: Path, offline: bool, progress: Progress
) -> Manifest:
    """Write the model with its table in fewer bits; judged where there is data for it."""
    with progress.task(f"converting the table of words to {wanted}", None):
        model = onnx.load_from_string(source.read_model())
        graph.save(narrow.narrow(model, wanted, source.map, folder), folder / MODEL)
    manifest = msgspec.structs.replace(source.manifest, precision=wanted)
    if not variant.calibrate:
        return manifest
    data = guard.material(source, variant, offline=offline, progress=progress)
    candidate = Bundle(folder, msgspec.structs.replace(manifest, files=describe_files(folder)))
    found, metrics = guard.judge(source, candidate, data, variant.max_drop)
    return msgspec.structs.replace(manifest, guard=found, metrics=metrics)
