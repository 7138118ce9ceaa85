"""--unfreeze and --augment by the real command: the bundle, its checks, the trained and the frozen weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.kit.cli import fails, parsed, plain, zoo
from tests.kit.items import write_images, write_texts
from tests.kit.word_tables import WORDS, binary, row, vectors, write_registry
from zoo import Zoo
from zoo.bundle import Bundle, describe_files, write_manifest
from zoo.export import trunk
from zoo.store.append_file import RECORD

#: Rates at which a few epochs on a few items change the weights.
RATES = {"tiny-lite": 0.0003, "tiny-bert": 0.01}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {"tiny-lite": write_images(folder / "images", 10), "tiny-bert": write_texts(folder / "t.csv", 20)}


@pytest.fixture(scope="module")
def kept_home(kept_home: Path, trunks: Path) -> Path:
    """The ZOO_HOME of this file's tests, with the trunks of the tiny models."""
    return shutil.copytree(trunks, kept_home / "graphs", dirs_exist_ok=True).parent


class Deep(msgspec.Struct):
    """A bundle and the JSON of the command that wrote it."""

    path: Path
    model: str
    unfrozen: int
    said: dict[str, Any]
    stderr: str


@pytest.fixture(
    scope="module", params=[("tiny-lite", 1), ("tiny-lite", 2), ("tiny-bert", 1), ("tiny-bert", 2)], ids=str
)
def deep(
    request: pytest.FixtureRequest, data: dict[str, Path], kept_home: Path, shelf_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Deep:  # fmt: skip
    model, unfrozen = request.param
    out = tmp_path_factory.mktemp("deep") / "out"
    done = zoo(
        "finetune", model, data[model], "-o", out, "--unfreeze", unfrozen, "--epochs", 4, "--lr", RATES[model],
        "--json", ZOO_HOME=str(kept_home), ZOO_REGISTRY=str(shelf_file),
    )  # fmt: skip
    return Deep(out, model, unfrozen, parsed(done)["finetune"], done.stderr)


def test_the_bundle_says_what_was_trained(kept_shelf: Path, deep: Deep, data: dict[str, Path]) -> None:
    manifest = json.loads((deep.path / "zoo.json").read_text())
    assert manifest["unfrozen"] == deep.unfrozen
    assert "tail.safetensors" in {file["path"] for file in manifest["files"]}
    assert deep.said["best_epoch"] >= 1
    for model in (deep.path, deep.path.parent / "exported"):
        if model != deep.path:
            # The parity check compares the file with the trunk and the tuned tail in torch.
            done = zoo("export", deep.path, "-o", model)
            assert done.returncode == 0, done.stderr
            assert "features (max difference)" in done.stderr
        found = parsed(zoo("evaluate", model, data[deep.model], "--held-out", "--json"))["evaluation"]
        assert found["trained_on"] == 0
        assert plain(found["metrics"]) == pytest.approx(plain(deep.said["metrics"]), abs=2e-4)
        assert zoo("verify", model).returncode == 0
    assert f"unfrozen:    the last {deep.unfrozen}" in zoo("show", deep.path).stdout


def original(deep: Deep) -> dict[str, np.ndarray]:
    """The tail's tensors before the training, by their names in `tail.safetensors`."""
    tuned = Zoo()
    entry = tuned.entry(deep.model)
    backbone = tuned.plugins.make(tuned.lock.effective(entry), tuned.pull(deep.model))
    stages = trunk.tail(backbone, trunk.cut_at(backbone, deep.unfrozen))
    return {name: tensor.numpy() for name, tensor in stages.state_dict().items()}


def test_weights_change_and_running_statistics_do_not(kept_shelf: Path, deep: Deep) -> None:
    before, after = original(deep), load_file(deep.path / "tail.safetensors")
    assert before.keys() == after.keys()
    assert {name.partition(".")[0] for name in after} == {str(index) for index in range(deep.unfrozen)}
    statistics = {name for name in before if "running_" in name or "num_batches" in name}
    assert bool(statistics) == (deep.model == "tiny-lite")
    for name in statistics:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    # A training does not change other buffers than batch norm's, either.
    weights = {name for name in before if name.endswith((".weight", ".bias"))}
    assert changed == weights


def test_a_tail_of_other_numbers_is_refused(kept_shelf: Path, deep: Deep, tmp_path: Path) -> None:
    model, file = tmp_path / "tampered", tmp_path / "tampered" / "tail.safetensors"
    shutil.copytree(deep.path, model)
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if name.endswith(".weight"))
    save_file({**tensors, name: tensors[name] * np.float32(1.5)}, file)
    fails(5, "tail.safetensors", "export", model, "-o", tmp_path / "no")
    # It is refused even with a matching manifest, because the graph differs from the trunk with this tail.
    manifest = Bundle.open(deep.path).manifest
    write_manifest(model, msgspec.structs.replace(manifest, files=describe_files(model)))
    done = zoo("export", model, "-o", tmp_path / "no")
    assert done.returncode == 6, done.stderr
    assert not (tmp_path / "no").exists()


