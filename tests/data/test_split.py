"""Splits depend only on the items and the seed, keep identical items together, and balance every kind of target."""

import random
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.items import IMAGE, TEXT, write, write_images
from tests.kit.pulls import Notes
from zoo import DataError, FinetuneOptions
from zoo.data.dataset import Dataset
from zoo.data.items import Example
from zoo.data.split import divide, held_count, iterative_stratification, split
from zoo.schema import Task

labelled = st.lists(st.tuples(st.integers(0, 400), st.sampled_from("abc")), min_size=6, max_size=120)


def dataset(rows: list[tuple[int, str]]) -> Dataset:
    """A data set with some repeated items; every class has at least two different ones."""
    rows = [*rows, *((number, label) for label in "abc" for number in (1000 + ord(label), 2000 + ord(label)))]
    return Dataset(
        "rows",
        tuple(
            Example(str(n), str(n), label, f"{number * 3 + ord(label) % 3:064x}")
            for n, (number, label) in enumerate(rows)
        ),
    )


@given(labelled, st.floats(0.05, 0.95), st.integers(0, 3), st.randoms())
def test_split(rows: list[tuple[int, str]], fraction: float, seed: int, random: object) -> None:
    data = dataset(rows)
    train, held = split(data, fraction, seed)
    assert sorted((*train.examples, *held.examples), key=lambda e: int(e.name)) == list(data.examples)
    assert not {e.digest for e in train.examples} & {e.digest for e in held.examples}
    assert train.labels == held.labels == data.labels
    for label in data.labels:
        # An item with two labels counts for the first one.
        others = {e.digest for e in data.examples if e.label < label}
        of_class = [{e.digest for e in part.examples if e.label == label} - others for part in (train, held)]
        count = sum(map(len, of_class))
        assert len(of_class[1]) == min(max(round(fraction * count), 1), count - 1)
    shuffled = list(data.examples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = split(Dataset("rows", tuple(shuffled)), fraction, seed)[1]
    assert {e.name for e in again.examples} == {e.name for e in held.examples}


def test_the_seed_decides_the_split() -> None:
    data = dataset([(number, "abc"[number % 3]) for number in range(90)])
    assert len({tuple(e.name for e in split(data, 0.3, seed)[1].examples) for seed in range(5)}) == 5


def test_an_item_under_two_labels_stays_on_one_side() -> None:
    rows = tuple(Example(str(n), str(n), "ab"[n % 2], f"{n // 2:064x}") for n in range(40))
    apart = tuple(Example(f"b{n}", f"b{n}", "b", f"{n + 100:064x}") for n in range(10))
    train, held = split(Dataset("x", rows + apart), 0.4, 0)
    assert not {e.digest for e in train.examples} & {e.digest for e in held.examples}


def test_classes_that_cannot_be_split() -> None:
    with pytest.raises(DataError, match="only the class 'a'"):
        split(Dataset("x", (Example("1", "1", "a", "1"), Example("2", "2", "a", "2"))), 0.5, 0)
    twice = (
        Example("1", "1", "a", "1"),
        Example("2", "1", "a", "1"),
        Example("3", "3", "b", "3"),
        Example("4", "4", "b", "4"),
    )
    with pytest.raises(DataError, match="the class 'a' has 1 item of its own"):
        split(Dataset("x", twice), 0.5, 0)


def test_an_item_under_two_labels_is_on_one_side_only() -> None:
    rows = tuple(Example(str(n), str(n), label, f"{n:064x}") for label in "ab" for n in range(6))
    more = tuple(Example(str(n), str(n), "b", f"{n:064x}") for n in range(6, 10))
    for seed in range(10):
        train, held = split(Dataset("x", rows + more), 0.5, seed)
        assert not {e.digest for e in train.examples} & {e.digest for e in held.examples}
        assert train.labels == held.labels == ("a", "b")
    with pytest.raises(DataError, match="the class 'b' has 0 items of its own"):
        split(Dataset("x", rows), 0.5, 0)


def several(cells: list[str]) -> Dataset:
    """Different items with these cells of labels, one cell each."""
    examples = tuple(Example(str(n), str(n), cell, f"{n:064x}") for n, cell in enumerate(cells))
    return Dataset("several", examples, Task.MULTI_LABEL)


def counts(data: Dataset) -> Counter[str]:
    return Counter(label for example in data.examples for label in data.labels_of(example))


def shuffled(data: Dataset, seed: int) -> Dataset:
    examples = list(data.examples)
    random.Random(seed).shuffle(examples)
    return data.only(examples)


cells = st.lists(st.frozensets(st.sampled_from("abcde")).map(lambda labels: "|".join(sorted(labels))), min_size=4)


@given(cells, st.floats(0.05, 0.95), st.integers(0, 3))
def test_a_split_of_several_labels(rows: list[str], fraction: float, seed: int) -> None:
    # Every third item has a copy, and two more items make sure that there are labels.
    data = several([*rows, "", "a", "a"])
    copies = [msgspec.structs.replace(example, name=f"{example.name}+") for example in data.examples[::3]]
    data = data.only([*data.examples, *copies])
    train, held = split(data, fraction, seed)
    assert {e.name for e in (*train.examples, *held.examples)} == {e.name for e in data.examples}
    assert len(train.examples) + len(held.examples) == len(data.examples)
    assert not {e.digest for e in train.examples} & {e.digest for e in held.examples}
    assert train.examples
    assert held.examples
    # Every held-out label is in the training part.
    assert train.labels == data.labels
    again = split(shuffled(data, seed), fraction, seed)[1]
    assert {e.name for e in again.examples} == {e.name for e in held.examples}


@given(st.lists(st.sampled_from("abcd"), min_size=4), st.floats(0.05, 0.95))
def test_labels_that_never_meet_are_held_out_to_the_item(rows: list[str], fraction: float) -> None:
    items = {str(number): [label] for number, label in enumerate(rows)}
    held = iterative_stratification(items, fraction)
    for label, count in Counter(rows).items():
        assert sum(1 for key in held if items[key] == [label]) == (held_count(count, fraction) if count > 1 else 0)


@given(st.integers(0, 10_000), st.floats(0.1, 0.5))
def test_labels_that_meet_are_held_out_within_an_item_or_two(seed: int, fraction: float) -> None:
    """Labels of different frequency, drawn independently, like the paper's data."""
    draw = random.Random(seed)
    shares = {"a": 0.5, "b": 0.3, "c": 0.2, "d": 0.1, "e": 0.05}
    rows = ["|".join(label for label, share in shares.items() if draw.random() < share) for _ in range(300)]
    data = several(rows)
    held = counts(split(data, fraction, 0)[1])
    wanted = {label: fraction * count for label, count in counts(data).items()}
    # The rarest labels are divided first and exactly; the commonest label gets the deviation of the others.
    for label in "cde":
        assert abs(held[label] - wanted.get(label, 0)) <= 1.5
    for label in "ab":
        assert abs(held[label] - wanted[label]) <= 4


def test_a_rare_label_is_trained_on_and_not_lost() -> None:
    data = several([*["a", "b", "a|b", ""] * 10, "rare|a"])
    for seed in range(20):
        train, held = split(data, 0.5, seed)
        assert "rare" in train.labels
        assert "rare" not in held.labels
    with pytest.raises(DataError, match="every item of several is the only one of a label"):
        split(several(["a", "b"]), 0.1, 0)
    with pytest.raises(DataError, match="every item of several has the same labels"):
        split(several(["a|b", "b|a", "b | a"]), 0.5, 0)


def numbers(values: list[float]) -> Dataset:
    examples = tuple(Example(str(n), str(n), str(value), f"{n:064x}") for n, value in enumerate(values))
    return Dataset("numbers", examples, Task.REGRESSION, (), "price")


@given(
    st.lists(st.integers(-5, 5) | st.floats(-1e30, 1e30), min_size=2, max_size=150).filter(lambda v: len(set(v)) > 1),
    st.floats(0.05, 0.95),
    st.integers(0, 3),
)
def test_a_split_of_numbers(values: list[float], fraction: float, seed: int) -> None:
    data = numbers(values)
    train, held = split(data, fraction, seed)
    assert not {e.digest for e in train.examples} & {e.digest for e in held.examples}
    assert len(train.examples) + len(held.examples) == len(values)
    assert len(held.examples) == held_count(len(values), fraction)
    # Below every number lies the same fraction of both parts, within two items of a bin.
    ordered = sorted(data.number(example) for example in data.examples)
    for cut in set(ordered):
        below = sum(1 for value in ordered if value < cut)
        held_below = sum(1 for example in held.examples if data.number(example) < cut)
        bin_size = len(held.examples) / min(10, len(held.examples), len(train.examples))
        assert abs(held_below - len(held.examples) * below / len(values)) <= bin_size + 2
    again = split(shuffled(data, seed), fraction, seed)[1]
    assert {e.name for e in again.examples} == {e.name for e in held.examples}


def test_numbers_that_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"every 'price' of numbers is 2\.0"):
        split(numbers([2.0, 2.0]), 0.5, 0)
    twice = numbers([1.0, 2.0])
    twice = twice.only(msgspec.structs.replace(example, digest="0" * 64) for example in twice.examples)
    with pytest.raises(DataError, match="has 1 different item"):
        split(twice, 0.5, 0)


