"""Training the last stages of a backbone together with the head, on the activations of the frozen trunk before them.

fastai's recipe (Howard and Gugger, https://arxiv.org/abs/2002.04688): first the head on the frozen features, then
both, each earlier stage at a lower rate. Batch norm keeps its published statistics, because those of a small data set
are worse; dropout is on. As for a head, the inner items choose the epoch, and all items train the final model.
"""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from zoo.errors import OutOfMemoryError
from zoo.torchkit import run_stages
from zoo.training import head
from zoo.training.activation_cache import Activations
from zoo.training.fit_head import Problem, TrainedHead
from zoo.training.loop import Part, Plan, Training, TrainingRun

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

#: Default peak rate of the last stage for images and for texts; each earlier stage has half the rate of the next.
#: For images 3e-4 lost 1.5 points of accuracy when two stages were trained on crops of few photographs.
STAGE_RATES = {"image": 1e-4, "text": 5e-5}
#: --lr is the head's rate; the last stage gets this fraction of it.
STAGE_FRACTION = 0.1
HEAD_RATE = 1e-3
WEIGHT_DECAY = 0.05
#: Epochs after which the rates have halved.
TAIL_DECAY = 4.0
#: An inner loss is better if it is lower by this fraction of a constant guess's loss; the head has gained most already.
MIN_TAIL_GAIN = 1e-4
#: Items in a step, fewer than in a step of a head alone.
TAIL_BATCH = 32
#: torch's messages about a failed allocation, on a GPU and on a CPU.
NO_MEMORY = re.compile(r"out of memory|(can't|not enough memory: you tried to) allocate")
#: How often --auto-batch halves the batch.
HALVINGS = 5


class TunedTail(Struct, frozen=True, kw_only=True):
    """The trained stages and the head trained with them; `best_epoch` is 0 if no epoch lowered the inner loss."""

    stages: "torch.nn.ModuleList"
    head: TrainedHead
    best_epoch: int


class _Task:
    """The inputs of both trainings: problem, activations and device."""

    def __init__(self, problem: Problem, activations: Activations, device: str) -> None:
        self.problem = problem
        self.activations = activations
        self.device = device
        self.targets = problem.objective.tensor(problem.targets).to(device)

    def rows(self, chosen: "NDArray[np.bool_]") -> "torch.Tensor":
        """The rows of the activations that belong to the chosen items, views included."""
        import numpy as np
        import torch

        items = np.flatnonzero(chosen)
        count = len(self.activations.examples)
        views = np.concatenate([view * count + items for view in range(len(self.activations.views))])
        return torch.from_numpy(views)

    def training(self, model: "torch.nn.Module", chosen: "NDArray[np.bool_]", lrs: Sequence[float]) -> Training:
        """A training of the model on these items; `lrs` are the rates of its stages and, last, of its head."""
        problem, rows = self.problem, self.rows(chosen)

        def loss(picked: "torch.Tensor") -> "torch.Tensor":
            chosen_rows = rows[picked]
            wanted = self.targets[chosen_rows % len(self.targets)]
            return problem.objective.loss(self.logits(model, chosen_rows.tolist()), wanted, smooth=True)

        options = problem.options
        plan = Plan(
            count=len(rows), batch=options.batch or TAIL_BATCH, seed=options.seed,
            weight_decay=WEIGHT_DECAY if options.weight_decay is None else options.weight_decay, decay=TAIL_DECAY,
        )  # fmt: skip
        stages: Any = model.stages
        parts = [
            Part(f"tail.{index}", stage, lr) for index, (stage, lr) in enumerate(zip(stages, lrs[:-1], strict=True))
        ]
        return Training(model, [*parts, Part("head", model.head, lrs[-1])], loss, plan)  # type: ignore[arg-type]

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
        """(logits, targets) of the inner items."""
        import numpy as np
        import torch

        model.eval()
        rows = np.flatnonzero(self.problem.inner).tolist()
        with torch.inference_mode():
            step = self.problem.options.batch or TAIL_BATCH
            parts = [self.logits(model, rows[start : start + step]) for start in range(0, len(rows), step)]
        return torch.cat(parts), self.targets[rows]


