"""The notes about the data at the start of a run."""

import pytest

from zoo.data.dataset import Dataset
from zoo.data.items import Example, Skipped
from zoo.data.quality import survey
from zoo.schema import Task


def dataset(*rows: tuple[str, str], task: Task = Task.SINGLE_LABEL) -> Dataset:
    """A data set of these pairs of item and label."""
    return Dataset(
        "rows", tuple(Example(f"t.csv:{n}", item, label, item) for n, (item, label) in enumerate(rows, 2)), task
    )


def some(label: str, count: int) -> list[tuple[str, str]]:
    """Different items of one label."""
    return [(f"{label} {number}", label) for number in range(count)]


def test_clean_data_has_no_notes() -> None:
    assert survey(dataset(*some("a", 5), *some("b", 50))) == ()
    assert survey(dataset(*some("a|b", 5), *some("b", 500), task=Task.MULTI_LABEL)) == ()
    assert survey(dataset(("x", "1"), ("y", "2"), task=Task.REGRESSION)) == ()


@pytest.mark.parametrize("typo", ["billing", "BILLING", "Bil ling", "bil-ling", "Bil_ling", "\uff22illing"])
def test_labels_that_look_mistyped(typo: str) -> None:
    notes = survey(dataset(*some("Billing", 40), *some(typo, 6), *some("Access", 10)))
    [note] = notes
    assert note.startswith("labels that differ only in case, spaces, hyphens or underscores: ")
    assert "'Billing' (40)" in note
    assert f"{typo!r} (6)" in note


def test_labels_of_few_items() -> None:
    rows = [row for number in range(7) for row in some(f"rare{number}", 4)]
    [note] = survey(dataset(*some("a", 10), *some("b", 5), *rows, ("only", "c")))
    assert note == (
        "labels of fewer than 5 items: 'c' (1), 'rare0' (4), 'rare1' (4), 'rare2' (4), 'rare3' (4) and 3 more"
    )


def test_copies_and_contradictions() -> None:
    rows = [*some("a", 6), *some("b", 6), ("a 0", "a"), ("a 1", "a"), ("b 0", "a")]
    notes = survey(dataset(*rows))
    assert notes == (
        "3 duplicates among 15 items; a split keeps duplicates together",
        "1 item with different labels: t.csv:8 and its copies are 'b' and 'a'",
    )
    several = [("x", "a | b"), ("x", "b|a"), *some("a", 9), *some("b", 9)]
    assert survey(dataset(*several, task=Task.MULTI_LABEL)) == (
        "1 duplicate among 20 items; a split keeps duplicates together",
    )
    numbers = survey(dataset(("x", "1"), ("x", "2"), ("y", "3"), task=Task.REGRESSION))
    assert numbers[1] == "1 item with different numbers: t.csv:2 and its copies are '1' and '2'"


def test_imbalance() -> None:
    assert survey(dataset(*some("a", 5), *some("b", 50))) == ()
    assert survey(dataset(*some("a", 5), *some("b", 51))) == (
        "'b' has 51 items and 'a' 5: --class-weights makes every class count alike",
    )


def test_labels_that_are_several() -> None:
    [note] = survey(dataset(*some("a|b", 5), *some("b", 5)))
    assert note == "each label with '|' counts as one: 'a|b'; --task multi-label splits them"


def test_what_was_skipped_comes_first_and_every_note_is_one_line() -> None:
    data = dataset(*some("a\nb", 2), *some("b", 50))
    data = Dataset(data.source, data.examples, data.task, (Skipped("x.txt", "not an image"),))
    notes = survey(data)
    assert notes[0] == "skipped: x.txt (not an image)"
    assert len(notes) == 3
    assert not any("\n" in note for note in notes)
