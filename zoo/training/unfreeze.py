"""Deeper fine-tuning: the last stages of a backbone and the head, trained together on a frozen trunk's activations.

fastai's recipe (Howard and Gugger, https://arxiv.org/abs/2002.04688): the head first, on the frozen features, then
both, each earlier stage at a lower rate. Batch norm keeps its published statistics, for a small data set's own are
worse; dropout is on. As for a head, the inner items choose the epoch, and the model is trained again on all items.
"""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from zoo.errors import OutOfMemoryError
from zoo.progress import SILENT, Progress
from zoo.system.interrupt import Interrupt
from zoo.torchkit import run_stages
from zoo.training import head
from zoo.training.activation_cache import Activations
from zoo.training.checkpoints import Checkpoints
from zoo.training.fit_head import Problem, TrainedHead
from zoo.training.loop import Part, Phase, Plan, Training

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

#: Peak rate of the last stage where none is given, for pictures and for texts; an earlier one has half of the next's.
#: For pictures 3e-4 cost one and a half points when two stages were trained on crops of few photographs.
RATES = {"image": 1e-4, "text": 5e-5}
#: A given --lr is the head's; a pretrained stage moves by a tenth of it.
OF_HEAD = 0.1
HEAD_RATE = 1e-3
WEIGHT_DECAY = 0.05
#: Epochs after which the rates have halved.
DECAY = 4.0
#: A better inner loss is one that is lower by this part of the loss of knowing nothing: the head has done most already.
BETTER = 1e-4
#: Items in a step: those of a head's step would be many for a tail.
BATCH = 32
#: How torch says that an allocation failed, on a GPU and on a CPU.
LACKING = re.compile(r"out of memory|(can't|not enough memory: you tried to) allocate")
#: How often --auto-batch halves it.
HALVINGS = 5


class TunedTail(Struct, frozen=True, kw_only=True):
    """The trained stages and the head trained with them; `best_epoch` is 0 where that made nothing better."""

    stages: "torch.nn.ModuleList"
    head: TrainedHead
    best_epoch: int


class _Task:
    """What both trainings share: where the numbers come from, and on which device they are used."""

    def __init__(self, problem: Problem, activations: Activations, device: str) -> None:
        self.problem = problem
        self.activations = activations
        self.device = device
        self.targets = problem.objective.tensor(problem.targets).to(device)

    def rows(self, chosen: "NDArray[np.bool_]") -> "torch.Tensor":
        """The rows of the activations to train on for the chosen items: their views included."""
        import numpy as np
        import torch

        items = np.flatnonzero(chosen)
        count = len(self.activations.examples)
        views = np.concatenate([view * count + items for view in range(len(self.activations.views))])
        return torch.from_numpy(views)

    def training(self, model: "torch.nn.Module", chosen: "NDArray[np.bool_]", lrs: Sequence[float]) -> Training:
        """A training of the model on these items: its stages at the rates `lrs`, its head at the last of them."""
        problem, rows = self.problem, self.rows(chosen)

        def loss(picked: "torch.Tensor") -> "torch.Tensor":
            places = rows[picked]
            wanted = self.targets[places % len(self.targets)]
            return problem.objective.loss(self.logits(model, places.tolist()), wanted, smooth=True)

        options = problem.options
        plan = Plan(
            count=len(rows), batch=options.batch or BATCH, seed=options.seed,
            weight_decay=WEIGHT_DECAY if options.weight_decay is None else options.weight_decay, decay=DECAY,
        )  # fmt: skip
        stages: Any = model.stages
        parts = [Part(f"tail.{at}", stage, lr) for at, (stage, lr) in enumerate(zip(stages, lrs[:-1], strict=True))]
        return Training(model, [*parts, Part("head", model.head, lrs[-1])], loss, plan)  # type: ignore[arg-type]

    def logits(self, model: "torch.nn.Module", rows: Sequence[int]) -> "torch.Tensor":
        """What the model says of these rows."""
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in self.activations.batch(rows).items()}
        for name, tensor in tensors.items():
            layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
            tensors[name] = tensor.to(self.device, memory_format=layout)
        kind = self.device.partition(":")[0]
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda" and torch.cuda.is_bf16_supported()):
            answer: torch.Tensor = model(tensors)
        return answer.float()

    def judge(self, model: "torch.nn.Module") -> tuple[float, float]:
        """(loss, score) on the inner items."""
        logits, wanted = self.inner(model)
        return self.problem.objective.loss(logits, wanted).item(), self.problem.objective.score(logits, wanted)

    def inner(self, model: "torch.nn.Module") -> "tuple[torch.Tensor, torch.Tensor]":
        """(logits, targets) of the inner items."""
        import numpy as np
        import torch

        model.eval()
        rows = np.flatnonzero(self.problem.inner).tolist()
        with torch.inference_mode():
            step = self.problem.options.batch or BATCH
            parts = [self.logits(model, rows[start : start + step]) for start in range(0, len(rows), step)]
        return torch.cat(parts), self.targets[rows]


