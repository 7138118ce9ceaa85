"""More items help where they should, the measured items stay the same, and an interrupt gives no curve."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from tests.kit.heads import blobs, train
from zoo import FinetuneOptions, Task
from zoo.system.interrupt import Interrupt
from zoo.training import learning_curve
from zoo.training.axes import Axes
from zoo.training.folds import cross_validation
from zoo.training.learning_curve import quantiles
from zoo.training.problem import Problem
from zoo.training.strength_path import StrengthPath

QUARTERS = (0.25, 0.5, 0.75, 1.0)


def test_more_items_help_a_hard_problem() -> None:
    features, targets = blobs(800, 60, 4, noise=6.0)
    points = train(features, targets, 4, FinetuneOptions()).learning
    assert [point.items for point in points] == [160, 320, 480, 640]
    assert points[0].loss > points[1].loss > points[-1].loss
    assert points[0].score < points[-1].score


def test_no_items_help_where_nothing_can_be_learned() -> None:
    random = np.random.default_rng(2)
    features, targets = random.normal(size=(600, 30)).astype(np.float32), random.integers(0, 2, 600)
    points = train(features, targets, 2, FinetuneOptions()).learning
    assert max(abs(point.loss - np.log(2)) for point in points) < 0.02


def test_several_labels_have_a_curve() -> None:
    features, kinds = blobs(200)
    points = train(features, np.eye(4, dtype=np.float32)[kinds], 4, FinetuneOptions(task=Task.MULTI_LABEL)).learning
    assert len(points) == 4
    assert points[-1].score > 0.9


def test_fractions_are_nested_and_even() -> None:
    targets = np.repeat([0, 1], [40, 8])
    places = quantiles(Task.SINGLE_LABEL, targets, 3)
    for fraction in (0.25, 0.5, 0.75):
        assert (places[targets == 0] < fraction).sum() == 40 * fraction
        assert (places[targets == 1] < fraction).sum() == 8 * fraction


def test_two_items_have_no_curve_to_speak_of() -> None:
    trained = train(np.eye(2, dtype=np.float32), np.array([0, 1]), 2, FinetuneOptions())
    assert all(np.isfinite([point.loss, point.score]).all() for point in trained.learning)


@pytest.mark.parametrize("hidden", [(), (16,)])
@pytest.mark.parametrize("count", [300, 1400])
def test_numbers_have_a_curve(hidden: tuple[int, ...], count: int) -> None:
    features, _ = blobs(count, 120, 8, noise=4.0)
    random = np.random.default_rng(4)
    targets = features @ random.normal(size=(120, 1)) * 50 + random.normal(0, 500, (count, 1)) + 1000
    options = FinetuneOptions(task=Task.REGRESSION, hidden=hidden)
    points = train(features, targets.astype(np.float32), 1, options).learning
    share = 0.8 if count < 1000 or not hidden else 0.85
    assert [point.items for point in points] == pytest.approx([count * share * each for each in QUARTERS], rel=0.05)
    assert points[0].loss > points[-1].loss
    assert points[-1].score > points[0].score


def test_the_ridge_curve_ends_at_scikit_learns_cross_validation() -> None:
    features, _ = blobs(90, 30, 3, noise=3.0)
    targets = (features[:, :1] * 7 + np.random.default_rng(0).normal(0, 9, (90, 1))).astype(np.float32)
    options = FinetuneOptions(task=Task.REGRESSION, seed=5)
    problem = Problem(features, targets, 1, options)
    axes, strength = Axes(features, "global"), 0.7
    points = learning_curve.of_regression(problem, axes, strength)
    wanted, found = problem.objective.tensor(targets).numpy(), np.empty((90, 1))
    for mask in cross_validation(Task.REGRESSION, targets, problem.groups, 5, repeats=1):
        fitted = Ridge(alpha=strength).fit(axes.items.numpy()[mask], wanted[mask])
        found[~mask] = fitted.predict(axes.items.numpy()[~mask]).reshape(-1, 1)
    assert points[-1].loss == pytest.approx(np.square(found - wanted).mean(), rel=1e-4)
    assert points[-1].score == pytest.approx(r2_score(wanted, found), rel=1e-4)


def test_trained_heads_have_a_curve() -> None:
    features, targets = blobs(400, 60, 4, noise=6.0)
    points = train(features, targets, 4, FinetuneOptions(hidden=(16,))).learning
    assert [point.items for point in points] == [80, 160, 240, 320]
    assert points[0].loss > points[-1].loss


def test_an_interrupt_gives_no_curve() -> None:
    features, targets = blobs(60)
    problem, stop = Problem(features, targets, 4, FinetuneOptions()), Interrupt()
    path = StrengthPath(problem, Axes(features, "global"), np.arange(60), np.arange(60)[None] % 2 > 0, [1.0])
    path.train_epoch(stop)
    assert len(learning_curve.of_path(path, stop)) == 4
    stop.is_asked = True
    assert learning_curve.of_path(path, stop) == ()
