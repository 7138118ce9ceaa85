"""The heads of all splits train together, stop anywhere and go on alike, and measure only what they did not learn."""

import numpy as np
import pytest
import torch

from tests.kit.heads import blobs, train
from zoo import FinetuneOptions, Task
from zoo.system.interrupt import Interrupt
from zoo.training import fit_head
from zoo.training.folded_training import FoldedTraining
from zoo.training.hyperparameters import Choice
from zoo.training.objective import Objective
from zoo.training.problem import Problem

OPTIONS = FinetuneOptions(hidden=(8,), lr=0.01)


def folded(problem: Problem) -> FoldedTraining:
    choice = Choice("global", 0.01, 0.1)
    return FoldedTraining(problem, lambda chosen: fit_head._training(problem, choice, chosen))


def few(options: FinetuneOptions = OPTIONS, count: int = 60) -> Problem:
    features, targets = blobs(count, noise=4.0)
    return Problem(features, targets, 4, options)


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_stopped_anywhere_it_goes_on_alike(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The stop comes after some of the steps of an epoch of five heads, each of one step or more."""
    problem = few(count=200)
    whole, stop = folded(problem), Interrupt()
    losses = [whole.train_epoch(stop) for _ in range(3)]
    part, done = folded(problem), 0
    counted = Objective.loss

    def loss(self: Objective, logits: torch.Tensor, wanted: torch.Tensor, *, smooth: bool = False) -> torch.Tensor:
        nonlocal done
        done += 1
        if done == steps:
            stop.is_asked = True
        return counted(self, logits, wanted, smooth=smooth)

    monkeypatch.setattr(Objective, "loss", loss)
    assert part.train_epoch(stop) is None
    monkeypatch.undo()
    tensors, facts = part.state()
    stop = Interrupt()
    again = folded(problem)
    again.restore(tensors, facts)
    assert [again.train_epoch(stop) for _ in range(3)] == losses
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, again.weights()[name]), name


def test_every_item_is_measured_by_a_head_that_did_not_learn_it() -> None:
    """Labels without a meaning are learned by heart, and guessed at when they are left out."""
    random = np.random.default_rng(0)
    features, targets = random.normal(0, 1, (80, 40)).astype(np.float32), random.integers(0, 2, 80)
    training = folded(Problem(features, targets, 2, OPTIONS))
    for _ in range(60):
        learned = training.train_epoch(Interrupt())
    loss, score = training.validate()
    assert learned is not None
    assert learned < 0.3
    assert score < 0.7
    assert loss > 0.6
    found = training.left_out()
    assert sorted(found.rows.tolist()) == list(range(80))
    assert found.factor < 0.5
    calibrated = torch.nn.functional.cross_entropy(found.logits, torch.from_numpy(targets[found.rows]))
    assert calibrated < loss


@pytest.mark.parametrize("task", list(Task)[:3])
def test_scores_left_out_are_in_the_order_and_unit_of_the_items(task: Task) -> None:
    features, classes = blobs(60)
    targets = {
        Task.SINGLE_LABEL: classes,
        Task.MULTI_LABEL: np.eye(4, dtype=np.float32)[classes],
        Task.REGRESSION: (classes * 100.0 + 7).astype(np.float32)[:, None],
    }[task]
    outputs = 1 if task is Task.REGRESSION else 4
    trained = train(features, targets, outputs, FinetuneOptions(task=task, hidden=(16,), lr=0.01))
    assert trained.left_out is not None
    assert np.isfinite(trained.left_out).all()
    if task is Task.REGRESSION:
        assert np.abs(trained.left_out - targets).mean() < 60
    else:
        assert (trained.left_out.argmax(1) == classes).mean() > 0.9
        assert trained.left_out.min() >= 0
        assert trained.left_out.max() <= 1


def test_an_item_that_was_learned_calibrates_nothing() -> None:
    """Three copies of one item: nothing can be left out, and every head is sure of what it learned."""
    features = np.ones((3, 8), np.float32)
    problem = Problem(features, np.arange(3), 3, OPTIONS, groups=np.zeros(3, np.int64))
    found = folded(problem).left_out()
    assert (found.factor, found.scores(problem)) == (1.0, None)


def test_of_many_items_a_part_is_left_out() -> None:
    problem = few(count=1200)
    training = folded(problem)
    assert len(training.trainings) == 1
    found = training.left_out()
    assert set(found.rows.tolist()) == set(np.flatnonzero(problem.inner).tolist())
    scores = found.scores(problem)
    assert scores is not None
    assert np.isnan(scores[problem.fit]).all()
    assert np.isfinite(scores[problem.inner]).all()
