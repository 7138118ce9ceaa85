"""Fine-tuning with a frozen backbone: features once, a head in seconds, both merged into one gated ONNX file."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from zoo import head, tuned
from zoo.backbone import Backbone
from zoo.bundle import Bundle
from zoo.checkpoint import Checkpoints
from zoo.data import Dataset
from zoo.disk import staged_dir, write_atomic
from zoo.errors import NotFoundError, UsageError
from zoo.evaluate import measure
from zoo.features import FeatureCache
from zoo.fit import Problem, fit
from zoo.interrupt import noticing
from zoo.progress import SILENT, Progress
from zoo.runtime import Session
from zoo.schema import FinetuneOptions, Outcome, Preprocess
from zoo.split import divide
from zoo.tuned import Result

#: What a training is of, beside its checkpoints.
IDENTITY = "run.json"
#: Options that may be others when a training goes on.
MAY_CHANGE = frozenset(
    {"epochs", "patience", "lr", "weight_decay", "resume", "device", "text", "image", "label", "val"}
)


def finetune(
    base: Bundle,
    parts: tuple[Dataset, Dataset],
    out: Path,
    options: FinetuneOptions,
    *,
    backbone: Callable[[], Backbone],
    cache: Path,
    trainings: Path,
    progress: Progress = SILENT,
) -> Outcome:
    """Train a head for `parts` (training, held out) on the features of `base` and write a gated bundle at `out`.

    `backbone` gives the family's own arithmetic for the gate; `cache` and `trainings` are folders for features and for
    checkpoints. Raises DataError, UsageError, DivergedError, GateError; on any error nothing is written at `out`.
    On Ctrl-C the step is finished and saved, and `options.resume` goes on from there.
    """
    train, held = parts
    session = Session(base, options.device)
    features = FeatureCache(cache, session)
    vectors = features.features([*train.examples, *held.examples], progress)
    labels = train.labels
    split_at = len(train.examples)
    targets, held_targets = (part.targets(labels) for part in (train, held))
    run = open_run(trainings, out, identity(base, parts, labels, options), options)
    with noticing() as stop:
        problem = Problem(vectors[:split_at], targets, len(labels), options)
        trained = fit(problem, stop, checkpoints=run, resume=options.resume, progress=progress)
    scores = head.apply(trained.layers, vectors[split_at:], trained.activation)
    metrics = measure(scores, list(held_targets), labels)
    result = Result(train=train, held=held, labels=labels, trained=trained, scores=scores, metrics=metrics)
    with progress.task("merging and checking the ONNX file", None), staged_dir(out) as folder:
        manifest = tuned.write(folder, base, backbone().reference, result, options)
    return Outcome(
        manifest=manifest,
        metrics=metrics,
        curve=trained.curve,
        best_epoch=trained.best_epoch,
        computed=features.computed,
        items=len(vectors),
    )


def load(
    preprocess: Preprocess,
    source: str | Path,
    options: FinetuneOptions,
    *,
    offline: bool = False,
    progress: Progress = SILENT,
) -> tuple[Dataset, Dataset]:
    """(training, held out) of the data at `source`, as `zoo.split.divide` does, in the order of the items' bytes.

    Files found in another order must train the same model.
    """
    train, held = map(_in_order, divide(source, preprocess, options, offline=offline, progress=progress))
    return train, held


def identity(
    base: Bundle, parts: tuple[Dataset, Dataset], labels: tuple[str, ...], options: FinetuneOptions
) -> dict[str, Any]:
    """What must be the same for a training to go on."""
    facts = {name: value for name, value in msgspec.to_builtins(options).items() if name not in MAY_CHANGE}
    return {
        "model": base.manifest.lineage.entry.name,
        "features graph": base.digest("model.onnx")[:16],
        "training items": f"{len(parts[0].examples)} ({parts[0].digest[:16]})",
        "held-out items": f"{len(parts[1].examples)} ({parts[1].digest[:16]})",
        "labels": list(labels),
        **facts,
    }


def open_run(trainings: Path, out: Path, facts: dict[str, Any], options: FinetuneOptions) -> Path:
    """The folder of the checkpoints of the training that writes `out`: emptied, or with `resume` as it was left.

    Raises NotFoundError when there is nothing to go on with, UsageError naming what differs from the training there.
    """
    folder = trainings / hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    if not options.resume:
        for phase in ("inner", "all", "tail-inner", "tail-all"):
            Checkpoints(folder / phase).clear()
        write_atomic(folder / IDENTITY, msgspec.json.encode({"out": str(out.resolve()), **facts}))
        return folder
    try:
        before = msgspec.json.decode((folder / IDENTITY).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        raise NotFoundError(f"there is no training of {out} to go on with", hint="leave --resume out") from None
    now = msgspec.to_builtins(facts)
    differences = [
        f"{name}: {before.get(name)} then, {value} now" for name, value in now.items() if before.get(name) != value
    ]
    if differences:
        raise UsageError(
            f"the training of {out} was of something else: {'; '.join(differences)}",
            hint="give what it was started with, or leave --resume out",
        )
    return folder


def _in_order(part: Dataset) -> Dataset:
    """In the order of the items' bytes: files found in another order must train the same model."""
    ranked = sorted(part.examples, key=lambda example: (example.digest, example.label, example.name))
    return msgspec.structs.replace(part, examples=tuple(ranked))
