"""Fits a linear head to its optimum: chooses scaling and strength on items held out, then solves for all items.

With few items they are held out by cross-validation, with many a part is held back. `zoo.training.strength_path` solves
classifiers, `zoo.training.ridge` regressions.
"""

import math
from typing import TYPE_CHECKING

from msgspec.structs import replace

from zoo.errors import DivergedError
from zoo.options import FinetuneOptions
from zoo.progress import Bar
from zoo.results import Epoch
from zoo.schema import Task
from zoo.torchkit import threads
from zoo.training import head, learning_curve, ridge
from zoo.training.axes import Axes
from zoo.training.convex import ConvexLoss
from zoo.training.folds import FOLDS, cross_validation, held_back
from zoo.training.growth import Chosen, grown
from zoo.training.hyperparameters import Choice
from zoo.training.loop import SAVED, Phase, TrainingRun
from zoo.training.solver import Fit, Heads
from zoo.training.strength_path import STRENGTHS, StrengthPath
from zoo.training.trained_head import TrainedHead

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.graph.head import Layer
    from zoo.training.problem import Problem

#: The path ends after this number of strengths without a better loss, but not before this number in all.
PATIENCE, FIRST = 2, 5
#: A loss is better if it is lower by at least this fraction of a constant guess's loss.
MIN_GAIN = 2e-3
#: Floating-point operations that are affordable for the path: some seconds. `EVALUATIONS` of the loss are needed.
WORK, EVALUATIONS = 2e11, 60
#: The fraction that is held back of many items, and the least number of items for each output.
HELD_BACK, FEWEST = 0.1, 50
#: Multiplications for one value of the loss from which a second thread saves time.
NARROW = 3e8
#: The scaling of the inputs is chosen on so many items.
SCALING_ITEMS = 1024
#: The least strength for each item: without any, separable classes would have infinite weights.
WEAKEST = 1e-9


def fit_linear(problem: "Problem", run: TrainingRun) -> TrainedHead:
    """The best linear head for the problem.

    Raises DivergedError for features that are not finite, KeyboardInterrupt, with the path saved, on Ctrl-C.
    """
    if not math.isfinite(float(problem.features.sum(dtype="float64"))):
        hint = "choose another model, or remove the items that give such features"
        raise DivergedError("the features are not finite", epoch=0, hint=hint)
    with run.progress.task("solving the head", None, "strength") as bar, threads(_threads(problem)):
        if problem.options.task is Task.REGRESSION:
            return _regression(problem, bar)
        return _classifier(problem, run, bar)


def _threads(problem: "Problem") -> int:
    """The number of threads that saves time: a small matrix product is done sooner by one."""
    import torch

    multiplications = problem.features.size * problem.objective.outputs * FOLDS
    return 1 if multiplications < NARROW else torch.get_num_threads()


def _classifier(problem: "Problem", run: TrainingRun, bar: Bar) -> TrainedHead:
    import numpy as np
    import torch

    path, phase = _best_path(problem, run, bar)
    path.load_weights(phase.best)
    path.epoch = phase.best_epoch
    strength, count = path.strengths[phase.best_epoch - 1], len(problem.targets)
    if len(path.rows) == count:
        chosen = Chosen(path.axes, path.rows, path.heads.mean(1), path, learning_curve.of_path(path, run.stop))
    else:
        chosen = grown(problem, path, held_back(problem.groups, HELD_BACK, problem.options.seed)[0], run.stop)
    axes, rows = chosen.axes, chosen.rows
    learned = [problem.fit[rows]] * bool(problem.options.unfreeze) + [np.ones(count, bool)]
    fit = Fit(axes, ConvexLoss(problem.objective, problem.targets[rows]), torch.from_numpy(np.array(learned)).float())
    solved = fit.solve(strength, chosen.start.mean(len(learned)), chosen.tolerance, run.stop)
    if solved is None or run.stop.is_asked:
        # The path is saved if the run has checkpoints.
        raise KeyboardInterrupt(SAVED) if run.checkpoints else KeyboardInterrupt()
    measured = chosen.measured
    calibrated, found = measured.sharpness(), measured.out_of_fold()
    layers = [
        axes.layer(weights * calibrated.factor, biases)
        for weights, biases in zip(solved.weights, solved.biases, strict=True)
    ]
    logits = (calibrated.factor * found.evidence + found.biases)[found.seen]
    left, objective = measured.rows[found.seen], problem.objective
    left_out = np.full((count, objective.outputs), np.nan, np.float32)
    left_out[left] = objective.scores(logits + measured.loss.shift)
    return replace(
        _trained(problem, layers, Choice(axes.scaling, None, strength / count), tuple(phase.curve), phase.best_epoch),
        thresholds=problem.thresholds(logits, objective.tensor(problem.targets[left])),
        left_out=left_out,
        learning=chosen.learning,
    )


