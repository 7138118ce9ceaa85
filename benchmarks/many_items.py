"""Seconds and memory of the linear head of many items: 100,000 items of 1,280 features in 100 classes.

    python benchmarks/many_items.py --record

The features are drawn like those of an image model: rotated, of a decaying spectrum, cut off below zero. A tenth of the
labels is wrong. The head is fitted twice, each time in a new process; the two must be equal to the bit.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time

import numpy as np
import record

ITEMS, DIM, CLASSES, HELD_OUT, WRONG, CHUNK = 100_000, 1280, 100, 5000, 0.1, 5000


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Returns the features float32 [items, dim] and the true classes of training and held-out items."""
    random = np.random.default_rng(0)
    spectrum = (np.arange(1, DIM + 1) ** -0.5).astype(np.float32)
    centres = random.normal(0, 0.35, (CLASSES, DIM)).astype(np.float32) * spectrum
    rotation = np.linalg.qr(random.normal(size=(DIM, DIM)))[0].astype(np.float32)
    classes = random.integers(0, CLASSES, ITEMS + HELD_OUT)
    features = np.empty((len(classes), DIM), np.float32)
    for start in range(0, len(classes), CHUNK):
        part = slice(start, start + CHUNK)
        noise = random.normal(0, 1, (len(classes[part]), DIM)).astype(np.float32)
        features[part] = np.maximum((centres[classes[part]] + noise * spectrum) @ rotation, -0.02)
    return features, classes


def child() -> None:
    """Fit the head once and print the facts as JSON."""
    import torch  # noqa: F401 - the seconds are those of the fit

    from zoo import FinetuneOptions
    from zoo.graph import head
    from zoo.system.interrupt import Interrupt
    from zoo.training.fit_head import fit
    from zoo.training.loop import TrainingRun
    from zoo.training.problem import Problem

    features, classes = drawn()
    targets = classes[:ITEMS].copy()
    random = np.random.default_rng(1)
    wrong = random.random(ITEMS) < WRONG
    targets[wrong] = random.integers(0, CLASSES, int(wrong.sum()))
    began = time.perf_counter()
    found = fit(Problem(features[:ITEMS], targets, CLASSES, FinetuneOptions()), TrainingRun(stop=Interrupt()))
    seconds = time.perf_counter() - began
    answers = head.apply(found.layers, features[ITEMS:]).argmax(1)
    facts = {
        "seconds": seconds,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "accuracy": float((answers == classes[ITEMS:]).mean()),
        "weights": hashlib.sha256(found.layers[0][0].tobytes()).hexdigest()[:16],
    }
    print(json.dumps(facts))


def main() -> None:
    """Fit twice and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    record.add_folder_options(parser)
    arguments = parser.parse_args()
    if arguments.child:
        child()
        return
    rows = []
    for _ in range(2):
        done = subprocess.run([sys.executable, __file__, "--child"], check=True, capture_output=True, text=True)
        facts = json.loads(done.stdout)
        rows.append(
            [f"{facts['seconds']:.0f}", f"{facts['gigabytes']:.2f}", f"{facts['accuracy']:.3f}", facts["weights"]]
        )
    header = ["seconds", "peak GB", "accuracy on held-out items", "sha256 of the weights"]
    text = (
        f"{record.facts(record.machine())}\n\n{ITEMS:,} items, {DIM:,} features, {CLASSES} classes, {WRONG:.0%} of the "
        f"labels wrong; GB include the features and Python.\n\n{record.table(header, rows)}"
    )
    print(text)
    if arguments.record:
        record.write_section("A linear head of many items", text)


if __name__ == "__main__":
    main()
