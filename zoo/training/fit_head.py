"""Fitting a head to features: a search for hyperparameters, a training that finds the best epoch, and a final one.

An inner split of the training items, never the held-out items, chooses scaling, rates and the best epoch. The head is
then fitted again to all training items for that number of epochs.
"""

import copy
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache, cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from msgspec import Struct

from zoo.options import FinetuneOptions
from zoo.schema import Epoch, Task
from zoo.torchkit import threads
from zoo.training import head
from zoo.training.checkpoints import Checkpoints
from zoo.training.hyperparameters import EPOCHS, Choice, batch_of, search
from zoo.training.loop import Part, Plan, Training, TrainingRun
from zoo.training.objective import Objective, best_thresholds

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from zoo.graph.head import Floats, Layer
    from zoo.training.objective import Targets

#: Fraction of the training items in the inner split.
INNER = 0.15
#: An inner loss is better if it is lower by this fraction of a constant guess's loss (of a regression: the variance).
MIN_GAIN = {Task.SINGLE_LABEL: 2e-3, Task.MULTI_LABEL: 2e-3, Task.REGRESSION: 1e-5}
#: Epochs after which the rate of a head has halved.
HEAD_DECAY = 12.0
#: From this number of weights on, a head's matrix products keep more than one core busy.
WIDE = 100_000


class TrainedHead(Struct, frozen=True, kw_only=True):
    """Layers as (weight [out, in], bias [out]) that read raw features, and the record of their training.

    `modules` are the heads in torch: fitted without the inner split, and fitted to all training items.
    """

    layers: "list[Layer]"
    modules: "tuple[torch.nn.Module, torch.nn.Module]"
    activation: str
    choice: Choice
    best_epoch: int
    curve: tuple[Epoch, ...]
    thresholds: tuple[float, ...] = ()
    class_weights: tuple[float, ...] = ()


class Problem:
    """The training items: their features [items, dim], targets, and the inner split.

    `views` are features of random views of the same items: only training uses them, never the inner loss.
    """

    def __init__(
        self,
        features: "Floats",
        targets: "Targets",
        outputs: int,
        options: FinetuneOptions,
        views: "Sequence[Floats]" = (),
    ) -> None:
        self.features = features
        self.targets = targets
        self.options = options
        self.views = views
        self.objective = Objective(options, targets, outputs)
        self.fit, self.inner = inner_split(options.task, targets, options.seed)
        #: The inner loss of a constant guess.
        self.chance = self.objective.chance(targets[self.inner])

    def with_options(self, options: FinetuneOptions) -> "Problem":
        """The same problem with other options."""
        other = copy.copy(self)
        other.options = options
        return other

    def rows(self, chosen: "NDArray[np.bool_]") -> "tuple[Floats, Targets]":
        """Features and targets of the chosen items and of their views."""
        import numpy as np

        together = [each[chosen] for each in (self.features, *self.views)]
        return np.concatenate(together), np.concatenate([self.targets[chosen]] * len(together))

    @cached_property
    def judged(self) -> "tuple[torch.Tensor, torch.Tensor]":
        """Features and targets of the inner items, as tensors."""
        import torch

        return torch.from_numpy(self.features[self.inner]), self.objective.tensor(self.targets[self.inner])

    def thresholds(self, logits: "torch.Tensor", wanted: "torch.Tensor") -> tuple[float, ...]:
        """The threshold of each label, chosen on these logits; empty unless the task is multi-label."""
        if self.options.task is not Task.MULTI_LABEL:
            return ()
        return best_thresholds(logits.sigmoid().cpu().numpy(), wanted.cpu().numpy())