def _best_path(problem: "Problem", run: TrainingRun, bar: Bar) -> tuple[StrengthPath, Phase]:
    """The path with the better scaling. Many items get the scaling that is better on some of them."""
    import numpy as np

    rows, members = _searched(problem)
    if len(rows) <= 2 * SCALING_ITEMS:
        return _better_scaling(problem, run, bar, rows, members)
    some = np.sort(np.random.default_rng(problem.options.seed).permutation(rows)[:SCALING_ITEMS])
    path, _ = _better_scaling(problem, TrainingRun(stop=run.stop), bar, some, _folds(problem, some))
    return _path(problem, run, bar, Axes(problem.features[rows], path.axes.scaling), (rows, members))


def _better_scaling(
    problem: "Problem", run: TrainingRun, bar: Bar, rows: "NDArray[np.int64]", members: "NDArray[np.bool_]"
) -> tuple[StrengthPath, Phase]:
    """The path of one scale for all features, unless a scale for each is better at about the same strengths."""
    features = problem.features[rows]
    first, other = (Axes(features, scaling) for scaling in head.SCALINGS)
    path, phase = _path(problem, run, bar, first, (rows, members))
    around = max(0, phase.best_epoch - 2)
    path.load_weights(phase.best)
    again, other_phase = _path(problem, run, bar, other, (rows, members), skipped=around, start=path.heads_in(other))
    is_better = other_phase.lowest < phase.lowest - phase.tolerance
    return (again, other_phase) if is_better else (path, phase)


def _path(
    problem: "Problem",
    run: TrainingRun,
    bar: Bar,
    axes: Axes,
    items: "tuple[NDArray[np.int64], NDArray[np.bool_]]",
    skipped: int = 0,
    start: Heads | None = None,
) -> tuple[StrengthPath, Phase]:
    """A path on `items` (rows, members) without its `skipped` strongest strengths, and the phase that measured it.

    The first strength is solved from the heads `start`.
    """
    rows, members = items
    strengths = _strengths(problem, len(rows), STRENGTHS)[: _epochs(problem)][skipped:]
    path = StrengthPath(problem, axes, rows, members, strengths)
    path.heads = start or path.heads
    phase = Phase(run, f"path-{axes.scaling}", path, path.validate, tolerance=MIN_GAIN * problem.chance)
    # The strongest strengths differ little from each other, so a path does not end among them.
    phase.train(bar, max(1, min(FIRST - skipped, len(strengths))))
    # A path with a start is only compared at about the best strength of the path that the start comes from.
    phase.train(bar, len(strengths), PATIENCE if start is None else 1)
    return path, phase


def _epochs(problem: "Problem") -> int:
    """The most strengths to try. With --unfreeze, --epochs counts the epochs of the stages."""
    return (FinetuneOptions() if problem.options.unfreeze else problem.options).epochs


def _strengths(problem: "Problem", items: int, each: tuple[float, ...]) -> list[float]:
    """The strengths to try on so many items; only that of --weight-decay, if it is given."""
    decay = problem.options.weight_decay
    if decay is not None:
        return [len(problem.targets) * max(decay, WEAKEST)]
    return [items * strength for strength in each]


