"""The training loop in torch: AdamW on seeded random batches of any model and loss.

A training can be stopped after any step; resumed, it gives the same result as without the stop. Nothing depends on the
planned number of epochs: the rate rises over the first epoch and then falls with the number of finished epochs, and
every random choice is drawn from (seed, epoch, step). So N epochs and N resumed ones equal 2N epochs.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct, convert, to_builtins

from zoo.errors import DivergedError, UsageError, counted
from zoo.progress import SILENT, Bar, Progress
from zoo.results import Epoch
from zoo.system.interrupt import Interrupt
from zoo.training.adamw import AdamW
from zoo.training.checkpoints import Checkpoints

if TYPE_CHECKING:
    import torch

    Loss = Callable[[torch.Tensor], torch.Tensor]
    Validate = Callable[[], tuple[float, float]]

#: Seconds between two checkpoints of a running training.
SAVE_EVERY = 20.0
#: The message of KeyboardInterrupt once a checkpoint is written.
SAVED = "the training is saved: the same command with --resume continues it"


class Part(Struct, frozen=True):
    """A module to train, its peak learning rate, and its name in checkpoints."""

    name: str
    module: "torch.nn.Module"
    lr: float


class Plan(Struct, frozen=True, kw_only=True):
    """The schedule of a training: `count` items, `batch` of them in a step; after `decay` epochs rates have halved."""

    count: int
    batch: int
    seed: int
    weight_decay: float
    decay: float


def rate(epoch: float, steps: int, decay: float) -> float:
    """The factor on the peak rate at `epoch` (a float): it rises over the first epoch, then is 1 / (1 + t / decay).

    `steps` is the number of steps in an epoch.
    """
    return min(1.0, epoch + 1 / steps) / (1 + epoch / decay)


class Trainable(Protocol):
    """What a `Phase` trains, measures and saves: a `Training`, or the strengths of a linear head."""

    #: Finished epochs, and the items in a step.
    epoch: int
    batch: int

    @property
    def strength(self) -> float | None:
        """The strength of regularisation for each item that the last epoch had, if epochs differ in it."""

    def train_epoch(self, stop: Interrupt) -> float | None:
        """Train one epoch and return its mean loss; None if `stop` ended it early."""

    def diverged(self) -> DivergedError:
        """The error to raise when a loss is not finite."""

    def weights(self) -> "dict[str, torch.Tensor]":
        """Copies of every tensor, by name."""

    def state(self) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
        """Returns the tensors and facts from which `restore` continues."""

    def restore(self, tensors: "Mapping[str, torch.Tensor]", facts: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""


class Training:
    """The state of a training: the parts of a model, AdamW's moments, epoch and step.

    `loss` computes the loss of a batch, given the indices of its items.
    """

    def __init__(self, model: "torch.nn.Module", parts: "Sequence[Part]", loss: "Loss", plan: Plan) -> None:
        self.model = model
        self.parts = parts
        self.loss = loss
        self.plan = plan
        self.epoch, self.step, self.total, self.batch = 0, 0, 0.0, plan.batch
        pairs = [(parameter, part.lr) for part in parts for parameter in part.module.parameters()]
        parameters, rates = [parameter for parameter, _ in pairs], [lr for _, lr in pairs]
        # Biases and the numbers of a normalisation do not decay: they hold base rates and scales.
        decays = [plan.weight_decay if parameter.dim() > 1 else 0.0 for parameter in parameters]
        self.optimizer = AdamW(parameters, rates, decays)

    @property
    def strength(self) -> None:
        """All epochs have the same weight decay."""
        return None

    def train_epoch(self, stop: Interrupt) -> float | None:
        """Train one epoch, or the rest of a stopped one, and return its mean loss; None if `stop` ended it early.

        Raises DivergedError for a loss that is not finite.
        """
        import torch

        plan = self.plan
        self.model.train()
        order = torch.Generator().manual_seed(_mix(plan.seed, self.epoch, 0))
        batches = torch.randperm(plan.count, generator=order).split(plan.batch)  # type: ignore[no-untyped-call]
        for index in range(self.step, len(batches)):
            # The generator of dropout. torch.manual_seed would also seed unused devices and take ten times longer.
            torch.default_generator.manual_seed(_mix(plan.seed, self.epoch, 1 + index))
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.manual_seed_all(_mix(plan.seed, self.epoch, 1 + index))
            loss = self.loss(batches[index])
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            value = loss.item()
            if not math.isfinite(value):
                raise self.diverged()
            self.optimizer.step(rate(self.epoch + index / len(batches), len(batches), plan.decay))
            self.total += value * len(batches[index])
            self.step += 1
            if stop.is_asked and self.step < len(batches):
                return None
        mean = self.total / plan.count
        self.epoch, self.step, self.total = self.epoch + 1, 0, 0.0
        return mean

    def diverged(self) -> DivergedError:
        """The error to raise when a loss of this epoch is not finite."""
        epoch = self.epoch + 1 if self.step or not self.epoch else self.epoch
        lower = f"--lr {max(part.lr for part in self.parts) / 10:g}"
        return DivergedError(f"the loss is not finite in epoch {epoch}", epoch=epoch, hint=lower)

    def weights(self) -> "dict[str, torch.Tensor]":
        """Copies of every tensor of the modules, by name."""
        return {
            f"{part.name}.{name}": tensor.detach().clone()
            for part in self.parts
            for name, tensor in part.module.state_dict().items()
        }

    def load_weights(self, tensors: "Mapping[str, torch.Tensor]") -> None:
        """Restore tensors returned by `weights`."""
        for part in self.parts:
            part.module.load_state_dict(_inside(tensors, f"{part.name}."))

    def state(self) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
        """Returns the tensors and facts from which `restore` continues."""
        tensors = {f"weights.{name}": tensor for name, tensor in self.weights().items()}
        tensors |= {f"adamw.{name}": tensor for name, tensor in self.optimizer.state()}
        facts = {"epoch": self.epoch, "step": self.step, "total": self.total, "batch": self.plan.batch}
        return tensors, facts

    def restore(self, tensors: "Mapping[str, torch.Tensor]", facts: Mapping[str, Any]) -> None:
        """Restore the training from the tensors and facts that `state` returned."""
        self.load_weights(_inside(tensors, "weights."))
        self.optimizer.restore(_inside(tensors, "adamw."))
        self.epoch, self.step, self.total = facts["epoch"], facts["step"], facts["total"]


class TrainingRun(Struct, frozen=True, kw_only=True):
    """The means to stop, save, resume and show a training; each of its phases has a folder in `checkpoints`."""

    stop: Interrupt
    checkpoints: Path | None = None
    resume: bool = False
    progress: Progress = SILENT


class Phase:
    """A training with a learning curve, a best epoch, early stopping and checkpoints.

    If the run resumes, it continues from the newest complete checkpoint of the phase `name`.

    Args:
        validate: returns (loss, score) on items that are not trained on; without it no epoch is chosen.
        tolerance: an epoch becomes the best one if its loss is lower by more than this.
        from_start: the modules before training also count as an epoch, number 0.
    """

    def __init__(
        self,
        run: TrainingRun,
        name: str,
        training: Trainable,
        validate: "Validate | None" = None,
        *,
        tolerance: float = 0.0,
        from_start: bool = False,
    ) -> None:
        self.run = run
        self.training = training
        self.validate = validate
        self.tolerance = tolerance
        self.from_start = from_start
        self.curve: list[Epoch] = []
        self.best_epoch = 0
        #: Tensors of the modules after the best epoch.
        self.best: dict[str, torch.Tensor] = training.weights() if validate else {}
        self._checkpoints = Checkpoints(run.checkpoints / name) if run.checkpoints else None
        self._saved = time.monotonic()
        saved = self._checkpoints.newest() if self._checkpoints and run.resume else None
        # A checkpoint with another batch size belongs to an attempt that --auto-batch has abandoned.
        if saved is not None and saved.facts["batch"] == training.batch:
            training.restore(saved.tensors, saved.facts)
            self.curve = convert(saved.facts["curve"], list[Epoch])
            self.best_epoch = saved.facts["best_epoch"]
            self.best = _inside(saved.tensors, "best.")

    def train(self, bar: Bar, epochs: int, patience: float = math.inf) -> None:
        """Train until `epochs` are done, or until `patience` epochs in succession brought no better loss.

        On Ctrl-C the step is finished, the state is saved and KeyboardInterrupt is raised. Raises DivergedError for a
        loss that is not finite (the last checkpoint is kept), UsageError when the checkpoint is already past `epochs`.
        """
        if self.training.epoch > epochs:
            raise UsageError(
                f"the checkpoint has {counted(self.training.epoch, 'epoch')} already, more than --epochs {epochs}",
                hint=f"--epochs {self.training.epoch} or more, or leave --resume out",
            )
        if self.from_start and not self.curve:
            self._measure(None)
        while self.training.epoch < epochs and self.training.epoch - self.best_epoch < patience:
            loss = self.training.train_epoch(self.run.stop)
            if loss is not None:
                self._measure(loss)
                bar.advance()
            if self.run.stop.is_asked:
                break
            if time.monotonic() - self._saved > SAVE_EVERY:
                self._save()
        saved = self._save()
        if self.run.stop.is_asked:
            # The message promises that --resume works, so it is only given if a checkpoint was written.
            raise KeyboardInterrupt(*[SAVED] * saved)

    @property
    def lowest(self) -> float:
        """The validation loss of the best epoch; infinity before any is measured."""
        return next((each.val_loss for each in self.curve if each.epoch == self.best_epoch), math.inf)

    def _save(self) -> bool:
        """Write a checkpoint; returns whether it was written. A failure is noted and does not end the training."""
        if self._checkpoints is None:
            return False
        tensors, facts = self.training.state()
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        facts |= {"curve": to_builtins(self.curve), "best_epoch": self.best_epoch}
        self._saved = time.monotonic()
        try:
            self._checkpoints.save(tensors, facts)
        except OSError as error:
            self.run.progress.note(f"no checkpoint could be written: {error.strerror}; the previous one is intact")
            return False
        return True

    def _measure(self, loss: float | None) -> None:
        """Validate the modules after an epoch with this training loss; the loss is None before the first epoch."""
        if self.validate is None:
            return
        val_loss, score = self.validate()
        if not math.isfinite(val_loss):
            raise self.training.diverged()
        # Epoch 0 has no training loss, so the loss on the validation items is recorded.
        trained = val_loss if loss is None else loss
        lowest, epoch = self.lowest, self.training.epoch
        strength = self.training.strength
        self.curve.append(Epoch(epoch=epoch, train_loss=trained, val_loss=val_loss, val_score=score, strength=strength))
        if val_loss < lowest - self.tolerance:
            self.best_epoch, self.best = epoch, self.training.weights()


def _inside(tensors: "Mapping[str, torch.Tensor]", prefix: str) -> "dict[str, torch.Tensor]":
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _mix(seed: int, epoch: int, step: int) -> int:
    """A seed made from three numbers; neighbouring numbers give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {epoch} {step}".encode(), digest_size=8).digest()) >> 1
