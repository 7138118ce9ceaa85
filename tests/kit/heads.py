"""Features around class centres, and a head trained on them."""

import numpy as np

from zoo import FinetuneOptions
from zoo.system.interrupt import Interrupt
from zoo.training.fit_head import TrainedHead, fit
from zoo.training.loop import TrainingRun
from zoo.training.problem import Problem


def blobs(count: int = 200, dim: int = 24, classes: int = 4, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features around one centre a class, and the classes."""
    random = np.random.default_rng(0)
    centres = random.normal(0, 2, (classes, dim))
    targets = np.arange(count) % classes
    return (centres[targets] + random.normal(0, noise, (count, dim))).astype(np.float32), targets


def train(features: np.ndarray, targets: np.ndarray, outputs: int, options: FinetuneOptions) -> TrainedHead:
    return fit(Problem(features, targets, outputs, options), TrainingRun(stop=Interrupt()))
