"""Every number of zoo.evaluation.metrics against scikit-learn, or against its definition written out."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    log_loss,
    mean_absolute_error,
    precision_recall_fscore_support,
    r2_score,
    root_mean_squared_error,
    top_k_accuracy_score,
)

from zoo.evaluation.metrics import BINS, corrected, expected_error, measure, reliability, wilson
from zoo.runtime.answers import decide
from zoo.schema import Task

ONE, SEVERAL, NUMBER = Task.SINGLE_LABEL, Task.MULTI_LABEL, Task.REGRESSION
LETTERS = [chr(ord("a") + index) for index in range(26)]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(0, 100), min_size=4, max_size=4)), min_size=1, max_size=60
    )
)
def test_one_label_an_item(rows: list[tuple[int, list[int]]]) -> None:
    """The examples include ties, classes that do not occur, and a single item."""
    targets = [target for target, _ in rows]
    scores = softmax(np.array([scores for _, scores in rows]) / 25)
    found = measure(ONE, scores, targets, LETTERS[:4])
    predicted, every = scores.argmax(1), [0, 1, 2, 3]
    assert found.n == len(rows)
    assert found.score == found.accuracy == pytest.approx(accuracy_score(targets, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(targets, predicted, average="macro"))
    np.testing.assert_array_equal(found.confusion, confusion_matrix(targets, predicted, labels=every))
    wanted = precision_recall_fscore_support(targets, predicted, labels=every, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "n"), wanted, strict=True):
        assert [found.per_class[label][name] for label in "abcd"] == pytest.approx(list(values))
    assert found.accuracy_interval == wilson(round(found.accuracy * len(rows)), len(rows))
    assert found.top5 is None
    assert 0 <= found.calibration_error <= 1
    double = scores.astype(np.float64)
    double /= double.sum(1, keepdims=True)
    assert found.nll == pytest.approx(log_loss(targets, double, labels=every), rel=1e-5)


@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_several_labels_an_item(n: int, count: int, seed: int) -> None:
    """Scores with one decimal give many ties, some of them on a threshold."""
    random = np.random.default_rng(seed)
    targets = (random.random((n, count)) < random.random(count)).astype(np.float32)
    scores = random.integers(0, 11, (n, count)).astype(np.float32) / 10
    thresholds = tuple(random.integers(1, 10, count) / 10)
    labels = LETTERS[:count]
    found = measure(SEVERAL, scores, targets, labels, thresholds=thresholds)
    predicted = scores >= np.asarray(thresholds, np.float32)
    assert found.accuracy == pytest.approx((predicted == targets).all(1).mean())
    assert found.accuracy_interval == wilson(round(found.accuracy * n), n)
    seen = predicted.any(0) | targets.any(0).astype(bool)
    assert found.micro_f1 == pytest.approx(
        f1_score(targets.ravel(), predicted.astype(np.float32).ravel(), zero_division=0)
    )
    each = precision_recall_fscore_support(targets, predicted, average=None, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "n"), each, strict=True):
        got = [found.per_class[label][name] for label in labels]
        assert got == pytest.approx(list(np.atleast_1d(values))) or count == 1
    if count > 1:
        # A label that neither holds nor is predicted anywhere has no F1.
        assert found.score == found.macro_f1 == pytest.approx(each[2][seen].mean() if seen.any() else 0)
    for index, label in enumerate(labels):
        wanted = average_precision_score(targets[:, index], scores[:, index]) if targets[:, index].any() else 0
        assert found.per_class[label]["average_precision"] == pytest.approx(wanted)
    assert not found.confusion
    assert found.top5 is None
    sure = np.clip(scores.astype(np.float64), 1e-12, 1 - 1e-12)
    assert found.nll == pytest.approx(-np.where(targets > 0, np.log(sure), np.log1p(-sure)).mean(), rel=1e-4, abs=1e-9)


def test_labels_hold_from_one_half_where_no_thresholds_were_chosen() -> None:
    scores = np.array([[0.5, 0.49], [0.2, 0.9]], np.float32)
    assert decide(SEVERAL, scores).tolist() == [[True, False], [False, True]]
    assert measure(SEVERAL, scores, [[1, 0], [0, 1]], ["a", "b"]).accuracy == 1
    assert measure(SEVERAL, scores, [[1, 0], [0, 1]], ["a", "b"], thresholds=(0.6, 0.6)).accuracy == 0.5


@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32)), min_size=2, max_size=50),
)
def test_a_number_an_item(rows: list[tuple[float, float]]) -> None:
    targets, scores = (np.array(column, np.float32)[:, None] for column in zip(*rows, strict=True))
    found = measure(NUMBER, scores, targets, [])
    assert found.mae == pytest.approx(mean_absolute_error(targets.astype(float), scores.astype(float)))
    assert found.rmse == pytest.approx(root_mean_squared_error(targets.astype(float), scores.astype(float)))
    if np.ptp(targets):
        assert found.score == found.r2 == pytest.approx(r2_score(targets.astype(float), scores.astype(float)))
    else:
        assert found.r2 == (targets == scores).all()
    assert found.accuracy is None
    assert not found.per_class


def test_targets_that_are_all_alike() -> None:
    same = np.full((11, 1), 0.1, np.float32)
    assert measure(NUMBER, same, same, []).r2 == 1
    assert measure(NUMBER, same + 1, same, []).r2 == 0 == r2_score([2.0, 2.0], [1.0, 1.0])
    assert measure(NUMBER, same[:1], same[:1], []).r2 == 1


def test_top_five() -> None:
    random = np.random.default_rng(3)
    scores, targets = softmax(random.normal(size=(300, 9))), random.integers(0, 9, 300)
    found = measure(ONE, scores, targets, LETTERS[:9])
    assert found.top5 == pytest.approx(top_k_accuracy_score(targets, scores, k=5, labels=range(9)))
    assert measure(ONE, scores[:, :5], targets % 5, LETTERS[:5]).top5 is None
    # Of equal scores the first is the best, as for argmax.
    equal = np.full((6, 6), 1 / 6, np.float32)
    found = measure(ONE, equal, np.arange(6), LETTERS[:6])
    assert (found.accuracy, found.top5) == (pytest.approx(1 / 6), pytest.approx(5 / 6))


def test_calibration_is_that_of_bins_of_equal_mass() -> None:
    random = np.random.default_rng(4)
    scores = softmax(random.normal(size=(BINS * 40, 3)) * 2)
    targets = random.integers(0, 3, len(scores))
    bins = reliability(ONE, scores, targets)
    assert [each.n for each in bins] == [40] * BINS
    top = scores.max(1).astype(np.float64)
    share, mean = calibration_curve(scores.argmax(1) == targets, top, n_bins=BINS, strategy="quantile")
    assert [each.accuracy for each in bins] == pytest.approx(list(share))
    assert [each.confidence for each in bins] == pytest.approx(list(mean))
    assert measure(ONE, scores, targets, LETTERS[:3]).calibration_error == pytest.approx(np.abs(share - mean).mean())


def test_calibration_of_several_labels_is_over_every_decision() -> None:
    random = np.random.default_rng(5)
    scores = random.random((BINS * 10, 4), np.float32)
    targets = (random.random(scores.shape) < scores**2).astype(np.float32)
    share, mean = calibration_curve(targets.ravel(), scores.ravel().astype(float), n_bins=BINS, strategy="quantile")
    found = measure(SEVERAL, scores, targets, LETTERS[:4]).calibration_error
    assert found == pytest.approx(np.abs(share - mean).mean())
    # Scores that equal the true probabilities are calibrated, up to chance.
    honest = (random.random(scores.shape) < scores).astype(np.float32)
    assert measure(SEVERAL, scores, honest, LETTERS[:4]).calibration_error < 0.08 < found


@pytest.mark.parametrize("n", [1, 9, 25, 1000])
def test_calibration_does_not_depend_on_the_order_of_the_items(n: int) -> None:
    random = np.random.default_rng(n)
    scores = np.round(softmax(random.normal(size=(n, 3))), 1)
    targets, order = random.integers(0, 3, n), random.permutation(n)
    bins = reliability(ONE, scores, targets)
    assert [each.n for each in reliability(ONE, scores[order], targets[order])] == [each.n for each in bins]
    assert expected_error(reliability(ONE, scores[order], targets[order])) == pytest.approx(expected_error(bins))
    assert sum(each.n for each in bins) == n
    assert len(bins) == min(BINS, max(1, n // 10))


def test_class_weights_are_taken_out_again() -> None:
    """The exact probabilities at the minimum of a weighted loss are calibrated after the correction."""
    random = np.random.default_rng(6)
    honest = softmax(random.normal(size=(6000, 3)) * 1.5)
    targets = (random.random((6000, 1)) > honest.cumsum(1)).sum(1).clip(max=2)
    weights = (0.2, 1.0, 5.0)
    skewed = honest * np.array(weights, np.float32)
    skewed /= skewed.sum(1, keepdims=True)
    np.testing.assert_allclose(corrected(skewed, weights), honest, atol=1e-6)
    np.testing.assert_array_equal(corrected(skewed), skewed)
    plain = measure(ONE, skewed, targets, LETTERS[:3])
    mended = measure(ONE, skewed, targets, LETTERS[:3], class_weights=weights)
    assert mended.calibration_error < 0.02 < 0.1 < plain.calibration_error
    assert mended.nll < plain.nll
    # The predicted labels stay those of the model.
    assert (mended.accuracy, mended.confusion) == (plain.accuracy, plain.confusion)


def test_probabilities_of_zero_and_tiny_weights_stay_finite() -> None:
    found = corrected(np.array([[1, 0], [0.5, 0.5]], np.float32), (1e-300, 1e300))
    assert found.tolist() == [[1, 0], [1, 0]]


def test_the_interval_is_wilsons() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


@pytest.mark.parametrize(
    ("task", "scores", "target", "wanted"),
    [
        (ONE, [[0.8, 0.2]], [0], {"accuracy": 1.0, "macro_f1": 1.0, "calibration_error": 0.2}),
        (SEVERAL, [[0.9, 0.1]], [[0, 0]], {"accuracy": 0.0, "macro_f1": 0.0, "micro_f1": 0.0}),
        (SEVERAL, [[0.1, 0.1]], [[0, 0]], {"accuracy": 1.0, "macro_f1": 0.0, "micro_f1": 0.0}),
        (NUMBER, [[3.0]], [[1.0]], {"mae": 2.0, "rmse": 2.0, "r2": 0.0}),
    ],
)
def test_one_item_alone(task: Task, scores: Any, target: Any, wanted: dict[str, float]) -> None:
    found = measure(task, np.array(scores, np.float32), target, ["a", "b"])
    assert found.n == 1
    assert {name: getattr(found, name) for name in wanted} == pytest.approx(wanted)
    assert not any(math.isnan(value) for facts in found.per_class.values() for value in facts.values())
