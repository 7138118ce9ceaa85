"""A linear head is at its optimum, calibrated, the same to the bit for a seed, and answers whatever the data is."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.kit.heads import blobs, train
from zoo import FinetuneOptions, Task
from zoo.graph import head as head_graph
from zoo.system.interrupt import Interrupt
from zoo.training import fit_linear
from zoo.training.fit_head import fit
from zoo.training.folds import group_numbers
from zoo.training.loop import TrainingRun
from zoo.training.problem import Problem
from zoo.training.trained_head import TrainedHead


def nll(trained: TrainedHead, features: np.ndarray, targets: np.ndarray) -> float:
    scores = head_graph.apply(trained.layers, features, trained.activation).astype(np.float64)
    return float(-np.log(scores[np.arange(len(targets)), targets]).mean())


def test_it_beats_the_probe_on_noisy_labels() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, truth = blobs(1200, 64, 3, noise=4.0)
    random = np.random.default_rng(1)
    labels = np.where(random.random(1200) < 0.2, random.integers(0, 3, 1200), truth)
    known, new = slice(0, 200), slice(200, None)
    ours = train(features[known], labels[known], 3, FinetuneOptions())
    with warnings.catch_warnings():
        # Its own coming changes of options.
        warnings.simplefilter("ignore", FutureWarning)
        theirs = linear_model.LogisticRegressionCV(max_iter=2000).fit(features[known], labels[known])
    scores = theirs.predict_proba(features[new])
    theirs_nll = float(-np.log(scores[np.arange(1000), labels[new]]).mean())
    assert nll(ours, features[new], labels[new]) < theirs_nll + 0.01
    found = head_graph.apply(ours.layers, features[new]).argmax(1)
    assert (found == truth[new]).mean() > (scores.argmax(1) == truth[new]).mean() - 0.02


def test_rare_classes_keep_their_base_rate() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(400, 50)).astype(np.float32)
    targets = (np.arange(400) % 20 == 0).astype(np.int64)
    trained = train(features, targets, 2, FinetuneOptions())
    scores = head_graph.apply(trained.layers, random.normal(size=(400, 50)).astype(np.float32))
    assert scores[:, 1].mean() == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.MULTI_LABEL, Task.REGRESSION])
def test_a_seed_repeats_to_the_bit(task: Task) -> None:
    features, kinds = blobs()
    targets = {
        Task.SINGLE_LABEL: kinds,
        Task.MULTI_LABEL: np.eye(4, dtype=np.float32)[kinds],
        Task.REGRESSION: kinds[:, None].astype(np.float32),
    }[task]
    outputs = 1 if task is Task.REGRESSION else 4
    first, again = (train(features, targets, outputs, FinetuneOptions(task=task, seed=3)) for _ in range(2))
    for ours, theirs in zip(first.layers[0], again.layers[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)


DATA = {
    "one item in a class": (np.array([0, 0, 0, 0, 0, 0, 1]), Task.SINGLE_LABEL),
    "two items": (np.array([0, 1]), Task.SINGLE_LABEL),
    "three classes, an item each": (np.arange(3), Task.SINGLE_LABEL),
    "a label that is never there": (np.array([[0, 1]] * 3 + [[0, 0]] * 5, np.float32), Task.MULTI_LABEL),
    "labels that are always there": (np.ones((6, 2), np.float32), Task.MULTI_LABEL),
    "equal numbers": (np.full((9, 1), 3.5, np.float32), Task.REGRESSION),
    "one number": (np.full((1, 1), 3.5, np.float32), Task.REGRESSION),
    "two numbers": (np.array([[1.0], [2.0]], np.float32), Task.REGRESSION),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("features", ["random", "constant", "copies", "huge"])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_always_answers_with_numbers(name: str, features: str, weighted: bool) -> None:
    targets, task = DATA[name]
    random = np.random.default_rng(7)
    x = random.normal(size=(len(targets), 20)).astype(np.float32)
    x = {"random": x, "constant": np.full_like(x, 2.0), "copies": np.repeat(x[:1], len(x), 0), "huge": x * 1e12}[
        features
    ]
    outputs = targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1
    options = FinetuneOptions(task=task, class_weights=weighted and task is Task.SINGLE_LABEL)
    groups = group_numbers([row.tobytes().hex() for row in x])
    trained = fit(Problem(x, targets, outputs, options, (), groups), TrainingRun(stop=Interrupt()))
    assert all(np.isfinite(side).all() for layer in trained.layers for side in layer)
    assert np.isfinite(head_graph.apply(trained.layers, x, trained.activation)).all()
    assert all(np.isfinite([line.train_loss, line.val_loss, line.val_score]).all() for line in trained.curve)


def test_equal_numbers_are_predicted() -> None:
    features, _ = blobs(30)
    trained = train(features, np.full((30, 1), 3.5, np.float32), 1, FinetuneOptions(task=Task.REGRESSION))
    np.testing.assert_allclose(head_graph.apply(trained.layers, features, "identity"), 3.5, atol=1e-4)


def test_copies_do_not_make_it_certain() -> None:
    """Each item five times, with random classes: a head that saw a copy would know the others."""
    random = np.random.default_rng(3)
    features = np.repeat(random.normal(size=(40, 100)).astype(np.float32), 5, 0)
    targets = np.repeat(random.integers(0, 2, 40), 5)
    groups = np.repeat(np.arange(40), 5)
    trained = fit(Problem(features, targets, 2, FinetuneOptions(), (), groups), TrainingRun(stop=Interrupt()))
    other = random.normal(size=(500, 100)).astype(np.float32)
    assert head_graph.apply(trained.layers, other).max(1).mean() < 0.75


@pytest.mark.parametrize("work", [1e6, 1e9])
def test_many_items_are_held_back(monkeypatch: pytest.MonkeyPatch, work: float) -> None:
    """With less work than the data needs, the strength is chosen on some items, and the head still learns all."""
    monkeypatch.setattr(fit_linear, "WORK", work)
    features, targets = blobs(6000, 24, 4, noise=4.0)
    trained = train(features[:5000], targets[:5000], 4, FinetuneOptions())
    usual = nll(trained, features[5000:], targets[5000:])
    monkeypatch.setattr(fit_linear, "WORK", 1e15)
    folded = nll(train(features[:5000], targets[:5000], 4, FinetuneOptions()), features[5000:], targets[5000:])
    assert usual == pytest.approx(folded, abs=0.005)


def test_a_path_continues_to_the_bit(tmp_path: Path) -> None:
    features, targets = blobs(300, 40, 3, noise=3.0)

    def run(epochs: int, folder: Path, *, resume: bool = False) -> TrainedHead:
        problem = Problem(features, targets, 3, FinetuneOptions(epochs=epochs))
        return fit(problem, TrainingRun(stop=Interrupt(), checkpoints=folder, resume=resume))

    whole = run(8, tmp_path / "whole")
    run(4, tmp_path / "parts")
    parts = run(8, tmp_path / "parts", resume=True)
    assert parts.curve == whole.curve
    for ours, theirs in zip(parts.layers[0], whole.layers[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_ctrl_c_saves_the_path(tmp_path: Path) -> None:
    features, targets = blobs(300, 40, 3, noise=3.0)
    problem = Problem(features, targets, 3, FinetuneOptions())
    stop = Interrupt()
    stop.is_asked = True
    with pytest.raises(KeyboardInterrupt, match="saved"):
        fit(problem, TrainingRun(stop=stop, checkpoints=tmp_path))
    resumed = fit(problem, TrainingRun(stop=Interrupt(), checkpoints=tmp_path, resume=True))
    plain = fit(problem, TrainingRun(stop=Interrupt()))
    np.testing.assert_array_equal(resumed.layers[0][0], plain.layers[0][0])


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.REGRESSION])
def test_unfreezing_gets_a_head_that_never_saw_the_inner_items(task: Task) -> None:
    features, kinds = blobs(200, 24, 4, noise=3.0)
    targets = kinds if task is Task.SINGLE_LABEL else kinds[:, None].astype(np.float32)
    problem = Problem(features, targets, 4 if task is Task.SINGLE_LABEL else 1, FinetuneOptions(task=task, unfreeze=1))
    trained = fit(problem, TrainingRun(stop=Interrupt()))
    x = torch.from_numpy(features)
    with torch.inference_mode():
        first, last = (module(x) for module in trained.modules)
    assert not torch.allclose(first, last, atol=1e-3)
    objective = problem.objective
    wanted = head_graph.apply(trained.layers, features, "identity")
    scaled = last.numpy() * objective.scale + objective.mean
    np.testing.assert_allclose(scaled, wanted, atol=1e-3)
