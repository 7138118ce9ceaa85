"""Many pictures on a CPU: lanes answer as one shared session does, in order, bounded, with the same errors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo import DataError, IntegrityError, Zoo
from zoo.runtime import pipeline
from zoo.runtime.pipeline import ALONE, BATCH, ImagePipeline
from zoo.runtime.session import Session


def pictures(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (34 + n % 9, 45 - n % 7, 3), dtype=np.uint8) for n in range(count)]


def images(session: Session) -> ImagePipeline:
    found = session._pipeline
    assert isinstance(found, ImagePipeline)
    return found


@pytest.fixture
def session(kept_shelf: Path) -> Session:
    return Session(Zoo().open("tiny-lite"), "cpu", threads=3)


class Told:
    """The places of what cannot be read."""

    def __init__(self) -> None:
        self.places: list[int] = []

    def __call__(self, place: int, error: DataError) -> None:
        self.places.append(place)


def test_the_same_numbers_to_the_bit_and_in_order(session: Session) -> None:
    items = pictures(ALONE + 30)
    alone = Session(session.bundle, "cpu", threads=1)
    expected = alone.features(items)
    assert images(alone)._lanes is None
    for count in (ALONE, ALONE + 30, ALONE + 30, 7, BATCH["cpu"], 1):
        places: list[int] = []
        found = []
        for batch, arrays in session.stream(iter(items[:count]), ["features"]):
            places += batch
            found.append(arrays["features"])
        assert places == list(range(count))
        np.testing.assert_array_equal(np.concatenate(found), expected[:count])
        # No session is opened for lanes that nothing would go through.
        assert (images(session)._lanes is None) == (count == ALONE)
    assert set(session.batches_run) <= set(range(1, BATCH["cpu"] + 1))


def test_what_cannot_be_read_has_its_place(session: Session) -> None:
    items: list[Any] = list(pictures(ALONE + 40))
    bad = [3, ALONE + 1, ALONE + 9, *range(ALONE + 20, ALONE + 30)]
    for place in bad:
        items[place] = b"no picture"
    for _ in range(2):
        told = Told()
        places = [place for batch, _ in session.stream(items, ["features"], told) for place in batch]
        assert told.places == bad
        assert places == [place for place in range(len(items)) if place not in bad]
        with pytest.raises(DataError) as caught:
            session.features([*items[ALONE : ALONE + 1] * (ALONE + 8), *items[ALONE + 9 :]])
        assert caught.value.index == ALONE + 8
    answers = session.run(items, keep_going=True).answers
    assert [place for place, answer in enumerate(answers) if answer.error is not None] == bad


def test_inputs_are_taken_as_they_are_needed(session: Session) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield pictures(1)[0]

    for _ in range(2):
        taken, used = 0, 0
        stream = session.stream(endless(), ["features"])
        for places, _ in stream:
            used += len(places)
            assert taken - used <= 2 * 3 * BATCH["cpu"] + BATCH["cpu"]
            if used > ALONE + 50:
                break
        stream.close()  # type: ignore[attr-defined]


def test_without_lanes_it_goes_on(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept graph that they would be made of may be gone by the time."""
    items: list[Any] = [*pictures(ALONE + 20), b"no picture", *pictures(3)]
    expected = Session(session.bundle, "cpu", threads=1).features([*items[:-4], *items[-3:]])

    def gone(*_: object, **more: object) -> None:
        raise IntegrityError("it is gone", hint="go on")

    monkeypatch.setattr(pipeline, "create_session", gone)
    for _ in range(2):
        told = Told()
        found = session.infer(items, ["features"], skip=told)["features"]
        assert told.places == [ALONE + 20]
        np.testing.assert_array_equal(np.delete(found, ALONE + 20, 0), expected)
    assert images(session)._lanes is None


def test_a_large_model_is_not_held_twice(kept_shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SMALL", 10)
    session = Session(Zoo().open("tiny-lite"), "cpu", threads=3)
    assert len(session.features(pictures(ALONE + 5))) == ALONE + 5
    assert images(session)._lanes is None
