"""The demo of README: both chains with real weights, then again offline and without an installation."""

import csv
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.kit.cost import cpu_seconds
from zoo import FinetuneOptions, Variant, Zoo
from zoo.bundle import read_split

ROOT = Path(__file__).resolve().parents[2]
TICKETS = ROOT / "demo/tickets.csv"


def run_demo(folder: Path, **environment: str) -> str:
    """Run demo/run.sh in a copy of the demo, with this environment's commands; returns its output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    clean = {name: value for name, value in os.environ.items() if name != "ZOO_HOME"}
    done = subprocess.run(
        ["bash", "demo/run.sh"],
        cwd=folder,
        env={**clean, "PATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def accuracies(said: str, pattern: str) -> list[float]:
    """The numbers after `pattern` in the demo's output."""
    return [float(found) for found in re.findall(pattern + r"\s+(\d\.\d+)", said)]


@pytest.mark.network
def test_the_demo_and_then_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "demo", tmp_path / "demo", ignore=shutil.ignore_patterns(".zoo", "out"))
    said = run_demo(tmp_path)
    assert said.count("\n$ zoo ") == 10
    tickets, surfaces = accuracies(said, r"\naccuracy")
    words, pixels = accuracies(said, r"baseline, [^\n]*: accuracy")
    assert tickets >= 0.90
    assert tickets - words >= 0.05
    assert surfaces >= 0.93
    assert surfaces - pixels >= 0.5
    # In int8 both lose at most half a point. The data of --val are found relative to the demo's folder.
    monkeypatch.chdir(tmp_path)
    zoo, out = Zoo(home=tmp_path / "demo/.zoo"), tmp_path / "demo/out"
    for name, data in (("tickets", tmp_path / "demo/tickets.csv"), ("surfaces-model", out / "surfaces/train")):
        small = zoo.export(str(out / name), tmp_path / name, Variant(precision="int8", calibrate=str(data)))
        guard = small.manifest.guard
        assert guard is not None
        assert guard.before - guard.after <= 0.005
        assert small.model.stat().st_size < 0.35 * (out / name / "model.onnx").stat().st_size
    again = run_demo(tmp_path, ZOO_OFFLINE="1", PIP_NO_INDEX="1")
    assert accuracies(again, r"\naccuracy") == [tickets, surfaces]
    assert "features: 0 computed" in again


def test_the_second_make_installs_nothing(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    venv = tmp_path / "venv"

    def plan(target: str) -> str:
        command = ["make", "-n", target, f"VENV={venv}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    for target, work in (("demo", "demo/run.sh"), ("test", "-m pytest")):
        first = plan(target)
        assert "pip install" in first
        for stamp in re.findall(r"touch (\S+)", first):
            Path(stamp).parent.mkdir(exist_ok=True)
            Path(stamp).touch()
        second = plan(target)
        assert "pip" not in second
        assert work in second


def test_the_tickets_are_real_texts() -> None:
    with TICKETS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 600
    assert len({row["text"] for row in rows}) == len(rows)
    classes = Counter(row["label"] for row in rows)
    assert len(classes) == 4
    assert min(classes.values()) >= 140
    # They were written one by one: no two share eight words in a row.
    runs = Counter()
    for row in rows:
        words = re.findall(r"[a-z']+", row["text"].lower())
        runs.update({tuple(words[start : start + 8]) for start in range(len(words) - 7)})
    assert [run for run, count in runs.items() if count > 1] == []


def test_surfaces_never_share_a_pixel_and_repeat_to_the_byte(tmp_path: Path) -> None:
    for name in ("one", "two"):
        subprocess.run(
            [sys.executable, str(ROOT / "demo/surfaces.py"), str(tmp_path / name)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    one, two = (sorted((tmp_path / name).rglob("*.png")) for name in ("one", "two"))
    assert len(one) == 14 * 90
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert len({path.read_bytes() for path in one}) == len(one)


@pytest.mark.network
@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_hundred_epochs_cost_about_one_pass(real: Path, tmp_path: Path, kind: str) -> None:
    if kind == "text":
        model, data = "all-minilm-l6-v2", TICKETS
    else:
        model, data = "efficientnet_lite0", tmp_path / "surfaces"
        subprocess.run(
            [sys.executable, str(ROOT / "demo/surfaces.py"), str(data)], check=True, stdout=subprocess.DEVNULL
        )
        data /= "train"
        # A third of the images: this test computes their features three times.
        for folder in data.iterdir():
            for image in sorted(folder.iterdir())[::3] + sorted(folder.iterdir())[1::3]:
                image.unlink()
    seconds = {}
    for epochs in (1, 100):
        shutil.rmtree(real / "features", ignore_errors=True)
        command = ["finetune", model, str(data), "-o", str(tmp_path / str(epochs)), "--epochs", str(epochs)]
        seconds[epochs], _ = cpu_seconds([sys.executable, "-m", "zoo_cli", *command])
    assert seconds[100] < 1.3 * seconds[1] + 10
    again = Zoo().finetune(model, data, tmp_path / "again", FinetuneOptions(lr=0.01))
    assert again.computed == 0
    check_same_predictions(model=str(tmp_path / "100"), data=data)


def check_same_predictions(model: str, data: Path) -> None:
    """The exported file predicts fine-tuning's label for every held-out row whose two best scores differ."""
    from zoo.data.dataset import load

    zoo = Zoo()
    bundle = zoo.open(model)
    split = read_split(bundle)
    digests = {e.name: e.digest for e in load(data, bundle.manifest.preprocess).examples}
    evaluation = zoo.evaluate(model, data, held_out=True)
    assert len(evaluation.predictions) == sum(line.held_out for line in split.values())
    for answer in evaluation.predictions:
        scores = np.array(split[digests[answer.input]].scores)
        second, first = np.sort(scores)[-2:]
        if first - second > 1e-4:
            assert answer.labels[0][0] == bundle.manifest.labels[int(scores.argmax())]
