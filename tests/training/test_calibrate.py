"""The factor on logits is the one with the least loss, and few right items do not make a head certain."""

import numpy as np
import pytest
import torch

from tests.kit.heads import blobs, train
from zoo import FinetuneOptions, Task
from zoo.evaluation.metrics import expected_error, reliability
from zoo.graph import head as head_graph
from zoo.training.calibrate import sharpness, smoothed


@pytest.mark.parametrize("true", [0.03, 1.0, 40.0])
@pytest.mark.parametrize("is_softmax", [True, False])
def test_the_true_factor_is_found(true: float, is_softmax: bool) -> None:
    random = torch.Generator().manual_seed(5)
    logits = torch.randn(20_000, 3, generator=random, dtype=torch.float64) * 2 / true
    biases = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64).expand(20_000, 3)
    odds = true * logits + biases
    if is_softmax:
        drawn = torch.multinomial(odds.softmax(1), 1, generator=random)[:, 0]
        wanted = torch.eye(3, dtype=torch.float64)[drawn]
    else:
        wanted = torch.bernoulli(odds.sigmoid(), generator=random)
    found = sharpness(logits, biases, wanted, is_softmax=is_softmax)
    assert found.factor == pytest.approx(true, rel=0.06)
    for other in (0.9, 1.1):
        scaled = sharpness(logits * found.factor * other, biases, wanted, is_softmax=is_softmax)
        assert scaled.factor == pytest.approx(1 / other, rel=2e-3)


def test_ten_right_items_are_no_certainty() -> None:
    wanted = torch.eye(2)[torch.arange(10) % 2].double()
    logits = (wanted - 0.5) * 0.01
    found = sharpness(logits, torch.zeros(10, 2), wanted, is_softmax=True)
    scores = (found.factor * logits).softmax(1).amax(1).numpy()
    np.testing.assert_allclose(scores, 6 / 7, atol=0.01)


def test_targets_are_platts() -> None:
    two = smoothed(torch.eye(2)[torch.arange(10) % 2], is_softmax=True)
    np.testing.assert_allclose(two.amax(1), 6 / 7, rtol=1e-6)
    wanted = torch.zeros(10, 2)
    wanted[:3, 0] = 1
    found = smoothed(wanted, is_softmax=False)
    np.testing.assert_allclose(found[[0, 9], 0], [4 / 5, 1 / 9], rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], 1 / 12, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_logits_without_a_size_stay_as_they_are(value: float) -> None:
    wanted = torch.eye(2)[torch.arange(6) % 2]
    assert sharpness(torch.full((6, 2), value), torch.zeros(6, 2), wanted, is_softmax=True).factor == 1.0


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.MULTI_LABEL])
def test_a_trained_head_is_calibrated(task: Task) -> None:
    """On labels of which a fifth are wrong, the mean confidence of a head with hidden layers is its accuracy."""
    features, truth = blobs(3000, 30, 3, noise=1.0)
    random = np.random.default_rng(0)
    labels = np.where(random.random(3000) < 0.2, random.integers(0, 3, 3000), truth)
    targets = labels if task is Task.SINGLE_LABEL else np.eye(3, dtype=np.float32)[labels]
    trained = train(features[:1500], targets[:1500], 3, FinetuneOptions(task=task, hidden=(64,), lr=0.01))
    scores = head_graph.apply(trained.layers, features[1500:], trained.activation)
    right = (scores.argmax(1) == labels[1500:]).mean()
    if task is Task.SINGLE_LABEL:
        assert scores.max(1).mean() == pytest.approx(right, abs=0.06)
    assert expected_error(reliability(task, scores, targets[1500:])) < 0.08
