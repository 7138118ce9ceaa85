"""Principal axes: orthogonal, of variance 1 together, and a layer on them is a layer on the raw features."""

import numpy as np
import pytest
import torch

from zoo.training.axes import Axes
from zoo.training.head import SCALINGS


@pytest.mark.parametrize(("items", "dim"), [(40, 12), (12, 40), (9000, 3)])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_axes(items: int, dim: int, scaling: str) -> None:
    random = np.random.default_rng(2)
    features = (random.normal(size=(items, dim)) * np.logspace(1, -1, dim) + 5).astype(np.float32)
    axes = Axes(features, scaling)
    gram = (axes.items.T @ axes.items).numpy()
    np.testing.assert_allclose(gram, np.diag(axes.power.numpy()), atol=2e-3 * items)
    assert float(axes.power.sum()) / items == pytest.approx(1, rel=1e-3)
    weights, biases = torch.from_numpy(random.normal(size=(len(axes.power), 4))).float(), torch.arange(4.0)
    weight, bias = axes.layer(weights, biases)
    np.testing.assert_allclose(features @ weight.T + bias, (axes.items @ weights + biases).numpy(), atol=1e-3)
    again, offset = axes.weights((weight, bias))
    np.testing.assert_allclose(again, weights, atol=1e-3)
    np.testing.assert_allclose(offset, biases, atol=1e-3)


def test_rough_axes_are_a_rotation() -> None:
    features = np.random.default_rng(2).normal(size=(2000, 6)).astype(np.float32) * np.arange(1, 7, dtype=np.float32)
    features[:, 5] = 0
    features[3, 5] = 4
    exact, rough = (Axes(features, "global", is_rough=is_rough) for is_rough in (False, True))
    assert rough.items.shape == (2000, 6)
    np.testing.assert_allclose(rough.items.norm(dim=1), exact.items.norm(dim=1), rtol=0.05)
    np.testing.assert_allclose(rough.power.sum(), exact.power.sum(), rtol=0.3)
    part = rough.part(slice(500))
    assert torch.equal(part.items, rough.items[:500])
    torch.testing.assert_close(part.power, rough.power / 4)


@pytest.mark.parametrize("value", [0.0, 3e7])
def test_constant_features_have_no_axis_that_matters(value: float) -> None:
    axes = Axes(np.full((10, 4), value, np.float32), "global")
    weight, bias = axes.layer(torch.zeros(len(axes.power), 2), torch.ones(2))
    assert np.isfinite(axes.items.numpy()).all()
    np.testing.assert_array_equal(weight, 0)
    np.testing.assert_array_equal(bias, 1)
