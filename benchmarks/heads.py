"""The heads of `zoo finetune` compared with scikit-learn on the same features and the same splits.

    python benchmarks/heads.py --record
    python benchmarks/heads.py --seeds 2 --only tags

The peers are those of ten lines: LogisticRegressionCV, one for each label (OneVsRestClassifier) and RidgeCV, with
their own defaults and enough iterations. Head and peer take turns, seed by seed, in one process with one thread. The
table has the mean over the seeds; a difference is marked when its 95 % interval over the seeds (paired, Student's t)
leaves out 0.
"""

import argparse
import time
import warnings
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import record
import torch
from heads_data import Case, cases
from inference_systems import say

from zoo import FinetuneOptions, Task, Zoo
from zoo.evaluation.metrics import measure
from zoo.graph import head as head_graph
from zoo.schema import Metrics
from zoo.system.interrupt import Interrupt
from zoo.training.fit_head import fit
from zoo.training.loop import TrainingRun
from zoo.training.problem import Problem

#: Quantiles of Student's t for a 95 % interval, by the number of seeds.
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
#: Metrics, and whether more is better.
MORE = {"score": True, "nll": False, "ece": False, "cpu": False}


def task_of(case: Case) -> Task:
    """Numbers have one column, labels several."""
    if case.targets.ndim == 1:
        return Task.SINGLE_LABEL
    return Task.REGRESSION if case.targets.shape[1] == 1 else Task.MULTI_LABEL


def split(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rows to train on, the rows to measure, and the targets to train with."""
    chance = np.random.default_rng(seed)
    order = chance.permutation(len(case.features))
    if case.each:
        classes = np.unique(case.targets)
        count = case.train // len(classes)
        train = np.concatenate([order[case.targets[order] == kind][:count] for kind in classes])
    elif case.targets.ndim == 1:
        # Stratified: each class gives its share.
        ordered = order[np.argsort(case.targets[order], kind="stable")]
        train = ordered[np.unique(np.linspace(0, len(ordered) - 1, case.train).round().astype(int))]
    else:
        train = order[: case.train]
    rest = np.setdiff1d(order, train)
    targets = case.targets[train].copy()
    if case.noise:
        wrong = chance.random(len(train)) < case.noise
        classes = int(case.targets.max()) + 1
        targets[wrong] = (targets[wrong] + chance.integers(1, classes, wrong.sum())) % classes
    return train, rest[:4000], targets


def ours(case: Case, train: np.ndarray, targets: np.ndarray, seed: int) -> Any:
    """A function from features to scores, and the thresholds and class weights."""
    task = task_of(case)
    outputs = case.targets.shape[1] if case.targets.ndim == 2 else int(case.targets.max()) + 1
    options = FinetuneOptions(task=task, seed=seed, class_weights=case.class_weights)
    found = fit(Problem(case.features[train], targets, outputs, options), TrainingRun(stop=Interrupt()))
    return lambda x: head_graph.apply(found.layers, x, found.activation), found.thresholds, found.class_weights


def theirs(case: Case, train: np.ndarray, targets: np.ndarray, seed: int) -> Any:
    """The same by scikit-learn."""
    from sklearn.linear_model import LogisticRegressionCV, RidgeCV
    from sklearn.multiclass import OneVsRestClassifier

    x, task = case.features[train], task_of(case)
    if task is Task.REGRESSION:
        ridge = RidgeCV().fit(x, targets[:, 0])
        return lambda other: ridge.predict(other)[:, None], (), ()
    few = int(np.bincount(targets).min()) if task is Task.SINGLE_LABEL else 5
    weight = "balanced" if case.class_weights else None
    one = LogisticRegressionCV(max_iter=2000, cv=min(5, max(2, few)), class_weight=weight)
    model = (OneVsRestClassifier(one) if task is Task.MULTI_LABEL else one).fit(x, targets)
    weights = len(targets) / (2 * np.bincount(targets)) if case.class_weights else ()
    return model.predict_proba, (), tuple(weights)


def facts(metrics: Metrics) -> dict[str, float]:
    """The metrics of the table: accuracy, mean average precision or R squared as the score."""
    score = metrics.r2 if metrics.r2 is not None else metrics.accuracy
    if metrics.micro_f1 is not None:
        score = mean(each["average_precision"] for each in metrics.per_class.values() if each["n"])
    found = {"score": float(score or 0)}
    if metrics.nll is not None:
        found |= {"nll": metrics.nll, "ece": float(metrics.calibration_error or 0), "f1": float(metrics.macro_f1 or 0)}
    return found


def compare(case: Case, seeds: int) -> dict[str, list[dict[str, float]]]:
    """The metrics of both systems for every seed."""
    task, results = task_of(case), {"zoo": [], "scikit-learn": []}  # type: ignore[var-annotated]
    labels = [
        str(index) for index in range(case.targets.shape[1] if case.targets.ndim == 2 else case.targets.max() + 1)
    ]
    for seed in range(seeds):
        train, rest, targets = split(case, seed)
        for name, system in (("zoo", ours), ("scikit-learn", theirs)):
            began = time.process_time()
            predict, thresholds, weights = system(case, train, targets, seed)
            cost = time.process_time() - began
            scores = np.asarray(predict(case.features[rest]), np.float32)
            truth = case.targets[rest]
            found = measure(task, scores, truth, labels, thresholds=thresholds, class_weights=weights)
            results[name].append({**facts(found), "cpu": cost})
    return results


def interval(differences: list[float]) -> tuple[float, float]:
    """The mean of paired differences and half of its 95 % interval."""
    half = STUDENT[len(differences)] * stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
    return mean(differences), half


def line(name: str, results: dict[str, list[dict[str, float]]]) -> list[str]:
    """A row of the table: for every metric ours, theirs, and who is better beyond the seeds' noise."""
    cells = [name]
    for metric in ("score", "nll", "ece", "f1", "cpu"):
        if metric not in results["zoo"][0]:
            cells.append("")
            continue
        mine, peer = ([each[metric] for each in results[system]] for system in ("zoo", "scikit-learn"))
        middle, half = interval([a - b for a, b in zip(mine, peer, strict=True)])
        sign = "" if abs(middle) <= half else "+" if (middle > 0) == MORE.get(metric, True) else "**worse**"
        cells.append(f"{mean(mine):.3f} / {mean(peer):.3f} {sign}".strip())
    return cells


def main() -> None:
    """Run every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    record.add_folder_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    house = Zoo(home=arguments.home or Path(arguments.work) / "home")
    rows = []
    for case in cases(house, Path(arguments.work) / "heads"):
        if arguments.only in case.name:
            rows.append(line(case.name, compare(case, arguments.seeds)))
            say(" | ".join(rows[-1]))
    header = ["data", "accuracy, mAP or R2", "NLL", "ECE", "macro-F1", "CPU s"]
    text = (
        f"{record.facts(record.machine())}\n\n"
        f"zoo / scikit-learn, means of {arguments.seeds} seeds with the same features and splits, one thread. "
        "`+`: zoo is better beyond the seeds' noise (95 %, paired).\n\n" + record.table(header, rows)
    )
    print(text)
    if arguments.record:
        record.write_section("Heads: zoo and scikit-learn", text)


if __name__ == "__main__":
    main()
