"""Heads of models of images behind hf/ORG/NAME, vision towers, and checkpoints that are refused with the reason."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.hub import COMMIT, FakeHub
from tests.kit.image_models import answers, disturb, write_image_model
from tests.kit.libraries import change_json, hub_repo
from zoo import Zoo, ZooError
from zoo.data.labels import imagenet
from zoo.schema import PretrainedHead

TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PIXELS = np.random.default_rng(61).normal(size=(2, 3, 32, 32)).astype(np.float32)


def served(hub: FakeHub, folder: Path) -> Zoo:
    hub.add("acme/net", COMMIT, hub_repo(folder))
    return Zoo()


def test_several_labels_numbers_and_imagenet(hub: FakeHub, tmp_path: Path) -> None:
    import torch

    for problem, labels, head in (
        (
            "multi_label_classification",
            3,
            PretrainedHead(task="multi-label", activation="sigmoid", labels=("class 0", "class 1", "class 2")),
        ),
        ("regression", 1, PretrainedHead(task="regression", activation="identity", outputs=1)),
        (None, 1, PretrainedHead(task="regression", activation="sigmoid", outputs=1)),
        (
            "single_label_classification",
            1000,
            PretrainedHead(
                labels=(*imagenet().synonyms[:517], "crane (n03126707)", *imagenet().synonyms[518:]), ids=imagenet().ids
            ),
        ),
    ):
        config: dict[str, Any] = {"problem_type": problem}
        if labels == 1000:
            config["id2label"] = dict(enumerate(imagenet().synonyms))
        folder = tmp_path / f"{problem}"
        model = write_image_model(folder, "vit", seed=62 + labels, labels=labels, config=config)
        zoo = served(hub, folder)
        assert zoo.entry("hf/acme/net").head == head
        with torch.inference_mode():
            logits = model(pixel_values=torch.from_numpy(PIXELS)).logits
        functions = {"softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid, "identity": torch.clone}
        wanted = functions[head.activation](logits).numpy()
        np.testing.assert_allclose(answers(zoo, "hf/acme/net", PIXELS)["scores"], wanted, atol=1e-5)
        (zoo.store.home / "bridged" / "hf" / "acme" / "net.json").unlink()
        (zoo.store.home / "zoo.lock").unlink()


@pytest.mark.parametrize("kind", ["deit", "levit"])
def test_the_mean_of_two_classifiers(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    import torch

    model = write_image_model(tmp_path, kind, "ForImageClassificationWithTeacher", seed=71)
    zoo = served(hub, tmp_path)
    entry = zoo.entry("hf/acme/net")
    side = entry.preprocess.crop  # type: ignore[union-attr]
    pixels = np.random.default_rng(72).normal(size=(2, 3, side, side)).astype(np.float32)
    with torch.inference_mode():
        wanted = model(pixel_values=torch.from_numpy(pixels)).logits.softmax(-1).numpy()
    given = answers(zoo, "hf/acme/net", pixels)
    assert (entry.dim, given["features"].shape) == (64, (2, 64))
    np.testing.assert_allclose(given["scores"], wanted, atol=1e-5)


@pytest.mark.parametrize("prefix", ["CLIP", "Siglip"])
@pytest.mark.parametrize("head", ["Model", "ForImageClassification"])
def test_models_of_texts_and_images(hub: FakeHub, tmp_path: Path, prefix: str, head: str) -> None:
    """The encoder is the vision tower alone; the classifier is that of the whole repository."""
    import torch
    import transformers

    torch.manual_seed(81)
    text = {**TOWER, "vocab_size": 99, "max_position_embeddings": 20, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    config = getattr(transformers, f"{prefix}Config")(
        text_config={**text, "projection_dim": 24}, vision_config=vision, projection_dim=24, num_labels=5
    )
    model = getattr(transformers, prefix + head)(config).eval()
    disturb(model, 32)
    model.save_pretrained(tmp_path)
    getattr(transformers, f"{prefix}ImageProcessor")(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path)
    zoo = served(hub, tmp_path)
    entry = zoo.entry("hf/acme/net")
    assert (entry.dim, entry.head is None) == (32, head == "Model")
    given = answers(zoo, "hf/acme/net", PIXELS)
    with torch.inference_mode():
        if head == "Model":
            wanted = model.vision_model(pixel_values=torch.from_numpy(PIXELS)).pooler_output.numpy()
            np.testing.assert_allclose(given["features"], wanted, atol=1e-4)
        else:
            wanted = model(pixel_values=torch.from_numpy(PIXELS)).logits.softmax(-1).numpy()
            np.testing.assert_allclose(given["scores"], wanted, atol=1e-5)
    texts = sum(each.numel() for name, each in model.named_parameters() if "text" in name)
    assert head != "Model" or entry.params < sum(each.numel() for each in model.parameters()) - texts + 1


@pytest.mark.parametrize(
    ("kind", "head"),
    [("vit", "ForMaskedImageModeling"), ("beit", "ForSemanticSegmentation"), ("swin", "ForMaskedImageModeling")],
)
def test_an_unknown_head_is_named_and_the_features_work(hub: FakeHub, tmp_path: Path, kind: str, head: str) -> None:
    import torch

    more = {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]} if kind == "beit" else {}
    model = write_image_model(tmp_path, kind, head, seed=91, config=more)
    zoo = served(hub, tmp_path)
    entry = zoo.entry("hf/acme/net")
    assert entry.head is None
    assert entry.no_head == f"zoo does not export the head of {type(model).__name__}"
    with torch.inference_mode():
        output = getattr(model, model.base_model_prefix)(pixel_values=torch.from_numpy(PIXELS))
    # Neither file has weights of a pooling: Swin's needs none, the others' features are the CLS token.
    wanted = output.last_hidden_state.mean(1) if kind == "swin" else output.last_hidden_state[:, 0]
    np.testing.assert_allclose(answers(zoo, "hf/acme/net", PIXELS)["features"], wanted.numpy(), atol=1e-4)


def test_half_precision_and_the_names_of_older_files(hub: FakeHub, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    model = write_image_model(tmp_path, "vit", seed=95)
    state = load_file(tmp_path / "model.safetensors")
    assert "vit.encoder.layer.0.attention.attention.query.weight" in state
    save_file({name: each.half() for name, each in state.items()}, tmp_path / "model.safetensors")
    with torch.inference_mode():
        wanted = model(pixel_values=torch.from_numpy(PIXELS)).logits.softmax(-1).numpy()
    given = answers(served(hub, tmp_path), "hf/acme/net", PIXELS)["scores"]
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, wanted, atol=5e-3)


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, 5, "the classifier gives 7 scores, but id2label has 2 labels"),
        ({"id2label": dict.fromkeys("0123456", "a")}, 5, "has the label 'a' twice"),
        ({"id2label": {"1": "a"}}, 5, "does not number its labels"),
        ({"problem_type": "ranking"}, 5, "problem_type 'ranking'"),
        ({"model_type": "novel", "auto_map": {"AutoModel": "x.Y"}}, 2, r"needs its own code \(trust_remote_code\)"),
        ({"model_type": "novel"}, 3, "has no architecture 'novel'"),
        ({"model_type": "timm_wrapper"}, 2, "is a model of timm"),
        ({"model_type": "vit_mae"}, 2, "leaves out random parts"),
        ({"model_type": "ijepa", "architectures": ["IJepaModel"]}, 2, "no single vector"),
        ({"model_type": "llava", "vision_config": {}}, 2, "no images of the architecture 'llava'"),
        ({"image_size": 64}, 5, "not describe a network"),
        ({"hidden_size": 0}, 5, "not describe a network"),
        ({"hidden_size": 40}, 5, "from 32 features, but the row has 7 labels and 40 features"),
        ({"num_hidden_layers": 3}, 5, "lacks vit.layers.2"),
    ],
    ids=str,
)
def test_what_is_refused(hub: FakeHub, tmp_path: Path, changes: dict[str, Any], code: int, said: str) -> None:
    write_image_model(tmp_path, "vit", seed=96)
    change_json(tmp_path / "config.json", **changes)
    zoo = served(hub, tmp_path)
    with pytest.raises(ZooError, match=said) as caught:
        answers(zoo, "hf/acme/net", PIXELS)
    assert caught.value.exit_code == code
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_code_of_a_repository_is_never_run(hub: FakeHub, tmp_path: Path) -> None:
    repo, canary = tmp_path / "repo", tmp_path / "canary"
    write_image_model(repo, "vit", seed=97)
    (repo / "evil.py").write_text(f"from pathlib import Path\nPath({str(canary)!r}).touch()\n")
    code = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    change_json(repo / "config.json", auto_map=code, trust_remote_code=True, _name_or_path="acme/other")
    change_json(repo / "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Processor"})
    assert json.loads((repo / "config.json").read_text())["auto_map"]
    given = answers(served(hub, repo), "hf/acme/net", PIXELS)
    assert np.isfinite(given["scores"]).all()
    assert not canary.exists()
    assert not any("evil" in seen.path for seen in hub.requests)
