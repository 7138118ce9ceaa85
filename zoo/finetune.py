"""Fine-tuning with a frozen backbone: features once, a head in seconds, both merged into one gated ONNX file."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zoo import data, external, graph, head, parity
from zoo.backbone import Backbone
from zoo.build import encoder, metadata, versions
from zoo.bundle import HEAD, MODEL, SCHEMA_VERSION, SPLIT, Bundle, Held, describe_files, write_manifest
from zoo.data import Dataset
from zoo.errors import DataError
from zoo.features import FeatureCache
from zoo.metrics import measure
from zoo.progress import SILENT, Progress
from zoo.runtime import Session
from zoo.schema import FinetuneOptions, HeadSpec, Lineage, Manifest, Metrics, Outcome, Preprocess, Task, TextPreprocess
from zoo.store import staged_dir

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from zoo.head import Layer, TrainedHead

TRAINING = "training.json"
#: Held-out items that the parity gate looks at.
GATE_SAMPLES = 8


def finetune(
    base: Bundle,
    parts: tuple[Dataset, Dataset],
    out: Path,
    options: FinetuneOptions,
    *,
    backbone: Callable[[], Backbone],
    cache: Path,
    progress: Progress = SILENT,
) -> Outcome:
    """Train a head for `parts` (training, held out) on the features of `base` and write a gated bundle at `out`.

    `backbone` gives the family's own arithmetic for the gate. Raises DataError, DivergedError, GateError; on any error
    nothing is written.
    """
    train, held = parts
    session = Session(base, options.device)
    features = FeatureCache(cache, session)
    vectors = features.features([*train.examples, *held.examples], progress)
    labels = train.labels
    split_at = len(train.examples)
    targets, held_targets = (part.targets(labels) for part in (train, held))
    trained = head.train(vectors[:split_at], targets, len(labels), options, progress)
    scores = head.apply(trained.layers, vectors[split_at:])
    metrics = measure(Task.SINGLE_LABEL, scores, held_targets, labels)
    with progress.task("merging and checking the ONNX file", None), staged_dir(out) as folder:
        manifest = _write(folder, base, backbone(), (train, held), trained, (scores, metrics), options)
    return Outcome(
        manifest=manifest,
        metrics=metrics,
        curve=trained.curve,
        best_epoch=trained.best_epoch,
        computed=features.computed,
        items=len(vectors),
    )


def save_head(layers: "list[Layer]", path: Path) -> None:
    """Write the layers as safetensors: `0.weight` [out, in], `0.bias` [out], ..."""
    from safetensors.numpy import save_file

    tensors: dict[str, NDArray[np.float32]] = {}
    for index, (weight, bias) in enumerate(layers):
        tensors |= {f"{index}.weight": weight, f"{index}.bias": bias}
    save_file(tensors, path)


def load_head(path: Path) -> "list[Layer]":
    """The layers that `save_head` wrote."""
    from safetensors.numpy import load_file

    tensors = load_file(path)
    return [(tensors[f"{index}.weight"], tensors[f"{index}.bias"]) for index in range(len(tensors) // 2)]


def load(preprocess: Preprocess, source: Path, options: FinetuneOptions) -> tuple[Dataset, Dataset]:
    """(training, held out) of the data at `source`, by fraction or from the data set that `options.val` names.

    Raises DataError as `zoo.data.load` does, for one class only, and for items that are in both.
    """
    if not isinstance(options.val, float):
        data.check_kind(Path(options.val), preprocess)
    dataset = data.load(source, preprocess, text=options.text, label=options.label)
    data.require_classes(dataset)
    if isinstance(options.val, float):
        return data.split(dataset, options.val, options.seed)
    held = data.load(Path(options.val), preprocess, text=options.text, label=options.label)
    shared = {example.digest for example in dataset.examples} & {example.digest for example in held.examples}
    if shared:
        raise DataError(
            f"{len(shared)} items of {options.val} are also in {source}: a score on them would mean nothing",
            path=options.val,
            hint="remove them from one of the two",
        )
    return dataset, held


def _write(
    folder: Path,
    base: Bundle,
    backbone: Backbone,
    parts: tuple[Dataset, Dataset],
    trained: "TrainedHead",
    result: "tuple[NDArray[np.float32], Metrics]",
    options: FinetuneOptions,
) -> Manifest:
    train, held = parts
    scores, metrics = result
    source, preprocess, labels = base.manifest, base.manifest.preprocess, train.labels
    digest = hashlib.sha256((train.digest + held.digest).encode()).hexdigest()
    lineage = msgspec.structs.replace(
        source.lineage, data=digest, seed=options.seed, options=msgspec.to_builtins(options), versions=versions()
    )
    if isinstance(preprocess, TextPreprocess):
        shutil.copyfile(base.path / preprocess.tokenizer, folder / preprocess.tokenizer)
    whole, model = merge_head(base, trained.layers, lineage, labels, folder / MODEL)
    report = parity.check(
        model,
        backbone.reference,
        _gate_samples(held),
        "the held-out items",
        preprocess=encoder(preprocess, folder),
        layers=trained.layers,
        tables=external.files(model, external.beside(folder)),
    )
    save_head(trained.layers, folder / HEAD)
    _write_records(folder, train, held, scores, trained)
    inputs, outputs = graph.tensor_specs(whole)
    manifest = msgspec.structs.replace(
        source,
        schema_version=SCHEMA_VERSION,
        task=Task.SINGLE_LABEL,
        inputs=inputs,
        outputs=outputs,
        files=describe_files(folder),
        lineage=lineage,
        parity=report,
        activation="softmax",
        labels=labels,
        head=HeadSpec(hidden=options.hidden, scaling=trained.scaling),
        metrics=metrics,
    )
    write_manifest(folder, manifest)
    return manifest


def merge_head(
    base: Bundle, layers: "list[Layer]", lineage: Lineage, labels: tuple[str, ...], path: Path
) -> "tuple[onnx.ModelProto, bytes]":
    """Put the head behind the features graph of `base` and write the whole chain at `path`, its tables beside it."""
    import onnx

    data = base.read_model()
    external.copy(data, base.path, path.parent)
    body = onnx.load_from_string(data)
    cut = [value for value in body.graph.value_info if value.name == base.manifest.cut]
    whole = graph.join(body, graph.head(layers, "softmax"), keep=[graph.FEATURES])
    whole.graph.value_info.extend(cut)
    graph.describe(whole, metadata(lineage, base.manifest.preprocess, labels))
    return whole, graph.save(whole, path)


def _write_records(
    folder: Path, train: Dataset, held: Dataset, scores: "NDArray[np.float32]", trained: "TrainedHead"
) -> None:
    lines = [Held(example.digest, example.label, False) for example in train.examples]
    rows = zip(held.examples, scores.tolist(), strict=True)
    lines += [Held(example.digest, example.label, True, tuple(row)) for example, row in rows]
    (folder / SPLIT).write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    curve = {"best_epoch": trained.best_epoch, "curve": [msgspec.to_builtins(epoch) for epoch in trained.curve]}
    (folder / TRAINING).write_text(json.dumps(curve, indent=1) + "\n", encoding="utf-8")


def _gate_samples(held: Dataset) -> list[Path | str]:
    """Held-out items of as many classes as possible, the same ones whatever the order of the data."""
    ranked = sorted(held.examples, key=lambda example: example.digest)
    seen: dict[str, int] = {}
    order = []
    for example in ranked:
        seen[example.label] = seen.get(example.label, 0) + 1
        order.append((seen[example.label], example.digest, example.item))
    return [item for _, _, item in sorted(order, key=lambda row: row[:2])[:GATE_SAMPLES]]
