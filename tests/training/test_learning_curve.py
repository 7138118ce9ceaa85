"""More items help where they should, the measured items stay the same, and an interrupt gives no curve."""

import numpy as np

from tests.kit.heads import blobs, train
from zoo import FinetuneOptions, Task
from zoo.training.learning_curve import quantiles


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
