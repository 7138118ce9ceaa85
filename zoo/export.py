"""Export: a bundle in the precision that is asked for, checked against the original weights before it is there."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import onnx

from zoo import external, graph, guard, head, narrow, parity, precision, samples
from zoo.backbone import Backbone
from zoo.build import encoder, gate_words
from zoo.bundle import HEAD, MANIFEST, MODEL, Bundle, describe_files, write_manifest
from zoo.data import Item
from zoo.disk import room_for, staged_dir
from zoo.errors import IntegrityError, UsageError
from zoo.expected import expect
from zoo.parity import BOUNDS, WORDS, Top
from zoo.progress import SILENT, Progress
from zoo.schema import Entry, Manifest, Task, TextPreprocess, Variant, WordsPreprocess
from zoo.trunk import TAIL_FILE
from zoo.tuned import tuned_reference


def check_variant(entry: Entry, variant: Variant) -> None:
    """Raise UsageError when what `variant` asks for needs data that it does not name."""
    if variant.precision == "int8" and not variant.calibrate and not _has_table(entry):
        raise UsageError("int8 needs data to read ranges from", hint="--calibrate DATA, as it was fine-tuned on")


def export(
    source: Bundle,
    out: Path,
    backbone: Backbone,
    variant: Variant | None = None,
    *,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Bundle:
    """Write `source` at `out` as `variant` says, when its file equals `backbone`'s own arithmetic and the head's.

    Within the bounds of its precision (zoo.parity.BOUNDS); eight bits must also keep the accuracy (zoo.guard). Raises
    IntegrityError for a file that is not the manifest's, UsageError for a precision that this model cannot have,
    GateError when the numbers differ or too much is lost, AccessError when there is no space; `out` is then untouched.
    """
    variant = variant or Variant(precision=source.manifest.precision)
    _check(source, variant)
    preprocess = source.manifest.preprocess
    if variant.precision != source.manifest.precision:
        with progress.task("checking what is converted", None):
            _gate_original(source, backbone)
    with room_for(out), staged_dir(out) as folder:
        for path in source.path.iterdir():
            if path.name not in {MANIFEST, MODEL, *_rewritten(source, variant)}:
                shutil.copyfile(path, folder / path.name)
        draft, own = _convert(source, variant, folder, offline, progress)
        if variant.raw:
            draft = _bare(draft, folder)
        layers = folder / HEAD
        with progress.task("checking the ONNX file", None):
            reader = encoder(preprocess, folder)
            items, origin = own or samples.bundled(preprocess, gate_words(source.manifest.lineage.entry, reader))
            report = parity.check(
                folder / MODEL,
                expect(tuned_reference(source, backbone), items, origin, reader, raw=_is_raw(draft)),
                top=Top(head.load(layers), source.manifest.activation or "softmax") if layers.is_file() else None,
                bounds=(WORDS if _has_table(source.manifest.lineage.entry) else BOUNDS)[variant.precision],
            )
        manifest = msgspec.structs.replace(draft, files=describe_files(folder), parity=report)
        write_manifest(folder, manifest)
    return Bundle(out, manifest)


def _check(source: Bundle, variant: Variant) -> None:
    manifest = source.manifest
    broken = [file.path for file, is_same in source.verify() if not is_same]
    if broken:
        raise IntegrityError(f"{source.path}: {', '.join(broken)} changed since it was written", hint="write it again")
    # Also says, in one line, that a graph is newer than the runtime reads.
    graph.load(source.path / MODEL)
    if variant.precision == manifest.precision:
        return
    if manifest.precision != "fp32":
        raise UsageError(
            f"{manifest.name} at {source.path} is {manifest.precision} already",
            hint="export the fp32 model it came from",
        )
    if _is_raw(manifest):
        raise UsageError(
            f"{manifest.name} at {source.path} is a bare backbone, which is converted no further",
            hint=f"export the model it came from with --raw --precision {variant.precision}",
        )
    if _has_table(manifest.lineage.entry) and variant.calibrate and manifest.head is None:
        raise UsageError("a table of words is not calibrated, and has no labels to judge", hint="without --calibrate")


def _gate_original(source: Bundle, backbone: Backbone) -> None:
    """The gate of `source` itself: one wrong weight of it would be lost in the wider bounds of fewer bits."""
    manifest, layers = source.manifest, source.path / HEAD
    reader = encoder(manifest.preprocess, source.path)
    items, origin = samples.bundled(manifest.preprocess, gate_words(manifest.lineage.entry, reader))
    expected = expect(tuned_reference(source, backbone), items, origin, reader)
    top = Top(head.load(layers), manifest.activation or "softmax") if layers.is_file() else None
    parity.check(source.path / MODEL, expected, top=top)


def _has_table(entry: Entry) -> bool:
    """Whether the model is a table of words: only that is then converted."""
    return isinstance(entry.preprocess, WordsPreprocess)


def _is_raw(manifest: Manifest) -> bool:
    """Whether the graph is given pixels, and not pictures."""
    return graph.PIXELS in {spec.name for spec in manifest.inputs}


def _rewritten(source: Bundle, variant: Variant) -> set[str]:
    """Files beside the model that the conversion writes itself."""
    if variant.precision == source.manifest.precision:
        return set()
    return {tensor.file for tensor in external.references(source.read_model())}


def _convert(
    source: Bundle, variant: Variant, folder: Path, offline: bool, progress: Progress
) -> tuple[Manifest, tuple[Sequence[Item], str] | None]:
    """Write the model into `folder`; (the manifest with what changes by it, the user's own items for the gate).

    Eight bits have ranges, read from the user's data: of anything else they promise nothing.
    """
    manifest = source.manifest
    if variant.precision == manifest.precision:
        shutil.copyfile(source.path / MODEL, folder / MODEL)
        return manifest, None
    if _has_table(manifest.lineage.entry):
        return _narrow(source, variant, folder, offline, progress), None
    if variant.precision == "fp16":
        with progress.task("converting to half precision", None):
            graph.save(precision.fp16(onnx.load_from_string(source.read_model())), folder / MODEL)
        return msgspec.structs.replace(manifest, precision="fp16"), None
    data = guard.material(source, variant, offline=offline, progress=progress)
    found = guard.quantise(source, variant, data, folder, progress)
    graph.save(found.model, folder / MODEL)
    if found.layers is not None:
        head.save(found.layers, folder / HEAD)
    return found.manifest, data.gate


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


def _narrow(source: Bundle, variant: Variant, folder: Path, offline: bool, progress: Progress) -> Manifest:
    """Write the model with its table in fewer bits; judged where there is data for it."""
    with progress.task(f"converting the table of words to {variant.precision}", None):
        model = onnx.load_from_string(source.read_model())
        graph.save(narrow.narrow(model, variant.precision, source.map, folder), folder / MODEL)
    manifest = msgspec.structs.replace(source.manifest, precision=variant.precision)
    if not variant.calibrate:
        return manifest
    data = guard.material(source, variant, offline=offline, progress=progress)
    candidate = Bundle(folder, msgspec.structs.replace(manifest, files=describe_files(folder)))
    found, metrics = guard.judge(source, candidate, data, variant.max_drop)
    return msgspec.structs.replace(manifest, guard=found, metrics=metrics)
