"""Fitting a head to features: the search, a watched training on a part of the items, then one on all of them.

An inner part of the training items, never the held-out ones, chooses scaling, rates and the best epoch; the head is
then fitted again to all training items for as many epochs.
"""

import copy
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from zoo.options import FinetuneOptions
from zoo.progress import SILENT, Progress
from zoo.schema import Epoch, Task
from zoo.system.interrupt import Interrupt
from zoo.torchkit import threads
from zoo.training import head
from zoo.training.checkpoints import Checkpoints
from zoo.training.hyperparameters import EPOCHS, Choice, batch_of, search
from zoo.training.loop import Part, Phase, Plan, Training
from zoo.training.objective import Objective, best_thresholds

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from zoo.graph.head import Floats, Layer
    from zoo.training.objective import Targets

#: Part of the training items that chooses scaling, rates and epoch.
INNER = 0.15
#: A better inner loss is one that is lower by this part of the loss of knowing nothing: of a number, its variance.
BETTER = {Task.SINGLE_LABEL: 2e-3, Task.MULTI_LABEL: 2e-3, Task.REGRESSION: 1e-5}
#: Epochs after which the rate of a head has halved.
DECAY = 12.0


#: Weights from which on the head's products keep more than one core busy.
WIDE = 100_000


class TrainedHead(Struct, frozen=True, kw_only=True):
    """Layers as (weight [out, in], bias [out]) that read raw features, and how they came about.

    `modules` are the heads in torch: fitted to the items that did not choose, and to all.
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
    """What is to be learnt: features [items, dim] and targets of the training items, and the inner split of them.

    `views` are features of the same items seen otherwise: they are trained on, and judge nothing.
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
        #: The loss of knowing nothing.
        self.chance = self.objective.chance(targets[self.inner])

    def with_options(self, options: FinetuneOptions) -> "Problem":
        """The same problem, to be trained otherwise."""
        other = copy.copy(self)
        other.options = options
        return other

    def rows(self, chosen: "NDArray[np.bool_]") -> "tuple[Floats, Targets]":
        """Features and targets to train on for the chosen items: their views included."""
        import numpy as np

        together = [each[chosen] for each in (self.features, *self.views)]
        return np.concatenate(together), np.concatenate([self.targets[chosen]] * len(together))

    @cached_property
    def judged(self) -> "tuple[torch.Tensor, torch.Tensor]":
        """Features and targets of the inner items, as tensors."""
        import torch

        return torch.from_numpy(self.features[self.inner]), self.objective.tensor(self.targets[self.inner])

    def thresholds(self, logits: "torch.Tensor", wanted: "torch.Tensor") -> tuple[float, ...]:
        """The score from which each of several labels holds, by these answers; nothing for other tasks."""
        if self.options.task is not Task.MULTI_LABEL:
            return ()
        return best_thresholds(logits.sigmoid().cpu().numpy(), wanted.cpu().numpy())


def fit(
    problem: Problem,
    stop: Interrupt,
    *,
    checkpoints: Path | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
) -> TrainedHead:
    """Fit a head. Checkpoints go to a folder each for its two phases, and with `resume` it goes on from there.

    Raises DivergedError when a loss stops being finite, KeyboardInterrupt, with the state saved, on Ctrl-C.
    """
    import numpy as np
    import torch

    options, everything = problem.options, np.ones(len(problem.targets), bool)
    # Before the last stages are trained the head is what it would be alone: --epochs then counts theirs.
    length = FinetuneOptions() if options.unfreeze else options
    total = EPOCHS * len(head.SCALINGS) + 2 * length.epochs
    with (
        progress.task("training the head", total, "epoch") as bar,
        torch.random.fork_rng(devices=[]),
        training_threads(problem),
    ):
        inner = problem.features[problem.inner], problem.targets[problem.inner]
        choice = search(*problem.rows(problem.fit), inner, problem.objective, options, bar)
        _begin(checkpoints, resume, progress)
        module, training = _training(problem, problem.fit, choice)
        folder = _folder(checkpoints, "inner")
        phase = Phase(
            training,
            folder,
            stop,
            lambda: _judge(problem, module),
            tolerance=BETTER[problem.options.task] * problem.chance,
        )
        phase.continued(resume).run(length.epochs, length.patience, bar, progress)
        training.load_weights(phase.best)
        thresholds = problem.thresholds(*_inner(problem, module))
        watched = module
        module, training = _training(problem, everything, choice)
        last = Phase(training, _folder(checkpoints, "all"), stop)
        last.continued(resume).run(phase.best_epoch, None, bar, progress)
    weights = problem.objective.weights
    return TrainedHead(
        layers=problem.objective.finish(head.folded(module)),
        modules=(watched, module),
        activation=problem.objective.activation,
        choice=choice,
        best_epoch=phase.best_epoch,
        curve=tuple(phase.curve),
        thresholds=thresholds,
        class_weights=() if weights is None else tuple(weights.tolist()),
    )


