"""Trains the last stages of a backbone together with the head, on the activations of the frozen trunk before them.

The recipe is fastai's (Howard and Gugger, https://arxiv.org/abs/2002.04688): first the head is trained on the frozen
features, then head and stages, each earlier stage at a lower rate. Batch norm keeps its published statistics, because
the statistics of a small data set are worse. Dropout is on. As for a head, the epoch is chosen on the inner items, and
the final model is trained on all items.
"""

import copy
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from zoo.errors import OutOfMemoryError, counted
from zoo.torchkit import run_stages
from zoo.training import head
from zoo.training.activation_cache import Activations
from zoo.training.calibrate import sharpness_of
from zoo.training.loop import Part, Phase, Plan, Training, TrainingRun
from zoo.training.problem import Problem
from zoo.training.trained_head import TrainedHead

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

#: Default peak rate of the last stage for images and for texts; each earlier stage has half the rate of the next.
#: For images a rate of 3e-4 lost 1.5 points of accuracy when two stages were trained on crops of few photographs.
STAGE_RATES = {"image": 1e-4, "text": 5e-5}
#: --lr is the head's rate; the last stage gets this fraction of --lr.
STAGE_FRACTION = 0.1
HEAD_RATE = 1e-3
WEIGHT_DECAY = 0.05
#: Epochs after which the rates have halved.
TAIL_DECAY = 4.0
#: An inner loss is better if it is lower by at least this fraction of a constant guess's loss. The fraction is small,
#: because the head has already gained most.
MIN_TAIL_GAIN = 1e-4
#: Items in a step, fewer than in a step of a head alone.
TAIL_BATCH = 32
#: torch's messages about a failed allocation, on a GPU and on a CPU.
NO_MEMORY = re.compile(r"out of memory|(can't|not enough memory: you tried to) allocate")
#: How often --auto-batch halves the batch.
HALVINGS = 5


class _Task:
    """The inputs of the inner and the final training; `batch` is the number of items in a step."""

    def __init__(self, problem: Problem, activations: Activations, device: str, batch: int) -> None:
        self.problem = problem
        self.activations = activations
        self.device = device
        self.batch = batch
        self.targets = problem.objective.tensor(problem.targets).to(device)

    def training(self, model: "torch.nn.Module", chosen: "NDArray[np.bool_]") -> Training:
        """A training of the model's stages and head on these items and their views."""
        import numpy as np
        import torch

        items, count, options = np.flatnonzero(chosen), len(self.targets), self.problem.options
        rows = torch.from_numpy(np.concatenate([view * count + items for view in range(len(self.activations.views))]))

        def loss(batch: "torch.Tensor") -> "torch.Tensor":
            picked = rows[batch]
            logits = self.logits(model, picked.tolist())
            return self.problem.objective.loss(logits, self.targets[picked % count], smooth=True)

        plan = Plan(
            count=len(rows), batch=self.batch, seed=options.seed,
            weight_decay=WEIGHT_DECAY if options.weight_decay is None else options.weight_decay, decay=TAIL_DECAY,
        )  # fmt: skip
        stages: Any = model.stages
        kind = "text" if self.activations.is_text else "image"
        last = options.lr * STAGE_FRACTION if options.lr else STAGE_RATES[kind]
        parts = [
            Part(f"tail.{index}", stage, last / 2 ** (len(stages) - 1 - index)) for index, stage in enumerate(stages)
        ]
        parts.append(Part("head", model.head, options.lr or HEAD_RATE))  # type: ignore[arg-type]
        return Training(model, parts, loss, plan)

    def logits(self, model: "torch.nn.Module", rows: Sequence[int]) -> "torch.Tensor":
        """The model's logits for these rows."""
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in self.activations.batch(rows).items()}
        for name, tensor in tensors.items():
            layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
            tensors[name] = tensor.to(self.device, memory_format=layout)
        kind = self.device.partition(":")[0]
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda" and torch.cuda.is_bf16_supported()):
            answer: torch.Tensor = model(tensors)
        return answer.float()

    def inner(self, model: "torch.nn.Module") -> "tuple[torch.Tensor, torch.Tensor]":
        """Returns the logits and targets of the inner items."""
        import numpy as np
        import torch

        model.eval()
        rows = np.flatnonzero(self.problem.inner).tolist()
        with torch.inference_mode():
            parts = [self.logits(model, rows[start : start + self.batch]) for start in range(0, len(rows), self.batch)]
        return torch.cat(parts), self.targets[rows]


