"""Training the last stages: they learn, batch norm keeps its statistics, and a training without gain is discarded."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from zoo import FinetuneOptions
from zoo.system.interrupt import Interrupt
from zoo.torchkit import as_stage, run_stages
from zoo.training.fit_head import TrainedHead, fit
from zoo.training.loop import TrainingRun
from zoo.training.problem import Problem
from zoo.training.unfreeze import fit_tail

ITEMS, CLASSES = 96, 3


class Patches:
    """Activations in memory, float32 [items, 4, 6, 6]: classes differ in a pattern, not in the mean."""

    is_text = False
    views = (None,)
    examples = (None,) * ITEMS

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.targets = np.arange(ITEMS) % CLASSES
        patterns = random.normal(0, 1, (CLASSES, 4, 6, 6))
        patterns -= patterns.mean((2, 3), keepdims=True)
        noise = random.normal(0, 1, (ITEMS, 4, 6, 6))
        self.arrays = (patterns[self.targets] + noise).astype(np.float32)

    def batch(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        return {"activations": self.arrays[list(rows)]}


def tail() -> nn.ModuleList:
    """Two stages: a convolution with batch norm, and one that pools."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        last = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        stages = [
            as_stage(first, ["activations"], output="activations"),
            as_stage(last, ["activations"], output="features"),
        ]
    return nn.ModuleList(stages).eval()


def trained(device: str, **options: object) -> tuple[TrainedHead, nn.ModuleList]:
    patches = Patches()
    with torch.inference_mode():
        features = run_stages(tail(), {"activations": torch.from_numpy(patches.arrays)})["features"].numpy()
    problem = Problem(features, patches.targets, CLASSES, FinetuneOptions(epochs=30, patience=30, **options))  # type: ignore[arg-type]
    head = fit(problem, TrainingRun(stop=Interrupt()))
    return fit_tail(problem, head, patches, tail, TrainingRun(stop=Interrupt()), device=device)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_the_last_stages_learn(device: str) -> None:
    head, stages = trained(device, lr=0.01)
    assert head.best_epoch > 0
    assert head.curve[0].epoch == 0
    best = min(head.curve, key=lambda line: line.val_loss)
    assert best.val_loss < 0.9 * head.curve[0].val_loss
    before, after = tail().state_dict(), stages.state_dict()
    assert all(tensor.device.type == "cpu" for tensor in after.values())
    statistics = [name for name in before if "running" in name or "tracked" in name]
    assert len(statistics) == 3
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert not any(torch.equal(before[name], after[name]) for name in before if name not in statistics)
    assert not any(part.training for part in stages.modules())


def test_a_rate_that_only_spoils_leaves_the_stages_as_they_were() -> None:
    head, stages = trained("cpu", lr=30.0, unfreeze=2)
    assert head.best_epoch == 0
    assert all(
        torch.equal(a, b) for a, b in zip(tail().state_dict().values(), stages.state_dict().values(), strict=True)
    )


def test_an_earlier_stage_moves_less() -> None:
    """Its rate is half of the next stage's; apart from batch norm both are convolutions."""
    _, stages = trained("cpu", lr=0.01)
    before, after = tail().state_dict(), stages.state_dict()

    def moved(stage: int) -> float:
        name = next(name for name in before if name.startswith(f"{stage}.") and name.endswith("0.weight"))
        return (after[name] - before[name]).abs().mean().item()

    assert moved(0) < moved(1)
