"""zoo compare as a user meets it: the table, the sentence, the next command, JSON, plots and exit codes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.kit.cli import fails
from tests.kit.items import write_images, write_several, write_texts
from zoo.training.feature_cache import FeatureCache

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are measured for a moment only."""
    monkeypatch.setattr("zoo.export.precision_speed.CALL", 0.002)
    monkeypatch.setattr("zoo.export.precision_speed.SECONDS", 0.0)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "t.csv", 20)


def test_table_plot_and_next_command(kept_shelf: Path, table: Path, tmp_path: Path, command: Command) -> None:
    code, out, err = command("compare", table, "tiny-bert", "tiny-bert-cls", "--plot", tmp_path / "p.png")
    assert code == 0, err
    header, first, second, blank, sentence = out.splitlines()
    assert header.split() == [
        *("MODEL", "ACCURACY", "95", "%", "BEHIND", "NLL", "MS/ITEM", "INT8", "SIZE", "DIM", "FEATURES", "HEAD")
    ]
    assert {first.split()[0], second.split()[0]} == {"tiny-bert", "tiny-bert-cls"}
    assert re.fullmatch(
        r"\S+ +[01]\.\d{4} +\d\.\d{3} to \d\.\d{3} +best +\d+\.\d{3} +[\d.]+ +[\d.]+ +[\d.]+ kB +32 +"
        r"\d+\.\d s(, cached)? +\d+\.\d s",
        first,
    )
    assert blank == ""
    assert sentence.endswith("(n = 60, left out in turn; on cpu)")
    chosen = next(name for name in ("tiny-bert-cls", "tiny-bert") if sentence.startswith(name))
    assert err.splitlines()[-1] == f"next: zoo finetune {chosen} {table} -o DIR"
    assert f"plot: {tmp_path / 'p.png'}" in err
    assert "timing tiny-bert:" in err
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_one_object_and_the_next_finetuning_computes_no_feature(
    kept_shelf: Path, table: Path, tmp_path: Path, command: Command
) -> None:
    code, out, _ = command("compare", table, "tiny-bert", "--json", "--seed", 3)
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    assert found["schema_version"] == 1
    comparison = found["comparison"]
    assert (comparison["task"], comparison["items"], comparison["choice"]) == ("single-label", 60, "tiny-bert")
    assert comparison["models"][0].keys() >= {"metrics", "interval", "ms", "int8_ms", "size", "dim", "p_value"}
    code, out, _ = command("finetune", "tiny-bert", table, "-o", tmp_path / "out", "--json")
    assert json.loads(out)["finetune"]["features_computed"] == 0


def test_several_labels_and_columns_are_in_the_next_command(kept_shelf: Path, tmp_path: Path, command: Command) -> None:
    data = write_several(tmp_path / "several.csv", 60)
    data.write_text(data.read_text().replace("text,label", "body,topics"))
    options = ("--task", "multi-label", "--text", "body", "--label", "topics")
    code, out, err = command("compare", data, "tiny-bert", *options)
    assert code == 0, err
    assert out.split()[1] == "MACRO-F1"
    assert err.splitlines()[-1] == f"next: zoo finetune tiny-bert {data} -o DIR {' '.join(options)}"


def test_a_model_that_fails_is_one_line_and_exit_code_1(kept_shelf: Path, table: Path, command: Command) -> None:
    broken = json.loads(kept_shelf.read_text())
    lost = broken["models"]["tiny-bert"]
    for file in lost["files"]:
        file |= {"sha256": "0" * 64, "sources": ["file:///nowhere/" + file["path"]]}
    broken["models"]["lost"] = lost
    registry = table.with_name("registry.yaml")
    registry.write_text(json.dumps(broken))
    code, out, err = command("--registry", registry, "compare", table, "lost", "tiny-bert-cls")
    assert code == 1
    assert out.splitlines()[1].startswith("tiny-bert-cls ")
    [line] = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: lost: ")
    assert "error: 1 of 2 models could not be compared" in err
    # Where none is left, the exit code is that of the error.
    code, out, err = command("--registry", registry, "compare", table, "lost", "--json")
    assert code == 4
    assert json.loads(out)["error"]["code"] == "network"
    assert "failed: " not in err


def test_unreadable_items_are_named_and_counted(kept_shelf: Path, tmp_path: Path, command: Command) -> None:
    data = write_images(tmp_path / "images", 6)
    (data / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    code, _, err = command("compare", data, "tiny-lite", "--max-bad", 0.1)
    assert code == 0
    assert "left out: red/broken.png" in err
    assert "1 left out of 19, for every model" in err
    assert err.splitlines()[-1].endswith("-o DIR --max-bad 0.1")


def test_ctrl_c_keeps_the_features_of_the_models_before(
    kept_shelf: Path, table: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.write_text(table.read_text().replace("my ", "your "))
    compute = FeatureCache.features

    def interrupted(self: FeatureCache, *arguments: Any, **more: Any) -> Any:
        if self.session.manifest.name == "tiny-bert-cls":
            stop()
        return compute(self, *arguments, **more)

    def stop() -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FeatureCache, "features", interrupted)
        code, out, err = command("compare", table, "tiny-bert", "tiny-bert-cls")
    assert (code, out) == (130, "")
    assert "computed features are kept for the next run" in err
    code, out, _ = command("compare", table, "tiny-bert", "tiny-bert-cls", "--json")
    models = {each["model"]: each for each in json.loads(out)["comparison"]["models"]}
    assert (models["tiny-bert"]["computed"], models["tiny-bert-cls"]["computed"]) == (0, 60)


@pytest.mark.parametrize(
    ("code", "words", "arguments"),
    [
        (2, "tiny-lite reads images, and tiny-bert reads texts", ("t.csv", "tiny-bert", "tiny-lite")),
        (2, "is given twice", ("t.csv", "tiny-bert", "tiny-bert")),
        (3, "no model named 'tiny-brt'", ("t.csv", "tiny-brt")),
        (3, "nothing.csv: no such file", ("nothing.csv", "tiny-bert")),
        (2, "no column 'kind'", ("t.csv", "tiny-bert", "--label", "kind")),
        (2, "the suffix must be .png or .svg", ("t.csv", "tiny-bert", "--plot", "p.pdf")),
        (2, "--max-bad must be in [0, 1]", ("t.csv", "tiny-bert", "--max-bad", 2)),
        (2, "unknown device", ("t.csv", "tiny-bert", "--device", "tpu")),
    ],
)
def test_errors(
    kept_shelf: Path,
    table: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    words: str,
    arguments: tuple[object, ...],
) -> None:
    monkeypatch.chdir(table.parent)
    fails(code, words, "compare", *arguments)
