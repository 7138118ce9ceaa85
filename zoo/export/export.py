"""Export: a bundle in the form that is asked for, checked against the original weights before it is there."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import onnx

from zoo.backbone import Backbone
from zoo.bundle import HEAD, MANIFEST, MODEL, Bundle, describe_files, write_manifest
from zoo.data import samples
from zoo.data.dataset import Item
from zoo.errors import IntegrityError, UsageError
from zoo.export import accuracy_guard, parity, precision, precision_words
from zoo.export.accuracy_guard import Refit
from zoo.export.build import encoder, gate_words
from zoo.export.parity import Top
from zoo.export.reference import expect
from zoo.export.trunk import TAIL_FILE, reference_of
from zoo.graph import edit, external_data, head
from zoo.options import Variant
from zoo.progress import SILENT, Progress
from zoo.schema import (
    PIXELS,
    Entry,
    ImagePreprocess,
    Manifest,
    Parity,
    Precision,
    Task,
    TextPreprocess,
    WordsPreprocess,
)
from zoo.system.files import room_for, staged_dir


class Converted(NamedTuple):
    """The manifest with what changed in it, and the user's own items (and their name) where the gate wants those.

    Ranges were read from the user's data: of anything else eight bits of pictures promise nothing.
    """

    manifest: Manifest
    own: tuple[Sequence[Item], str] | None = None


def export(
    source: Bundle,
    out: Path,
    backbone: Backbone,
    variant: Variant | None = None,
    *,
    refit: Refit,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Bundle:
    """Write `source` at `out` as `variant` says, when its file equals `backbone`'s own arithmetic and the head's.

    Within the bounds of its precision (zoo.export.parity.bounds_of); eight bits must also keep the accuracy
    (zoo.export.accuracy_guard). What has ranges of its own and stays as it is, is copied with its report: it was
    checked on data that are not here. Raises IntegrityError for a file that is not the manifest's, UsageError for a
    form that this model cannot have, GateError when the numbers differ or too much is lost, AccessError when there is
    no space; `out` is then untouched.
    """
    variant = variant or Variant()
    wanted = variant.precision or source.manifest.precision
    _check(source, variant)
    is_converted = wanted != source.manifest.precision
    if is_converted:
        with progress.task("checking what is converted", None):
            _gate_original(source, backbone)
    with room_for(out), staged_dir(out) as folder:
        for path in source.path.iterdir():
            # The report tells of the model that was trained; converted, it may answer otherwise.
            is_report = is_converted and path.name.startswith("report")
            if path.name not in {MANIFEST, MODEL, *rewritten(source, variant)} and not is_report:
                shutil.copyfile(path, folder / path.name)
        converted = convert(source, variant, folder, refit=refit, offline=offline, progress=progress)
        draft, report = converted.manifest, source.manifest.parity
        if is_converted or not _has_ranges(source.manifest):
            with progress.task("checking the ONNX file", None):
                report = _gate(folder, source, backbone, converted)
        manifest = msgspec.structs.replace(draft, files=describe_files(folder), parity=report)
        write_manifest(folder, manifest)
    return Bundle(out, manifest)


def _gate(folder: Path, source: Bundle, backbone: Backbone, converted: Converted) -> Parity:
    """The gate of what was converted into `folder`."""
    manifest, (draft, own) = source.manifest, converted
    layers, reader = folder / HEAD, encoder(manifest.preprocess, folder)
    items, origin = own or samples.bundled(manifest.preprocess, gate_words(manifest.lineage.entry, reader))
    return parity.check(
        folder / MODEL,
        expect(reference_of(source, backbone), items, origin, reader, raw=is_raw(draft)),
        top=_top(layers, manifest),
        # What the guard has judged may give another answer here and there, and have another head.
        former=_top(source.path / HEAD, manifest) if own and layers.is_file() else None,
        bounds=parity.bounds_of(draft.precision, manifest.lineage.entry.preprocess),
    )


def _has_ranges(manifest: Manifest) -> bool:
    """Whether the model is right only for what its ranges were read from, and was checked on that."""
    return manifest.precision == "int8" and isinstance(manifest.preprocess, ImagePreprocess)


def _check(source: Bundle, variant: Variant) -> None:
    manifest = source.manifest
    broken = [file.path for file, is_same in source.verify() if not is_same]
    if broken:
        raise IntegrityError(f"{source.path}: {', '.join(broken)} changed since it was written", hint="write it again")
    # Also says, in one line, that a graph is newer than the runtime reads.
    edit.load(source.path / MODEL)
    is_same = variant.precision in (None, manifest.precision)
    is_cut = variant.raw and not is_raw(manifest) and _has_ranges(manifest)
    if is_same and not variant.fuse and not variant.calibrate and not is_cut:
        return
    what = manifest.precision if manifest.precision != "fp32" else "fused" if manifest.fused else None
    if what:
        raise UsageError(
            f"{manifest.name} at {source.path} is {what} already", hint="export the fp32 model it came from"
        )
    if is_raw(manifest):
        asked = "" if variant.precision is None else f" --precision {variant.precision}"
        raise UsageError(
            f"{manifest.name} at {source.path} is a bare backbone, which is converted no further",
            hint=f"export the model it came from, with --raw{asked}",
        )
    check_needs(manifest, variant)
    if has_table(manifest.lineage.entry) and variant.calibrate and manifest.head is None:
        raise UsageError("a table of words is not calibrated, and has no labels to judge", hint="without --calibrate")


def _gate_original(source: Bundle, backbone: Backbone) -> None:
    """The gate of `source` itself: one wrong weight of it would be lost in the wider bounds of fewer bits."""
    manifest, layers = source.manifest, source.path / HEAD
    reader = encoder(manifest.preprocess, source.path)
    items, origin = samples.bundled(manifest.preprocess, gate_words(manifest.lineage.entry, reader))
    expected = expect(reference_of(source, backbone), items, origin, reader)
    parity.check(source.path / MODEL, expected, top=_top(layers, manifest))


def _top(layers: Path, manifest: Manifest) -> Top | None:
    """The head in the file `layers`, where there is one."""
    return Top(head.load(layers), manifest.activation or "softmax") if layers.is_file() else None


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


def convert(
    source: Bundle, variant: Variant, folder: Path, *, refit: Refit, offline: bool, progress: Progress
) -> Converted:
    """Write the model as `variant` says into `folder`, which holds what else a bundle of it has.

    Raises UsageError and DataError for data that do not fit, GateError when eight bits lose too much.
    """
    converted = _precision(source, variant, folder, refit, offline, progress)
    return converted._replace(manifest=_bare(converted.manifest, folder)) if variant.raw else converted


def has_table(entry: Entry) -> bool:
    """Whether the model is a table of words: only that is then converted."""
    return isinstance(entry.preprocess, WordsPreprocess)


def is_raw(manifest: Manifest) -> bool:
    """Whether the graph is given pixels, and not pictures."""
    return PIXELS in {spec.name for spec in manifest.inputs}


def rewritten(source: Bundle, variant: Variant) -> set[str]:
    """Files beside the model that the conversion writes itself."""
    if variant.precision in (None, source.manifest.precision):
        return set()
    return {tensor.file for tensor in external_data.references(source.read_model())}


def _precision(
    source: Bundle, variant: Variant, folder: Path, refit: Refit, offline: bool, progress: Progress
) -> Converted:
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
        return _int8(source, manifest, model, variant, folder, refit, offline, progress)
    if wanted == "fp16" and not is_same:
        with progress.task("converting to half precision", None):
            model = precision.fp16(model)
    edit.save(model, folder / MODEL)
    return Converted(msgspec.structs.replace(manifest, precision=wanted))


def _int8(
    source: Bundle, manifest: Manifest, model: onnx.ModelProto, variant: Variant, folder: Path,
    refit: Refit, offline: bool, progress: Progress,
) -> Converted:  # fmt: skip
    if not variant.calibrate:
        with progress.task("converting to eight bits", None):
            edit.save(precision.int8(model, []), folder / MODEL)
        return Converted(msgspec.structs.replace(manifest, precision="int8"))
    data = accuracy_guard.material(source, variant, offline=offline, progress=progress)
    plain = msgspec.structs.replace(manifest, precision="int8")
    found = accuracy_guard.quantise(source, plain, model, data, variant.max_drop, folder, refit, progress)
    edit.save(found.model, folder / MODEL)
    if found.layers is not None:
        head.save(found.layers, folder / HEAD)
    return Converted(found.manifest, data.gate)


def _bare(draft: Manifest, folder: Path) -> Manifest:
    """Cut the model in `folder` down to its backbone, and remove what tells of the rest."""
    model = onnx.load(folder / MODEL, load_external_data=False)
    body = precision.pieces(model).body
    edit.describe(body, {name: fact for name, fact in precision.facts(model).items() if name != "zoo.labels"})
    edit.save(body, folder / MODEL)
    kept = {MODEL, TAIL_FILE, *(tensor.file for tensor in external_data.references(body))}
    if isinstance(draft.preprocess, TextPreprocess):
        kept.add(draft.preprocess.tokenizer)
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    inputs, outputs = edit.tensor_specs(body)
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
        edit.save(precision_words.narrow(model, wanted, source.map, folder), folder / MODEL)
    manifest = msgspec.structs.replace(source.manifest, precision=wanted)
    if not variant.calibrate:
        return manifest
    data = accuracy_guard.material(source, variant, offline=offline, progress=progress)
    candidate = Bundle(folder, msgspec.structs.replace(manifest, files=describe_files(folder)))
    found, metrics = accuracy_guard.judge(source, candidate, data, variant.max_drop)
    return msgspec.structs.replace(manifest, guard=found, metrics=metrics)
