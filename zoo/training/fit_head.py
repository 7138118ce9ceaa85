"""Fits a head to features: a search for hyperparameters, a training that finds the best epoch, and a final training.

Scaling, rates and the best epoch are chosen on an inner split of the training items, never on the held-out items. The
head is then fitted again to all training items for that number of epochs.
"""

import shutil
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import TYPE_CHECKING

from zoo.options import FinetuneOptions
from zoo.schema import Task
from zoo.torchkit import threads
from zoo.training import head, learning_curve
from zoo.training.checkpoints import Checkpoints
from zoo.training.convex import log_odds
from zoo.training.fit_linear import fit_linear
from zoo.training.folded_training import FoldedTraining
from zoo.training.hyperparameters import EPOCHS, Choice, batch_of, search, searched
from zoo.training.loop import Part, Phase, Plan, Training, TrainingRun
from zoo.training.problem import Problem
from zoo.training.trained_head import TrainedHead

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


#: An inner loss is better if it is lower by at least this fraction of a constant guess's loss (in a regression: of the
#: variance).
MIN_GAIN = {Task.SINGLE_LABEL: 2e-3, Task.MULTI_LABEL: 2e-3, Task.REGRESSION: 1e-5}
#: Epochs after which the rate of a head has halved.
HEAD_DECAY = 12.0
#: The number of weights from which a head's matrix products keep more than one core busy.
WIDE = 100_000


def fit(problem: Problem, run: TrainingRun) -> TrainedHead:
    """Fit a head to the problem: `is_solved` heads are solved, others are trained in the phases `inner` and `all`.

    Raises DivergedError when a loss stops being finite, KeyboardInterrupt, with the state saved, on Ctrl-C.
    """
    import numpy as np
    import torch

    options, objective = problem.options, problem.objective
    if is_solved(problem):
        _begin(run)
        return fit_linear(problem, run)
    # With --unfreeze, --epochs counts the epochs of the stages, and the head is trained for the default number.
    length = FinetuneOptions() if options.unfreeze else options
    total = EPOCHS * len(head.SCALINGS) * len(searched(problem)) + 2 * length.epochs
    with (
        run.progress.task("training the head", total, "epoch") as bar,
        torch.random.fork_rng(devices=[]),
        training_threads(problem),
    ):
        choice = search(problem, bar)
        _begin(run)
        start = partial(_training, problem, choice)
        folded = FoldedTraining(problem, start)
        phase = Phase(run, "inner", folded, folded.validate, tolerance=MIN_GAIN[options.task] * problem.chance)
        phase.train(bar, length.epochs, length.patience)
        folded.load_weights(phase.best)
        found = folded.left_out()
        last = start(np.ones(len(problem.targets), bool))
        Phase(run, "all", last).train(bar, phase.best_epoch)
        learning = learning_curve.of_training(folded, start, phase.best_epoch, run.stop, bar.advance)
        first = folded.trainings[0]
        if options.unfreeze and len(folded.trainings) > 1:
            # The stages are measured on the inner items, which this head must not have learned.
            first = start(problem.fit)
            Phase(run, "part", first).train(bar, phase.best_epoch)
        for training in (first, last):
            head.sharpen(training.model, found.factor)
    return TrainedHead(
        layers=objective.finish(head.folded(last.model)),
        modules=(first.model, last.model),
        activation=objective.activation,
        choice=choice,
        best_epoch=phase.best_epoch,
        curve=tuple(phase.curve),
        thresholds=problem.thresholds(found.logits, objective.tensor(problem.targets[found.rows])),
        class_weights=objective.class_weights,
        left_out=found.scores(problem),
        learning=learning,
    )


def is_solved(problem: Problem) -> bool:
    """Whether the head is linear, and no option asks for training in steps."""
    options = problem.options
    rate = None if options.unfreeze else options.lr
    return not (options.hidden or problem.views or rate or options.batch)


def is_narrow(problem: Problem) -> bool:
    """Whether the head's matrix products are so small that a second thread saves no time."""
    return problem.head_weights < WIDE


def training_threads(problem: Problem) -> AbstractContextManager[None]:
    """A context in which torch uses the number of threads that suits the head's size."""
    import torch

    return threads(1 if is_narrow(problem) else torch.get_num_threads())


def _begin(run: TrainingRun) -> None:
    """Remove the checkpoints of an earlier training of the same bundle, unless the run resumes that training."""
    if run.checkpoints and not run.resume:
        for phase in run.checkpoints.glob("*/"):
            shutil.rmtree(phase, ignore_errors=True)
    elif run.checkpoints and Checkpoints(run.checkpoints / "inner").newest() is None:
        run.progress.note("nothing was saved yet: the training starts from the beginning")


def _training(problem: Problem, choice: Choice, chosen: "NDArray[np.bool_]") -> Training:
    import torch

    options, objective = problem.options, problem.objective
    features, targets = problem.rows(chosen)
    biases = log_odds(objective, targets)
    module = head.build(head.affine(features, choice.scaling), options.hidden, biases, options.seed)
    y, net = objective.tensor(targets), module.net

    @cache
    def x() -> "torch.Tensor":
        # Scaled at the first step, because a checkpoint loaded before that replaces the scaling.
        scaled: torch.Tensor = module.scaled(torch.from_numpy(features))  # type: ignore[operator]
        return scaled

    def loss(rows: "torch.Tensor") -> "torch.Tensor":
        return objective.loss(net(x().index_select(0, rows)), y[rows], smooth=True)  # type: ignore[operator]

    plan = Plan(
        count=len(features),
        batch=batch_of(options, len(features)),
        seed=options.seed,
        weight_decay=choice.weight_decay,
        decay=HEAD_DECAY,
    )
    return Training(module, [Part("head", module, choice.lr or 0.0)], loss, plan)
