"""Closed-form ridge regressions are scikit-learn's, and their leave-one-out predictions those of really leaving out."""

import numpy as np
import pytest
import torch

from zoo.training.axes import Axes
from zoo.training.ridge import ridges


def data(items: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and centred numbers."""
    random = np.random.default_rng(4)
    features = (random.normal(size=(items, dim)) * np.logspace(0, -1, dim) + 3).astype(np.float32)
    numbers = features[:, 0] * 2 + random.normal(size=items)
    return features, (numbers - numbers.mean()).astype(np.float32)


@pytest.mark.parametrize(("items", "dim"), [(40, 12), (25, 60)])
@pytest.mark.parametrize("strength", [100.0, 1.0, 0.01])
def test_left_out_predictions(items: int, dim: int, strength: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, numbers = data(items, dim)
    axes = Axes(features, "global")
    found = ridges(axes, torch.from_numpy(numbers), np.arange(items), [strength * 7, strength])
    peer = linear_model.Ridge(alpha=strength * float(features.astype(np.float64).var(0).sum()), solver="svd")
    double = features.astype(np.float64)
    np.testing.assert_allclose(found.fitted[:, 1], peer.fit(double, numbers).predict(double), atol=2e-3)
    for index in range(0, items, 7):
        rest = np.arange(items) != index
        wanted = peer.fit(double[rest], numbers[rest]).predict(double[[index]])[0]
        assert float(found.left_out[index, 1]) == pytest.approx(wanted, abs=5e-3)


def test_copies_are_left_out_together() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, numbers = data(30, 8)
    features[20:25] = features[0]
    groups = np.arange(30)
    groups[20:25] = 0
    numbers = numbers - numbers.mean()
    found = ridges(Axes(features, "global"), torch.from_numpy(numbers), groups, [0.5])
    peer = linear_model.Ridge(alpha=0.5 * float(features.astype(np.float64).var(0).sum()), solver="svd")
    rest = groups != 0
    wanted = peer.fit(features[rest].astype(np.float64), numbers[rest]).predict(features[:1].astype(np.float64))[0]
    np.testing.assert_allclose(found.left_out[groups == 0, 0], wanted, atol=5e-3)