def _searched(problem: "Problem") -> "tuple[NDArray[np.int64], NDArray[np.bool_]]":
    """Returns the rows of the items that the strength is chosen on, and which of them each head learns."""
    import numpy as np

    count, outputs = len(problem.targets), problem.objective.outputs
    rows = np.arange(count)
    # A product of the items with the weights, and one with the slopes, each with an addition for each multiplication.
    cost = 4 * EVALUATIONS * min(problem.features.shape) * outputs
    if FOLDS * cost * count <= WORK:
        return rows, _folds(problem, rows)
    affordable = max(int(WORK / cost), FEWEST * outputs, SCALING_ITEMS)
    if affordable < count:
        rows = np.sort(np.random.default_rng(problem.options.seed).permutation(count)[:affordable])
    return rows, held_back(problem.groups[rows], HELD_BACK, problem.options.seed)


def _folds(problem: "Problem", rows: "NDArray[np.int64]") -> "NDArray[np.bool_]":
    options = problem.options
    return cross_validation(options.task, problem.targets[rows], problem.groups[rows], options.seed)


def _regression(problem: "Problem", bar: Bar) -> TrainedHead:
    """The regression whose leave-one-out error is least, of all scalings and strengths."""
    import numpy as np
    import torch

    objective, count = problem.objective, len(problem.targets)
    wanted = objective.tensor(problem.targets)[:, 0]
    strengths = _strengths(problem, count, ridge.STRENGTHS)[: _epochs(problem)]
    tried = []
    for scaling in head.SCALINGS:
        axes = Axes(problem.features, scaling)
        found = ridge.ridges(axes, wanted, problem.groups, strengths)
        errors = (found.left_out - wanted.unsqueeze(1)).square().mean(0)
        best = int(errors.nan_to_num(math.inf).argmin())
        tried.append((float(errors[best]), best, scaling, axes, found, errors))
        bar.advance(len(strengths))
    _, best, scaling, axes, found, errors = min(tried, key=lambda each: each[0])
    fitted = (found.fitted - wanted.unsqueeze(1)).square().mean(0)
    curve = tuple(
        Epoch(
            epoch=index + 1,
            train_loss=float(fitted[index]),
            val_loss=float(errors[index]),
            val_score=objective.score(found.left_out[:, index : index + 1], wanted.unsqueeze(1)),
            strength=strengths[index] / count,
        )
        for index in range(len(strengths))
    )
    layers = [axes.layer(found.weights[:, best : best + 1].float(), torch.zeros(1))]
    if problem.options.unfreeze:
        part = np.flatnonzero(problem.fit)
        inner = Axes(problem.features[part], scaling)
        middle = wanted[part].mean()
        own = ridge.ridges(inner, wanted[part] - middle, problem.groups[part], strengths[best : best + 1])
        layers.insert(0, inner.layer(own.weights.float(), middle.reshape(1)))
    trained = _trained(problem, layers, Choice(scaling, None, strengths[best] / count), curve, best + 1)
    left_out = objective.scores(found.left_out[:, best : best + 1].float())
    return replace(trained, left_out=left_out, learning=learning_curve.of_regression(problem, axes, strengths[best]))


def _trained(
    problem: "Problem",
    layers: "list[Layer]",
    choice: Choice,
    curve: tuple[Epoch, ...],
    best_epoch: int,
) -> TrainedHead:
    """The record of a head; `layers` are one for each module of `TrainedHead.modules`, or one for both."""
    objective = problem.objective
    scaled = head.affine(problem.features, choice.scaling)
    return TrainedHead(
        layers=objective.finish(layers[-1:]),
        modules=(head.of_layer(scaled, layers[0]), head.of_layer(scaled, layers[-1])),
        activation=objective.activation,
        choice=choice,
        best_epoch=best_epoch,
        curve=curve,
        class_weights=objective.class_weights,
    )