def fit(problem: Problem, run: TrainingRun) -> TrainedHead:
    """Fit a head to the problem, in the phases `inner` and `all`.

    Raises DivergedError when a loss stops being finite, KeyboardInterrupt, with the state saved, on Ctrl-C.
    """
    import numpy as np
    import torch

    options, objective = problem.options, problem.objective
    # With --unfreeze, --epochs counts those of the stages; the head is trained as it would be by default.
    length = FinetuneOptions() if options.unfreeze else options
    total = EPOCHS * len(head.SCALINGS) + 2 * length.epochs
    with (
        run.progress.task("training the head", total, "epoch") as bar,
        torch.random.fork_rng(devices=[]),
        training_threads(problem),
    ):
        inner = problem.features[problem.inner], problem.targets[problem.inner]
        choice = search(*problem.rows(problem.fit), inner, objective, options, bar)
        _begin(run)
        first, training = _training(problem, problem.fit, choice)
        tolerance = MIN_GAIN[options.task] * problem.chance
        phase = run.phase("inner", training, lambda: objective.judge(*_inner(problem, first)), tolerance=tolerance)
        phase.run(length.epochs, length.patience, bar, run.progress)
        training.load_weights(phase.best)
        thresholds = problem.thresholds(*_inner(problem, first))
        last, training = _training(problem, np.ones(len(problem.targets), bool), choice)
        run.phase("all", training).run(phase.best_epoch, None, bar, run.progress)
    weights = objective.weights
    return TrainedHead(
        layers=objective.finish(head.folded(last)),
        modules=(first, last),
        activation=objective.activation,
        choice=choice,
        best_epoch=phase.best_epoch,
        curve=tuple(phase.curve),
        thresholds=thresholds,
        class_weights=() if weights is None else tuple(weights.tolist()),
    )


def inner_split(task: Task, targets: "Targets", seed: int) -> "tuple[NDArray[np.bool_], NDArray[np.bool_]]":
    """(items to fit, inner items): a random fraction INNER; of single-label tasks from every class with two items."""
    import numpy as np

    random = np.random.default_rng(seed)
    chosen = np.zeros(len(targets), bool)
    groups = [np.flatnonzero(targets == value) for value in np.unique(targets)] if task is Task.SINGLE_LABEL else []
    for group in groups or [np.arange(len(targets))]:
        members = random.permutation(group)
        chosen[members[: min(max(1, round(INNER * len(members))), len(members) - 1)]] = True
    # With one item in each class there is nothing to spare: the training items are the inner items too.
    return (~chosen, chosen) if chosen.any() else (~chosen, ~chosen)


def is_narrow(problem: Problem) -> bool:
    """Whether the head's matrix products are so small that a second thread would only wait for the first."""
    widths: tuple[int, ...] = (problem.features.shape[1], *problem.options.hidden, problem.objective.outputs)
    return sum(a * b for a, b in pairwise(widths)) < WIDE


def training_threads(problem: Problem) -> AbstractContextManager[None]:
    """Inside, torch uses the number of threads that suits the head's size."""
    import torch

    return threads(1 if is_narrow(problem) else torch.get_num_threads())


def _begin(run: TrainingRun) -> None:
    """Remove the checkpoints of an earlier training of the same bundle unless this one resumes it."""
    if run.checkpoints is None:
        return
    if run.resume and Checkpoints(run.checkpoints / "inner").newest() is None:
        run.progress.note("nothing was saved yet: the training starts from the beginning")
    if not run.resume:
        for phase in run.checkpoints.glob("*/"):
            shutil.rmtree(phase, ignore_errors=True)


def _training(problem: Problem, chosen: "NDArray[np.bool_]", choice: Choice) -> "tuple[torch.nn.Module, Training]":
    import torch

    options, objective = problem.options, problem.objective
    features, targets = problem.rows(chosen)
    module = head.build(head.affine(features, choice.scaling), options.hidden, objective.outputs, options.seed)
    y, net = objective.tensor(targets), module.net

    @cache
    def x() -> "torch.Tensor":
        # At the first step, because a checkpoint brings the scaling that it was trained with.
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
    return module, Training(module, [Part("head", module, choice.lr)], loss, plan)


def _inner(problem: Problem, module: "torch.nn.Module") -> "tuple[torch.Tensor, torch.Tensor]":
    """(logits, targets) of the inner items."""
    import torch

    features, wanted = problem.judged
    module.eval()
    with torch.inference_mode():
        logits: torch.Tensor = module(features)
    return logits, wanted