def test_a_second_training_computes_no_activations(
    kept_shelf: Path, deep: Deep, data: dict[str, Path], tmp_path: Path
) -> None:
    assert "activations by" in deep.stderr
    done = zoo(
        "finetune", deep.model, data[deep.model], "-o", tmp_path / "again", "--unfreeze", deep.unfrozen, "--epochs", 1,
        "--head", "mlp:8", "--json",
    )  # fmt: skip
    assert parsed(done)["finetune"]["features_computed"] == 0
    assert "activations: all from the cache" in done.stderr
    assert "activations by" not in done.stderr


def test_more_stages_than_can_be_trained(kept_shelf: Path, data: dict[str, Path], tmp_path: Path) -> None:
    before = sorted(Zoo().store.home.rglob("*"))
    new = {name: tmp_path / name for name in data}
    shutil.copytree(data["tiny-lite"], new["tiny-lite"])
    for model, stages in (("tiny-lite", 9), ("tiny-bert", 3)):
        source = data[model] if model == "tiny-bert" else new[model]
        hint = fails(
            2, f"of {stages} stages", "finetune", model, source, "-o", tmp_path / "o", "--unfreeze", stages, "--seed", 9
        )
        assert hint == f"hint: --unfreeze {stages - 1} or less"
    hint = fails(2, "reads text", "finetune", "tiny-bert", data["tiny-bert"], "-o", tmp_path / "o", "--augment", 1)
    assert "--augment" in hint
    assert sorted(Zoo().store.home.rglob("*")) == before
    assert not (tmp_path / "o").exists()


def test_a_family_without_stages(zoo_home: Path, data: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "v.bin").write_bytes(binary(WORDS, vectors(len(WORDS), 16)))
    write_registry(tmp_path / "words.json", {"vectors": row(tmp_path / "v.bin", None, 16)})
    arguments = ("finetune", "vectors", data["tiny-bert"], "-o", tmp_path / "o", "--unfreeze", 1)
    hint = fails(2, "has no stages", *arguments, ZOO_REGISTRY=str(tmp_path / "words.json"))
    assert hint == "hint: --unfreeze 0"
    assert not list((zoo_home / "features").glob("*"))


def cached(home: Path) -> int:
    """The number of items in the feature caches."""
    return sum(path.stat().st_size // RECORD.size for path in (home / "features").glob("*.features/index"))


@pytest.mark.parametrize("unfreeze", [0, 1])
def test_views_are_trained_on_and_never_judged(
    kept_shelf: Path, kept_home: Path, data: dict[str, Path], tmp_path: Path, unfreeze: int
) -> None:
    images, out = data["tiny-lite"], tmp_path / "out"
    zoo("finetune", "tiny-lite", images, "-o", out, "--epochs", 1)
    plain = cached(kept_home)
    more = (
        "--augment",
        2,
        "--epochs",
        3,
        "--patience",
        100,
        "--batch",
        8,
        "--unfreeze",
        unfreeze,
        "--lr",
        0.003,
        "--json",
    )
    said = parsed(zoo("finetune", "tiny-lite", images, "-o", out, *more))["finetune"]
    items, held = said["items"], said["metrics"]["n"]
    train = items - held
    assert (items, held) == (30, 6)
    if not unfreeze:
        assert cached(kept_home) == plain + 2 * train
    # The checkpoint counts the steps of AdamW: an epoch has three rows for each item.
    [run] = [path for path in (kept_home / "training").iterdir() if _out(path) == out.resolve()]
    phase = max((run / ("tail-all" if unfreeze else "all")).iterdir())
    steps = load_file(phase / "state.safetensors")["adamw.steps"].item()
    assert steps == said["best_epoch"] * -(-3 * train // 8)
    found = parsed(zoo("evaluate", out, images, "--held-out", "--json"))["evaluation"]["metrics"]
    assert (found["n"], found["accuracy"]) == (held, said["metrics"]["accuracy"])
    again = parsed(zoo("finetune", "tiny-lite", images, "-o", out, *more))["finetune"]
    assert again["features_computed"] == 0
    assert again["metrics"] == said["metrics"]


def _out(run: Path) -> Path:
    return Path(json.loads((run / "run.json").read_text())["out"])