def inner_split(task: Task, targets: "Targets", seed: int) -> "tuple[NDArray[np.bool_], NDArray[np.bool_]]":
    """(items to fit, items that choose): an INNER part, of one-label tasks of every class that can spare an item."""
    import numpy as np

    random = np.random.default_rng(seed)
    chosen = np.zeros(len(targets), bool)
    groups = [np.flatnonzero(targets == value) for value in np.unique(targets)] if task is Task.SINGLE_LABEL else []
    for group in groups or [np.arange(len(targets))]:
        members = random.permutation(group)
        chosen[members[: min(max(1, round(INNER * len(members))), len(members) - 1)]] = True
    # With one item a class there is nothing to spare: the training items themselves have to choose.
    return (~chosen, chosen) if chosen.any() else (~chosen, ~chosen)


def is_narrow(problem: Problem) -> bool:
    """Whether the head's products are small: a second thread would spend its time waiting for the first."""
    widths: tuple[int, ...] = (problem.features.shape[1], *problem.options.hidden, problem.objective.outputs)
    return sum(a * b for a, b in pairwise(widths)) < WIDE


def training_threads(problem: Problem) -> AbstractContextManager[None]:
    """Inside, torch computes on as many threads as a head's training takes."""
    import torch

    return threads(1 if is_narrow(problem) else torch.get_num_threads())


def _begin(checkpoints: Path | None, resume: bool, progress: Progress) -> None:
    """Remove what an earlier training of the same bundle saved, which this one does not go on with."""
    if checkpoints is None:
        return
    if resume and Checkpoints(checkpoints / "inner").newest() is None:
        progress.note("nothing was saved yet: the training starts anew")
    if not resume:
        for phase in checkpoints.glob("*/"):
            shutil.rmtree(phase, ignore_errors=True)


def _training(problem: Problem, chosen: "NDArray[np.bool_]", choice: Choice) -> "tuple[torch.nn.Module, Training]":
    import torch

    options, objective = problem.options, problem.objective
    features, targets = problem.rows(chosen)
    module = head.build(head.affine(features, choice.scaling), options.hidden, objective.outputs, options.seed)
    y, net = objective.tensor(targets), module.net

    @cache
    def x() -> "torch.Tensor":
        # At the first step: a checkpoint has brought the scaling that it was trained with.
        scaled: torch.Tensor = module.scaled(torch.from_numpy(features))  # type: ignore[operator]
        return scaled

    def loss(rows: "torch.Tensor") -> "torch.Tensor":
        return objective.loss(net(x().index_select(0, rows)), y[rows], smooth=True)  # type: ignore[operator]

    plan = Plan(
        count=len(features),
        batch=batch_of(options, len(features)),
        seed=options.seed,
        weight_decay=choice.weight_decay,
        decay=DECAY,
    )
    return module, Training(module, [Part("head", module, choice.lr)], loss, plan)


def _judge(problem: Problem, module: "torch.nn.Module") -> tuple[float, float]:
    logits, wanted = _inner(problem, module)
    return problem.objective.loss(logits, wanted).item(), problem.objective.score(logits, wanted)


def _inner(problem: Problem, module: "torch.nn.Module") -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    features, wanted = problem.judged
    module.eval()
    with torch.inference_mode():
        logits: torch.Tensor = module(features)
    return logits, wanted


def _folder(checkpoints: Path | None, phase: str) -> Checkpoints | None:
    return None if checkpoints is None else Checkpoints(checkpoints / phase)
