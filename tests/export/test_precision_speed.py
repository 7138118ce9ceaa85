"""The speed of a model in fp32 and in int8: the int8 model is the one that an export writes, and nothing is kept."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.kit.items import TEXTS, write_images
from tests.kit.word_tables import WORDS, row, vectors, write_list, write_registry, write_table
from zoo import Variant, Zoo
from zoo.export import precision_speed
from zoo.export.precision_speed import time_precisions
from zoo.runtime.session import Session


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[bytes]:
    """The int8 models that are timed; calls are short, and temporary folders lie in `tmp_path`/temporary."""
    found: list[bytes] = []
    make = precision_speed._quantised

    def recorded(*arguments: object) -> object:
        bundle = make(*arguments)  # type: ignore[arg-type]
        if bundle is not None:
            found.append(bundle.read_model())
        return bundle

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(precision_speed, "_quantised", recorded)
    monkeypatch.setattr(precision_speed, "CALL", 0.002)
    monkeypatch.setattr(precision_speed, "SECONDS", 0.0)
    return found


def test_texts(kept_shelf: Path, converted: list[bytes], tmp_path: Path) -> None:
    zoo = Zoo()
    ms, int8_ms = time_precisions(Session(zoo.graph("tiny-bert"), "cpu"), TEXTS)
    assert 0 < ms < 1000
    assert int8_ms is not None
    assert 0 < int8_ms < 1000
    exported = zoo.export("tiny-bert", tmp_path / "int8", Variant(precision="int8"))
    assert converted == [exported.read_model()]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_images(kept_shelf: Path, converted: list[bytes], tmp_path: Path) -> None:
    images = sorted(write_images(tmp_path / "images", 3).rglob("*.png"))
    ms, int8_ms = time_precisions(Session(Zoo().graph("tiny-lite"), "cpu"), images)
    assert int8_ms is not None
    assert min(ms, int8_ms) > 0
    [model] = converted
    kinds = [node.op_type for node in onnx.load_from_string(model).graph.node]
    assert kinds.count("QuantizeLinear") > 50


def test_word_tables(converted: list[bytes], tmp_path: Path) -> None:
    table, listed = write_table(tmp_path / "t.npy", vectors(len(WORDS), 24, 5)), write_list(tmp_path / "w.json", WORDS)
    zoo = Zoo(registry=write_registry(tmp_path / "words.json", {"words": row(table, listed, 24)}))
    ms, int8_ms = time_precisions(Session(zoo.graph("words"), "cpu"), WORDS[:20])
    assert int8_ms is not None
    assert min(ms, int8_ms) > 0
    [model] = converted
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load_from_string(model).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds.values()


def test_a_model_without_an_int8_form_has_no_int8_time(
    kept_shelf: Path, converted: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.export.precision_texts.SMALLEST_MATRIX", 1 << 40)
    ms, int8_ms = time_precisions(Session(Zoo().graph("tiny-bert"), "cpu"), TEXTS)
    assert ms > 0
    assert int8_ms is None
    assert converted == []


def test_the_figure_is_the_time_of_one_item(
    kept_shelf: Path, converted: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that advances by 3 ms for each item read gives 3 ms for one item."""
    session, now, sizes = Session(Zoo().graph("tiny-bert"), "cpu"), [0.0], []
    stream = Session.stream

    def slow(self: Session, items: list[str], *arguments: object) -> object:
        now[0] += 0.003 * len(items)
        sizes.append(len(items))
        return stream(self, items, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "stream", slow)
    monkeypatch.setattr(precision_speed.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(precision_speed, "CALL", 0.06)
    ms, int8_ms = time_precisions(session, TEXTS)
    assert (ms, int8_ms) == (pytest.approx(3.0), pytest.approx(3.0))
    # After the two calls that choose the size, every call has the items of 60 ms.
    assert sizes[2:] == [20] * (len(sizes) - 2)
    assert np.isfinite(ms)
