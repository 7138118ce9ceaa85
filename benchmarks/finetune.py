"""`zoo finetune` compared with a plain torch loop with the same frozen backbone, images, head and epochs.

    python benchmarks/finetune.py --model efficientnet_lite0 --rounds 3 --record
    python benchmarks/finetune.py --model resnet50.tv_in1k --random-weights --rounds 2 --record

Each measurement runs in its own process, and they take turns, because the threads of two runtimes in one process wait
for each other. A round is one pass of ONNX Runtime over the images, an epoch of the torch loop (or only
`--timed-batches` of it), and `zoo finetune` four times: without cached features, with all features cached, with its own
early stopping, and with another head and rate. The medians are printed as one JSON object; `--record` also writes them
into RESULTS.md. One epoch of the loop is timed and scaled to `--epochs`.

Weights come from `zoo pull`, or are random with `--random-weights`: then only the times mean something, not the
accuracies. ZOO_REGISTRY adds models.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

import photos
import record

OUT = record.HERE / "out"
SECOND = ("--head", "mlp:128", "--lr", "0.003")


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds and return the printed summary."""
    work = arguments.work.resolve()
    data = photo_folder(work, arguments.items)
    environment = {"ZOO_HOME": str(arguments.home or work / "home"), "ZOO_DEVICE": "cpu"}
    if arguments.random_weights:
        environment["ZOO_REGISTRY"] = str(random_registry(work / "registry", arguments.model))
    record.timed(record.zoo("pull", arguments.model), environment)
    if not arguments.home:
        shutil.rmtree(Path(environment["ZOO_HOME"]) / "graphs", ignore_errors=True)
    image = str(next(data.rglob("*.jpg")))
    _, graph = record.timed(record.zoo("run", arguments.model, image), environment)
    rounds = [one_round(arguments, data, work, environment) for _ in range(arguments.rounds)]
    return {
        "model": arguments.model,
        "items": arguments.items,
        "epochs": arguments.epochs,
        "random_weights": arguments.random_weights,
        "image_bytes": round(sum(path.stat().st_size for path in data.rglob("*.jpg")) / arguments.items),
        "graph": graph,
        **summary(rounds, arguments.epochs),
        "machine": record.machine(),
        "rounds": rounds,
    }


