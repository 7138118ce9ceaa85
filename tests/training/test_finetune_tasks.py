"""Several labels and numbers: finetune, evaluate, export, verify and run agree, by the real command."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.kit.cli import fails, parsed, plain, zoo
from tests.kit.items import TOPICS, write_several
from zoo import Zoo
from zoo.bundle import read_split


def write_numbers(folder: Path, rows: int = 40) -> Path:
    """A CSV of noisy images of one colour; the number grows with the brightness and is far from zero."""
    random = np.random.default_rng(0)
    folder.mkdir()
    with (folder / "data.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "grams"])
        for number in range(rows):
            level = float(random.uniform(20, 220))
            image = np.clip(random.normal(level, 5, (60, 70, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / f"{number:02d}.png")
            table.writerow([f"{number:02d}.png", f"{1000 + 3 * level:.3f}"])
    return folder / "data.csv"


def check_chain(model: Path, data: Path, said: dict[str, object], *more: object) -> None:
    """evaluate finds fine-tuning's metrics, `said`, in the bundle and in its export; both verify."""
    exported = model.parent / f"{model.name}-exported"
    done = zoo("export", model, "-o", exported)
    assert done.returncode == 0, done.stderr
    for bundle in (model, exported):
        found = parsed(zoo("evaluate", bundle, data, "--held-out", "--json", *more))["evaluation"]
        assert found["trained_on"] == 0
        assert plain(found["metrics"]) == pytest.approx(plain(said), abs=2e-4)
        verified = zoo("verify", bundle)
        assert verified.returncode == 0, verified.stderr
    assert (exported / "model.onnx").read_bytes() == (model / "model.onnx").read_bytes()


def check_report(model: Path, images: set[str]) -> None:
    """The bundle has a report, and the manifest lists all its files."""
    manifest = json.loads((model / "zoo.json").read_text())
    listed = {file["path"] for file in manifest["files"]}
    assert listed == {path.name for path in model.iterdir()} - {"zoo.json"}
    assert {f"report-{name}.png" for name in images} == {name for name in listed if name.endswith(".png")}
    assert {"report.html", "report.json", "head.safetensors", "split.jsonl", "training.json"} <= listed
    for name in images:
        with Image.open(model / f"report-{name}.png") as image:
            assert min(image.size) > 100
    report = json.loads((model / "report.json").read_text())
    assert plain(report["metrics"]) == plain(manifest["metrics"])
    assert "<html" in (model / "report.html").read_text()


