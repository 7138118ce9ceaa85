"""The solver finds the optimum that scikit-learn finds, for each head and its items, and never an infinite weight."""

import numpy as np
import pytest
import torch

from tests.kit.heads import blobs
from zoo import FinetuneOptions, Task
from zoo.system.interrupt import Interrupt
from zoo.training.axes import Axes
from zoo.training.convex import ConvexLoss
from zoo.training.objective import Objective
from zoo.training.solver import Fit


def solved(
    features: np.ndarray, targets: np.ndarray, options: FinetuneOptions, strength: float, members: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The layers of all heads."""
    axes = Axes(features, "global")
    outputs = targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1
    fit = Fit(axes, ConvexLoss(Objective(options, targets, outputs), targets), torch.from_numpy(members).float())
    heads = fit.solve(strength, fit.start(), 1e-10, Interrupt())
    assert heads is not None
    return [axes.layer(weights, biases) for weights, biases in zip(heads.weights, heads.biases, strict=True)]


def logits(layer: tuple[np.ndarray, np.ndarray], features: np.ndarray) -> np.ndarray:
    found: np.ndarray = features @ layer[0].T + layer[1]
    return found


def penalty(features: np.ndarray, strength: float) -> float:
    """scikit-learn's C of a strength: its features are not divided by the root of the sum of all variances."""
    return 1 / (strength * float(features.astype(np.float64).var(0).sum()))


@pytest.mark.parametrize("strength", [10.0, 0.1, 0.001])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dim", [24, 500])
def test_each_head_is_the_optimum_on_its_items(strength: float, weighted: bool, dim: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, targets = blobs(160, dim, 4, noise=3.0)
    targets = np.where(np.arange(160) % 3, targets, 0)
    options = FinetuneOptions(class_weights=weighted)
    weights = Objective(options, targets, 4).weights
    members = np.ones((3, 160), bool)
    members[1, ::5] = members[2, 1::5] = False
    for layer, rows in zip(solved(features, targets, options, strength, members), members, strict=True):
        classes = dict(enumerate(weights.tolist())) if weights is not None else None
        wanted = linear_model.LogisticRegression(
            C=penalty(features, strength), max_iter=10_000, tol=1e-10, class_weight=classes
        ).fit(features[rows].astype(np.float64), targets[rows])
        found = torch.softmax(torch.from_numpy(logits(layer, features)).double(), 1).numpy()
        np.testing.assert_allclose(found, wanted.predict_proba(features.astype(np.float64)), atol=2e-3)


def test_labels_are_solved_one_by_one() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, targets = blobs(120, 24, 4, noise=3.0)
    labels = np.stack([targets == 0, targets > 1, (targets == 3) & (np.arange(120) % 3 == 0)], 1).astype(np.float32)
    [layer] = solved(features, labels, FinetuneOptions(task=Task.MULTI_LABEL), 0.3, np.ones((1, 120), bool))
    for column in range(3):
        wanted = linear_model.LogisticRegression(C=penalty(features, 0.3), max_iter=10_000, tol=1e-10)
        wanted.fit(features.astype(np.float64), labels[:, column])
        found = 1 / (1 + np.exp(-logits(layer, features)[:, column].astype(np.float64)))
        np.testing.assert_allclose(found, wanted.predict_proba(features.astype(np.float64))[:, 1], atol=3e-4)


def test_label_smoothing_has_its_own_optimum() -> None:
    """With one item a class and hardly a penalty the scores are the smoothed targets."""
    features, targets = np.eye(4, dtype=np.float32), np.arange(4)
    options = FinetuneOptions(label_smoothing=0.2)
    [layer] = solved(features, targets, options, 1e-7, np.ones((1, 4), bool))
    found = torch.softmax(torch.from_numpy(logits(layer, features)), 1).numpy()
    np.testing.assert_allclose(found, np.eye(4) * 0.8 + 0.05, atol=1e-3)


def test_separable_classes_have_finite_weights() -> None:
    features, targets = blobs(60, 100, 3, noise=0.1)
    [(weight, bias)] = solved(features, targets, FinetuneOptions(), 1e-9 * 60, np.ones((1, 60), bool))
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()


def test_biases_are_log_odds_if_features_say_nothing() -> None:
    targets = np.repeat([0, 1], [95, 5])
    [layer] = solved(np.ones((100, 3), np.float32), targets, FinetuneOptions(), 1.0, np.ones((1, 100), bool))
    found = torch.softmax(torch.from_numpy(logits(layer, np.ones((1, 3), np.float32))), 1).numpy()
    np.testing.assert_allclose(found, [[0.95, 0.05]], atol=1e-5)


def test_an_interrupt_ends_it() -> None:
    features, targets = blobs()
    stop = Interrupt()
    stop.is_asked = True
    axes = Axes(features, "global")
    loss = ConvexLoss(Objective(FinetuneOptions(), targets, 4), targets)
    fit = Fit(axes, loss, torch.ones(1, len(targets)))
    assert fit.solve(1.0, fit.start(), 1e-6, stop) is None
