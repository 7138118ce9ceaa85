"""Comparisons: out-of-fold scores equal those of fine-tuning, and every model is measured on the same items."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.kit.items import write_images, write_several, write_texts
from tests.kit.word_tables import WORDS, row, vectors, write_list, write_table
from zoo import (
    CompareOptions,
    Comparison,
    DataError,
    FinetuneOptions,
    NetworkError,
    OfflineError,
    Task,
    UnknownEntryError,
    UsageError,
    Zoo,
)

MODELS = ["tiny-bert", "tiny-bert-cls"]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are measured for a moment only."""
    monkeypatch.setattr("zoo.export.precision_speed.CALL", 0.002)
    monkeypatch.setattr("zoo.export.precision_speed.SECONDS", 0.0)


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def write_rows(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *rows])
    return path


def noisy(folder: Path, rows: int = 40) -> tuple[Path, Path]:
    """A table of texts of which a tenth has a wrong label, and another table of the same classes."""
    made = rows_of(write_texts(folder / "all.csv", rows + 4))
    others = [each for each in made if int(each[0].split()[-1]) >= rows]
    kept = [each for each in made if int(each[0].split()[-1]) < rows]
    labels, chosen = sorted({label for _, label in made}), random.Random(11)
    for each in chosen.sample(kept, len(kept) // 10):
        each[1] = chosen.choice(labels)
    return write_rows(folder / "data.csv", kept), write_rows(folder / "other.csv", others)


def numbers(path: Path, seed: int, count: int) -> Path:
    """A table of texts and of their number of letters, with noise."""
    chosen = random.Random(seed)
    texts = (" ".join(chosen.sample(WORDS[:50], chosen.randint(1, 8))) for _ in range(count))
    return write_rows(path, [[f"{text} {n}", f"{len(text) + chosen.gauss(0, 4):.3f}"] for n, text in enumerate(texts)])


def without_times(found: Comparison) -> list[tuple[object, ...]]:
    """The facts of the models that do not depend on the clock."""
    rows = [(m.model, m.metrics, m.interval, m.behind, m.p_value, m.is_within_noise, m.size) for m in found.models]
    return sorted(rows, key=lambda each: str(each[0]))


@pytest.mark.parametrize("task", ["single-label", "multi-label", "regression"])
def test_scores_are_those_of_finetuning_on_the_same_items(kept_shelf: Path, tmp_path: Path, task: str) -> None:
    if task == "single-label":
        data, other = noisy(tmp_path)
    elif task == "multi-label":
        made = rows_of(write_several(tmp_path / "all.csv", 130))
        data, other = write_rows(tmp_path / "data.csv", made[:110]), write_rows(tmp_path / "other.csv", made[110:])
    else:
        data, other = numbers(tmp_path / "data.csv", 21, 90), numbers(tmp_path / "other.csv", 22, 12)
    zoo = Zoo()
    found = zoo.compare(data, MODELS, CompareOptions(task=Task(task), seed=5))
    assert {each.model for each in found.models} == set(MODELS)
    assert [each.metrics.score for each in found.models] == sorted(
        (each.metrics.score for each in found.models), reverse=True
    )
    for each in found.models:
        options = FinetuneOptions(task=Task(task), seed=5, val=str(other))
        outcome = zoo.finetune(each.model, data, tmp_path / each.model, options)
        # The features were computed by the comparison; only those of the other items are new.
        assert outcome.computed == len(rows_of(other))
        assert each.metrics.score == pytest.approx(outcome.curve[outcome.best_epoch - 1].val_score, abs=1e-6)
        if task == "single-label":
            assert round(each.metrics.accuracy * each.metrics.n) == found.items - len(outcome.suspects)


def test_a_second_comparison_is_equal_and_computes_nothing(kept_shelf: Path, tmp_path: Path) -> None:
    data, _ = noisy(tmp_path, rows=30)
    zoo = Zoo()
    first, second = zoo.compare(data, MODELS), zoo.compare(data, MODELS[::-1])
    assert without_times(first) == without_times(second)
    assert [each.computed for each in second.models] == [0, 0]
    other = zoo.compare(data, MODELS, CompareOptions(seed=1))
    assert without_times(other) != without_times(first)


def test_the_best_model_is_first_and_the_difference_is_paired(kept_shelf: Path, tmp_path: Path) -> None:
    data, _ = noisy(tmp_path)
    found = Zoo().compare(data, MODELS)
    best, second = found.models
    assert (best.behind, best.p_value, best.is_within_noise) == (0, 1, True)
    assert second.behind == pytest.approx(best.metrics.accuracy - second.metrics.accuracy)
    assert second.is_within_noise == (second.p_value >= 0.05)
    assert best.interval == best.metrics.accuracy_interval
    assert min(*(each.ms for each in found.models), *(each.int8_ms for each in found.models)) > 0
    assert found.choice in MODELS
    assert found.choice in found.why


@pytest.fixture(scope="module")
def words(shelf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry file of the tiny models and of two tables: `words`, and `useless` with equal vectors."""
    folder = tmp_path_factory.mktemp("words")
    table, listed = write_table(folder / "t.npy", vectors(len(WORDS), 16, 31)), write_list(folder / "w.parquet", WORDS)
    same = write_table(folder / "same.npy", np.ones((len(WORDS), 16), np.float32))
    registry = json.loads(shelf_file.read_text())
    registry["models"] |= {"words": row(table, listed, 16), "useless": row(same, listed, 16)}
    (folder / "registry.yaml").write_text(json.dumps(registry))
    return folder / "registry.yaml"


def test_an_item_that_one_model_cannot_read_is_left_out_for_all(kept_shelf: Path, words: Path, tmp_path: Path) -> None:
    data, _ = noisy(tmp_path, rows=20)
    plain = rows_of(data)
    more = write_rows(tmp_path / "more.csv", [["qqqq zzzz", "billing"], *plain])
    zoo = Zoo(registry=words)
    found = zoo.compare(more, ["tiny-bert", "words"], CompareOptions(max_bad=0.05))
    assert found.items == len(plain)
    assert [line.partition(" ")[0] for line in found.skipped] == ["more.csv:2"]
    assert {each.metrics.n for each in found.models} == {len(plain)}
    # The scores are those of the data without the item.
    without = zoo.compare(data, ["tiny-bert", "words"])
    assert without_times(found) == without_times(without)
    # Without permission the model that cannot read the item fails, and the other one has all items.
    strict = zoo.compare(more, ["tiny-bert", "words"], CompareOptions(max_bad=0))
    assert [name for name, _ in strict.failures] == ["words"]
    assert strict.items == len(plain) + 1


def test_constant_features_score_like_a_constant_guess(kept_shelf: Path, words: Path, tmp_path: Path) -> None:
    data, _ = noisy(tmp_path, rows=20)
    found = Zoo(registry=words).compare(data, ["useless", "tiny-bert"])
    best, useless = found.models
    assert (best.model, useless.model) == ("tiny-bert", "useless")
    assert useless.metrics.accuracy < 0.5
    assert useless.metrics.nll == pytest.approx(np.log(3), abs=0.05)
    assert not useless.is_within_noise
    assert useless.behind == pytest.approx(best.metrics.accuracy - useless.metrics.accuracy)
    assert found.why == "tiny-bert scores higher than the others by more than the noise"


def test_images(kept_shelf: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "images", 6)
    (data / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = Zoo().compare(data, ["tiny-lite"], CompareOptions(max_bad=0.1))
    assert (found.items, len(found.skipped)) == (18, 1)
    [only] = found.models
    assert (only.dim, only.computed) == (1280, 18)
    assert only.metrics.accuracy > 0.8
    assert only.int8_ms > 0
    assert found.why == "tiny-lite is the only model that was compared"


def test_a_row_that_fails_does_not_lose_the_others(kept_shelf: Path, words: Path, tmp_path: Path) -> None:
    registry = json.loads(words.read_text())
    lost = registry["models"]["words"]
    registry["models"]["lost"] = {
        **lost, "files": [{**each, "sources": ["file:///nowhere/" + each["path"]]} for each in lost["files"]],
        "description": "its files are gone",
    }  # fmt: skip
    for each in registry["models"]["lost"]["files"]:
        each["sha256"] = "0" * 64
    (tmp_path / "registry.yaml").write_text(json.dumps(registry))
    data, zoo = noisy(tmp_path, rows=20)[0], Zoo(registry=tmp_path / "registry.yaml")
    found = zoo.compare(data, ["lost", "tiny-bert"])
    assert [each.model for each in found.models] == ["tiny-bert"]
    assert [(model, failure.code) for model, failure in found.failures] == [("lost", "network")]
    with pytest.raises(NetworkError):
        zoo.compare(data, ["lost"])


def test_offline_rows_that_were_never_pulled_fail_alone(kept_shelf: Path, words: Path, tmp_path: Path) -> None:
    zoo, data = Zoo(registry=words, offline=True, home=tmp_path / "empty"), noisy(tmp_path, rows=20)[0]
    with pytest.raises(OfflineError):
        zoo.compare(data, ["timm/resnet18.a1_in1k"])
    kept = Zoo(registry=words, offline=True)
    found = kept.compare(data, ["timm/resnet18.a1_in1k", "tiny-bert"])
    assert [(name, failure.code) for name, failure in found.failures] == [("timm/resnet18.a1_in1k", "offline")]
    assert [each.model for each in found.models] == ["tiny-bert"]


@pytest.mark.parametrize(
    ("models", "kind", "words"),
    [
        (["tiny-bert", "tiny-lite"], UsageError, "tiny-lite reads images, and tiny-bert reads texts"),
        (["tiny-lite"], DataError, "^tiny-lite: .* has no column 'image'"),
        (["tiny-bert", "tiny-bert"], UsageError, "tiny-bert is given twice"),
        (["tiny-bert", "tiny-bret"], UnknownEntryError, "no model named 'tiny-bret'"),
        ([], UsageError, "no model to compare"),
    ],
)
def test_models_that_do_not_fit_are_refused_before_anything_is_computed(
    kept_shelf: Path, kept_home: Path, tmp_path: Path, models: list[str], kind: type[Exception], words: str
) -> None:
    before = sorted(kept_home.rglob("*"))
    with pytest.raises(kind, match=words):
        Zoo().compare(noisy(tmp_path, rows=20)[0], models)
    assert sorted(kept_home.rglob("*")) == before


def test_a_bundle_is_refused(kept_shelf: Path, tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a bundle") as caught:
        Zoo().compare(tuned / "tickets.csv", [str(tuned / "out")])
    assert "zoo show" in caught.value.hint


def test_data_that_cannot_be_compared(kept_shelf: Path, tmp_path: Path) -> None:
    cases: list[tuple[list[list[str]], Callable[[], CompareOptions], str]] = [
        ([["card", "a"], ["bill", "a"]], CompareOptions, "has only the class 'a'"),
        ([["card", "a"], ["card", "b"]], CompareOptions, "only copies of one item"),
        ([["card", "2"], ["bill", "2"]], lambda: CompareOptions(task=Task.REGRESSION), "there is nothing to learn"),
    ]
    for rows, options, problem in cases:
        with pytest.raises(DataError, match=problem):
            Zoo().compare(write_rows(tmp_path / "d.csv", rows), ["tiny-bert"], options())
    with pytest.raises(DataError, match="no column 'kind'"):
        Zoo().compare(tmp_path / "d.csv", ["tiny-bert"], CompareOptions(label="kind"))
    with pytest.raises(UsageError, match="cannot be trained"):
        CompareOptions(task=Task.EMBEDDING)


@pytest.mark.parametrize("rows", [1, 2, 12])
def test_few_items_give_finite_numbers(kept_shelf: Path, tmp_path: Path, rows: int) -> None:
    texts = [[f"card {n}", "a"] for n in range(rows)]
    found = Zoo().compare(write_rows(tmp_path / "d.csv", [*texts, ["parcel", "b"]]), MODELS)
    for each in found.models:
        assert each.metrics.n == rows + 1
        assert np.isfinite([each.metrics.nll, each.metrics.accuracy, *each.interval, each.p_value, each.behind]).all()
        assert each.is_within_noise


def test_all_parts_of_a_folder_are_used(kept_shelf: Path, tmp_path: Path) -> None:
    for part, count in (("train", 4), ("val", 2)):
        write_images(tmp_path / "data" / part, count)
    for index, path in enumerate(sorted((tmp_path / "data" / "val").rglob("*.png"))):
        Image.open(path).rotate(90 * (index % 3 + 1), expand=True).save(path)
    assert Zoo().compare(tmp_path / "data", ["tiny-lite"]).items == 18
