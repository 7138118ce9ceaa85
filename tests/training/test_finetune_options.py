"""The effects of fine-tuning options by the real command: class weights, smoothing, heads, rates, patience."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.kit.cli import fails, parsed, zoo
from tests.kit.items import TOPICS, write_texts
from zoo import Zoo
from zoo.bundle import read_split
from zoo.evaluation.metrics import measure
from zoo.options import FinetuneOptions
from zoo.progress import SILENT
from zoo.schema import Task
from zoo.training import hyperparameters
from zoo.training.fit_linear import STRENGTHS, WEAKEST
from zoo.training.hyperparameters import GRID
from zoo.training.problem import Problem


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data") / "tickets.csv", 30)


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of which one in ten has the class `rare` and looks like some of the others."""
    random, path = np.random.default_rng(3), tmp_path_factory.mktemp("rare") / "rare.csv"
    billing, account = TOPICS["billing"].split(), TOPICS["account"].split()
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for number in range(500):
            is_rare = number % 10 == 0
            words = [
                str(random.choice(billing if random.random() < (0.65 if is_rare else 0.3) else account))
                for _ in range(5)
            ]
            # A number without meaning makes every text different.
            table.writerow([f"my {' '.join(words)} is {random.integers(10**6)}", "rare" if is_rare else "usual"])
    return path


def trained(out: Path, data: Path, *more: object) -> dict[str, Any]:
    done = zoo("finetune", "tiny-bert", data, "-o", out, *more, "--json")
    return dict(parsed(done)["finetune"])


def manifest_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "zoo.json").read_text()))


def test_class_weights_find_the_rare_class(kept_shelf: Path, rare: Path, tmp_path: Path) -> None:
    options = ("--val", 0.4, "--lr", 0.003, "--weight-decay", 0.1)
    plain = trained(tmp_path / "plain", rare, *options)["metrics"]
    said = trained(tmp_path / "weighted", rare, *options, "--class-weights")["metrics"]
    assert said["per_class"]["rare"]["n"] == plain["per_class"]["rare"]["n"] == 20
    assert said["per_class"]["rare"]["recall"] > plain["per_class"]["rare"]["recall"] + 0.2
    bundle = Zoo().open(str(tmp_path / "weighted"))
    frequent, seldom = bundle.manifest.class_weights[1], bundle.manifest.class_weights[0]
    assert seldom / frequent == pytest.approx(9, rel=0.05)
    # With class weights the model assumes equally frequent classes, so that its raw scores are too high.
    lines = [line for line in read_split(bundle).values() if line.held_out]
    scores = np.array([line.scores for line in lines], np.float32)
    truth = [bundle.manifest.labels.index(line.label) for line in lines]
    raw = measure(Task.SINGLE_LABEL, scores, truth, bundle.manifest.labels).calibration_error
    assert raw is not None
    assert said["calibration_error"] < raw
    found = parsed(zoo("evaluate", bundle.path, rare, "--held-out", "--json"))["evaluation"]["metrics"]
    assert found["calibration_error"] == pytest.approx(said["calibration_error"], abs=1e-4)


def test_smoothing_makes_it_less_sure(kept_shelf: Path, texts: Path, tmp_path: Path) -> None:
    sure = []
    for smoothing in (0, 0.3):
        trained(tmp_path / "out", texts, "--lr", 0.01, "--weight-decay", 0.01, "--label-smoothing", smoothing)
        scores = [line.scores for line in read_split(Zoo().open(str(tmp_path / "out"))).values() if line.held_out]
        sure.append(np.max(scores, 1).mean())
        assert manifest_of(tmp_path / "out")["lineage"]["options"]["label_smoothing"] == smoothing
    assert sure[1] < sure[0] - 0.05
    fails(2, "--label-smoothing", "finetune", "tiny-bert", texts, "-o", tmp_path / "out", "--label-smoothing", 1)


def test_two_hidden_layers(kept_shelf: Path, texts: Path, tmp_path: Path) -> None:
    said = trained(tmp_path / "out", texts, "--head", "mlp:32,16")
    tensors = load_file(tmp_path / "out" / "head.safetensors")
    assert [tensors[f"{layer}.weight"].shape for layer in range(3)] == [(32, 32), (16, 32), (3, 16)]
    assert manifest_of(tmp_path / "out")["head"]["hidden"] == [32, 16]
    assert said["metrics"]["accuracy"] > 0.6
    found = parsed(zoo("evaluate", tmp_path / "out", texts, "--held-out", "--json"))["evaluation"]["metrics"]
    assert found["accuracy"] == said["metrics"]["accuracy"]