def fit_tail(
    problem: Problem,
    trained: TrainedHead,
    activations: Activations,
    tail: "Callable[[], torch.nn.ModuleList]",
    run: TrainingRun,
    *,
    device: str = "cpu",
) -> TunedTail:
    """Train the stages of `tail` together with the head `trained`, in the phases `tail-inner` and `tail-all`.

    Args:
        activations: of the training items, in the order of `problem`.
        tail: returns fresh copies of the pretrained stages at each call.

    Raises DivergedError when a loss stops being finite, OutOfMemoryError (with `auto_batch` after a few smaller steps
    were tried), KeyboardInterrupt, with the state saved, on Ctrl-C.
    """
    batch = problem.options.batch or TAIL_BATCH
    for halved in range(HALVINGS + 1):
        options = msgspec.structs.replace(problem.options, batch=max(1, batch >> halved))
        try:
            with _memory(options.batch or 1, device):
                return _fit_once(_Task(problem.with_options(options), activations, device), trained, tail, run)
        except OutOfMemoryError as error:
            if not options.auto_batch or halved == HALVINGS or options.batch == 1:
                raise
            run.progress.note(f"{error.message}: trying half as many")
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _memory(batch: int, device: str) -> Iterator[None]:
    """Inside, every error about too little memory becomes OutOfMemoryError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch raises plain RuntimeErrors on the CPU.
        if isinstance(error, RuntimeError) and not NO_MEMORY.search(str(error)):
            raise
        raise OutOfMemoryError(
            f"a step of {batch} items needs more memory than {device} has",
            device=device,
            hint=f"--batch {max(1, batch // 2)}, or --auto-batch",
        ) from error


def _fit_once(
    task: _Task, trained: TrainedHead, tail: "Callable[[], torch.nn.ModuleList]", run: TrainingRun
) -> TunedTail:
    import numpy as np
    import torch

    problem, options, objective = task.problem, task.problem.options, task.problem.objective
    with run.progress.task("training the last stages", 2 * options.epochs, "epoch") as bar, torch.random.fork_rng():
        model = _tail_with_head(tail(), trained.modules[0], task.device)
        rates = _rates(problem, len(model.stages), is_text=task.activations.is_text)  # type: ignore[arg-type]
        training = task.training(model, problem.fit, rates)
        phase = run.phase(
            "tail-inner",
            training,
            lambda: objective.judge(*task.inner(model)),
            tolerance=MIN_TAIL_GAIN * problem.chance,
            from_start=True,
        )
        phase.run(options.epochs, options.patience, bar, run.progress)
        training.load_weights(phase.best)
        thresholds = problem.thresholds(*task.inner(model))
        model = _tail_with_head(tail(), trained.modules[1], task.device)
        if phase.best_epoch:
            training = task.training(model, np.ones(len(problem.targets), bool), rates)
            run.phase("tail-all", training).run(phase.best_epoch, None, bar, run.progress)
    model = model.cpu().eval()
    layers = objective.finish(head.folded(model.head))  # type: ignore[arg-type]
    return TunedTail(
        stages=model.stages,  # type: ignore[arg-type]
        head=msgspec.structs.replace(
            trained, layers=layers, thresholds=thresholds, curve=tuple(phase.curve), best_epoch=phase.best_epoch
        ),
        best_epoch=phase.best_epoch,
    )


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
            features = run_stages(self.stages, tensors)["features"]
            answer: torch.Tensor = self.head(features)
            return answer

        def train(self, mode: bool = True) -> "Whole":
            super().train(mode)
            for part in self.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()
            return self

    model: nn.Module = Whole().to(device).to(memory_format=torch.channels_last)
    return model


def _rates(problem: Problem, stages: int, *, is_text: bool) -> list[float]:
    """The peak rate of each stage, earliest first, then the head's."""
    given = problem.options.lr
    last = given * STAGE_FRACTION if given else STAGE_RATES["text" if is_text else "image"]
    return [*(last / 2 ** (stages - 1 - index) for index in range(stages)), given or HEAD_RATE]