def one_round(
    arguments: argparse.Namespace, data: Path, work: Path, environment: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """The cost and the result of each measurement, by name."""
    model, out = arguments.model, work / "models"
    # A patience as long as the training, so that every epoch runs.
    all_epochs = ("--epochs", str(arguments.epochs), "--patience", str(arguments.epochs))
    found: dict[str, dict[str, Any]] = {}

    def measure(name: str, command: list[str]) -> None:
        said, cost = record.timed(command, environment)
        said = said.get("finetune", said)
        found[name] = {**cost, **said, **({"accuracy": said["metrics"]["accuracy"]} if "metrics" in said else {})}
        found[name].pop("metrics", None)
        print(f"{name}: {cost['wall']:.1f} s, {cost['cpu']:.1f} s of CPU, load {cost['load']}", file=sys.stderr)

    def finetune(name: str, *options: str) -> None:
        shutil.rmtree(out / name, ignore_errors=True)
        measure(name, record.zoo("finetune", model, str(data), "-o", str(out / name), *options, "--json"))

    kept = str(work / "features.npz")
    measure("pass", record.script("onnx_pass.py", model, str(data), kept))
    epochs = ("--features", kept, "--batches", str(arguments.timed_batches), "--of", str(arguments.epochs))
    measure("torch", record.script("torch_loop.py", model, str(data), *epochs))
    shutil.rmtree(Path(environment["ZOO_HOME"]) / "features", ignore_errors=True)
    finetune("files", *all_epochs)
    finetune("cached", *all_epochs)
    finetune("default")
    finetune("second", *SECOND)
    assert found["files"]["features_computed"] == arguments.items
    assert found["cached"]["features_computed"] == found["second"]["features_computed"] == 0
    return found


def summary(rounds: list[dict[str, dict[str, Any]]], epochs: int) -> dict[str, Any]:
    """Medians over the rounds in seconds, and their ratios."""

    def middle(name: str, field: str) -> float:
        return float(median(each[name][field] for each in rounds))

    walls = {name: middle(name, "wall") for name in ("files", "cached", "default", "second")}
    start = middle("torch", "start")
    train, val = middle("torch", "train"), middle("torch", "val")
    loop = start + epochs * (train + val)
    one_pass = middle("pass", "seconds")
    return {
        "torch": {"start": start, "train_epoch": train, "val_epoch": val, "scaled": loop},
        "pass": one_pass,
        "ours": walls,
        "ours_cpu": {name: middle(name, "cpu") for name in walls},
        "ratio": loop / walls["files"],
        "ratio_cached": loop / walls["cached"],
        "ratio_training_only": (start + epochs * train) / walls["files"],
        "over_pass": walls["files"] - 1.2 * one_pass,
        "accuracy": {name: middle(name, "accuracy") for name in ("torch", *walls)},
        "load": [pick(each[name]["load"] for each in rounds for name in each) for pick in (min, max)],
    }


def photo_folder(work: Path, items: int) -> Path:
    """The folder of the data set, written once."""
    folder = work / f"photos-{items}"
    if not (folder / ".written").exists():
        shutil.rmtree(folder, ignore_errors=True)
        photos.write(folder, items)
        (folder / ".written").touch()
    return folder


def random_registry(folder: Path, model: str) -> Path:
    """A registry file with the shipped row of `model`, and random weights in upstream's layout beside it."""
    import hashlib

    sys.path.insert(0, str(record.ROOT))
    from tests.kit.upstream import ROWS, write_weights

    files = folder / model
    if not files.exists():
        files.mkdir(parents=True)
        write_weights(model, files)
    row = {**ROWS[model]}
    row["files"] = [
        {
            "path": file["path"],
            "sha256": hashlib.sha256((files / file["path"]).read_bytes()).hexdigest(),
            "size": (files / file["path"]).stat().st_size,
            "sources": [(files / file["path"]).as_uri()],
        }
        for file in row["files"]
    ]
    path = folder / f"{model}.yaml"
    path.write_text(json.dumps({"schema_version": 1, "models": {model: row}}, indent=1), encoding="utf-8")
    return path


def markdown(found: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    torch, ours, cpu, accuracy = found["torch"], found["ours"], found["ours_cpu"], found["accuracy"]
    epochs, items = found["epochs"], found["items"]
    count = len(found["rounds"])
    loop = f"torch loop, {epochs} epochs (scaled from {torch['train_epoch'] + torch['val_epoch']:.1f} s each)"
    names = {
        "files": f"`zoo finetune` from files, {epochs} epochs",
        "cached": f"`zoo finetune` from cached features, {epochs} epochs",
        "default": "`zoo finetune` from cached features, early stopping (the default)",
        "second": f"second fine-tuning, `{' '.join(SECOND)}`",
    }
    rows: list[list[object]] = [[loop, f"{torch['scaled']:,.0f}", "", f"{accuracy['torch']:.3f}", ""]]
    for name, words in names.items():
        times = f"{torch['scaled'] / ours[name]:,.0f}" if name != "second" else ""
        rows.append([words, f"{ours[name]:.1f}", f"{cpu[name]:.1f}", f"{accuracy[name]:.3f}", times])
    rounds = f"{count} round{'s' if count > 1 else ''}"
    size, (width, height), (low, high) = found["image_bytes"] / 1000, photos.SIZE, found["load"]
    train, val, start = torch["train_epoch"], torch["val_epoch"], torch["start"]
    timed = found["rounds"][0]["torch"]["batches"]
    paragraphs = (
        f"{record.facts(found['machine'])} {items:,} JPEGs of {width}x{height} ({size:.0f} kB each), two classes, a "
        f"third held out. Medians of {rounds}; the machine's load before each process was {low} to {high}.",
        "The weights are random: the accuracies mean nothing." if found["random_weights"] else "",
        record.table(("", "seconds", "CPU seconds", "accuracy", "times faster"), rows),
        f"The loop's epoch was timed ({train:.1f} s to train and {val:.1f} s to judge, by {timed[0]} and {timed[1]} "
        f"batches; {start:.1f} s to start) and scaled. If it only trained, the ratio would be "
        f"{found['ratio_training_only']:.0f} rather than {found['ratio']:.0f}. Its accuracy is that after all epochs.",
        f"One pass of ONNX Runtime, files to features, took {found['pass']:.1f} s; `zoo finetune` from files takes 1.2 "
        f"times that {found['over_pass']:+.1f} s.",
        f"Exporting and checking the graph, once a model, took {found['graph']['wall']:.1f} s and is not in the table.",
    )
    return "\n\n".join(each for each in paragraphs if each)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--items", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timed-batches", type=int, default=0, help="of the torch loop's epoch; all by default")
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--work", type=Path, default=OUT, help="images, models and, unless --home says, ZOO_HOME")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--record", action="store_true", help="write RESULTS.md")
    chosen = parser.parse_args()
    os.environ.pop("ZOO_HOME", None)
    result = main(chosen)
    if chosen.record:
        record.write_section(f"Fine-tuning a head: {chosen.model}", markdown(result))
    print(json.dumps(result))
