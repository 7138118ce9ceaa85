"""Writing a fine-tuned bundle: features graph and head in one ONNX file, gated, with the records of how it was made."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zoo import external, graph, head, parity
from zoo.build import encoder, metadata, versions
from zoo.bundle import HEAD, MODEL, SCHEMA_VERSION, SPLIT, Bundle, Held, describe_files, write_manifest
from zoo.data import Dataset, Item
from zoo.parity import Top
from zoo.schema import FinetuneOptions, HeadSpec, Lineage, Manifest, Metrics, TextPreprocess

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from zoo.fit import TrainedHead
    from zoo.parity import Reference

TRAINING = "training.json"
#: Held-out items that the parity gate looks at.
GATE_SAMPLES = 8


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a training gave, for the bundle: the head, its scores [items, labels] on the held-out items, their worth."""

    train: Dataset
    held: Dataset
    labels: tuple[str, ...]
    trained: "TrainedHead"
    scores: "NDArray[np.float32]"
    metrics: Metrics


def write(folder: Path, base: Bundle, reference: "Reference", result: Result, options: FinetuneOptions) -> Manifest:
    """Write model, head, records and manifest into `folder`. Raises GateError when the file is not the model."""
    source, preprocess, trained = base.manifest, base.manifest.preprocess, result.trained
    digest = hashlib.sha256((result.train.digest + result.held.digest).encode()).hexdigest()
    lineage = msgspec.structs.replace(
        source.lineage, data=digest, seed=options.seed, options=msgspec.to_builtins(options), versions=versions()
    )
    if isinstance(preprocess, TextPreprocess):
        shutil.copyfile(base.path / preprocess.tokenizer, folder / preprocess.tokenizer)
    top = Top(trained.layers, trained.activation)
    whole, model = merge_head(base, top, lineage, result.labels, folder / MODEL)
    report = parity.check(
        model,
        reference,
        gate_samples(result.held),
        "the held-out items",
        preprocess=encoder(preprocess, folder),
        top=top,
        tables=external.files(model, external.beside(folder)),
    )
    head.save(trained.layers, folder / HEAD)
    _write_records(folder, result)
    inputs, outputs = graph.tensor_specs(whole)
    choice = trained.choice
    manifest = msgspec.structs.replace(
        source,
        schema_version=SCHEMA_VERSION,
        task=options.task,
        inputs=inputs,
        outputs=outputs,
        files=describe_files(folder),
        lineage=lineage,
        parity=report,
        activation=trained.activation,
        labels=result.labels,
        thresholds=trained.thresholds,
        class_weights=trained.class_weights,
        unfrozen=options.unfreeze,
        head=HeadSpec(hidden=options.hidden, scaling=choice.scaling, lr=choice.lr, weight_decay=choice.weight_decay),
        metrics=result.metrics,
    )
    write_manifest(folder, manifest)
    return manifest


def merge_head(
    base: Bundle, top: Top, lineage: Lineage, labels: tuple[str, ...], path: Path
) -> "tuple[onnx.ModelProto, bytes]":
    """Put the head behind the features graph of `base` and write the whole chain at `path`, its tables beside it."""
    import onnx

    data = base.read_model()
    external.copy(data, base.path, path.parent)
    body = onnx.load_from_string(data)
    cut = [value for value in body.graph.value_info if value.name == base.manifest.cut]
    whole = graph.join(body, graph.head(top.layers, top.activation), keep=[graph.FEATURES])
    whole.graph.value_info.extend(cut)
    graph.describe(whole, metadata(lineage, base.manifest.preprocess, labels))
    return whole, graph.save(whole, path)


def gate_samples(held: Dataset) -> Sequence[Item]:
    """Held-out items of as many classes as possible, the same ones whatever the order of the data."""
    ranked = sorted(held.examples, key=lambda example: example.digest)
    seen: dict[str, int] = {}
    order = []
    for example in ranked:
        seen[example.label] = seen.get(example.label, 0) + 1
        order.append((seen[example.label], example.digest, example.item))
    return [item for _, _, item in sorted(order, key=lambda row: row[:2])[:GATE_SAMPLES]]


def _write_records(folder: Path, result: Result) -> None:
    lines = [Held(example.digest, example.label, False) for example in result.train.examples]
    rows = zip(result.held.examples, result.scores.tolist(), strict=True)
    lines += [Held(example.digest, example.label, True, tuple(row)) for example, row in rows]
    (folder / SPLIT).write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    trained = result.trained
    curve = {"best_epoch": trained.best_epoch, "curve": [msgspec.to_builtins(epoch) for epoch in trained.curve]}
    (folder / TRAINING).write_text(json.dumps(curve, indent=1) + "\n", encoding="utf-8")
