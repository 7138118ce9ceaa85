"""Export: a bundle in the precision that is asked for, checked against the original weights before it is there."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import onnx

from zoo import graph, guard, head, parity, precision, samples
from zoo.backbone import Backbone
from zoo.build import encoder, gate_words
from zoo.bundle import HEAD, MANIFEST, MODEL, Bundle, describe_files, write_manifest
from zoo.data import Item
from zoo.disk import staged_dir
from zoo.errors import IntegrityError, UsageError
from zoo.expected import expect
from zoo.parity import BOUNDS, Top
from zoo.progress import SILENT, Progress
from zoo.schema import Manifest, Variant, WordsPreprocess
from zoo.tuned import tuned_reference


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
    GateError when the numbers differ or too much is lost; `out` is then untouched.
    """
    variant = variant or Variant(precision=source.manifest.precision)
    _check(source, variant)
    preprocess = source.manifest.preprocess
    with staged_dir(out) as folder:
        for path in source.path.iterdir():
            if path.name not in (MANIFEST, MODEL):
                shutil.copyfile(path, folder / path.name)
        draft, own = _convert(source, variant, folder, offline, progress)
        layers = folder / HEAD
        with progress.task("checking the ONNX file", None):
            reader = encoder(preprocess, folder)
            items, origin = own or samples.bundled(preprocess, gate_words(source.manifest.lineage.entry, reader))
            report = parity.check(
                folder / MODEL,
                expect(tuned_reference(source, backbone), items, origin, reader),
                # Eight bits may cost an answer, which the guard has counted, and their head may be another one.
                top=Top(head.load(layers), source.manifest.activation or "softmax")
                if layers.is_file() and own is None
                else None,
                bounds=BOUNDS[variant.precision],
            )
        manifest = msgspec.structs.replace(draft, files=describe_files(folder), parity=report)
        write_manifest(folder, manifest)
    return Bundle(out, manifest)


def _check(source: Bundle, variant: Variant) -> None:
    manifest = source.manifest
    broken = [file.path for file, is_same in source.verify() if not is_same]
    if broken:
        raise IntegrityError(f"{source.path}: {', '.join(broken)} changed since it was written", hint="write it again")
    if variant.precision == manifest.precision:
        return
    if manifest.precision != "fp32":
        raise UsageError(
            f"{manifest.name} at {source.path} is {manifest.precision} already",
            hint="export the fp32 model it came from",
        )
    if isinstance(manifest.lineage.entry.preprocess, WordsPreprocess):
        raise UsageError("a table of words has no other precision yet", hint="--precision fp32")


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