def fit_tail(
    problem: Problem,
    trained: TrainedHead,
    activations: Activations,
    tail: "Callable[[], torch.nn.ModuleList]",
    stop: Interrupt,
    *,
    device: str = "cpu",
    checkpoints: Path | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
) -> TunedTail:
    """Train the stages that `tail` gives (fresh ones each time it is called) together with the head `trained`.

    `activations` are those of the training items, in the order of `problem`. Raises DivergedError when a loss stops
    being finite, OutOfMemoryError (with `auto_batch` after a few smaller steps were tried), KeyboardInterrupt, with the
    state saved, on Ctrl-C.
    """
    batch = problem.options.batch or BATCH
    for halved in range(HALVINGS + 1):
        options = msgspec.structs.replace(problem.options, batch=max(1, batch >> halved))
        try:
            with _memory(options.batch or 1, device):
                return _fit(
                    problem.with_options(options), trained, activations, tail, stop,
                    device=device, checkpoints=checkpoints, resume=resume, progress=progress,
                )  # fmt: skip
        except OutOfMemoryError as error:
            if not options.auto_batch or halved == HALVINGS or options.batch == 1:
                raise
            progress.note(f"{error.message}: half of it is tried")
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _memory(batch: int, device: str) -> Iterator[None]:
    """Whatever says that there is not enough memory, as OutOfMemoryError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has a type for a GPU's memory alone.
        if isinstance(error, RuntimeError) and not LACKING.search(str(error)):
            raise
        raise OutOfMemoryError(
            f"a step of {batch} items needs more memory than {device} has",
            device=device,
            hint=f"--batch {max(1, batch // 2)}, or --auto-batch",
        ) from error


def _fit(
    problem: Problem,
    trained: TrainedHead,
    activations: Activations,
    tail: "Callable[[], torch.nn.ModuleList]",
    stop: Interrupt,
    *,
    device: str,
    checkpoints: Path | None,
    resume: bool,
    progress: Progress,
) -> TunedTail:
    import numpy as np
    import torch

    everything = np.ones(len(problem.targets), bool)
    task, epochs = _Task(problem, activations, device), problem.options.epochs
    with progress.task("training the last stages", 2 * epochs, "epoch") as bar, torch.random.fork_rng():
        model = _model(tail(), trained.modules[0], device)
        rates = _rates(problem, len(model.stages), is_text=activations.is_text)  # type: ignore[arg-type]
        training = task.training(model, problem.fit, rates)
        folder = _folder(checkpoints, "tail-inner")
        phase = Phase(
            training, folder, stop, lambda: task.judge(model), tolerance=BETTER * problem.chance, from_start=True
        )  # fmt: skip
        phase.continued(resume).run(epochs, problem.options.patience, bar, progress)
        training.load_weights(phase.best)
        thresholds = problem.thresholds(*task.inner(model))
        model = _model(tail(), trained.modules[1], device)
        if phase.best_epoch:
            training = task.training(model, everything, rates)
            last = Phase(training, _folder(checkpoints, "tail-all"), stop)
            last.continued(resume).run(phase.best_epoch, None, bar, progress)
    model = model.cpu().eval()
    layers = problem.objective.finish(head.folded(model.head))  # type: ignore[arg-type]
    return TunedTail(
        stages=model.stages,  # type: ignore[arg-type]
        head=msgspec.structs.replace(
            trained,
            layers=layers,
            thresholds=thresholds,
            curve=tuple(phase.curve),
            best_epoch=phase.best_epoch,
        ),
        best_epoch=phase.best_epoch,
    )


def _model(stages: "torch.nn.ModuleList", top: "torch.nn.Module", device: str) -> "torch.nn.Module":
    """The stages and a copy of the head as one module, from the trunk's tensors to logits."""
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
    last = given * OF_HEAD if given else RATES["text" if is_text else "image"]
    return [*(last / 2 ** (stages - 1 - place) for place in range(stages)), given or HEAD_RATE]


def _folder(checkpoints: Path | None, phase: str) -> Checkpoints | None:
    return None if checkpoints is None else Checkpoints(checkpoints / phase)
