"""A lower precision is judged, for every task, only by readable items that were not trained on."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.kit.cli import fails, zoo
from tests.kit.items import write_images, write_several, write_texts
from zoo import Variant, Zoo
from zoo.bundle import Bundle, read_split
from zoo.export import accuracy_guard
from zoo.progress import SILENT
from zoo.schema import Guard
from zoo.system.files import sha256_file

INT8 = ("--precision", "int8", "--calibrate")


def judged(source: Path, data: Path, out: Path, *more: object) -> Guard:
    """The guard of the int8 export of `source`."""
    done = zoo("export", source, "-o", out, *INT8, data, *more)
    assert done.returncode == 0, done.stderr
    found = Bundle.open(out).manifest.guard
    assert found is not None
    return found


def guard_data(source: Path, data: Path, max_bad: float = 0.01) -> accuracy_guard.GuardData:
    variant = Variant(precision="int8", calibrate=str(data), max_bad=max_bad)
    return accuracy_guard.load_guard_data(Bundle.open(source), variant, offline=True, progress=SILENT)


def write_rows(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *rows])
    return path


def write_truncated(path: Path) -> None:
    """Write an image of which only the header can be read."""
    noise = np.random.default_rng(7).integers(0, 255, (80, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_nothing_that_was_trained_on_judges(shelf: Path, tmp_path: Path) -> None:
    with write_texts(tmp_path / "all.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    train = write_rows(tmp_path / "train.csv", [row for at, row in enumerate(rows) if at % 4])
    val = write_rows(tmp_path / "val.csv", rows[::4])
    zoo("finetune", "tiny-bert", train, "--val", val, "-o", tmp_path / "tuned")
    found = judged(tmp_path / "tuned", train, tmp_path / "small")
    assert (found.n, found.items.partition(";")[0]) == (30, f"held-out items of {val}")
    val.unlink()
    hint = fails(
        2, "the model was trained on every item of", "export", tmp_path / "tuned", "-o", tmp_path / "x", *INT8, train
    )
    assert "the held-out items, or items that the model has not seen" in hint
    assert not (tmp_path / "x").exists()
    # If the data have items that are new to the model, only these judge; if all items are new, a fifth of them.
    fresh = [[f"{text} again", label] for text, label in rows[::4]]
    both = write_rows(tmp_path / "both.csv", [*(row for at, row in enumerate(rows) if at % 4), *fresh])
    found = judged(tmp_path / "tuned", both, tmp_path / "both")
    assert (found.n, found.items.partition(";")[0]) == (30, f"items of {both} that it has not seen")
    alone = write_rows(tmp_path / "alone.csv", fresh)
    found = judged(tmp_path / "tuned", alone, tmp_path / "alone", "--max-drop", 0.5)
    assert (found.n, found.items.partition(";")[0]) == (6, f"a fifth of {alone}, which it has not seen")


def test_several_labels_have_no_interval(shelf: Path, tmp_path: Path) -> None:
    data = write_several(tmp_path / "several.csv", 90)
    zoo("finetune", "tiny-bert", data, "--task", "multi-label", "-o", tmp_path / "tuned", "--val", 0.3)
    found = judged(tmp_path / "tuned", data, tmp_path / "small", "--max-drop", 0.1)
    exact, small = (Bundle.open(tmp_path / name).manifest.metrics for name in ("tuned", "small"))
    assert exact is not None
    assert small is not None
    assert (found.before, found.after) == (pytest.approx(exact.macro_f1), small.macro_f1)
    assert (found.n, found.interval) == (exact.n, None)
    assert found.allowed == 0.1


def test_numbers_are_not_made_of_items(shelf: Path, tmp_path: Path) -> None:
    with write_texts(tmp_path / "texts.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    numbers = {label: str(10.0 * at) for at, label in enumerate(sorted({label for _, label in rows}))}
    data = write_rows(tmp_path / "numbers.csv", [[text, numbers[label]] for text, label in rows])
    zoo("finetune", "tiny-bert", data, "--task", "regression", "-o", tmp_path / "tuned")
    found = judged(tmp_path / "tuned", data, tmp_path / "small", "--max-drop", 0.02)
    small = Bundle.open(tmp_path / "small").manifest.metrics
    assert small is not None
    assert (found.after, found.interval, found.allowed) == (small.r2, None, 0.02)


def test_a_word_table_of_numbers_allows_no_item() -> None:
    """An accuracy may lose one item of 24; an R squared has no such part."""
    from zoo.schema import Metrics

    assert accuracy_guard._allowed(Metrics(n=24, r2=0.9), 0.01) == 0.01
    assert accuracy_guard._allowed(Metrics(n=24, accuracy=0.9), 0.01) == 1 / 24


@pytest.mark.slow
def test_what_cannot_be_read_is_left_out(shelf: Path, tmp_path: Path) -> None:
    """Unreadable items are left out of the calibration, of the judging, and of a backbone's parity check."""
    data = write_images(tmp_path / "images")
    write_truncated(data / "red" / "cut.png")
    zoo("finetune", "tiny-lite", data, "-o", tmp_path / "tuned", "--max-bad", 0.2)
    refused = zoo("export", tmp_path / "tuned", "-o", tmp_path / "x", *INT8, data, "--max-bad", 0)
    assert refused.returncode == 2
    assert "1 of 37 items cannot be used" in refused.stderr
    assert "red/cut.png" in refused.stderr
    split = read_split(Bundle.open(tmp_path / "tuned"))
    held = sum(line.held_out for line in split.values())
    assert judged(tmp_path / "tuned", data, tmp_path / "small", "--max-bad", 0.2).n == held
    for path in data.rglob("*.png"):
        line = split.get(sha256_file(path))
        if line and line.held_out:
            # A rotated image replaces each held-out one: these and the truncated one are new to the model.
            with Image.open(path) as image:
                image.rotate(180).save(path)
    found = judged(tmp_path / "tuned", data, tmp_path / "new", "--max-bad", 0.2, "--max-drop", 0.5)
    assert (found.n, found.items.partition(";")[0]) == (held, f"items of {data} that it has not seen")
    exact = Zoo().export("tiny-lite", tmp_path / "exact").path
    few = tmp_path / "few"
    for number, path in enumerate(sorted((data / "red").iterdir())):
        if number < 3 or path.name == "cut.png":
            (few / "red").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, few / "red" / path.name)
    chosen = guard_data(exact, few, max_bad=0.5)
    assert len(chosen.compared[0]) == len(chosen.calibrate) == 3
    assert chosen.compared[1] == "the calibration items"
    assert zoo("export", "tiny-lite", "-o", tmp_path / "bare", *INT8, few, "--max-bad", 0.5).returncode == 0


