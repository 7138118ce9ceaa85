"""Gain and cost of deeper fine-tuning: frozen, `--unfreeze 1`, `--unfreeze 2` and `--augment 2` on the surfaces.

    python benchmarks/unfreeze.py --record

The surfaces are those of the demo: 14 classes, 840 crops to train on, 420 held out. Each run is a new process that
computes its features and activations itself, and trains all `--epochs` of the last stages. The table also shows the
fraction of the backbone's parameters and multiplications that is trained. `--record` writes the table into RESULTS.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import record

OUT = record.HERE / "out"
#: The rows of the table: the number of trained stages and of random views.
RUNS = ((0, 0), (1, 0), (2, 0), (0, 2), (1, 2))


class Clock:
    """Progress that measures the seconds and units of each reported task."""

    def __init__(self) -> None:
        self.tasks: dict[str, list[float]] = {}

    @contextmanager
    def task(self, description: str, total: int | None, unit: str = "it") -> "Iterator[_Count]":
        """A timed task."""
        count, began = _Count(), time.perf_counter()
        yield count
        self.tasks.setdefault(description.partition(" by ")[0], []).extend([time.perf_counter() - began, count.done])

    def note(self, text: str) -> None:
        """Notes are ignored."""


class _Count:
    done = 0

    def advance(self, amount: int = 1) -> None:
        self.done += amount

    def describe(self, text: str) -> None:
        pass


def one(arguments: argparse.Namespace) -> dict[str, Any]:
    """One run, in this process."""
    from zoo import FinetuneOptions, Zoo

    stages, views = arguments.only
    clock, home = Clock(), Path(os.environ["ZOO_HOME"])
    zoo = Zoo(progress=clock)
    zoo.graph(arguments.model)
    if stages:
        # Trunks, like graphs, are exported once; this time is not a part of the run.
        zoo.graph(arguments.model, len(sizes(arguments.model)) - stages)
    shutil.rmtree(home / "features", ignore_errors=True)
    clock.tasks.clear()
    epochs = {"epochs": arguments.epochs, "patience": arguments.epochs} if stages else {}
    options = FinetuneOptions(unfreeze=stages, augment=views, val=str(arguments.data / "heldout"), **epochs)
    out = arguments.data.parent / f"surfaces-{stages}-{views}"
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    outcome = zoo.finetune(arguments.model, arguments.data / "train", out, options)
    seconds = time.perf_counter() - began
    deep = clock.tasks.get("training the last stages")
    kept = sum(path.stat().st_size for path in home.rglob("*") if path.is_file() and ".activations" in str(path))
    return {
        "unfreeze": stages,
        "augment": views,
        "n": outcome.metrics.n,
        "accuracy": outcome.metrics.accuracy,
        "interval": outcome.metrics.accuracy_interval,
        "seconds": seconds,
        "epochs": deep[1] if deep else 0,
        "seconds_per_epoch": deep[0] / deep[1] if deep else None,
        "best_epoch": outcome.best_epoch,
        "activation_bytes": kept,
        "tasks": clock.tasks,
    }


def sizes(model: str) -> list[tuple[int, int]]:
    """Returns the parameters and the multiplications for one image of each stage of a backbone, earliest first."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from zoo import Zoo

    zoo = Zoo()
    entry = zoo.entry(model)
    stages = zoo.plugins.backbone(entry.family)(entry, zoo.pull(model)).stages()
    side = entry.preprocess.crop
    tensors: Any = {entry.inputs[0].name: torch.zeros(1, 3, side, side)}
    found = []
    for stage in stages:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            tensors = stage(tensors)
        found.append((sum(each.numel() for each in stage.parameters()), counter.get_total_flops() // 2))
    return found


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all configurations and return the printed summary."""
    work = arguments.work.resolve()
    data = work / "surfaces"
    home = arguments.home or work / "home"
    environment = {"ZOO_HOME": str(home), "ZOO_DEVICE": "cpu"}
    os.environ.update(environment)
    subprocess.run([sys.executable, str(record.ROOT / "demo/surfaces.py"), str(data)], check=True, stdout=sys.stderr)
    record.timed(record.zoo("pull", arguments.model), environment)
    rows = []
    for stages, views in RUNS:
        only = ("--only", str(stages), str(views), "--epochs", str(arguments.epochs))
        found, cost = record.timed(
            record.script("unfreeze.py", "--model", arguments.model, "--data", str(data), *only), environment
        )
        rows.append({**found, "cpu": cost["cpu"], "load": cost["load"]})
        print(json.dumps(rows[-1]), file=sys.stderr)
    return {"model": arguments.model, "rows": rows, "stages": sizes(arguments.model), "machine": record.machine()}


def markdown(found: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    parameters, products = (sum(side) for side in zip(*found["stages"], strict=True))
    lines = []
    for row in found["rows"]:
        trained = found["stages"][len(found["stages"]) - row["unfreeze"] :]
        share = [sum(stage[at] for stage in trained) / whole for at, whole in enumerate((parameters, products))]
        low, high = row["interval"]
        name = f"`--unfreeze {row['unfreeze']}`" if row["unfreeze"] else "frozen"
        pace = row["seconds_per_epoch"]
        lines.append(
            [
                f"{name}, `--augment {row['augment']}`" if row["augment"] else name,
                f"{row['accuracy']:.3f} [{low:.3f}, {high:.3f}]",
                f"{pace:.1f}" if pace else "",
                f"{row['seconds']:.0f}",
                f"{row['activation_bytes'] / 1e6:.0f} MB" if row["unfreeze"] else "",
                f"{share[0]:.0%}" if row["unfreeze"] else "",
                f"{share[1]:.0%}" if row["unfreeze"] else "",
            ]
        )
    header = ("", "held-out accuracy", "s an epoch", "s in all", "activations", "of the parameters", "of the products")
    loads = [row["load"] for row in found["rows"]]
    paragraphs = (
        f"{record.facts(found['machine'])} 840 crops to train on; {found['rows'][0]['n']} held out, with the 95 % "
        f"interval. One run each; the machine's load before it was {min(loads)} to {max(loads)}.",
        record.table(header, lines),
        "An epoch trains the last stages on every crop (and view) and judges the inner items. The last two columns are "
        "the part of the backbone, by parameters and by multiplications, that is trained.",
    )
    return "\n\n".join(paragraphs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--epochs", type=int, default=10, help="of the last stages")
    parser.add_argument("--work", type=Path, default=OUT)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--record", action="store_true", help="write RESULTS.md")
    chosen = parser.parse_args()
    if chosen.only:
        print(json.dumps(one(chosen)))
    else:
        result = main(chosen)
        if chosen.record:
            record.write_section("Training the last stages", markdown(result))
        print(json.dumps(result))
