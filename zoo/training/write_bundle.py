"""Writes a fine-tuned bundle: backbone and head in one checked ONNX file, with the records of the training."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from zoo.backbone import Backbone
from zoo.bundle import HEAD, MODEL, SCHEMA_VERSION, SPLIT, Bundle, Held, describe_files, write_manifest
from zoo.data.dataset import Dataset
from zoo.data.items import Skipped, listed
from zoo.data.samples import parity_samples
from zoo.evaluation.metrics import measure
from zoo.evaluation.report import Drawing, write_report
from zoo.evaluation.report_data import ReportInputs
from zoo.export import parity, trunk
from zoo.export.build import encoder, metadata, versions
from zoo.export.isolated_session import IsolatedSession
from zoo.export.parity import Top
from zoo.export.reference import Expected, expect
from zoo.graph import edit
from zoo.graph import head as head_graph
from zoo.options import FinetuneOptions
from zoo.results import Suspect
from zoo.runtime.session import Session
from zoo.schema import HeadSpec, Lineage, Manifest, Metrics, TextPreprocess
from zoo.system.files import sha256
from zoo.system.records import write_record

if TYPE_CHECKING:
    import onnx
    import torch

    from zoo.export.reference import Reference
    from zoo.graph.head import Floats
    from zoo.training.trained_head import TrainedHead

#: Suspects that the report shows.
SHOWN = 12
#: Files of a bundle: the learning curve, and the items that were left out, one JSON object per line.
TRAINING, SKIPPED = "training.json", "skipped.jsonl"


class Materials(Struct, frozen=True, kw_only=True):
    """The inputs of fine-tuning: options, the features bundle, trunks by cut, the family, and two folders."""

    options: FinetuneOptions
    base: Bundle
    trunk: Callable[[int], Bundle]
    backbone: Callable[[], Backbone]
    cache: Path
    trainings: Path


class Features(Struct, frozen=True):
    """The readable items of both `parts` (training, held out), and the features [items, dim] of items and views.

    `computed` counts the features that were not in the cache; `device` is the device that the backbone ran on.
    """

    parts: tuple[Dataset, Dataset]
    train: "Floats"
    held: "Floats"
    views: "Sequence[Floats]"
    computed: int
    device: str

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the training items."""
        return self.parts[0].labels

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The items of both parts that were left out."""
        return (*self.parts[0].skipped, *self.parts[1].skipped)


class Tuned(Struct, frozen=True, kw_only=True):
    """A trained model: the frozen part (features bundle, or trunk), the head, and the tuned stages between them."""

    materials: Materials
    features: Features
    frozen: Bundle
    head: "TrainedHead"
    stages: "torch.nn.ModuleList | None" = None
    suspects: tuple[Suspect, ...] = ()


def write_bundle(
    folder: Path,
    tuned: Tuned,
    notes: Sequence[str],
    expected: Callable[[], Expected] | None,
    fresh: IsolatedSession,
    drawing: Drawing,
) -> tuple[Manifest, Metrics]:
    """Write the whole bundle, and return its manifest and its metrics on the held-out items.

    Args:
        notes: lines about the data, for the report.
        expected: returns the result of `expectation` if that is already being computed; otherwise None.
        fresh: the process that opens the file.
        drawing: draws the report while the other files are written.

    Raises GateError when the file's outputs differ from the model's.
    """
    features, lineage = tuned.features, _lineage(tuned)
    if tuned.stages is None:
        scores = head_graph.apply(tuned.head.layers, features.held, tuned.head.activation)
        drawing.begin(report := _report(tuned, lineage, notes, scores, features.held))
        draft = _write_model(folder, tuned, lineage, expected, fresh)
    else:
        draft = _write_model(folder, tuned, lineage, expected, fresh)
        # The tuned stages changed the features, so the file computes them instead of the cache.
        session = Session(Bundle(folder, draft), tuned.materials.options.device)
        found = session.infer(features.parts[1].items, ["scores", "features"])
        drawing.begin(report := _report(tuned, lineage, notes, found["scores"], found["features"]))
    _write_records(folder, features, report)
    write_report(folder, report, drawing.result())
    manifest = replace(draft, files=describe_files(folder), metrics=report.metrics)
    write_manifest(folder, manifest)
    return manifest, report.metrics


def expectation(base: Bundle, reference: "Reference", held: Dataset) -> Expected:
    """The features of some held-out items, computed by `reference`."""
    reader = encoder(base.manifest.preprocess, base.path)
    return expect(reference, parity_samples(held), "the held-out items", reader)


def _lineage(tuned: Tuned) -> Lineage:
    """The origin of the bundle; its `options` leave out those that do not affect the model, such as `device`."""
    options = tuned.materials.options
    facts = msgspec.to_builtins(options)
    for name in ("resume", "auto_batch", "device"):
        del facts[name]
    digest = sha256("".join(part.digest for part in tuned.features.parts))
    source = tuned.materials.base.manifest.lineage
    return replace(source, data=digest, seed=options.seed, options=facts, versions=versions())


def _write_model(
    folder: Path, tuned: Tuned, lineage: Lineage, expected: Callable[[], Expected] | None, fresh: IsolatedSession
) -> Manifest:
    """Write the ONNX file and the trained weights into `folder`, and return the manifest so far."""
    base, options, trained = tuned.materials.base, tuned.materials.options, tuned.head
    preprocess, labels, top = base.manifest.preprocess, tuned.features.labels, Top(trained.layers, trained.activation)
    if isinstance(preprocess, TextPreprocess):
        shutil.copyfile(base.path / preprocess.tokenizer, folder / preprocess.tokenizer)
    whole, reference = _merge(folder, tuned, top, metadata(lineage, preprocess, labels))
    wanted = expected() if expected else expectation(base, reference, tuned.features.parts[1])
    report = parity.check(folder / MODEL, wanted, top=top, fresh=fresh)
    head_graph.save(trained.layers, folder / HEAD)
    inputs, outputs = edit.tensor_specs(whole)
    choice = trained.choice
    spec = HeadSpec(hidden=options.hidden, scaling=choice.scaling, lr=choice.lr, weight_decay=choice.weight_decay)
    return replace(
        base.manifest,
        schema_version=SCHEMA_VERSION,
        task=options.task,
        inputs=inputs,
        outputs=outputs,
        files=describe_files(folder),
        lineage=lineage,
        parity=report,
        activation=trained.activation,
        labels=labels,
        label_ids=(),
        thresholds=trained.thresholds,
        class_weights=trained.class_weights,
        unfrozen=len(tuned.stages or ()),
        head=spec,
    )


def _merge(folder: Path, tuned: Tuned, top: Top, facts: dict[str, str]) -> "tuple[onnx.ModelProto, Reference]":
    """The merged model (frozen part, tuned stages, head) as it was written, and its reference in torch."""
    layers, backbone = head_graph.as_graph(top.layers, top.activation), tuned.materials.backbone()
    if tuned.stages is None:
        whole = trunk.merge(tuned.frozen, None, folder / MODEL, head=layers, facts=facts)
        return whole, trunk.only_features(backbone.reference)
    stages, tail = list(tuned.stages), folder / ".tail.onnx"
    trunk.export_tail(tail, stages, backbone)
    whole = trunk.merge(tuned.frozen, tail, folder / MODEL, head=layers, facts=facts)
    tail.unlink()
    trunk.save_tail(stages, folder / trunk.TAIL_FILE)
    return whole, trunk.tuned_reference(backbone, stages)


def _report(tuned: Tuned, lineage: Lineage, notes: Sequence[str], scores: "Floats", features: "Floats") -> ReportInputs:
    """The inputs of the report, from the model's `scores` [items, labels] and `features` of the held-out items."""
    data, trained = tuned.features, tuned.head
    (train, held), skipped = data.parts, data.skipped
    task, targets = tuned.materials.options.task, held.targets(data.labels)
    metrics = measure(
        task, scores, targets, data.labels, thresholds=trained.thresholds, class_weights=trained.class_weights
    )
    left_out = [f"left out, see {SKIPPED}: {listed(skipped)} ({len(skipped)} in all)"] if skipped else []
    return ReportInputs(
        name=tuned.materials.base.manifest.name,
        backbone=lineage.entry.name,
        data=train.source,
        task=task,
        labels=data.labels,
        metrics=metrics,
        trained_on=len(train.examples),
        curve=trained.curve,
        best_epoch=trained.best_epoch,
        examples=held.examples,
        scores=scores,
        targets=targets,
        features=features,
        thresholds=trained.thresholds,
        class_weights=trained.class_weights,
        options=lineage.options,
        versions=lineage.versions,
        notes=(*notes, *left_out),
        trained=train.examples,
        suspects=tuned.suspects[:SHOWN],
        doubtful=len(tuned.suspects),
        learning=trained.learning,
    )


def _write_records(folder: Path, features: Features, report: ReportInputs) -> None:
    """Write the split, the skipped items and the learning curve."""
    train, held = features.parts
    lines = [Held(example.digest, example.label, False) for example in train.examples]
    rows = zip(held.examples, report.scores.tolist(), strict=True)
    lines += [Held(example.digest, example.label, True, tuple(row)) for example, row in rows]
    as_json = msgspec.json.Encoder()
    (folder / SPLIT).write_bytes(as_json.encode_lines(lines))
    if features.skipped:
        (folder / SKIPPED).write_bytes(as_json.encode_lines(features.skipped))
    write_record(folder / TRAINING, {"best_epoch": report.best_epoch, "curve": report.curve}, indent=1)
