"""Inference compared with torch, OpenVINO and sentence-transformers: float32 and int8, images and texts.

    python benchmarks/inference.py --rounds 7 --record
    python benchmarks/inference.py --models resnet50 --systems zoo,torch --rounds 1 --seconds 0.3

Each system runs in its own process and they take turns, round by round. Medians and goals are printed as one JSON
object, and `--record` writes each model's section of RESULTS.md. ResNet-50 and Inception v3 have random weights, so
only their times mean something, not their accuracies. MiniLM has its real weights, from `zoo pull`.

The files come from `zoo export`. A system whose export, library or installation fails is left out with the reason.
OpenVINO with NNCF and sentence-transformers have their own environments under `--peers`, made when they are first
needed: `python -m venv DIR; DIR/bin/pip install ...` with the packages of PEERS in inference_systems.py.
"""

import argparse
import json
import os
import subprocess
from contextlib import ExitStack
from statistics import median
from typing import Any

import inference_tables as tables
import record
from inference_models import CNNS, images, texts
from inference_systems import Bench, Turn, say

from zoo import ZooError


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds and return the printed summary."""
    with ExitStack() as children:
        bench = Bench(arguments, children)
        for model in arguments.models.split(","):
            if model in CNNS:
                images(bench, model)
            elif model == "minilm":
                texts(bench)
            else:
                raise SystemExit(f"--models {model} is none of {', '.join([*CNNS, 'minilm'])}")
        # All systems have given their first answer; from here on only one computes at a time.
        times, loads = rounds(bench)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for turn, found in times.items():
        each = [1000 * calls / turn.items for calls in found]
        value = {"ms": median(each), "low": min(each), "high": max(each)}
        rows.setdefault(turn.model, {}).setdefault(turn.system, {})[turn.shape] = value
    return {
        "rows": rows,
        "goals": list(tables.judged(rows, bench.facts)),
        "skipped": {f"{model}, {system}": reason for (model, system), reason in bench.skipped.items()},
        "facts": bench.facts,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "load": [min(loads), max(loads)],
        "machine": {**record.machine(), **versions(bench)},
    }


def rounds(bench: Bench) -> tuple[dict[Turn, list[float]], list[float]]:
    """Returns the median seconds of a call for each turn and round, and the machine's load before each round."""
    times: dict[Turn, list[float]] = {turn: [] for turn in bench.running}
    loads = []
    for number in range(bench.arguments.rounds):
        loads.append(round(os.getloadavg()[0], 1))
        for turn, child in list(bench.running.items()):
            try:
                times[turn].append(median(child.time(turn.batch, bench.arguments.seconds)))
            except ZooError as error:
                bench.skip(turn.model, turn.system, str(error))
                del bench.running[turn], times[turn]
        say(f"round {number + 1} of {bench.arguments.rounds}, load {loads[-1]}")
    return times, loads


def versions(bench: Bench) -> dict[str, str]:
    """The versions of the started peers."""
    code = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in %r}))"
    names = {"openvino": ["openvino", "nncf"], "sentence": ["sentence-transformers"], "fastembed": ["fastembed"]}
    found: dict[str, str] = {}
    for name, python in bench._pythons.items():
        if isinstance(python, str):
            done = subprocess.run([python, "-c", code % names[name]], capture_output=True, text=True, check=True)
            found |= json.loads(done.stdout)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="resnet50,inception,minilm")
    parser.add_argument("--systems", default="", help="parts of the names of the systems to time; all by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn, for each system and shape")
    record.add_folder_options(parser)
    options = parser.parse_args()
    os.environ.pop("ZOO_HOME", None)
    result = main(options)
    if options.record:
        for model in result["rows"]:
            record.write_section(f"Inference: {model}", tables.markdown(result, model))
    print(json.dumps(result))
