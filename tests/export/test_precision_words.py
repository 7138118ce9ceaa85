"""Word tables in fp16 and int8: a half and a quarter of the size, with nearly the same answers from every verb."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.kit.cli import fails, parsed
from tests.kit.cli import zoo as command
from tests.kit.items import write_texts
from tests.kit.word_tables import WORDS, binary, row, text, vectors, write_registry
from zoo import FinetuneOptions, GateError, UsageError, Variant, Zoo
from zoo.bundle import Bundle
from zoo.export import precision_words
from zoo.runtime.device import onnxruntime

DIM = 16
TABLE = vectors(len(WORDS), DIM)
TEXTS = ["The card", "money, money... KING", "東京 qqq naïve 's", "🙂"]
#: The size of a table as a part of the float32 one; int8 has a scale of 4 bytes for each row.
SIZES = {"fp16": 2 * TABLE.size, "int8": TABLE.size + 4 * len(WORDS)}
PRECISIONS = pytest.mark.parametrize("precision", ["fp16", "int8"])


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    """A registry of two rows: word2vec's binary format, and GloVe's text with zeros for unknown words."""
    (tmp_path / "v.bin").write_bytes(binary(WORDS, TABLE))
    (tmp_path / "v.txt").write_bytes(text(WORDS, TABLE, header=False))
    rows = {"bin": row(tmp_path / "v.bin", None, DIM), "glove": row(tmp_path / "v.txt", None, DIM, unknown="zero")}
    monkeypatch.setenv("ZOO_REGISTRY", str(write_registry(tmp_path / "registry.json", rows)))
    return Zoo()


def table_size(bundle: Bundle) -> int:
    """The bytes of the files that hold the table."""
    return sum(file.size for file in bundle.manifest.files if file.path.endswith(".bin"))


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The cosine of each row of `one` with the same row of `other`."""
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@PRECISIONS
@pytest.mark.parametrize("name", ["bin", "glove"])
def test_the_answers_stay_near_and_the_table_is_smaller(words: Zoo, name: str, precision: str, tmp_path: Path) -> None:
    said = parsed(command("export", name, "-o", tmp_path / "out", "--precision", precision, "--json"))["export"]
    assert said["precision"] == precision
    assert {check["batch"] for check in said["parity"]["checks"]} == {1, 2, 7}
    assert all(check["passed"] for check in said["parity"]["checks"])
    bundle = Bundle.open(tmp_path / "out")
    assert table_size(words.graph(name)) == 4 * TABLE.size
    assert table_size(bundle) == SIZES[precision]
    assert (bundle.manifest.precision, bundle.manifest.guard) == (precision, None)
    exact = words.session(name, "cpu").features(TEXTS)
    near = words.session(str(bundle.path), "cpu").features(TEXTS)
    assert (near != exact).any()
    assert similarity(near, exact).min() > {"fp16": 1 - 1e-6, "int8": 0.9995}[precision]
    [answer] = parsed(command("run", bundle.path, "the card", "--json"))["run"]["results"]
    assert len(answer["features"]) == DIM
    assert command("verify", bundle.path).returncode == 0


