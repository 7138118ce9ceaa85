"""The child processes of the parity check and the stopwatch, and the errors when one of them ends too early."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from zoo_cli.output import print_check, print_error

from zoo import GateError, IntegrityError, Zoo, ZooError
from zoo.diagnostics.timing import Stopwatch, System
from zoo.export import parity
from zoo.export.isolated_session import IsolatedSession
from zoo.export.parity import BOUNDS, EXACT, TEXTS, Top
from zoo.export.reference import Case, Expected
from zoo.runtime.ort import create_session
from zoo.schema import CHANGED, ParityCheck

#: More than a pipe holds.
MUCH = {"x": np.ones((1, 1_000_000), np.float32)}


def model(*nodes: onnx.NodeProto, opset: int = 20, ir: int = 10, batch: int | str = "batch") -> onnx.ModelProto:
    """x [batch, width] -> features [batch, width], and scores if a node has that output."""
    made = {name for node in nodes for name in node.output}
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, f"{name} wide"])
        for name in ("features", "scores")
        if name in made
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, "wide"])
    body = helper.make_graph(list(nodes), "tiny", [given], outputs)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


@pytest.fixture
def same(tmp_path: Path) -> Path:
    """A file whose features equal its input."""
    onnx.save(model(helper.make_node("Identity", ["x"], ["features"])), tmp_path / "same.onnx")
    return tmp_path / "same.onnx"


def killed(session: IsolatedSession | Stopwatch) -> None:
    """Kill the child, as the system does when memory is short."""
    session.process.kill()


def is_gone(session: IsolatedSession | Stopwatch) -> bool:
    """Whether the child was waited for and its pipes are closed."""
    child = session.process
    assert child.stdin is not None
    assert child.stdout is not None
    return child.returncode is not None and child.stdin.closed and child.stdout.closed


def test_a_child_that_ends_before_the_file_is_opened(same: Path) -> None:
    session = IsolatedSession()
    assert session.is_alive
    killed(session)
    session.process.wait()
    assert not session.is_alive
    with pytest.raises(IntegrityError, match=r"ended \(exit code -9\)") as caught, session:
        session.open(same, 1)
    assert "memory" in str(caught.value.hint)
    assert is_gone(session)


@pytest.mark.parametrize("is_waited_for", [False, True])
def test_a_child_that_ends_between_two_questions(same: Path, is_waited_for: bool) -> None:
    session = IsolatedSession()
    session.open(same, 1)
    assert session.run(["features"], MUCH)[0].shape == (1, 1_000_000)
    killed(session)
    if is_waited_for:
        session.process.wait()
    with pytest.raises(IntegrityError, match=r"ended \(exit code -9\)"), session:
        session.run(["features"], MUCH)
    assert is_gone(session)


def test_the_parity_check_takes_another_child_for_one_that_ended_early(same: Path) -> None:
    feeds = [{"x": np.ones((batch, 4), np.float32)} for batch in (1, 2, 7)]
    expected = Expected("ones", [Case(each, {"features": each["x"]}) for each in feeds])
    with IsolatedSession() as fresh:
        killed(fresh)
        fresh.process.wait()
        assert parity.check(same, expected, fresh=fresh).passed
    # A running child is used as it is, and ends with the check.
    with IsolatedSession() as fresh:
        assert parity.check(same, expected, fresh=fresh).passed
        assert is_gone(fresh)


def test_the_end_of_the_child_is_no_difference_of_the_graph(same: Path) -> None:
    feeds = {"x": np.ones((7, 4), np.float32)}
    with IsolatedSession() as session:
        session.open(same, 1)
        killed(session)
        with pytest.raises(IntegrityError, match="the process that opened the file ended"):
            list(parity.compare(session, Case(feeds, {"features": feeds["x"]})))
        with pytest.raises(IntegrityError, match="the process that opened the file ended"):
            parity.rows_alone(session, feeds)


def test_too_little_memory_is_no_difference_of_the_graph(tmp_path: Path) -> None:
    side = helper.make_node(
        "Constant", [], ["side"], value=helper.make_tensor("", TensorProto.INT64, [2], [1, 1 << 45])
    )
    onnx.save(model(side, helper.make_node("Expand", ["x", "side"], ["features"])), tmp_path / "huge.onnx")
    feeds = {"x": np.ones((7, 1), np.float32)}
    with IsolatedSession() as session:
        session.open(tmp_path / "huge.onnx", 1)
        with pytest.raises(IntegrityError, match="ended") as caught:
            parity.rows_alone(session, feeds)
    assert "memory" in str(caught.value.hint)


@pytest.mark.parametrize("change", [{"ir": 99}, {"opset": 99}])
def test_a_file_that_is_newer_than_the_runtime(tmp_path: Path, change: dict[str, int]) -> None:
    onnx.save(model(helper.make_node("Identity", ["x"], ["features"]), **change), tmp_path / "new.onnx")
    with pytest.raises(IntegrityError, match="ONNX Runtime refuses the file") as caught, IsolatedSession() as session:
        session.open(tmp_path / "new.onnx", 1)
    assert str(caught.value.hint).startswith("install a newer onnxruntime (this is 1.")


def test_a_file_that_is_broken(same: Path) -> None:
    same.write_bytes(same.read_bytes()[:-9])
    with pytest.raises(IntegrityError, match="ONNX Runtime refuses the file") as caught, IsolatedSession() as session:
        session.open(same, 1)
    assert str(caught.value.hint).startswith("export it again, or install a newer onnxruntime (this is 1.")


def test_a_batch_that_is_refused_is_no_pass() -> None:
    alone = model(helper.make_node("Identity", ["x"], ["features"]), batch=1)
    session = create_session(alone.SerializeToString(), "cpu")
    feeds = {"x": np.ones((7, 4), np.float32)}
    assert session.run(None, {"x": feeds["x"][:1]})[0].shape == (1, 4)
    check = parity.rows_alone(session, feeds)
    assert (check.value, check.passed) == (float("inf"), False)


def top() -> Top:
    """A head whose scores are the softmax of ten times the features."""
    return Top([(10 * np.eye(3, dtype=np.float32), np.zeros(3, np.float32))], "softmax")


def swapped(kept: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function that changes the predicted class of all rows of features except the first `kept`."""
    return lambda rows: np.concatenate([rows[:kept], np.roll(rows[kept:], 1, axis=1)])


