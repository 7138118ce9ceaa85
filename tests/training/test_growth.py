"""The head of many items is the optimum for all of them; a growing part of them leads to it and is measured."""

import numpy as np
import pytest
import torch

from tests.kit.heads import blobs, train
from zoo import FinetuneOptions, Task
from zoo.graph import head as head_graph
from zoo.system.interrupt import Interrupt
from zoo.training import fit_linear
from zoo.training.axes import Axes
from zoo.training.convex import ConvexLoss
from zoo.training.folds import held_back
from zoo.training.growth import grown
from zoo.training.problem import Problem
from zoo.training.solver import Fit
from zoo.training.strength_path import StrengthPath

ITEMS = 3000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strength is chosen on 600 items, as if the 3,000 were too many."""
    monkeypatch.setattr(fit_linear, "WORK", 1.0)
    monkeypatch.setattr(fit_linear, "SCALING_ITEMS", 600)


def hard(task: Task = Task.SINGLE_LABEL) -> tuple[np.ndarray, np.ndarray]:
    features, targets = blobs(ITEMS, 30, 4, noise=6.0)
    features[:, 7] *= 100
    return features, targets if task is Task.SINGLE_LABEL else np.eye(4, dtype=np.float32)[targets]


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.MULTI_LABEL])
def test_it_is_the_optimum_for_all_items(task: Task) -> None:
    features, targets = hard(task)
    options = FinetuneOptions(task=task)
    trained = train(features, targets, 4, options)
    problem = Problem(features, targets, 4, options)
    axes, loss = Axes(features, trained.choice.scaling), ConvexLoss(problem.objective, targets)
    fit, strength = Fit(axes, loss, torch.ones(1, ITEMS)), trained.choice.weight_decay * ITEMS
    best = fit.solve(strength, fit.start(), 1e-9, Interrupt())
    assert best is not None
    weight, bias = axes.layer(best.weights[0], best.biases[0])
    found = head_graph.apply(trained.layers, features, "identity")
    wanted = features @ weight.T + bias
    evidence, other = found - trained.layers[0][1], wanted - bias
    # The layer is the optimum times the factor of the calibration.
    factor = float((evidence * other).sum() / (other * other).sum())
    np.testing.assert_allclose(evidence / factor, other, atol=0.02 * np.abs(other).max())
    assert 0.5 < factor < 2


def test_its_learning_curve_and_the_scores_left_out() -> None:
    features, targets = hard()
    trained = train(features, targets, 4, FinetuneOptions())
    assert [point.items for point in trained.learning] == [675, 1350, 2025, 2700]
    assert trained.learning[0].loss > trained.learning[-1].loss
    assert trained.left_out is not None
    left = np.isfinite(trained.left_out).all(1)
    assert left.sum() == 300
    right = (trained.left_out[left].argmax(1) == targets[left]).mean()
    assert right == pytest.approx(trained.learning[-1].score, abs=1e-6)


def test_a_rare_feature_keeps_its_weight() -> None:
    """The axes are found from some of the items, in which the feature may be constant."""
    random = np.random.default_rng(0)
    features = random.normal(size=(ITEMS, 4)).astype(np.float32)
    targets = random.integers(0, 2, ITEMS)
    rare = random.permutation(ITEMS)[:40]
    rare = rare[rare % (ITEMS // 32) > 0]
    features = np.concatenate([features, np.zeros((ITEMS, 1), np.float32)], 1)
    features[rare, 4] = np.where(targets[rare], 30.0, -30.0)
    trained = train(features, targets, 2, FinetuneOptions())
    scores = head_graph.apply(trained.layers, features, "softmax")
    assert (scores[rare].argmax(1) == targets[rare]).all()


def test_it_repeats_to_the_bit() -> None:
    features, targets = hard()
    first, again = (train(features, targets, 4, FinetuneOptions(seed=3)).layers for _ in range(2))
    np.testing.assert_array_equal(first[0][0], again[0][0])


def test_ctrl_c_ends_it() -> None:
    features, targets = hard()
    problem, stop = Problem(features, targets, 4, FinetuneOptions()), Interrupt()
    rows = np.arange(600)
    path = StrengthPath(problem, Axes(features[rows], "global"), rows, rows[None] % 10 > 0, [1.0])
    path.train_epoch(stop)
    members = held_back(problem.groups, 0.1, 0)[0]
    assert len(grown(problem, path, members, stop).learning) == 4
    stop.is_asked = True
    assert grown(problem, path, members, stop).learning == ()
