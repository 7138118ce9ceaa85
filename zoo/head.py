"""The head: a few dense layers on cached features, trained with torch in seconds.

The input scaling is part of the head and folded into its first layer, so the exported graph has nothing to forget.
An inner validation part of the training items, never the held-out ones, chooses the scaling and the best epoch.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct

from zoo.errors import DivergedError
from zoo.progress import SILENT, Progress
from zoo.schema import Epoch, FinetuneOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]
    Labels: TypeAlias = NDArray[np.int64]
    Layer: TypeAlias = tuple[Floats, Floats]

SCALINGS = ("global", "per-feature")
#: Part of the training items that chooses scaling and epoch.
INNER = 0.15
#: A per-feature std below this part of the mean std is raised to it: near-dead features would drown the others.
STD_FLOOR = 0.1
#: A spread this small beside the mean carries no information in float32.
NOISE = 1e-6


class TrainedHead(Struct, frozen=True, kw_only=True):
    """Layers as (weight [out, in], bias [out]) that read raw features, how the input was scaled, and the curve."""

    layers: "list[Layer]"
    scaling: str
    best_epoch: int
    curve: tuple[Epoch, ...]


def train(
    features: "Floats", targets: "Labels", classes: int, options: FinetuneOptions, progress: Progress = SILENT
) -> TrainedHead:
    """Fit a head to features [items, dim] and targets [items] in 0..classes-1.

    Every scaling is tried on the inner split; the better one is fitted again on all items for as many epochs as were
    best. Raises DivergedError when a loss stops being finite.
    """
    import torch

    fit, inner = _inner_split(targets, options.seed)
    epochs = options.epochs
    bars = progress.task("training the head", epochs * (len(SCALINGS) + 1), "epoch")
    with bars as bar, torch.random.fork_rng(devices=[]):
        tried = []
        for scaling in SCALINGS:
            run = _Run(features[fit], targets[fit], classes, scaling, options)
            curve = []
            for epoch, loss in enumerate(run.epochs(), 1):
                curve.append(_measure(run, epoch, loss, features[inner], targets[inner]))
                bar.advance()
            best = min(curve, key=lambda line: (round(line.val_loss, 6), line.epoch))
            tried.append((best, scaling, tuple(curve)))
        # The first scaling has one number, the second one for every feature: it must classify better to be taken.
        best, scaling, chosen = max(tried, key=lambda each: each[0].val_score)
        run = _Run(features, targets, classes, scaling, options)
        for epoch, _ in enumerate(run.epochs(), 1):
            bar.advance()
            if epoch == best.epoch:
                break
        bar.advance(epochs - best.epoch)
        with torch.inference_mode():
            layers = run.folded()
    return TrainedHead(layers=layers, scaling=scaling, best_epoch=best.epoch, curve=chosen)


def apply(layers: "Sequence[Layer]", features: "Floats") -> "Floats":
    """Class probabilities [items, classes] of features by numpy's arithmetic: what the exported head must equal."""
    import numpy as np

    # What is no number stays none, and the caller's comparison says so.
    with np.errstate(over="ignore", invalid="ignore"):
        value = features
        for index, (weight, bias) in enumerate(layers):
            value = (np.maximum(value, 0) if index else value) @ weight.T + bias
        powers = np.exp(value - value.max(1, keepdims=True))
        scores: Floats = powers / powers.sum(1, keepdims=True)
    return scores


