"""The peer of `zoo finetune`: transfer learning in torch as in tutorials, in its own process.

    python benchmarks/torch_loop.py MODEL DATA --features features.npz --of 100

The backbone is frozen, in eval mode and under no_grad, and runs over every image in every epoch, training and held-out
ones; Adam trains a linear head. One epoch is timed, or `--batches` of each of its halves and scaled to all.

The backbone is frozen and the images are not augmented, so the features are the same in every epoch. The accuracy after
`--of` epochs is therefore that of the same head trained on the features saved by `onnx_pass.py`, which equal torch's
within 1e-4 by the parity check. That training is not timed.

Prints one line of JSON: seconds until the first epoch (`start`), of an epoch's halves (`train`, `val`), how many
`batches` of each were timed, and the `accuracy`.
"""

import argparse
import json
import time
from pathlib import Path

STARTED = time.perf_counter()

import numpy as np  # noqa: E402
import torch  # noqa: E402 - importing it is a part of what is timed
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402

from zoo import Zoo  # noqa: E402

BATCH, WORKERS, LR = 32, 2, 1e-3


def backbone(model: str) -> tuple[nn.Module, transforms.Compose, int]:
    """Returns the network in torch, torchvision's preprocessing and the width of the features."""
    zoo = Zoo()
    entry = zoo.entry(model)
    steps = entry.preprocess
    transform = transforms.Compose(
        [
            transforms.Resize(steps.resize, transforms.InterpolationMode(steps.interpolation)),
            transforms.CenterCrop(steps.crop),
            transforms.ToTensor(),
            transforms.Normalize(steps.mean, steps.std),
        ]
    )
    network = zoo.plugins.backbone(entry.family)(entry, zoo.pull(model)).build().eval()
    return network.requires_grad_(False), transform, entry.dim


def epoch(
    network: nn.Module, head: nn.Module, optimizer: torch.optim.Optimizer | None, loader: DataLoader, batches: int
) -> tuple[float, int]:
    """Returns the seconds of an epoch and the number of its timed batches; with an optimizer the head is trained."""
    began, wanted = time.perf_counter(), min(batches or len(loader), len(loader))
    for index, (images, labels) in enumerate(loader, 1):
        with torch.no_grad():
            features = network(images)
        step(head, optimizer, features, labels)
        if index == 1:
            # Workers start before the first batch of an epoch: only the time after it is scaled.
            first = time.perf_counter()
        if index == wanted:
            break
    now = time.perf_counter()
    rest = (now - first) * (len(loader) - 1) / max(1, wanted - 1)
    return first - began + rest, wanted


def step(head: nn.Module, optimizer: torch.optim.Optimizer | None, features: torch.Tensor, labels: torch.Tensor) -> int:
    """The number of right answers; with an optimizer the head is trained on them."""
    with torch.set_grad_enabled(optimizer is not None):
        logits = head(features)
    if optimizer:
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return int((logits.argmax(1) == labels).sum())


def trained(model_dim: int, data: str, features: str, epochs: int) -> float:
    """Held-out accuracy of the loop's head after all epochs, on features kept by file name."""
    kept = np.load(features)
    by_name = dict(zip(kept["names"].tolist(), torch.from_numpy(kept["features"]), strict=True))
    sides = []
    for part in ("train", "val"):
        samples = ImageFolder(f"{data}/{part}").samples
        x = torch.stack([by_name[Path(path).relative_to(data).as_posix()] for path, _ in samples])
        sides.append((x, torch.tensor([label for _, label in samples])))
    (x, y), (held_x, held_y) = sides
    torch.manual_seed(0)
    head = nn.Linear(model_dim, int(y.max()) + 1)
    optimizer = torch.optim.Adam(head.parameters(), LR)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            step(head, optimizer, x[rows], y[rows])
    return step(head, None, held_x, held_y) / len(held_y)


def main(arguments: argparse.Namespace) -> None:
    """Train, and print the line."""
    torch.manual_seed(0)
    network, transform, dim = backbone(arguments.model)
    train, val = (ImageFolder(f"{arguments.data}/{part}", transform) for part in ("train", "val"))
    head = nn.Linear(dim, len(train.classes))
    optimizer = torch.optim.Adam(head.parameters(), LR)
    batches = DataLoader(train, BATCH, shuffle=True, num_workers=WORKERS)
    held = DataLoader(val, BATCH, num_workers=WORKERS)
    start = time.perf_counter() - STARTED
    train_seconds, ran = epoch(network, head, optimizer, batches, arguments.batches)
    val_seconds, ran_held = epoch(network, head, None, held, arguments.batches)
    accuracy = trained(dim, arguments.data, arguments.features, arguments.of)
    found = {"start": start, "train": train_seconds, "val": val_seconds, "batches": [ran, ran_held]}
    print(json.dumps({**found, "accuracy": accuracy}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--features", required=True)
    parser.add_argument("--batches", type=int, default=0)
    parser.add_argument("--of", type=int, default=100)
    main(parser.parse_args())
