"""Checkpoints in several safetensors files behind hf/ORG/NAME: equal to one file, and every tensor accounted for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.berts import tokens
from tests.kit.cli import zoo as command
from tests.kit.hub import COMMIT, FakeHub
from tests.kit.image_models import answers, write_image_model
from tests.kit.libraries import change_json, hub_repo, write_encoder
from zoo import IntegrityError, Zoo, ZooError

INDEX = "model.safetensors.index.json"
PIXELS = np.random.default_rng(51).normal(size=(2, 3, 32, 32)).astype(np.float32)


def split(folder: Path, model: Any) -> list[str]:
    """Save the model again in shards; returns their names."""
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return sorted(path.name for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("kind", ["vit", "Bert", "Electra"])
def test_shards_equal_one_file(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    if kind == "vit":
        model, feeds = write_image_model(tmp_path, kind, seed=52), {"pixels": PIXELS}
    else:
        model = write_encoder(tmp_path, kind, **({"embedding_size": 16} if kind == "Electra" else {}))
        feeds = tokens(3, 21)
    hub.add("acme/one", COMMIT, hub_repo(tmp_path))
    shards = split(tmp_path, model)
    assert len(shards) > 2
    hub.add("acme/many", COMMIT, hub_repo(tmp_path))
    zoo = Zoo()
    one, many = ([zoo.entry(name), zoo.pull(name, trust_first=True)] for name in ("hf/acme/one", "hf/acme/many"))
    listed = [file.path for file in many[0].files]
    assert listed[-len(shards) - 1 :] == [INDEX, *shards]
    # Each shard is checked against a sha256 of its own.
    assert {*shards, INDEX} <= set(json.loads((zoo.store.home / "zoo.lock").read_text())["entries"]["hf/acme/many"])
    given = [zoo.plugins.backbone(entry.family)(entry, folder).reference(feeds) for entry, folder in (one, many)]
    assert set(given[0]) == set(given[1])
    for name, wanted in given[0].items():
        np.testing.assert_array_equal(given[1][name], wanted)
    assert np.abs(given[0]["features"]).max() > 0.01


@pytest.mark.slow
def test_shards_go_the_whole_way(hub: FakeHub, tmp_path: Path) -> None:
    model = write_image_model(tmp_path / "repo", "convnext", seed=53)
    split(tmp_path / "repo", model)
    hub.add("acme/many", COMMIT, hub_repo(tmp_path / "repo"))
    assert command("pull", "hf/acme/many", "--trust-first").returncode == 0
    done = command("export", "hf/acme/many", "-o", tmp_path / "onnx", ZOO_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert command("verify", "hf/acme/many", ZOO_OFFLINE="1").returncode == 0


def lost(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


def mapped(**changes: Any) -> Callable[[Path], None]:
    """Changes the shard of the first tensor: `to` a file, or `as_name` another tensor, or `drop` it from the index."""

    def change(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())["weight_map"]
        name = min(index)
        shard = index.pop(name)
        if not changes.get("drop"):
            index[changes.get("as_name", name)] = changes.get("to", shard)
        change_json(folder / INDEX, weight_map=index)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lost, "lacks model-00002-of-000.*, which model.safetensors.index.json lists"),
        (mapped(to="../../etc/passwd.safetensors"), "does not list the shards of a checkpoint"),
        (mapped(to="/etc/passwd.safetensors"), "does not list the shards of a checkpoint"),
        (mapped(to="folder/model.safetensors"), "does not list the shards of a checkpoint"),
        (mapped(to="evil.bin"), "lists 'evil.bin' as a shard"),
        (mapped(to=3), "does not list the shards of a checkpoint"),
        (mapped(to="model-00003-of-00009.safetensors"), "lacks model-00003-of-00009.safetensors, which"),
        (mapped(drop=True), r"model-\d+-of-\d+.safetensors has \S+, which model.safetensors.index.json does not list"),
        (mapped(as_name="vit.novel"), r"model-\d+-of-\d+.safetensors (has|lacks) \S+, which"),
        (lambda folder: change_json(folder / INDEX, weight_map={}), "lists nothing as a shard"),
        (lambda folder: (folder / INDEX).write_text("[]"), "does not list the shards of a checkpoint"),
    ],
)
def test_a_wrong_index_is_refused_in_a_line(
    hub: FakeHub, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    split(tmp_path, write_image_model(tmp_path, "vit", seed=54))
    change(tmp_path)
    hub.add("acme/many", COMMIT, hub_repo(tmp_path))
    with pytest.raises(IntegrityError, match=said) as caught:
        answers(Zoo(), "hf/acme/many", PIXELS)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_shards_of_pickles_are_refused(hub: FakeHub, tmp_path: Path) -> None:
    write_image_model(tmp_path, "vit", seed=55)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model-00001-of-00002.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    hub.add("acme/many", COMMIT, hub_repo(tmp_path))
    with pytest.raises(ZooError, match="keeps its weights in several pickles") as caught:
        Zoo().entry("hf/acme/many")
    assert INDEX in (caught.value.hint or "")
