"""Many images on a CPU: one session for each core gives the results and errors of one shared session, in order."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo import DataError, IntegrityError, Zoo
from zoo.runtime import pipeline
from zoo.runtime.pipeline import ALONE, BATCH, ImagePipeline
from zoo.runtime.session import Session


def images(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (34 + n % 9, 45 - n % 7, 3), dtype=np.uint8) for n in range(count)]


def pipeline_of(session: Session) -> ImagePipeline:
    found = session._pipeline
    assert isinstance(found, ImagePipeline)
    return found


@pytest.fixture
def session(kept_shelf: Path) -> Session:
    return Session(Zoo().open("tiny-lite"), "cpu", threads=3)


class Reported:
    """The indices of the items that cannot be read."""

    def __init__(self) -> None:
        self.indices: list[int] = []

    def __call__(self, index: int, error: DataError) -> None:
        self.indices.append(index)


def test_the_same_numbers_to_the_bit_and_in_order(session: Session) -> None:
    items = images(ALONE + 30)
    alone = Session(session.bundle, "cpu", threads=1)
    expected = alone.features(items)
    assert pipeline_of(alone)._per_core is None
    for count in (ALONE, ALONE + 30, ALONE + 30, 7, BATCH["cpu"], 1):
        indices: list[int] = []
        found = []
        for batch, arrays in session.stream(iter(items[:count]), ["features"]):
            indices += batch
            found.append(arrays["features"])
        assert indices == list(range(count))
        np.testing.assert_array_equal(np.concatenate(found), expected[:count])
        # No session is created for cores that would have no image.
        assert (pipeline_of(session)._per_core is None) == (count == ALONE)
    assert set(session.batches_run) <= set(range(1, BATCH["cpu"] + 1))


def test_what_cannot_be_read_has_its_index(session: Session) -> None:
    items: list[Any] = list(images(ALONE + 40))
    bad = [3, ALONE + 1, ALONE + 9, *range(ALONE + 20, ALONE + 30)]
    for index in bad:
        items[index] = b"no image"
    for _ in range(2):
        reported = Reported()
        indices = [index for batch, _ in session.stream(items, ["features"], reported) for index in batch]
        assert reported.indices == bad
        assert indices == [index for index in range(len(items)) if index not in bad]
        with pytest.raises(DataError) as caught:
            session.features([*items[ALONE : ALONE + 1] * (ALONE + 8), *items[ALONE + 9 :]])
        assert caught.value.index == ALONE + 8
    answers = session.run(items, keep_going=True).answers
    assert [index for index, answer in enumerate(answers) if answer.error is not None] == bad


def test_inputs_are_taken_as_they_are_needed(session: Session) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield images(1)[0]

    for _ in range(2):
        taken, used = 0, 0
        stream = session.stream(endless(), ["features"])
        for indices, _ in stream:
            used += len(indices)
            assert taken - used <= 2 * 3 * BATCH["cpu"] + BATCH["cpu"]
            if used > ALONE + 50:
                break
        stream.close()  # type: ignore[attr-defined]


def test_without_sessions_per_core_it_goes_on(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept graph that these sessions would load may have been removed."""
    items: list[Any] = [*images(ALONE + 20), b"no image", *images(3)]
    expected = Session(session.bundle, "cpu", threads=1).features([*items[:-4], *items[-3:]])

    def gone(*_: object, **more: object) -> None:
        raise IntegrityError("it is gone", hint="go on")

    monkeypatch.setattr(pipeline, "create_session", gone)
    for _ in range(2):
        reported = Reported()
        found = session.infer(items, ["features"], skip=reported)["features"]
        assert reported.indices == [ALONE + 20]
        np.testing.assert_array_equal(np.delete(found, ALONE + 20, 0), expected)
    assert pipeline_of(session)._per_core is None


def test_a_large_model_is_not_held_twice(kept_shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_COPIED", 10)
    session = Session(Zoo().open("tiny-lite"), "cpu", threads=3)
    assert len(session.features(images(ALONE + 5))) == ALONE + 5
    assert pipeline_of(session)._per_core is None
