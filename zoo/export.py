"""Export: a bundle checked again against the original weights, then written where it was asked for."""

import shutil
from pathlib import Path

import msgspec

from zoo import external, head, parity, samples
from zoo.backbone import Backbone
from zoo.build import encoder, gate_words
from zoo.bundle import HEAD, MANIFEST, Bundle, describe_files, write_manifest
from zoo.disk import staged_dir
from zoo.errors import IntegrityError
from zoo.expected import expect
from zoo.parity import Top
from zoo.progress import Progress
from zoo.tuned import tuned_reference


def export(source: Bundle, out: Path, backbone: Backbone, progress: Progress) -> Bundle:
    """Copy `source` to `out` when its ONNX file still equals `backbone`'s own arithmetic and the head's.

    Raises IntegrityError for a file that is not the manifest's, GateError when the numbers differ; `out` is then
    untouched.
    """
    layers = source.path / HEAD
    broken = [file.path for file, is_same in source.verify() if not is_same]
    if broken:
        raise IntegrityError(f"{source.path}: {', '.join(broken)} changed since it was written", hint="write it again")
    preprocess = source.manifest.preprocess
    with progress.task("checking the ONNX file", None), staged_dir(out) as folder:
        for path in source.path.iterdir():
            if path.name != MANIFEST:
                shutil.copyfile(path, folder / path.name)
        reader, model = encoder(preprocess, folder), source.read_model()
        items, origin = samples.bundled(preprocess, gate_words(source.manifest.lineage.entry, reader))
        report = parity.check(
            model,
            expect(tuned_reference(source, backbone), items, origin, reader),
            top=Top(head.load(layers), source.manifest.activation or "softmax") if layers.is_file() else None,
            tables=external.files(model, external.beside(folder)),
        )
        manifest = msgspec.structs.replace(source.manifest, files=describe_files(folder), parity=report)
        write_manifest(folder, manifest)
    return Bundle(out, manifest)