class _Run:
    """One training of one head: AdamW with a cosine schedule on mini-batches of features held in memory."""

    def __init__(
        self, features: "Floats", targets: "Labels", classes: int, scaling: str, options: FinetuneOptions
    ) -> None:
        import torch
        from torch import nn

        self.options = options
        self.mean, self.scale = _affine(features, scaling)
        self.x = torch.from_numpy((features - self.mean) / self.scale)
        self.y = torch.from_numpy(targets)
        self.generator = torch.Generator().manual_seed(options.seed)
        torch.manual_seed(options.seed)
        widths = (features.shape[1], *options.hidden, classes)
        modules: list[nn.Module] = []
        for index, (wide_in, wide_out) in enumerate(pairwise(widths)):
            modules += [nn.ReLU(), nn.Dropout(0.2)] if index else []
            modules.append(nn.Linear(wide_in, wide_out))
        self.net = nn.Sequential(*modules)

    def epochs(self) -> Iterator[float]:
        """Train one epoch after another, yielding each one's mean loss."""
        import torch

        options, count = self.options, len(self.y)
        steps = options.epochs * math.ceil(count / options.batch)
        optimizer = torch.optim.AdamW(
            self.net.parameters(),
            lr=options.lr or 1e-3,
            weight_decay=0.1 if options.weight_decay is None else options.weight_decay,
            foreach=True,
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for epoch in range(1, options.epochs + 1):
            self.net.train()
            total = 0.0
            for rows in torch.randperm(count, generator=self.generator).split(options.batch):  # type: ignore[no-untyped-call]
                loss = torch.nn.functional.cross_entropy(self.net(self.x[rows]), self.y[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += loss.item() * len(rows)
            if not math.isfinite(total):
                raise self.diverged(epoch)
            yield total / count

    def diverged(self, epoch: int) -> DivergedError:
        """The error to raise when a loss of that epoch is no number any more."""
        lower = f"--lr {(self.options.lr or 1e-3) / 10:g}"
        return DivergedError(f"the loss is not finite in epoch {epoch}", epoch=epoch, hint=lower)

    def evaluate(self, features: "Floats", targets: "Labels") -> tuple[float, float]:
        """(mean loss, accuracy) on other items."""
        import torch

        self.net.eval()
        with torch.inference_mode():
            logits = self.net(torch.from_numpy((features - self.mean) / self.scale))
            wanted = torch.from_numpy(targets)
            loss = torch.nn.functional.cross_entropy(logits, wanted).item()
            return loss, (logits.argmax(1) == wanted).double().mean().item()

    def folded(self) -> "list[Layer]":
        """The layers with the input scaling folded into the first one: they read raw features."""
        import numpy as np
        from torch import nn

        linear = [module for module in self.net if isinstance(module, nn.Linear)]
        layers = [(m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in linear]
        weight, bias = layers[0]
        weight = weight / self.scale
        layers[0] = (weight, bias - weight @ self.mean)
        return [(np.ascontiguousarray(w, np.float32), np.ascontiguousarray(b, np.float32)) for w, b in layers]


def _affine(features: "Floats", scaling: str) -> "tuple[Floats, Floats]":
    """(mean [dim], scale [dim]): one scale for all features, or each feature's own std with a floor."""
    import numpy as np

    mean = features.mean(0, dtype=np.float64)
    std = features.std(0, dtype=np.float64)
    # Below float32's resolution a spread is rounding noise: to divide by it would make noise of the head.
    size = np.sqrt(np.mean(mean**2))
    if np.sqrt(np.mean(std**2)) <= NOISE * size:
        std = np.full_like(std, max(size, 1.0))
    typical = np.sqrt(np.mean(std**2))
    scale = np.full_like(std, typical) if scaling == "global" else np.maximum(std, STD_FLOOR * std.mean())
    return mean.astype(np.float32), scale.astype(np.float32)


def _inner_split(targets: "Labels", seed: int) -> "tuple[NDArray[np.bool_], NDArray[np.bool_]]":
    """(items to fit, items that choose the epoch): a stratified INNER part of every class that can spare one."""
    import numpy as np

    random = np.random.default_rng(seed)
    chosen = np.zeros(len(targets), bool)
    for value in np.unique(targets):
        members = random.permutation(np.flatnonzero(targets == value))
        chosen[members[: min(max(1, round(INNER * len(members))), len(members) - 1)]] = True
    # With one item a class there is nothing to spare: the training items themselves have to choose.
    return (~chosen, chosen) if chosen.any() else (~chosen, ~chosen)


def _measure(run: _Run, epoch: int, loss: float, features: "Floats", targets: "Labels") -> Epoch:
    val_loss, accuracy = run.evaluate(features, targets)
    if not math.isfinite(val_loss):
        raise run.diverged(epoch)
    return Epoch(epoch=epoch, train_loss=loss, val_loss=val_loss, val_score=accuracy)
