"""Trainings under ZOO_HOME/training: what each is of, and where its checkpoints lie."""

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
from zoo.store.store import RUN
from zoo.system.files import sha256
from zoo.system.records import find_record, write_record

#: Trainings that are kept: the ones that were started last.
KEPT = 20
#: Options that may be others when a training goes on.
MAY_CHANGE = frozenset(
    {
        *("epochs", "patience", "lr", "weight_decay", "max_bad", "auto_batch"),
        *("resume", "device", "text", "image", "label", "val"),
    }
)
#: What the computing of features may yet change, by leaving out items that cannot be read.
PARTS = frozenset({"training items", "held-out items", "labels"})


def identity(
    base: Bundle, parts: tuple[Dataset, Dataset], labels: tuple[str, ...], options: FinetuneOptions
) -> dict[str, Any]:
    """What must be the same for a training to go on."""
    # As JSON has them, in which a list is no tuple: they are compared with what was written.
    facts = {name: value for name, value in json.loads(msgspec.json.encode(options)).items() if name not in MAY_CHANGE}
    return {
        "model": base.manifest.lineage.entry.name,
        "features graph": base.digest("model.onnx")[:16],
        "training items": f"{len(parts[0].examples)} ({parts[0].digest[:16]})",
        "held-out items": f"{len(parts[1].examples)} ({parts[1].digest[:16]})",
        "labels": list(labels),
        **facts,
    }


def open_run(trainings: Path, out: Path, facts: Mapping[str, Any], *, resume: bool) -> Path:
    """The folder of the checkpoints of the training that writes `out`; with `resume` what `check` raises.

    Those of an earlier training stay until this one has begun: see zoo.training.fit_head. Of many trainings the oldest
    are removed.
    """
    if resume:
        return check(trainings, out, facts)
    folder = _folder(trainings, out)
    write_record(folder / RUN, {"out": str(out.resolve()), **facts})
    others = sorted(trainings.glob(f"*/{RUN}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[KEPT:]:
        shutil.rmtree(path.parent, ignore_errors=True)
    return folder


def check(trainings: Path, out: Path, facts: Mapping[str, Any], *, parts: bool = True) -> Path:
    """The folder of the training that writes `out`, if it is of what `facts` say.

    Without `parts` other items alone are no reason to refuse: some may yet turn out to be unreadable. Raises
    NotFoundError when there is nothing to go on with, UsageError naming what differs from the training there.
    """
    folder = _folder(trainings, out)
    before = find_record(folder / RUN, dict[str, Any], None)
    if before is None:
        raise NotFoundError(f"there is no training of {out} to go on with", hint="leave --resume out")
    changed = [name for name, value in facts.items() if before.get(name) != value]
    if set(changed) - (set() if parts else PARTS):
        differences = [f"{name}: {before.get(name)} then, {facts[name]} now" for name in changed]
        raise UsageError(
            f"the training of {out} was of something else: {'; '.join(differences)}",
            hint="give what it was started with, or leave --resume out",
        )
    return folder


def _folder(trainings: Path, out: Path) -> Path:
    return trainings / sha256(str(out.resolve()))[:16]
