"""Writing a fine-tuned bundle: backbone and head in one checked ONNX file, with the records of the training."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zoo.backbone import Backbone
from zoo.bundle import HEAD, MODEL, SCHEMA_VERSION, SPLIT, Bundle, Held, describe_files, write_manifest
from zoo.data.dataset import Dataset
from zoo.data.items import listed
from zoo.data.samples import gate_samples
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
from zoo.graph.head import as_graph
from zoo.options import FinetuneOptions
from zoo.schema import HeadSpec, Manifest, TextPreprocess
from zoo.system.files import sha256

if TYPE_CHECKING:
    import onnx
    import torch

    from zoo.export.reference import Reference
    from zoo.graph.head import Floats
    from zoo.training.fit_head import TrainedHead

#: Files of a bundle: the learning curve, and the items that were left out, a JSON object each.
TRAINING, SKIPPED = "training.json", "skipped.jsonl"


class Materials(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of fine-tuning: the features bundle, a trunk for each cut, the family, and two folders."""

    base: Bundle
    trunk: Callable[[int], Bundle]
    backbone: Callable[[], Backbone]
    cache: Path
    trainings: Path


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """A trained model: the frozen part (features bundle, or trunk), the head, and the tuned stages between them."""

    frozen: Bundle
    head: "TrainedHead"
    labels: tuple[str, ...]
    stages: "torch.nn.ModuleList | None" = None


def write_model(
    folder: Path,
    base: Bundle,
    backbone: Backbone,
    tuned: Tuned,
    parts: tuple[Dataset, Dataset],
    options: FinetuneOptions,
    expected: "Callable[[], Expected] | None" = None,
    fresh: IsolatedSession | None = None,
) -> Manifest:
    """Write the ONNX file and the trained weights into `folder`, and return the manifest so far.

    Args:
        expected: returns the result of `expectation`, if it is being computed already.
        fresh: the process that opens the file, if it is running already.

    Raises GateError when the file's answers are not the model's.
    """
    source, preprocess, trained = base.manifest, base.manifest.preprocess, tuned.head
    digest = sha256("".join(part.digest for part in parts))
    lineage = msgspec.structs.replace(
        source.lineage, data=digest, seed=options.seed, options=recorded(options), versions=versions()
    )
    if isinstance(preprocess, TextPreprocess):
        shutil.copyfile(base.path / preprocess.tokenizer, folder / preprocess.tokenizer)
    top = Top(trained.layers, trained.activation)
    whole, reference = _merge(folder, backbone, tuned, top, metadata(lineage, preprocess, tuned.labels))
    wanted = expected() if expected else expectation(base, reference, parts[1])
    report = parity.check(folder / MODEL, wanted, top=top, fresh=fresh)
    head_graph.save(trained.layers, folder / HEAD)
    inputs, outputs = edit.tensor_specs(whole)
    choice = trained.choice
    spec = HeadSpec(hidden=options.hidden, scaling=choice.scaling, lr=choice.lr, weight_decay=choice.weight_decay)
    return msgspec.structs.replace(
        source,
        schema_version=SCHEMA_VERSION,
        task=options.task,
        inputs=inputs,
        outputs=outputs,
        files=describe_files(folder),
        lineage=lineage,
        parity=report,
        activation=trained.activation,
        labels=tuned.labels,
        thresholds=trained.thresholds,
        class_weights=trained.class_weights,
        unfrozen=len(tuned.stages or ()),
        head=spec,
    )


def report_on(
    base: Manifest,
    tuned: Tuned,
    parts: tuple[Dataset, Dataset],
    options: FinetuneOptions,
    notes: Sequence[str],
    scores: "Floats",
    features: "Floats",
) -> ReportInputs:
    """The report on the held-out items, from the model's `scores` [items, labels] and `features` of them."""
    train, held = parts
    trained, targets = tuned.head, held.targets(tuned.labels)
    metrics = measure(
        options.task, scores, targets, tuned.labels,
        thresholds=trained.thresholds, class_weights=trained.class_weights,
    )  # fmt: skip
    skipped = (*train.skipped, *held.skipped)
    left_out = [f"left out, see {SKIPPED}: {listed(skipped)} ({len(skipped)} in all)"] if skipped else []
    return ReportInputs(
        name=base.name,
        backbone=base.lineage.entry.name,
        data=train.source,
        task=options.task,
        labels=tuned.labels,
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
        options=recorded(options),
        versions=versions(),
        notes=(*notes, *left_out),
    )


def write_records(
    folder: Path,
    draft: Manifest,
    tuned: Tuned,
    parts: tuple[Dataset, Dataset],
    report: ReportInputs,
    drawing: Drawing,
) -> Manifest:
    """Write the split, the learning curve and the report into the bundle, and the manifest last."""
    train, held = parts
    lines = [Held(example.digest, example.label, False) for example in train.examples]
    rows = zip(held.examples, report.scores.tolist(), strict=True)
    lines += [Held(example.digest, example.label, True, tuple(row)) for example, row in rows]
    (folder / SPLIT).write_bytes(_lines(lines))
    if skipped := (*train.skipped, *held.skipped):
        (folder / SKIPPED).write_bytes(_lines(skipped))
    curve = {"best_epoch": report.best_epoch, "curve": [msgspec.to_builtins(epoch) for epoch in report.curve]}
    (folder / TRAINING).write_text(json.dumps(curve, indent=1) + "\n", encoding="utf-8")
    write_report(folder, report, drawing.result())
    manifest = msgspec.structs.replace(draft, files=describe_files(folder), metrics=report.metrics)
    write_manifest(folder, manifest)
    return manifest


def recorded(options: FinetuneOptions) -> dict[str, object]:
    """The options that shape a model: without those of how the training was run."""
    facts: dict[str, object] = msgspec.to_builtins(options)
    return {name: value for name, value in facts.items() if name not in ("resume", "auto_batch", "device")}


def expectation(base: Bundle, reference: "Reference", held: Dataset) -> Expected:
    """The features of some held-out items, computed by `reference`."""
    reader = encoder(base.manifest.preprocess, base.path)
    return expect(reference, gate_samples(held), "the held-out items", reader)


def _merge(
    folder: Path, backbone: Backbone, tuned: Tuned, top: Top, facts: dict[str, str]
) -> "tuple[onnx.ModelProto, Reference]":
    """(the model as written, its reference), merged from the frozen part, the tuned stages and the head."""
    layers = as_graph(top.layers, top.activation)
    if tuned.stages is None:
        return trunk.merge(tuned.frozen, None, folder / MODEL, head=layers, facts=facts), backbone.reference
    stages, tail = list(tuned.stages), folder / ".tail.onnx"
    trunk.export_tail(tail, stages, backbone)
    whole = trunk.merge(tuned.frozen, tail, folder / MODEL, head=layers, facts=facts)
    tail.unlink()
    trunk.save_tail(stages, folder / trunk.TAIL_FILE)
    return whole, trunk.tuned_reference(backbone, stages)


def _lines(rows: Sequence[msgspec.Struct]) -> bytes:
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