@pytest.fixture(scope="module")
def several(kept_home: Path, shelf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data.csv` of several labels, its bundle `out`, and the command's JSON in `said.json`."""
    folder = tmp_path_factory.mktemp("several")
    data = write_several(folder / "data.csv")
    environ = {"ZOO_HOME": str(kept_home), "ZOO_REGISTRY": str(shelf_file)}
    done = zoo(
        "finetune", "tiny-bert", data, "-o", folder / "out", "--task", "multi-label", "--val", 0.3, "--json", **environ
    )
    (folder / "said.json").write_text(json.dumps(parsed(done)["finetune"]))
    return folder


def test_several_labels(kept_shelf: Path, several: Path) -> None:
    said = json.loads((several / "said.json").read_text())
    assert said["items"] == 150
    assert 40 <= said["metrics"]["n"] <= 50
    assert said["metrics"]["macro_f1"] > 0.8
    check_chain(several / "out", several / "data.csv", said["metrics"])
    check_report(several / "out", {"curves", "confusion", "calibration", "map"})
    manifest = json.loads((several / "out" / "zoo.json").read_text())
    assert manifest["task"] == "multi-label"
    assert manifest["labels"] == sorted(TOPICS)
    assert len(manifest["thresholds"]) == 3
    assert all(0 < each < 1 for each in manifest["thresholds"])
    assert manifest.get("class_weights", []) == []
    assert Zoo().open(str(several / "out")).manifest.activation == "sigmoid"


def test_run_names_the_labels_that_hold_first(kept_shelf: Path, several: Path) -> None:
    model = several / "out"
    with (several / "data.csv").open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:30]
    rows = parsed(zoo("run", model, *texts, "--json"))["run"]["results"]
    thresholds = dict(zip(sorted(TOPICS), json.loads((model / "zoo.json").read_text())["thresholds"], strict=True))
    for row in rows:
        scores = {label["name"]: label["score"] for label in row["labels"]}
        assert scores.keys() == TOPICS.keys()
        held = [label for label in scores if scores[label] >= thresholds[label]]
        # The labels that hold come first; each group is sorted by score.
        assert row["chosen"] == held == list(scores)[: len(held)]
        assert held == sorted(held, key=lambda label: -scores[label])
        rest = list(scores.values())[len(held) :]
        assert rest == sorted(rest, reverse=True)
    assert {len(row["chosen"]) for row in rows} >= {0, 1, 2}
    lines = zoo("run", model, *texts, "--top", 1).stdout.splitlines()
    for line, row in zip(lines, rows, strict=True):
        name, chosen, scores_ = line.split("\t")
        assert (name, chosen) == (row["input"], "|".join(row["chosen"]))
        # All labels that hold are shown, even if --top is smaller.
        assert len(scores_.split("  ")) == max(1, len(row["chosen"]))


def test_the_scores_are_the_same_in_every_verb(kept_shelf: Path, several: Path) -> None:
    """run, evaluate --predictions and fine-tuning's split.jsonl agree on every held-out item."""
    model, data = several / "out", several / "data.csv"
    done = zoo("evaluate", model, data, "--held-out", "--predictions", several / "p.csv")
    assert done.returncode == 0, done.stderr
    with (several / "p.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    with data.open(newline="") as file:
        texts = {f"data.csv:{line}": row["text"] for line, row in enumerate(csv.DictReader(file), 2)}
    answers = Zoo().run(str(model), [texts[row["input"]] for row in found]).answers
    kept = sorted(each.scores for each in read_split(Zoo().open(str(model))).values() if each.held_out)
    scores = [[float(row[label]) for label in sorted(TOPICS)] for row in found]
    np.testing.assert_allclose(sorted(map(tuple, scores)), kept, atol=2e-4)
    for row, answer in zip(found, answers, strict=True):
        assert answer.chosen is not None
        assert row["predicted"] == "|".join(sorted(answer.chosen))
        np.testing.assert_allclose(
            sorted(value for _, value in answer.labels), sorted(float(row[label]) for label in TOPICS), atol=2e-4
        )


@pytest.fixture(scope="module")
def number(kept_home: Path, shelf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundle `out` that predicts a number, and the command's JSON in `said.json`."""
    folder = tmp_path_factory.mktemp("number")
    data = write_numbers(folder / "data")
    environ = {"ZOO_HOME": str(kept_home), "ZOO_REGISTRY": str(shelf_file)}
    options = ("--task", "regression", "--label", "grams", "--json")
    done = zoo("finetune", "tiny-lite", data, "-o", folder / "out", *options, **environ)
    (folder / "said.json").write_text(json.dumps(parsed(done)["finetune"]))
    return folder


def test_a_number(kept_shelf: Path, number: Path) -> None:
    said = json.loads((number / "said.json").read_text())
    assert said["metrics"].keys() == {"n", "mae", "rmse", "r2"}
    assert said["metrics"]["r2"] > 0.5
    check_chain(number / "out", number / "data" / "data.csv", said["metrics"], "--label", "grams")
    check_report(number / "out", {"curves", "scatter", "map"})
    manifest = json.loads((number / "out" / "zoo.json").read_text())
    assert (manifest["task"], manifest["labels"], manifest["activation"]) == ("regression", ["grams"], "identity")


def test_run_answers_with_the_number(kept_shelf: Path, number: Path) -> None:
    image = number / "data" / "07.png"
    [row] = parsed(zoo("run", number / "out", image, "--json"))["run"]["results"]
    assert row.keys() == {"input", "value"}
    # The value is in the target's unit, far from zero.
    assert 1000 < row["value"] < 1700
    done = zoo("run", number / "out", image)
    assert done.stdout == f"{image}\t{row['value']:.7g}\n"
    assert "next: zoo evaluate" in done.stderr
    assert Zoo().run(str(number / "out"), [image]).answers[0].value == pytest.approx(row["value"], rel=1e-5)


def test_what_cannot_be_trained_is_said_at_once(kept_shelf: Path, tmp_path: Path) -> None:
    several, before = write_several(tmp_path / "several.csv", 20), sorted(Zoo().store.home.rglob("*"))
    out = ("-o", tmp_path / "out")
    hint = fails(
        2,
        "not a finite number: 'account'",
        "finetune",
        "tiny-bert",
        _first(several, "account"),
        *out,
        "--task",
        "regression",
    )
    assert "correct" in hint
    fails(
        2,
        "need --task single-label",
        "finetune",
        "tiny-bert",
        several,
        *out,
        "--task",
        "multi-label",
        "--class-weights",
    )
    same = tmp_path / "same.csv"
    same.write_text("text,label\n" + "".join(f"card {number},1.5\n" for number in range(9)))
    fails(2, "every 'label' of", "finetune", "tiny-bert", same, *out, "--task", "regression")
    fails(2, "has the same labels", "finetune", "tiny-bert", same, *out, "--task", "multi-label")
    assert sorted(Zoo().store.home.rglob("*")) == before


def _first(path: Path, label: str) -> Path:
    """The table with the rows of one label only, after a row with a number."""
    other = path.with_name("words.csv")
    other.write_text(f"text,label\na,1\nb,{label}\n")
    return other