@pytest.mark.parametrize(
    ("lr", "decay"), [("auto", "auto"), ("0.0123", "auto"), ("auto", "0.0456"), ("0.0123", "0.0456"), ("0.0123", "0")]
)
def test_rates_that_are_given_are_used(kept_shelf: Path, texts: Path, tmp_path: Path, lr: str, decay: str) -> None:
    trained(tmp_path / "out", texts, "--lr", lr, "--weight-decay", decay, "--epochs", 2, "--head", "mlp:8")
    head = manifest_of(tmp_path / "out")["head"]
    rates, decays = ({pair[at] for pair in GRID} for at in (0, 1))
    assert head["lr"] in (rates if lr == "auto" else {float(lr)})
    assert head["weight_decay"] in (decays if decay == "auto" else {float(decay)})


@pytest.mark.parametrize("decay", ["auto", "0.0456", "0"])
def test_a_linear_head_is_solved_for_a_strength(kept_shelf: Path, texts: Path, tmp_path: Path, decay: str) -> None:
    trained(tmp_path / "out", texts, "--weight-decay", decay)
    head = manifest_of(tmp_path / "out")["head"]
    assert head["lr"] is None
    wanted = STRENGTHS if decay == "auto" else [max(float(decay), WEAKEST)]
    assert any(head["weight_decay"] == pytest.approx(each) for each in wanted)


def test_of_equally_good_ones_the_most_regular_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses that differ by less than 2 % of the loss of a constant guess are equal; otherwise the lowest wins."""
    grid = ((3e-3, 0.1), (3e-3, 1.0), (1e-2, 3.0), (3e-2, 3.0))
    features = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    targets = np.arange(60) % 2
    problem = Problem(features, targets, 2, FinetuneOptions())
    room = hyperparameters.CLOSE * math.log(2)
    monkeypatch.setattr(hyperparameters, "_grid", lambda *_: grid)
    for losses, wanted in (
        ([0.2 + 1.1 * room, 0.2 + 0.9 * room, 0.2, 0.2 + 0.5 * room], ("global", 3e-3, 1.0)),
        ([0.2 + 0.5 * room, 0.2 + 0.9 * room, 0.2, 0.2], ("global", 3e-3, 1.0)),
        ([0.4, 0.3, 0.3, 0.2], ("global", 3e-2, 3.0)),
    ):
        monkeypatch.setattr(hyperparameters, "_losses", lambda *_, losses=losses: losses)
        found = hyperparameters.search(problem, SILENT)
        assert (found.scaling, found.lr, found.weight_decay) == wanted


def test_patience_ends_it_early(kept_shelf: Path, texts: Path, tmp_path: Path) -> None:
    said = trained(tmp_path / "out", texts, "--lr", 0.3, "--weight-decay", 0, "--epochs", 400, "--patience", 2)
    training = json.loads((tmp_path / "out" / "training.json").read_text())
    curve = training["curve"]
    assert training["best_epoch"] == said["best_epoch"]
    assert len(curve) == said["best_epoch"] + 2 < 400
    assert [line["epoch"] for line in curve] == list(range(1, len(curve) + 1))
    best = min(curve, key=lambda line: line["val_loss"])
    # Nearly, because an epoch is better only if its loss is lower by a small part of a constant guess's loss.
    assert curve[said["best_epoch"] - 1]["val_loss"] <= best["val_loss"] + 2e-3 * math.log(3)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [line["epoch"] for line in report["curve"]] == [line["epoch"] for line in curve]


def test_rates_that_make_no_sense(kept_shelf: Path, texts: Path, tmp_path: Path) -> None:
    for option, value in (("--lr", "fast"), ("--lr", "0"), ("--lr", "nan"), ("--weight-decay", "-1"), ("--lr", "-1")):
        fails(2, "", "finetune", "tiny-bert", texts, "-o", tmp_path / "out", option, value)
    assert not (tmp_path / "out").exists()