@PRECISIONS
def test_only_gathered_rows_are_widened(words: Zoo, precision: str, tmp_path: Path) -> None:
    """In the file and in the optimised graph only gathered rows become float32, so that memory stays small."""
    bundle = words.export("bin", tmp_path / "out", Variant(precision=precision))
    model = onnx.load(bundle.model, load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert all(sum(tensor.dims) < 10 for tensor in model.graph.initializer if not tensor.external_data)
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    session = ort.InferenceSession(str(bundle.model), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx", load_external_data=False)
    kinds = {tensor.name: tensor.data_type for tensor in optimised.graph.initializer}
    [table] = [name for name in kinds if name.endswith("/vectors")]
    assert kinds[table] == {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision]
    assert {node.op_type for node in optimised.graph.node if table in node.input} == {"Gather"}
    # A row's numbers do not depend on the other rows.
    feeds = {"input_ids": np.array([[3, 4], [7, len(WORDS)]]), "attention_mask": np.ones((2, 2), np.int64)}
    [together] = session.run(None, feeds)
    alone = [session.run(None, {name: array[i : i + 1] for name, array in feeds.items()})[0] for i in (0, 1)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@PRECISIONS
def test_a_fine_tuned_bundle(words: Zoo, precision: str, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "tickets.csv")
    words.finetune("bin", data, tmp_path / "tuned", FinetuneOptions(val=0.3))
    judged = ["--calibrate", data] if precision == "int8" else []
    command("export", tmp_path / "tuned", "-o", tmp_path / "out", "--precision", precision, *judged)
    bundle = Bundle.open(tmp_path / "out")
    assert {"scores (max difference)", "top-1 (rows that differ)"} < {c.name for c in bundle.manifest.parity.checks}
    exact, near = (words.evaluate(str(tmp_path / name), data, held_out=True) for name in ("tuned", "out"))
    assert near.metrics.n == exact.metrics.n == 36
    assert near.metrics.accuracy >= exact.metrics.accuracy - 1 / 36 - 1e-9
    if precision == "int8":
        guard = bundle.manifest.guard
        assert guard is not None
        assert (guard.n, guard.items) == (36, f"held-out items of {data}")
        assert (guard.before, guard.after) == (exact.metrics.accuracy, near.metrics.accuracy)
        # Without data there is only the parity check.
        unjudged = words.export(str(tmp_path / "tuned"), tmp_path / "unjudged", Variant(precision="int8"))
        assert unjudged.manifest.guard is None
        assert unjudged.model.read_bytes() == bundle.model.read_bytes()
    fails(2, f"is {precision} already", "export", tmp_path / "out", "-o", tmp_path / "again", "--precision", "fp32")
    assert words.export(str(tmp_path / "out"), tmp_path / "again", Variant(precision=precision)).manifest.parity.passed


def test_the_guard_judges_it(words: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One level on each side of zero is too few for these classes, and the bounds of the parity check allow it."""
    data = write_texts(tmp_path / "tickets.csv")
    words.finetune("bin", data, tmp_path / "tuned", FinetuneOptions(val=0.3))
    monkeypatch.setattr("zoo.export.precision_words.LEVELS", 1)
    variant = Variant(precision="int8", calibrate=str(data), max_drop=0)
    with pytest.raises(GateError, match=r"int8 loses too much: .* on n = 36 \(held-out items of .*nothing was"):
        words.export(str(tmp_path / "tuned"), tmp_path / "out", variant)
    assert not (tmp_path / "out").exists()


@PRECISIONS
def test_a_wrong_table_is_refused(words: Zoo, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parity check refuses rows in another order and too few levels, and an older export stays unchanged."""
    out = tmp_path / "out"
    words.export("bin", out, Variant(precision=precision))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    honest = precision_words._rows
    monkeypatch.setattr(precision_words, "_rows", lambda *given: np.roll(honest(*given), 1, axis=0))
    with pytest.raises(GateError, match="parity: features") as caught:
        words.export("bin", out, Variant(precision=precision))
    assert caught.value.exit_code == 6
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    if precision == "int8":
        monkeypatch.setattr(precision_words, "LEVELS", 7)
        with pytest.raises(GateError, match=r"parity: features \(1 - cosine\)"):
            words.export("bin", tmp_path / "coarse", Variant(precision=precision))


def test_every_row_has_its_own_scale(tmp_path: Path) -> None:
    """A row of zeros, one of subnormal numbers and one of huge numbers do not affect each other."""
    table = np.array([[0, 0], [1e-42, -1e-42], [1, -0.25], [3e38, -1e38]], np.float32)
    precision_words._write_bytes(table, tmp_path / "rows", tmp_path / "scales")
    levels = np.fromfile(tmp_path / "rows", np.int8).reshape(table.shape)
    scales = np.fromfile(tmp_path / "scales", np.float32).reshape(-1, 1)
    np.testing.assert_array_equal(levels, [[0, 0], [0, 0], [127, -32], [127, -42]])
    assert (np.abs(levels * scales - table) <= np.maximum(scales / 2, 1e-41) * 1.001).all()


def test_what_makes_no_sense(words: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = write_texts(tmp_path / "tickets.csv")
    hint = fails(2, "--calibrate has no effect", "export", "bin", "-o", out, "--precision", "int8", "--calibrate", data)
    assert hint == "hint: leave --calibrate out"
    large = TABLE.copy()
    large[5, 3] = 7e4
    (tmp_path / "large.bin").write_bytes(binary(WORDS, large))
    zoo = Zoo(registry=write_registry(tmp_path / "large.json", {"large": row(tmp_path / "large.bin", None, DIM)}))
    with pytest.raises(UsageError, match="numbers beyond 65,504"):
        zoo.export("large", out, Variant(precision="fp16"))
    assert zoo.export("large", out, Variant(precision="int8")).manifest.parity.passed