@pytest.mark.parametrize(("wrong", "passes"), [(0, True), (1, True), (2, False), (7, False)])
@pytest.mark.parametrize("bounds", [BOUNDS["int8"], TEXTS["int8"]])
def test_of_seven_answers_one_may_be_another(wrong: int, passes: bool, bounds: parity.Bounds) -> None:
    nodes = [
        helper.make_node("Mul", ["features", "ten"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"]),
    ]
    ten = helper.make_node("Constant", [], ["ten"], value=helper.make_tensor("", TensorProto.FLOAT, [], [10]))
    graph = model(helper.make_node("Identity", ["x"], ["features"]), ten, *nodes)
    session = create_session(graph.SerializeToString(), "cpu")
    found: dict[int, list[parity.ParityCheck]] = {}
    for batch in (1, 2, 7):
        # The rows differ a little, and each has a clear class.
        rows = np.eye(3, dtype=np.float32)[np.arange(batch) % 3] + np.arange(batch, dtype=np.float32)[:, None] / 100
        wanted = {"features": swapped(max(0, batch - wrong))(rows)}
        checks = parity.compare(session, Case({"x": rows}, wanted), top(), bounds, former=top())
        found[batch] = [check for check in checks if check.name.startswith("top-1")]
    # With one or two rows, of which one may change, there is no such check.
    assert found[1] == found[2] == []
    assert [(check.value, check.passed) for check in found[7]] == [(wrong, passes)]
    # A batch of seven rows that repeats two samples counts each sample once.
    rows = np.eye(3, dtype=np.float32)[np.arange(7) % 2]
    wanted = {"features": np.where(np.arange(7)[:, None] % 2, rows, np.roll(rows, 1, axis=1))}
    last = list(parity.compare(session, Case({"x": rows}, wanted), top(), bounds, former=top()))[-1]
    assert (last.name, last.value) == ("top-1 (rows that differ)", 1)


def test_the_top_1_of_exact_files_is_made_of_every_batch(same: Path) -> None:
    session = create_session(same.read_bytes(), "cpu")
    for batch in (1, 2, 7):
        rows = np.eye(3, dtype=np.float32)[np.arange(batch) % 3]
        names = [check.name for check in parity.compare(session, Case({"x": rows}, {"features": rows}), top(), EXACT)]
        assert "top-1 (rows that differ)" in names


@pytest.mark.parametrize(
    ("bounds", "hint"),
    [
        (EXACT, "report it to the family's author"),
        (BOUNDS["fp16"], "half precision"),
        (BOUNDS["int8"], "calibrate with data"),
        (TEXTS["int8"], "export fp16 or fp32"),
    ],
)
def test_the_hint_is_that_of_the_precision(same: Path, bounds: parity.Bounds, hint: str) -> None:
    feeds = {"x": np.ones((7, 4), np.float32)}
    expected = Expected("ones", [Case(feeds, {"features": -feeds["x"]})])
    with pytest.raises(GateError, match="parity: features") as caught:
        parity.check(same, expected, bounds=bounds)
    assert hint in str(caught.value.hint)


def test_a_stopwatch_whose_child_ends(shelf: Path, tmp_path: Path) -> None:
    bundle = Zoo().graph("tiny-bert")
    feeds = {name: np.ones((1, 4), np.int64) for name in ("input_ids", "attention_mask")}
    np.savez(tmp_path / "feeds.npz", **feeds)
    system = System(kind="graph", bundle=str(bundle.path), feeds=str(tmp_path / "feeds.npz"), threads=1)
    watch = Stopwatch(system)
    assert watch.time(1, 0.001)
    killed(watch)
    watch.process.wait()
    with pytest.raises(ZooError, match="timed process ended with exit code -9"), watch:
        watch.time(1, 0.001)
    assert is_gone(watch)


def test_a_process_that_ends_before_it_reads_its_task() -> None:
    with pytest.raises(ZooError, match="timed process ended"):
        Stopwatch({"much": "x" * 1_000_000}, ["false"])


@pytest.mark.parametrize("as_json", [False, True])
def test_a_failed_parity_check_reports_all_that_it_compared(
    same: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    feeds = {"x": np.ones((7, 4), np.float32)}
    expected = Expected("ones", [Case(feeds, {"features": 2 * feeds["x"]})])
    with pytest.raises(GateError) as caught:
        parity.check(same, expected)
    print_error(caught.value, as_json=as_json)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    # The expected features are twice as long, with the same direction.
    assert lines[0] == "  ✗ features (max difference), batch 7: 0.5 (at most 0.0001)"
    assert lines[1].startswith("  ✓ features (1 - cosine), batch 7: ")
    assert lines[2] == "  ✓ each row alone (max difference), batch 7: 0 (at most 0.0001)"
    assert lines[3].startswith("error: parity: features (max difference) at batch 7 differs by 0.5")
    assert lines[4].startswith("hint: ")
    assert len(lines) == 5
    if as_json:
        said = json.loads(out)["error"]
        assert (said["code"], len(said["report"]["checks"])) == ("gate", 3)
    else:
        assert out == ""


def test_a_bound_of_predictions_is_printed_as_the_number_that_may_change(capsys: pytest.CaptureFixture[str]) -> None:
    for bound, words in ((1.5, "at most 1"), (2.5, "at most 2"), (0.5, "none allowed")):
        print_check(ParityCheck(name=CHANGED, batch=17, value=1, bound=bound, passed=bound > 1))
        assert capsys.readouterr().err.endswith(f" predictions that changed, batch 17: 1 ({words})\n")
