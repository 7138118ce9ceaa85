"""The search for a trained head's feature scaling, learning rate and weight decay, on cached features.

Every candidate is a separate head. All candidates get the same batches, so one matrix product computes all of them, and
a dozen cost little more than one. They train for a few epochs, with few items on several splits. Of the candidates
whose loss on the inner items is nearly the lowest, the search takes the one with the smallest rate, and of these the
one with the largest decay.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from zoo.errors import DivergedError
from zoo.options import FinetuneOptions
from zoo.progress import Bar
from zoo.training import head
from zoo.training.adamw import AdamW
from zoo.training.convex import log_odds
from zoo.training.loop import rate
from zoo.training.problem import FEW, Problem

if TYPE_CHECKING:
    import torch

    from zoo.graph.head import Floats
    from zoo.training.objective import Targets
    from zoo.training.problem import Split

    Items = tuple[Floats, Targets]

#: Epochs of the search; independent of --epochs, so that N epochs and N resumed ones equal 2N epochs.
EPOCHS = 12
#: The most items that a candidate is trained on: enough to rank the candidates.
ITEMS = 4096
#: Losses that differ by less than this fraction of a constant guess's loss count as equally good.
CLOSE = 0.02
#: Pairs of rate and decay, the most promising first; WORK limits how many are tried.
GRID = (
    *((1e-3, 0.1), (3e-3, 3.0), (3e-3, 0.1), (1e-2, 3.0), (1e-3, 3.0), (3e-3, 30.0), (1e-2, 0.1), (1e-2, 1.0)),
    *((3e-3, 1.0), (1e-3, 30.0), (1e-3, 1.0), (3e-4, 0.1), (3e-3, 10.0), (1e-2, 0.01), (1e-3, 10.0), (3e-2, 0.1)),
)
#: The least number of candidates and of items; WORK does not lower them.
FEWEST, FEWEST_ITEMS = 3, 1024
#: Steps in an epoch of a head's training, and the smallest and the largest batch.
STEPS, BATCH, LARGEST_BATCH = 16, 64, 1024
#: Floating-point operations that the search may take: a few seconds on one core.
WORK = 2e11
DEFAULT_DECAY = 0.1


class Choice(Struct, frozen=True):
    """The hyperparameters of a head, found or given; a solved head has no learning rate.

    `weight_decay` of a solved head is the strength of the L2 penalty for each item.
    """

    scaling: str
    lr: float | None
    weight_decay: float


def search(problem: Problem, bar: Bar) -> Choice:
    """The most regularised of the choices whose loss on the inner items is nearly the lowest (within CLOSE).

    This follows the one-standard-error rule of Breiman et al. (Classification and Regression Trees, 1984): a slightly
    lower loss does not justify a less regularised model. Training and inner items may have one source, such as crops of
    one photograph, which makes the less regularised model look better than it is.

    Raises DivergedError when no loss is finite.
    """
    import numpy as np

    options = problem.options
    # Operations for one item and candidate: a multiplication and an addition per weight, once forward, twice backward.
    work = 6 * EPOCHS * problem.head_weights * len(head.SCALINGS)
    count = min(ITEMS, max(FEWEST_ITEMS, int(WORK / (FEWEST * work))))
    splits = searched(problem)
    grid = _grid(options, max(FEWEST, int(WORK / (work * min(count, len(splits) * len(problem.targets))))))
    found = []
    for fit, inner in splits:
        features, targets = problem.rows(fit)
        chosen = np.random.default_rng(options.seed).permutation(len(features))[:count]
        parts = (features[chosen], targets[chosen]), (problem.features[inner][:ITEMS], problem.targets[inner][:ITEMS])
        found.append([_losses(problem, *parts, scaling, grid, bar) for scaling in head.SCALINGS])
    losses = np.mean(found, 0).tolist()
    best = min(map(min, losses))
    if not math.isfinite(best):
        lower = "--lr auto" if options.lr else "the features are not finite: choose another model"
        raise DivergedError("the loss is not finite in epoch 1", epoch=1, hint=lower)
    within = best + CLOSE * problem.chance
    close = [
        Choice(scaling, lr, decay)
        for index, (lr, decay) in enumerate(grid)
        for scaling, row in zip(head.SCALINGS, losses, strict=True)
        if row[index] <= within
    ]
    return min(close, key=lambda choice: (choice.lr, -choice.weight_decay))


def searched(problem: Problem) -> "Sequence[Split]":
    """The splits that the search uses: so many that about FEW items are trained on."""
    return problem.splits[: math.ceil(FEW / len(problem.targets))]


def batch_of(options: FinetuneOptions, items: int) -> int:
    """The number of items in a step of a head's training: an epoch has about STEPS steps, within bounds."""
    return options.batch or min(max(BATCH, 1 << (items // STEPS - 1).bit_length()), LARGEST_BATCH)


def _grid(options: FinetuneOptions, affordable: int) -> Sequence[tuple[float, float]]:
    """The first `affordable` candidates (rate, decay) that agree with the options."""
    given = [
        (options.lr or lr, decay if options.weight_decay is None else options.weight_decay)
        for lr, decay in GRID
        # If only the decay is fixed, every rate is tried once.
        if options.weight_decay is None or options.lr is not None or decay == DEFAULT_DECAY
    ]
    return list(dict.fromkeys(given))[:affordable]


def _losses(
    problem: Problem, items: "Items", inner: "Items", scaling: str, grid: Sequence[tuple[float, float]], bar: Bar
) -> list[float]:
    """The lowest loss on `inner` of each candidate trained on `items`; infinity for a diverged candidate."""
    import torch

    options, objective = problem.options, problem.objective
    scaled = head.affine(items[0], scaling)
    mean, scale = (torch.from_numpy(side) for side in scaled)
    x, inner_x = ((torch.from_numpy(features) - mean) / scale for features, _ in (items, inner))
    y, inner_y = (objective.tensor(targets) for _, targets in (items, inner))
    first = head.build(scaled, options.hidden, log_odds(objective, items[1]), options.seed)
    stacked = [p.detach().expand(len(grid), *p.shape).clone().requires_grad_() for p in first.parameters()]
    rates, decays = (
        [torch.tensor(column).view(-1, *[1] * (parameter.dim() - 1)) for parameter in stacked]
        for column in zip(*grid, strict=True)
    )
    # As in zoo.training.loop, biases do not decay.
    decays = [decay if parameter.dim() > 2 else 0 * decay for parameter, decay in zip(stacked, decays, strict=True)]
    optimizer = AdamW(stacked, rates, decays)
    generator = torch.Generator().manual_seed(options.seed)
    best = [math.inf] * len(grid)
    for epoch in range(EPOCHS):
        batches = torch.randperm(len(x), generator=generator).split(batch_of(options, len(x)))  # type: ignore[no-untyped-call]
        for index, rows in enumerate(batches):
            logits = _stacked_logits(stacked, x[rows])
            wanted = y[rows].repeat(len(grid), *[1] * (y.dim() - 1))
            # The mean over all candidates, times their number: a candidate's gradient is that of a separate head.
            loss = objective.loss(logits.flatten(0, 1), wanted, smooth=True) * len(grid)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step(rate(epoch + index / len(batches), len(batches), EPOCHS))
        with torch.inference_mode():
            found = [objective.loss(each, inner_y).item() for each in _stacked_logits(stacked, inner_x)]
        best = [min(old, new) if math.isfinite(new) else math.inf for old, new in zip(best, found, strict=True)]
        bar.advance()
    return best


def _stacked_logits(stacked: "Sequence[torch.Tensor]", x: "torch.Tensor") -> "torch.Tensor":
    """Logits [candidates, items, outputs] of scaled features [items, dim]."""
    import torch

    value = x.expand(len(stacked[0]), *x.shape)
    for index, (weight, bias) in enumerate(zip(stacked[::2], stacked[1::2], strict=True)):
        if index:
            value = torch.relu(value)
            value = torch.baddbmm(bias.unsqueeze(1), value, weight.transpose(1, 2))
        else:
            # The candidates share their input, so one matrix product computes all of them.
            flat = x @ weight.flatten(0, 1).T
            value = flat.view(len(x), *weight.shape[:2]).transpose(0, 1) + bias.unsqueeze(1)
    return value