def fit_tail(
    problem: Problem,
    trained: TrainedHead,
    activations: Activations,
    tail: "Callable[[], torch.nn.ModuleList]",
    run: TrainingRun,
    *,
    device: str = "cpu",
) -> "tuple[TrainedHead, torch.nn.ModuleList]":
    """Train the stages of `tail` together with the head `trained`, in two phases; returns the head and the stages.

    The head's `best_epoch` is 0 if no epoch lowered the inner loss.

    Args:
        activations: those of the training items, in the order of `problem`.
        tail: returns fresh copies of the pretrained stages at each call.

    Raises DivergedError when a loss stops being finite, OutOfMemoryError (with `auto_batch` only after a few smaller
    batches were tried), KeyboardInterrupt, with the state saved, on Ctrl-C.
    """
    batch = problem.options.batch or TAIL_BATCH
    smallest = max(1, batch >> HALVINGS) if problem.options.auto_batch else batch
    while True:
        try:
            return _fit_once(_Task(problem, activations, device, batch), trained, tail, run)
        except (MemoryError, RuntimeError) as error:
            # On the CPU torch raises a plain RuntimeError if memory runs out.
            if isinstance(error, RuntimeError) and not NO_MEMORY.search(str(error)):
                raise
            message = f"a step of {counted(batch, 'item')} needs more memory than {device} has"
            if batch == smallest:
                hint = f"--batch {max(1, batch // 2)}, or --auto-batch"
                raise OutOfMemoryError(message, device=device, hint=hint) from error
            run.progress.note(f"{message}: trying half as many")
            batch //= 2


def _fit_once(
    task: _Task, trained: TrainedHead, tail: "Callable[[], torch.nn.ModuleList]", run: TrainingRun
) -> "tuple[TrainedHead, torch.nn.ModuleList]":
    import numpy as np
    import torch

    problem, options, objective = task.problem, task.problem.options, task.problem.objective
    everything = np.ones(len(problem.targets), bool)
    with run.progress.task("training the last stages", 2 * options.epochs, "epoch") as bar, torch.random.fork_rng():
        model = _tail_with_head(tail(), trained.modules[0], task.device)
        training = task.training(model, problem.fit)
        phase = Phase(
            run,
            "tail-inner",
            training,
            lambda: objective.loss_and_score(*task.inner(model)),
            tolerance=MIN_TAIL_GAIN * problem.chance,
            from_start=True,
        )
        phase.train(bar, options.epochs, options.patience)
        training.load_weights(phase.best)
        logits, wanted = task.inner(model)
        factor = _factor(problem, model.head, logits)  # type: ignore[arg-type]
        head.sharpen(model.head, factor)  # type: ignore[arg-type]
        thresholds = problem.thresholds(task.inner(model)[0], wanted)
        model = _tail_with_head(tail(), trained.modules[1], task.device)
        if phase.best_epoch:
            Phase(run, "tail-all", task.training(model, everything)).train(bar, phase.best_epoch)
            head.sharpen(model.head, factor)  # type: ignore[arg-type]
    model = model.cpu().eval()
    fitted = msgspec.structs.replace(
        trained,
        layers=objective.finish(head.folded(model.head)),  # type: ignore[arg-type]
        thresholds=thresholds,
        curve=tuple(phase.curve),
        best_epoch=phase.best_epoch,
    )
    return fitted, model.stages  # type: ignore[return-value]


def _factor(problem: Problem, module: "torch.nn.Module", logits: "torch.Tensor") -> float:
    """The calibration of the head `module`, found on its `logits` of the inner items; 1 if it learned these items."""
    if (problem.fit & problem.inner).any():
        return 1.0
    biases = module.net[-1].bias.detach().expand_as(logits)  # type: ignore[index,union-attr]
    return sharpness_of(problem.objective, problem.targets[problem.inner], logits - biases, biases).factor


def _tail_with_head(stages: "torch.nn.ModuleList", top: "torch.nn.Module", device: str) -> "torch.nn.Module":
    """The stages and a copy of the head `top` as one module, from the trunk's tensors to logits."""
    import torch
    from torch import nn

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = stages
            self.head = copy.deepcopy(top).requires_grad_(True)

        def forward(self, tensors: "dict[str, torch.Tensor]") -> "torch.Tensor":
            answer: torch.Tensor = self.head(run_stages(self.stages, tensors)["features"])
            return answer

        def train(self, mode: bool = True) -> "Whole":
            super().train(mode)
            for part in self.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()
            return self

    return Whole().to(device).to(memory_format=torch.channels_last)
