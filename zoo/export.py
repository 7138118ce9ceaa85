"""Export: a bundle in the form that is asked for, checked against the original weights before it is there."""

import shutil
from pathlib import Path

import msgspec

from zoo import graph, head, parity, samples
from zoo.backbone import Backbone
from zoo.build import encoder, gate_words
from zoo.bundle import HEAD, MANIFEST, MODEL, Bundle, describe_files, write_manifest
from zoo.disk import room_for, staged_dir
from zoo.errors import IntegrityError, UsageError
from zoo.expected import expect
from zoo.options import Variant
from zoo.parity import Top
from zoo.progress import SILENT, Progress
from zoo.schema import ImagePreprocess, Manifest, Parity
from zoo.tuned import tuned_reference
from zoo.variants import Converted, check_needs, convert, has_table, is_raw, rewritten


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

    Within the bounds of its precision (zoo.parity.bounds_of); eight bits must also keep the accuracy (zoo.guard). What
    has ranges of its own and stays as it is, is copied with its report: it was checked on data that are not here.
    Raises IntegrityError for a file that is not the manifest's, UsageError for a form that this model cannot have,
    GateError when the numbers differ or too much is lost, AccessError when there is no space; `out` is then untouched.
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
        converted = convert(source, variant, folder, offline=offline, progress=progress)
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
        expect(tuned_reference(source, backbone), items, origin, reader, raw=is_raw(draft)),
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
    graph.load(source.path / MODEL)
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
    expected = expect(tuned_reference(source, backbone), items, origin, reader)
    parity.check(source.path / MODEL, expected, top=_top(layers, manifest))


def _top(layers: Path, manifest: Manifest) -> Top | None:
    """The head in the file `layers`, where there is one."""
    return Top(head.load(layers), manifest.activation or "softmax") if layers.is_file() else None
