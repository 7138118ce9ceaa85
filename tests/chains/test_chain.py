"""pull -> finetune -> evaluate -> export -> run, on tiny models and real files."""

from pathlib import Path

import numpy as np
import pytest

from tests.kit.bundles import check_bundle
from tests.kit.items import TOPICS, write_images, write_texts
from zoo import DataError, FinetuneOptions, GateError, IntegrityError, UsageError, Zoo
from zoo.bundle import read_split


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "tickets.csv")


def test_the_text_chain(shelf: Path, texts: Path, tmp_path: Path) -> None:
    zoo = Zoo()
    outcome = zoo.finetune("tiny-bert", texts, tmp_path / "out", FinetuneOptions(val=0.3, lr=1e-2))
    assert outcome.computed == outcome.items == 120
    assert outcome.metrics.n == 36
    assert outcome.metrics.accuracy > 0.8
    check_bundle(zoo, tmp_path / "out", texts, held=36)
    again = zoo.finetune("tiny-bert", texts, tmp_path / "out", FinetuneOptions(val=0.3, lr=3e-3, hidden=(16,)))
    assert again.computed == 0


def test_the_image_chain(shelf: Path, tmp_path: Path) -> None:
    zoo = Zoo()
    train = write_images(tmp_path / "images")
    outcome = zoo.finetune("tiny-lite", train, tmp_path / "out", FinetuneOptions(val=0.25))
    assert outcome.metrics.accuracy > 0.7
    check_bundle(zoo, tmp_path / "out", train, held=9)


def test_a_row_and_its_classes_do_not_depend_on_order(shelf: Path, texts: Path, tmp_path: Path) -> None:
    header, *rows = texts.read_text().splitlines()
    shuffled = tmp_path / "shuffled.csv"
    shuffled.write_text("\n".join([header, *np.random.default_rng(1).permutation(rows)]) + "\n")
    zoo, options = Zoo(), FinetuneOptions(val=0.3, epochs=3)
    zoo.finetune("tiny-bert", texts, tmp_path / "one", options)
    zoo.finetune("tiny-bert", shuffled, tmp_path / "two", options)
    one, two = (read_split(zoo.open(str(tmp_path / name))) for name in ("one", "two"))
    assert {digest: line.held_out for digest, line in one.items()} == {d: line.held_out for d, line in two.items()}


def test_the_same_seed_gives_the_same_bytes(shelf: Path, texts: Path, tmp_path: Path) -> None:
    zoo = Zoo()
    for name in ("one", "two"):
        zoo.finetune("tiny-bert", texts, tmp_path / name, FinetuneOptions(epochs=4, seed=3))
    assert (tmp_path / "one/model.onnx").read_bytes() == (tmp_path / "two/model.onnx").read_bytes()


def test_a_validation_set_of_its_own(shelf: Path, texts: Path, tmp_path: Path) -> None:
    held = write_texts(tmp_path / "held.csv", rows=5)
    zoo = Zoo()
    with pytest.raises(DataError, match=r"share \d+ items?"):
        zoo.finetune("tiny-bert", texts, tmp_path / "out", FinetuneOptions(val=str(held)))
    held.write_text(held.read_text().replace("my ", "the "))
    outcome = zoo.finetune("tiny-bert", texts, tmp_path / "out", FinetuneOptions(val=str(held)))
    assert outcome.metrics.n == 15


def test_nothing_is_written_when_the_parity_check_fails(
    shelf: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo_plugins.backbones.bert import Bert

    zoo, out = Zoo(), tmp_path / "out"
    zoo.finetune("tiny-bert", texts, out, FinetuneOptions(epochs=2))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    honest = Bert.reference
    monkeypatch.setattr(Bert, "reference", lambda self, feeds: {"features": honest(self, feeds)["features"] * 1.01})
    for attempt in (
        lambda: zoo.finetune("tiny-bert", texts, out, FinetuneOptions(epochs=2)),
        lambda: zoo.export(str(out), out),
    ):
        with pytest.raises((GateError, UsageError)) as caught:
            attempt()
        assert caught.value.exit_code in (2, 6)
    with pytest.raises(GateError) as caught:
        zoo.export(str(out), tmp_path / "other")
    assert not caught.value.report.passed
    assert not (tmp_path / "other").exists()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_bundle_is_not_fine_tuned_again(shelf: Path, texts: Path, tmp_path: Path) -> None:
    zoo = Zoo()
    zoo.finetune("tiny-bert", texts, tmp_path / "out", FinetuneOptions(epochs=1))
    with pytest.raises(UsageError, match="is a bundle"):
        zoo.finetune(str(tmp_path / "out"), texts, tmp_path / "two", FinetuneOptions(epochs=1))


def test_the_target_never_replaces_what_it_does_not_know(shelf: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    for out in (tmp_path / "mine", texts, tmp_path):
        with pytest.raises(UsageError, match=r"would replace|not a bundle|is a file"):
            Zoo().finetune("tiny-bert", texts, out, FinetuneOptions(epochs=1))
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_a_bundle_with_a_foreign_file_in_it_is_not_replaced(shelf: Path, texts: Path, tmp_path: Path) -> None:
    zoo, out = Zoo(), tmp_path / "out"
    zoo.finetune("tiny-bert", texts, out, FinetuneOptions(epochs=1))
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        zoo.finetune("tiny-bert", texts, out, FinetuneOptions(epochs=1))
    assert (out / "thesis.tex").read_text() == "years of work"


def test_files_of_a_bundle_that_were_changed_are_not_used(shelf: Path, texts: Path, tmp_path: Path) -> None:
    zoo, out = Zoo(), tmp_path / "out"
    zoo.finetune("tiny-bert", texts, out, FinetuneOptions(epochs=1))
    manifest = (out / "zoo.json").read_text()
    (out / "zoo.json").write_text(manifest.replace('"account"', '"swapped"'))
    with pytest.raises(IntegrityError, match="labels"):
        zoo.run(str(out), ["card"])
    (out / "zoo.json").write_text(manifest)
    assert zoo.run(str(out), ["card"]).answers
    with (out / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
        zoo.run(str(out), ["card"])


def test_exporting_a_backbone(shelf: Path, tmp_path: Path) -> None:
    zoo = Zoo()
    bundle = zoo.export("tiny-lite", tmp_path / "lite")
    assert [spec.name for spec in bundle.manifest.outputs] == ["features"]
    image = Path(__file__).resolve().parents[2] / "zoo/assets/coffee.jpg"
    answer = zoo.run(str(tmp_path / "lite"), [image]).answers[0]
    assert len(answer.features) == 1280
    assert answer.features == zoo.run("tiny-lite", [image]).answers[0].features


def test_a_bundle_runs_without_registry_plugins_or_torch(shelf: Path, texts: Path, tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    Zoo().finetune("tiny-bert", texts, tmp_path / "out", FinetuneOptions(epochs=5))
    empty = tmp_path / "empty.yaml"
    empty.write_text("schema_version: 1\nmodels: {}\n")
    code = (
        "import sys; sys.modules['torch'] = None; from zoo import Zoo; "
        f"print(Zoo().run({str(tmp_path / 'out')!r}, ['my card charged'], top=1).answers[0].labels[0][0])"
    )
    environment = {**os.environ, "ZOO_REGISTRY": str(empty), "ZOO_PLUGINS": "", "ZOO_HOME": str(tmp_path / "new-home")}
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert child.stdout.strip() in TOPICS
    assert not (tmp_path / "new-home").exists()
