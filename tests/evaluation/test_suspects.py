"""Items whose labels were changed are found, for every task, the most doubtful first."""

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.kit.heads import blobs, train
from zoo import FinetuneOptions, Task, UsageError, write_suspects
from zoo.data.items import Example
from zoo.evaluation.suspects import find_suspects


def examples(labels: list[str]) -> list[Example]:
    return [
        Example(f"data.csv:{index + 2}", f"text {index}", label, f"digest {index}")
        for index, label in enumerate(labels)
    ]


def found(task: Task, targets: np.ndarray, labels: tuple[str, ...], names: list[str]) -> list[int]:
    features, _ = blobs(200, noise=1.0)
    trained = train(features, targets, max(len(labels), 1), FinetuneOptions(task=task))
    assert trained.left_out is not None
    suspects = find_suspects(task, trained.left_out, targets, labels, examples(names))
    assert all(names[each.place] == each.label for each in suspects)
    return [each.place for each in suspects]


WRONG = {5, 50, 120, 199}


def test_one_label() -> None:
    _, kinds = blobs(200, noise=1.0)
    for place in WRONG:
        kinds[place] = (kinds[place] + 1) % 4
    assert set(found(Task.SINGLE_LABEL, kinds, tuple("abcd"), ["abcd"[kind] for kind in kinds])[:4]) == WRONG


def test_several_labels() -> None:
    _, kinds = blobs(200, noise=1.0)
    wanted = np.stack([kinds == 0, kinds >= 2, kinds == 3], 1).astype(np.float32)
    for place in WRONG:
        wanted[place, 1] = 1 - wanted[place, 1]
    names = ["|".join(label for label, has in zip("xyz", row, strict=True) if has) for row in wanted]
    assert set(found(Task.MULTI_LABEL, wanted, tuple("xyz"), names)[:4]) == WRONG


def test_numbers() -> None:
    features, _ = blobs(200, noise=1.0)
    numbers = features[:, :1] * 3 + 1
    for place in WRONG:
        numbers[place] += 40
    assert set(found(Task.REGRESSION, numbers, (), [f"{value:.4g}" for value in numbers[:, 0]])[:4]) == WRONG


def test_items_that_were_never_left_out_are_not_judged() -> None:
    scores = np.array([[0.1, 0.9], [np.nan, np.nan], [0.2, 0.8]], np.float32)
    suspects = find_suspects(Task.SINGLE_LABEL, scores, np.array([0, 0, 1]), ("a", "b"), examples(["a", "a", "b"]))
    assert [(each.place, each.predicted, round(each.score, 4)) for each in suspects] == [(0, "b", 0.1)]
    nothing = np.full((2, 2), np.nan, np.float32)
    assert find_suspects(Task.SINGLE_LABEL, nothing, np.array([0, 1]), ("a", "b"), examples(["a", "b"])) == ()


def test_the_file(tmp_path: Path) -> None:
    scores = np.array([[0.1, 0.9], [0.4, 0.6]], np.float32)
    suspects = find_suspects(Task.SINGLE_LABEL, scores, np.array([0, 0]), ("a", "b"), examples(["a", "a"]))
    write_suspects(suspects, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["input"], row["label"], row["predicted"], row["score"]) for row in rows] == [
        ("data.csv:2", "a", "b", "0.1"), ("data.csv:3", "a", "b", "0.4"),
    ]  # fmt: skip
    with pytest.raises(UsageError) as caught:
        write_suspects(suspects, tmp_path / "out.txt")
    assert "--suspects" in (caught.value.hint or "")
