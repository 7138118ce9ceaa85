"""Export: convert a bundle to a variant, and check it against the original weights before it is written."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import onnx

from zoo.backbone import Backbone
from zoo.bundle import HEAD, MANIFEST, MODEL, Bundle, describe_files, write_manifest
from zoo.data import samples
from zoo.data.items import Item
from zoo.data.labels import map_rows, reads_pairs
from zoo.errors import IntegrityError, UsageError
from zoo.export import accuracy_guard, parity, precision, precision_words
from zoo.export.accuracy_guard import GuardData, RefitHead
from zoo.export.build import encoder, parity_words
from zoo.export.parity import Top
from zoo.export.reference import expect
from zoo.export.trunk import TAIL_FILE, only_features, reference_of, without_scores
from zoo.graph import edit, external_data, head
from zoo.graph.prefix import ARITHMETIC
from zoo.options import Variant
from zoo.progress import SILENT, Progress
from zoo.schema import (
    IMAGE,
    PIXELS,
    Entry,
    HeadSpec,
    ImagePreprocess,
    Manifest,
    Parity,
    Precision,
    Task,
    TextPreprocess,
    WordsPreprocess,
)
from zoo.system.files import room_for, staged_dir

#: The report's files, which zoo.evaluation.report writes, begin with this word.
REPORT = "report"


class Converted(NamedTuple):
    """The manifest of the converted model, and the items that the parity check compares.

    own: the user's items to compare, with their name in the report; None for the bundled samples. A model whose ranges
    were read from the user's data is compared on these data: other items may have numbers beyond the ranges.
    """

    manifest: Manifest
    own: tuple[Sequence[Item], str] | None = None


def export(
    source: Bundle,
    out: Path,
    backbone: Backbone,
    variant: Variant | None = None,
    *,
    refit_head: RefitHead,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Bundle:
    """Write `source`, converted to `variant`, at `out` if its outputs match those of `backbone` and of the head.

    The bounds depend on the precision (zoo.export.parity.bounds_of); int8 must also keep the accuracy
    (zoo.export.accuracy_guard). A model that was calibrated earlier and is not converted now keeps its parity checks,
    because the data of these checks are not available. The report of the training (report*) is left out: it holds
    copies of the data, and describes the model before conversion.

    Raises IntegrityError for a file that differs from its manifest, UsageError for a variant that this model cannot
    have, GateError if numbers differ or too much accuracy is lost, AccessError if space is lacking. After an error
    `out` is unchanged.
    """
    variant = variant or Variant()
    _check(source, variant)
    is_converted = variant.precision not in (None, source.manifest.precision)
    if is_converted:
        with progress.task("checking the original model", None):
            # The wider bounds of fewer bits could hide a wrong weight, so the original model is checked first.
            _parity(source.path, source, backbone, Converted(source.manifest))
    with room_for(out), staged_dir(out) as folder:
        copy_others(source, folder, is_converted=is_converted)
        converted = _Conversion(source, variant, folder, refit_head, offline, progress).run()
        if variant.raw:
            converted = converted._replace(manifest=_without_head(converted.manifest, folder))
        report = source.manifest.parity
        if is_converted or not _has_ranges(source.manifest):
            with progress.task("checking the ONNX file", None):
                report = _parity(folder, source, backbone, converted)
        manifest = msgspec.structs.replace(converted.manifest, files=describe_files(folder), parity=report)
        write_manifest(folder, manifest)
    return Bundle(out, manifest)


def copy_others(source: Bundle, folder: Path, *, is_converted: bool) -> None:
    """Copy the files of `source` that an export does not write itself; a conversion also writes external data."""
    changed = external_data.file_names(source.read_model()) if is_converted else set()
    for path in source.path.iterdir():
        if path.name not in {MANIFEST, MODEL, *changed} and not path.name.startswith(REPORT):
            shutil.copyfile(path, folder / path.name)


def _parity(folder: Path, source: Bundle, backbone: Backbone, converted: Converted) -> Parity:
    """The parity report of the model in `folder`, which was made from `source`."""
    manifest, (draft, own) = source.manifest, converted
    layers, reader = folder / HEAD, encoder(manifest.preprocess, folder)
    items, origin = own or samples.bundled(
        manifest.preprocess, parity_words(manifest.lineage.entry, reader), pairs=reads_pairs(manifest)
    )
    reference = reference_of(source, backbone)
    if draft.head is None:
        reference = only_features(reference)
    return parity.check(
        folder / MODEL,
        expect(reference, items, origin, reader, is_raw=_is_raw(draft), prefix=_earlier_prefix(source)),
        top=_top(layers, manifest),
        # The guard has accepted that some predictions change, and may have fitted the head again.
        former=_top(source.path / HEAD, manifest) if own and layers.is_file() else None,
        bounds=parity.bounds_of(draft.precision, manifest.lineage.entry.preprocess),
    )


def _earlier_prefix(source: Bundle) -> bytes | None:
    """The preprocessing in the file of an earlier version, with its own arithmetic; None for a file of this version."""
    model = onnx.load_from_string(source.read_model())
    if IMAGE not in {item.name for item in model.graph.input} or ARITHMETIC in edit.metadata_of(model).items():
        return None
    return bytes(edit.extract(model, [IMAGE], [PIXELS]).SerializeToString())


def _has_ranges(manifest: Manifest) -> bool:
    """Whether the model has ranges that were read from calibration data."""
    return manifest.precision == "int8" and isinstance(manifest.preprocess, ImagePreprocess)


def _check(source: Bundle, variant: Variant) -> None:
    manifest = source.manifest
    broken = [file.path for file, is_same in source.verify() if not is_same]
    if broken:
        raise IntegrityError(f"{source.path}: {', '.join(broken)} changed since it was written", hint="write it again")
    # Raises for a graph that is newer than the runtime.
    edit.load(source.path / MODEL)
    is_same = variant.precision in (None, manifest.precision)
    is_cut = variant.raw and not _is_raw(manifest) and _has_ranges(manifest)
    if is_same and not variant.fuse and not variant.calibrate and not is_cut:
        return
    form = manifest.precision if manifest.precision != "fp32" else "fused" if manifest.fused else None
    if form:
        raise UsageError(
            f"{manifest.name} at {source.path} is {form} already", hint="export the fp32 model it came from"
        )
    if _is_raw(manifest):
        asked = "" if variant.precision is None else f" --precision {variant.precision}"
        raise UsageError(
            f"{manifest.name} at {source.path} is a bare backbone, which cannot be converted further",
            hint=f"export the model it came from, with --raw{asked}",
        )
    check_needs(manifest, variant)
    if _has_table(manifest.lineage.entry) and variant.calibrate and manifest.head is None:
        raise UsageError(
            "--calibrate has no effect on a word table without labels: no accuracy can be measured",
            hint="leave --calibrate out",
        )


def _top(layers: Path, manifest: Manifest) -> Top | None:
    return Top(head.load(layers), manifest.activation or "softmax") if layers.is_file() else None


def check_needs(model: Entry | Manifest, variant: Variant) -> None:
    """Raise UsageError if `variant` lacks the data that it needs, or does not fit this kind of model.

    Raises MissingFileError and DataError for a file of labels that cannot be read.
    """
    if variant.labels is not None:
        list(map_rows(Path(variant.labels)))
    entry = model if isinstance(model, Entry) else model.lineage.entry
    if isinstance(model, Manifest) and variant.precision in (None, model.precision) and not variant.fuse:
        return
    if variant.fuse and not isinstance(entry.preprocess, TextPreprocess):
        raise UsageError(f"there is no attention to fuse in {entry.name}", hint="leave --fuse out")
    if variant.precision != "int8" or variant.calibrate or _has_table(entry):
        return
    is_image = isinstance(entry.preprocess, ImagePreprocess)
    if is_image or (isinstance(model, Manifest) and isinstance(model.head, HeadSpec)):
        raise UsageError(
            f"int8 needs data to {'read ranges from' if is_image else 'measure its accuracy on'}",
            hint="--calibrate DATA, the data that it was fine-tuned on",
        )


def _has_table(entry: Entry) -> bool:
    """Whether the model is a word table; only the table of such a model is converted."""
    return isinstance(entry.preprocess, WordsPreprocess)


def _is_raw(manifest: Manifest) -> bool:
    """Whether the graph takes pixels instead of images."""
    return PIXELS in {spec.name for spec in manifest.inputs}


class _Conversion(NamedTuple):
    """The conversion of `source` to `variant`. The model is written to `folder`, beside the bundle's other files."""

    source: Bundle
    variant: Variant
    folder: Path
    refit_head: RefitHead
    offline: bool
    progress: Progress

    def run(self) -> Converted:
        """Write the converted model. Raises UsageError and DataError for unfit data, GateError as `export` does."""
        source, manifest = self.source, self.source.manifest
        wanted = self.variant.precision or manifest.precision
        is_same = wanted == manifest.precision
        if is_same and not self.variant.fuse:
            shutil.copyfile(source.path / MODEL, self.folder / MODEL)
            return Converted(manifest)
        model = onnx.load_from_string(source.read_model())
        if _has_table(manifest.lineage.entry):
            return Converted(self._table(wanted, model))
        if self.variant.fuse:
            with self.progress.task("fusing", None):
                model = precision.fused(model, manifest.lineage.entry.family)
            manifest = msgspec.structs.replace(manifest, fused=True)
        draft = msgspec.structs.replace(manifest, precision=wanted)
        if wanted == "int8" and not is_same:
            return self._int8(draft, model)
        if wanted == "fp16" and not is_same:
            with self.progress.task("converting to half precision", None):
                model = precision.fp16(model)
        edit.save(model, self.folder / MODEL)
        return Converted(draft)

    def _int8(self, draft: Manifest, model: onnx.ModelProto) -> Converted:
        if not self.variant.calibrate:
            with self.progress.task("converting to int8", None):
                edit.save(precision.int8(model, []), self.folder / MODEL)
            return Converted(draft)
        data = self._guard_data()
        draft = accuracy_guard.quantise(data, draft, model, self.folder, self.refit_head, self.progress)
        return Converted(draft, data.compared)

    def _table(self, wanted: Precision, model: onnx.ModelProto) -> Manifest:
        """Write the model with its word table in fewer bits; its accuracy is measured if `variant` names data."""
        with self.progress.task(f"converting the word table to {wanted}", None):
            converted = precision_words.convert_table(model, wanted, self.source.map, self.folder)
            edit.save(converted, self.folder / MODEL)
        manifest = msgspec.structs.replace(self.source.manifest, precision=wanted)
        if not self.variant.calibrate:
            return manifest
        candidate = Bundle(self.folder, msgspec.structs.replace(manifest, files=describe_files(self.folder)))
        guard, metrics = accuracy_guard.guard_of(candidate, self._guard_data())
        return msgspec.structs.replace(manifest, guard=guard, metrics=metrics)

    def _guard_data(self) -> GuardData:
        return accuracy_guard.load_guard_data(self.source, self.variant, offline=self.offline, progress=self.progress)


def _without_head(draft: Manifest, folder: Path) -> Manifest:
    """Reduce the model in `folder` to its backbone, and remove the files and fields that describe the other parts."""
    model = onnx.load(folder / MODEL, load_external_data=False)
    body = without_scores(precision.split_parts(model).body)
    edit.describe(body, {name: fact for name, fact in edit.metadata_of(model).items() if name != "zoo.labels"})
    edit.save(body, folder / MODEL)
    kept = {MODEL, TAIL_FILE, *external_data.file_names(body)}
    if isinstance(draft.preprocess, TextPreprocess):
        kept.add(draft.preprocess.tokenizer)
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    inputs, outputs = edit.tensor_specs(body)
    return msgspec.structs.replace(
        draft, task=Task.EMBEDDING, inputs=inputs, outputs=outputs, activation=None, labels=(), label_ids=(),
        thresholds=(), class_weights=(), cut=None, head=None, metrics=None,
    )  # fmt: skip
