"""zoo evaluate on bundles of every task: its numbers equal those of the session's scores; files; bad inputs."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from zoo_cli.metrics import print_confusion, print_labels, print_summary, summary
from zoo_cli.output import print_table

from tests.kit.cli import fails, parsed, zoo
from tests.kit.items import write_images, write_texts
from zoo import DataError, DataOptions, GateError, UsageError, Zoo
from zoo.bundle import MODEL, Bundle, describe_files, write_manifest
from zoo.evaluation.metrics import measure
from zoo.export.build import metadata
from zoo.graph import edit, head
from zoo.outputs.predictions import COLUMNS
from zoo.schema import FEATURES, HeadSpec, Metrics, Task

ACTIVATIONS = {Task.SINGLE_LABEL: "softmax", Task.MULTI_LABEL: "sigmoid", Task.REGRESSION: "identity"}


def bundle_of(task: Task, labels: tuple[str, ...], folder: Path, *, base: str = "tiny-bert", **facts: Any) -> Bundle:
    """A bundle of a tiny model with a random head for `task`, written as fine-tuning writes one."""
    source = Zoo().graph(base)
    manifest, random = source.manifest, np.random.default_rng(0)
    layer = (random.normal(0, 1, (len(labels), manifest.dim)).astype(np.float32), np.zeros(len(labels), np.float32))
    shutil.copytree(source.path, folder)
    body = onnx.load_from_string(source.read_model())
    whole = edit.join(body, head.as_graph([layer], ACTIVATIONS[task]), keep=[FEATURES])
    whole.graph.value_info.extend(value for value in body.graph.value_info if value.name == manifest.cut)
    edit.describe(whole, metadata(manifest.lineage, manifest.preprocess, labels))
    edit.save(whole, folder / MODEL)
    inputs, outputs = edit.tensor_specs(whole)
    return write_manifest(
        folder,
        msgspec.structs.replace(
            manifest, task=task, labels=labels, inputs=inputs, outputs=outputs, files=describe_files(folder),
            activation=ACTIVATIONS[task], head=HeadSpec(hidden=(), scaling="global"), **facts,
        ),
    )  # fmt: skip


def table(path: Path, labels: list[str]) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        words = ["card", "parcel", "login", "money", "code", "street", "screen", "bill"]
        rows.writerows([f"my {words[i % 8]} is {words[i * 3 % 7]} {i}", label] for i, label in enumerate(labels))
    return path


@pytest.fixture
def several(shelf: Path, tmp_path: Path) -> Path:
    """A folder with the bundle `out` of three labels and `data.csv`."""
    bundle_of(Task.MULTI_LABEL, ("a", "b", "label"), tmp_path / "out", thresholds=(0.4, 0.5, 0.6))
    table(tmp_path / "data.csv", ["a", "a|b", "label", "b|label", "a|b|label"] * 8)
    return tmp_path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_several_labels(several: Path) -> None:
    zoo_, model = Zoo(), str(several / "out")
    found = zoo_.evaluate(model, several / "data.csv")
    texts = [row["text"] for row in read(several / "data.csv")]
    scores = zoo_.session(model).scores(texts)
    truth = [[float(label in answer.split("|")) for label in ("a", "b", "label")] for answer in found.truth]
    assert found.metrics == measure(Task.MULTI_LABEL, scores, truth, ["a", "b", "label"], thresholds=(0.4, 0.5, 0.6))
    held = scores >= np.array([0.4, 0.5, 0.6], np.float32)
    assert 0 < held.mean() < 1
    wanted = ["|".join(np.array(["a", "b", "label"])[row]) for row in held]
    assert list(found.predicted) == wanted
    done = zoo("evaluate", model, several / "data.csv", "--predictions", several / "new" / "p.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"macro-F1  {found.metrics.macro_f1:.4f}  (n = 40, on cpu)")
    assert "CLASS  N   PRECISION  RECALL  F1     AP" in done.stdout
    rows = read(several / "new" / "p.csv")
    # A label with the name of a column does not hide this column.
    assert list(rows[0]) == ["input", "label", "predicted", "a", "b", "score:label"]
    assert [row["predicted"] for row in rows] == wanted
    np.testing.assert_allclose([[float(row[name]) for name in list(row)[3:]] for row in rows], scores, rtol=1e-5)


def test_a_number(shelf: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    bundle_of(Task.REGRESSION, ("label",), tmp_path / "out")
    data = table(tmp_path / "data.csv", [f"{number / 3:.4f}" for number in range(30)])
    zoo_, model = Zoo(), str(tmp_path / "out")
    found = zoo_.evaluate(model, data)
    scores = zoo_.session(model).scores([row["text"] for row in read(data)])
    truth = np.array([float(row["label"]) for row in read(data)])
    assert found.metrics.mae == pytest.approx(np.abs(scores[:, 0] - truth).mean(), rel=1e-5)
    answer = parsed(zoo("evaluate", model, data, "--json", "--predictions", tmp_path / "p.parquet"))["evaluation"]
    assert answer.keys() == {"model", "data", "device", "trained_on", "placement", "metrics"}
    assert answer["metrics"].keys() == {"n", "mae", "rmse", "r2"}
    rows = parquet.read_table(tmp_path / "p.parquet")
    assert rows.column_names == ["input", "target", "predicted"]
    np.testing.assert_allclose(rows["predicted"].to_numpy(), scores[:, 0], rtol=1e-6)
    np.testing.assert_allclose(rows["target"].to_numpy(), truth, rtol=1e-6)
    done = zoo("evaluate", model, data, "--fail-under", 0.5)
    assert done.returncode == 6
    assert "R² " in done.stderr
    assert done.stdout.splitlines()[0].startswith("R²        ")
    assert "R² " not in zoo("show", model).stdout


def test_parquet_and_csv_say_the_same(shelf: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    bundle_of(Task.SINGLE_LABEL, ("account", "billing", "delivery"), tmp_path / "out")
    data = write_texts(tmp_path / "tickets.csv", 5)
    for suffix in ("csv", "PARQUET"):
        assert zoo("evaluate", tmp_path / "out", data, "--predictions", tmp_path / f"p.{suffix}").returncode == 0
    left, right = read(tmp_path / "p.csv"), parquet.read_table(tmp_path / "p.PARQUET").to_pylist()
    assert list(left[0]) == ["input", "label", "predicted", "account", "billing", "delivery"]
    assert len(left) == len(right) == 15
    for one, other in zip(left, right, strict=True):
        assert [one[name] for name in COLUMNS] == [other[name] for name in COLUMNS]
        assert one["predicted"] == max(("account", "billing", "delivery"), key=lambda name, row=other: row[name])
        assert float(one["account"]) == pytest.approx(other["account"], rel=1e-5)


def test_class_weights_of_the_bundle_are_taken_out(shelf: Path, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "tickets.csv", 20)
    names = ("account", "billing", "delivery")
    plain = Zoo().evaluate(str(bundle_of(Task.SINGLE_LABEL, names, tmp_path / "a").path), data).metrics
    weights = (9.0, 1.0, 0.1)
    bundle_of(Task.SINGLE_LABEL, names, tmp_path / "b", class_weights=weights)
    mended = Zoo().evaluate(str(tmp_path / "b"), data).metrics
    assert mended.accuracy == plain.accuracy
    assert mended.calibration_error != plain.calibration_error


def test_items_that_cannot_be_read(shelf: Path, tmp_path: Path) -> None:
    bundle_of(Task.SINGLE_LABEL, ("blue", "green", "red"), tmp_path / "out", base="tiny-lite")
    data, where = write_images(tmp_path / "data", 7), str(tmp_path / "out")
    (data / "red" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 22 items cannot be used.*broken\.png \(cannot be decoded"):
        Zoo().evaluate(where, data)
    found = Zoo().evaluate(where, data, DataOptions(max_bad=0.05))
    assert (found.metrics.n, len(found.predictions), len(found.truth), len(found.skipped)) == (21, 21, 21, 1)
    assert "broken.png" in found.skipped[0]
    assert not np.isnan([score for answer in found.predictions for _, score in answer.labels]).any()
    (data / "green" / "cut.png").write_bytes((data / "green" / "00.png").read_bytes()[:200])
    with pytest.raises(DataError, match=r"2 of 23 items .* --max-bad 0\.05 allows \(1\)"):
        Zoo().evaluate(where, data, DataOptions(max_bad=0.05))
    done = zoo("evaluate", where, data, "--max-bad", 0.1, "--json")
    assert len(parsed(done)["evaluation"]["skipped"]) == 2
    assert "warning: 2 of 23 items could not be read and were left out:\n" in done.stderr
    shutil.rmtree(data)
    for name in ("blue", "red"):
        (data / name).mkdir(parents=True)
        (data / name / "broken.png").write_bytes(name.encode())
    with pytest.raises(DataError, match="2 of 2 items cannot be used: "):
        Zoo().evaluate(where, data, DataOptions(max_bad=1))
    with pytest.raises(UsageError):
        Zoo().evaluate(where, data, DataOptions(max_bad=1.5))


def test_files_for_predictions_that_cannot_be(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle_of(Task.SINGLE_LABEL, ("a", "b"), tmp_path / "out")
    data = table(tmp_path / "data.csv", ["a", "b"])
    asked = ("evaluate", tmp_path / "out", data, "--predictions")
    assert "--predictions out.csv" in fails(2, "p.txt is not a .csv or .parquet file", *asked, "p.txt")
    (tmp_path / "file").write_text("")
    fails(8, "cannot be written", *asked, tmp_path / "file" / "p.csv")
    from zoo import MissingExtraError, check_predictions, extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        check_predictions(tmp_path / "p.parquet")
    assert (caught.value.package, caught.value.extra) == ("pyarrow", "data")


def many(count: int) -> Metrics:
    random = np.random.default_rng(0)
    labels = [f"class number {number}" for number in range(count)]
    return measure(
        Task.SINGLE_LABEL, random.random((500, count)).astype(np.float32), random.integers(0, count, 500), labels
    )


def test_tables_of_many_classes_stay_narrow(capsys: pytest.CaptureFixture[str]) -> None:
    for count in (2, 12, 20, 21, 100):
        metrics = many(count)
        print_summary(metrics, "cpu")
        print_labels(metrics)
        print_confusion(metrics)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 110, count
        pairs = [line for line in lines if line.startswith("MOST CONFUSED")]
        assert bool(pairs) == (count > 20)
        assert sum(line.startswith("the 20 of ") for line in lines) == (count > 20)
        if count > 20:
            shown = lines[lines.index(pairs[0]) + 1 :]
            assert len(shown) == 20
            numbers = [int(line.split()[-1]) for line in shown]
            wrong = np.array(metrics.confusion)
            np.fill_diagonal(wrong, 0)
            assert numbers == sorted(wrong.ravel().tolist(), reverse=True)[:20]
        assert any(line.startswith("top 5") for line in lines) == (count > 5)
        assert any(line.startswith("ECE") for line in lines)


def test_one_line_of_each_task() -> None:
    assert summary(many(2)).startswith("accuracy 0.")
    random = np.random.default_rng(0)
    scores, truth = random.random((20, 3)).astype(np.float32), random.integers(0, 2, (20, 3))
    assert summary(measure(Task.MULTI_LABEL, scores, truth, "abc")).startswith("macro-F1 0.")
    assert summary(measure(Task.REGRESSION, scores[:, :1], truth[:, :1], ["x"])).startswith("R² -")


def test_the_floor_is_named_in_json(several: Path) -> None:
    done = zoo("evaluate", several / "out", several / "data.csv", "--fail-under", 1, "--json")
    assert done.returncode == GateError.exit_code
    error = json.loads(done.stdout)["error"]
    assert error["message"].startswith("macro-F1 0.")
    assert error["report"]["n"] == 40


def test_columns_line_up_in_every_script(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("CLASS", "N"), [("kitten", "1"), ("子猫", "2"), ("ko\u0308nig", "3")])
    assert capsys.readouterr().out == "CLASS   N\nkitten  1\n子猫    2\nko\u0308nig   3\n"