def test_the_parity_check_of_a_backbone_uses_other_items(shelf: Path, tmp_path: Path) -> None:
    exact = Zoo().export("tiny-lite", tmp_path / "exact").path
    chosen = guard_data(exact, write_images(tmp_path / "images", 6))
    compared, called = chosen.compared
    assert (len(compared), len(chosen.calibrate), called) == (8, 10, "the items that did not calibrate")
    assert not set(compared) & {example.item for example in chosen.calibrate}


def test_only_the_training_part_calibrates(shelf: Path, tmp_path: Path) -> None:
    data = tmp_path / "parts"
    write_images(data / "train", 8)
    for part, pattern in (("val", "0[01]"), ("test", "0[23]")):
        for path in sorted((data / "train").rglob(f"{pattern}.png")):
            (data / part / path.parent.name).mkdir(parents=True, exist_ok=True)
            path.rename(data / part / path.parent.name / path.name)
    zoo("finetune", "tiny-lite", data, "-o", tmp_path / "tuned", "--epochs", 5)
    chosen = guard_data(tmp_path / "tuned", data)
    here = {part: {sha256_file(path) for path in (data / part).rglob("*.png")} for part in ("train", "val", "test")}
    assert {example.digest for example in chosen.calibrate} == here["train"]
    assert chosen.held is not None
    assert {example.digest for example in chosen.held.data.examples} == here["val"]
    # The other parts do not calibrate a backbone, which has no training, either.
    bare = guard_data(Zoo().export("tiny-lite", tmp_path / "exact").path, data)
    assert {example.digest for example in bare.calibrate} == here["train"]
    assert {sha256_file(Path(str(item))) for item in bare.compared[0]} <= here["val"] | here["test"]
