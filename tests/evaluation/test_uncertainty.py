"""Intervals and paired tests, compared with scipy, with exact tests, and with draws from known distributions."""

import numpy as np
import pytest
from scipy import stats

from zoo import Task
from zoo.evaluation.metrics import measure, wilson
from zoo.evaluation.uncertainty import interval, p_value, score_of, terms

LABELS = ("a", "b", "c")


def drawn(task: Task, items: int, seed: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores and targets of a task."""
    random = np.random.default_rng(seed)
    if task is Task.REGRESSION:
        targets = random.normal(1000, 3, (items, 1)).astype(np.float32)
        return (targets + random.normal(0, noise, targets.shape)).astype(np.float32), targets
    if task is Task.MULTI_LABEL:
        several = (random.random((items, 3)) < (0.5, 0.3, 0.1)).astype(np.float32)
        return np.clip(several * 0.4 + 0.6 * random.random(several.shape), 0, 1).astype(np.float32), several
    classes = random.integers(3, size=items)
    return (np.eye(3)[classes] + random.normal(0, noise, (items, 3))).astype(np.float32), classes


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.MULTI_LABEL, Task.REGRESSION])
@pytest.mark.parametrize("items", [1, 2, 7, 400])
def test_the_score_of_the_sums_is_that_of_the_metrics(task: Task, items: int) -> None:
    scores, targets = drawn(task, items, seed=items)
    thresholds = (0.5, 0.45, 0.61) if task is Task.MULTI_LABEL else ()
    found = score_of(task, terms(task, scores, targets, thresholds).sum(0))
    assert float(found) == pytest.approx(measure(task, scores, targets, LABELS, thresholds=thresholds).score, abs=1e-12)


def test_targets_that_are_all_equal() -> None:
    for error, score in ((0.0, 1.0), (0.5, 0.0)):
        targets = np.full((4, 1), 0.1, np.float32)
        assert score_of(Task.REGRESSION, terms(Task.REGRESSION, targets + np.float32(error), targets).sum(0)) == score


def test_the_interval_of_an_accuracy_is_wilsons() -> None:
    scores, targets = drawn(Task.SINGLE_LABEL, 50, seed=3)
    right = int((scores.argmax(1) == targets).sum())
    assert interval(Task.SINGLE_LABEL, terms(Task.SINGLE_LABEL, scores, targets)) == wilson(right, 50)


def test_the_bootstrap_interval_is_scipys() -> None:
    scores, targets = drawn(Task.REGRESSION, 120, seed=4, noise=2.0)

    def r2(found: np.ndarray, wanted: np.ndarray) -> float:
        return float(1 - ((found - wanted) ** 2).sum() / ((wanted - wanted.mean()) ** 2).sum())

    low, high = interval(Task.REGRESSION, terms(Task.REGRESSION, scores, targets))
    right = stats.bootstrap(
        (scores[:, 0].astype(float), targets[:, 0].astype(float)), r2,
        paired=True, vectorized=False, method="percentile", n_resamples=2000, random_state=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    width = right.high - right.low
    assert low == pytest.approx(right.low, abs=0.1 * width)
    assert high == pytest.approx(right.high, abs=0.1 * width)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 4), (4, 0), (1, 5), (10, 25), (30, 31)])
def test_the_p_value_of_accuracies_is_that_of_the_exact_mcnemar_test(lost: int, won: int) -> None:
    right = np.ones(200)
    first, second = right.copy(), right.copy()
    first[:lost], second[lost : lost + won] = 0, 0
    pair = [np.stack([each, right], 1) for each in (first, second)]
    exact = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert p_value(Task.SINGLE_LABEL, *pair) == pytest.approx(exact, abs=0.03)
    assert p_value(Task.SINGLE_LABEL, *pair[::-1]) == p_value(Task.SINGLE_LABEL, *pair)


@pytest.mark.parametrize("task", [Task.MULTI_LABEL, Task.REGRESSION])
def test_equally_good_models_rarely_differ_and_a_worse_one_does(task: Task) -> None:
    found = []
    for seed in range(60):
        first, targets = drawn(task, 80, seed=1000 + seed)
        random = np.random.default_rng(seed)
        if task is Task.REGRESSION:
            other = (targets + random.normal(0, 1, targets.shape)).astype(np.float32)
        else:
            other = np.clip(targets * 0.4 + 0.6 * random.random(targets.shape), 0, 1).astype(np.float32)
        found.append(p_value(task, terms(task, first, targets), terms(task, other, targets)))
    # Of 60 differences by chance, 3 are expected below 5 %; 9 or more have a probability of 0.3 %.
    assert sum(each < 0.05 for each in found) < 9
    # P-values by chance are uniform.
    assert 0.35 < np.mean(found) < 0.65
    first, targets = drawn(task, 80, seed=7)
    worse = first[::-1].copy()
    assert p_value(task, terms(task, first, targets), terms(task, worse, targets)) < 0.01


def test_many_items_are_exchanged_in_parts_with_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, targets = drawn(Task.REGRESSION, 300, seed=8)
    other, _ = drawn(Task.REGRESSION, 300, seed=9)
    pair = [terms(Task.REGRESSION, each, targets) for each in (scores, other)]
    whole = p_value(Task.REGRESSION, *pair)
    monkeypatch.setattr("zoo.evaluation.uncertainty.BLOCK", 1000)
    assert p_value(Task.REGRESSION, *pair) == pytest.approx(whole, abs=0.02)
