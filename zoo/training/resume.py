"""Trainings under ZOO_HOME/training: the identity of each, and the folder of its checkpoints."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from zoo.bundle import Bundle
from zoo.data.dataset import Dataset
from zoo.errors import NotFoundError, UsageError
from zoo.options import FinetuneOptions
from zoo.store.store import RUN, RUN_SCHEMA
from zoo.system.files import sha256, walk
from zoo.system.records import find_record, write_record

#: The most recently started trainings that are kept.
KEPT_TRAININGS = 20
#: Options that may differ when a training is resumed.
MAY_CHANGE = frozenset(
    {
        *("epochs", "patience", "lr", "weight_decay", "max_bad", "auto_batch"),
        *("resume", "device", "text", "image", "label", "val"),
    }
)
#: Facts that may change when features are computed, because unreadable items are then left out.
PARTS = frozenset({"training items", "held-out items", "labels"})


def identity(base: Bundle, parts: tuple[Dataset, Dataset], options: FinetuneOptions) -> dict[str, Any]:
    """The facts that must be equal for a training to be resumed."""
    # Encoded as JSON and decoded, which turns tuples into lists: the facts are compared with facts read from JSON.
    facts = {name: value for name, value in json.loads(msgspec.json.encode(options)).items() if name not in MAY_CHANGE}
    return {
        "model": base.manifest.lineage.entry.name,
        "features graph": base.digest("model.onnx")[:16],
        "training items": f"{len(parts[0].examples)} ({parts[0].digest[:16]})",
        "held-out items": f"{len(parts[1].examples)} ({parts[1].digest[:16]})",
        "labels": list(parts[0].labels),
        **facts,
    }


def open_run(trainings: Path, out: Path, facts: Mapping[str, Any], *, resume: bool) -> Path:
    """The folder of the checkpoints of the training that writes `out`; `resume` requires one that `check` accepts.

    Checkpoints of an earlier training stay until `zoo.training.fit_head` removes them. If there are more than
    KEPT_TRAININGS trainings, the oldest are removed.
    """
    if resume:
        return check(trainings, out, facts)
    folder = _run_folder(trainings, out)
    write_record(folder / RUN, {"schema_version": RUN_SCHEMA, "out": str(out.resolve()), **facts})
    others = sorted(((status.st_mtime, path) for path, status in walk(trainings) if path.name == RUN), reverse=True)
    for _, path in others[KEPT_TRAININGS:]:
        shutil.rmtree(path.parent, ignore_errors=True)
    return folder


def check(trainings: Path, out: Path, facts: Mapping[str, Any], *, parts: bool = True) -> Path:
    """The folder of the saved training that writes `out` and has the identity `facts`.

    Without `parts`, different items are accepted, because some may turn out to be unreadable. Raises NotFoundError
    if there is no saved training, UsageError, which names every difference, if its identity is another one.
    """
    folder = _run_folder(trainings, out)
    before = find_record(folder / RUN, dict[str, Any], RUN_SCHEMA)
    if before is None:
        raise NotFoundError(f"there is no saved training of {out} to resume", hint="leave --resume out")
    changed = [name for name, value in facts.items() if before.get(name) != value]
    if set(changed) - (set() if parts else PARTS):
        differences = [f"{name}: {before.get(name)} then, {facts[name]} now" for name in changed]
        raise UsageError(
            f"the saved training of {out} differs from this one: {'; '.join(differences)}",
            hint="use the data and options that it was started with, or leave --resume out",
        )
    return folder


def _run_folder(trainings: Path, out: Path) -> Path:
    return trainings / sha256(str(out.resolve()))[:16]