def test_a_folder_with_parts_is_divided_by_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for part, count in (("train", 6), ("valid", 2), ("test", 3)):
        write_images(root / part, count)
    # The helper writes the same images each time: make the parts different.
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        path.write_bytes(path.read_bytes() + bytes([number]))
    notes = Notes()
    train, held = divide(root, IMAGE, FinetuneOptions(), progress=notes)  # type: ignore[arg-type]
    assert notes.notes == [f"{root / 'test'} (9 items) is left for zoo evaluate"]
    assert [len(train.examples), len(held.examples)] == [18, 6]
    assert train.labels == held.labels == ("blue", "green", "red")
    assert held.examples[0].name == "valid/blue/00.png"
    # Another fraction is held out of the training part; a path in --val is the held-out data.
    train, held = divide(root, IMAGE, FinetuneOptions(val=0.5))
    assert [len(train.examples), len(held.examples)] == [9, 9]
    assert {e.name.partition("/")[0] for e in (*train.examples, *held.examples)} == {"train"}
    train, held = divide(root, IMAGE, FinetuneOptions(val=str(root / "test")))
    assert [len(train.examples), len(held.examples)] == [18, 9]
    (root / "valid").rename(tmp_path / "away")
    assert len(divide(root, IMAGE, FinetuneOptions())[1].examples) == 9
    copied = (root / "train/red/00.png").read_bytes()
    write(root / "test/red", "copy.png", copied)
    with pytest.raises(DataError, match=r"train and .*test share 1 item, .*: test/red/copy\.png"):
        divide(root, IMAGE, FinetuneOptions())


def test_a_label_that_only_the_held_out_data_has(tmp_path: Path) -> None:
    table = write(tmp_path, "t.csv", "text,label\none,a\ntwo,b\n")
    other = write(tmp_path, "v.csv", "text,label\nthree,a\nfour,c\n")
    with pytest.raises(DataError, match=r"v\.csv:3 has the label 'c', which the model does not know"):
        divide(table, TEXT, FinetuneOptions(val=str(other)))
