"""Models of images behind hf/ORG/NAME, compared with transformers on repositories that transformers wrote."""

from pathlib import Path

import numpy as np
import pytest

from tests.kit.hub import COMMIT, FakeHub
from tests.kit.image_models import IMAGE_SHAPES, answers, write_image_model
from tests.kit.libraries import hub_repo
from zoo import UsageError, Zoo
from zoo.schema import ImagePreprocess, PretrainedHead

ENCODERS = {"dinov3_vit", "dinov3_convnext", "clip_vision_model", "siglip_vision_model"}
#: Their encoders give a map of features, not one vector.
MAPS = {"poolformer", "segformer"}


def pixels_for(zoo: Zoo, name: str, seed: int) -> np.ndarray:
    preprocess = zoo.entry(name).preprocess
    assert isinstance(preprocess, ImagePreprocess)
    return np.random.default_rng(seed).normal(size=(3, 3, preprocess.crop, preprocess.crop)).astype(np.float32)


@pytest.mark.parametrize("kind", sorted(set(IMAGE_SHAPES) - ENCODERS))
def test_classifiers_keep_their_scores(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    import torch

    seed = 100 + sorted(IMAGE_SHAPES).index(kind)
    model = write_image_model(tmp_path, kind, seed=seed)
    hub.add("acme/net", COMMIT, hub_repo(tmp_path))
    zoo = Zoo()
    entry, pixels = zoo.entry("hf/acme/net"), pixels_for(zoo, "hf/acme/net", seed)
    assert entry.head == PretrainedHead(labels=tuple(f"class {index}" for index in range(7)))
    assert entry.no_head is None
    read: list[torch.Tensor] = []
    *_, last = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    last.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    with torch.inference_mode():
        wanted = model(pixel_values=torch.from_numpy(pixels)).logits.softmax(-1).numpy()
    assert wanted.std(axis=0).max() > 0.002
    given = answers(zoo, "hf/acme/net", pixels)
    np.testing.assert_allclose(given["scores"], wanted, atol=1e-5)
    np.testing.assert_allclose(given["features"], read[0].numpy(), atol=1e-4)
    assert given["features"].shape == (3, entry.dim)


@pytest.mark.parametrize("kind", sorted(IMAGE_SHAPES))
def test_encoders_keep_their_features(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    import torch

    seed = 200 + sorted(IMAGE_SHAPES).index(kind)
    model = write_image_model(tmp_path, kind, "Model", seed=seed)
    hub.add("acme/net", COMMIT, hub_repo(tmp_path))
    zoo = Zoo()
    if kind in MAPS:
        with pytest.raises(UsageError, match="no single vector"):
            zoo.entry("hf/acme/net")
        return
    entry, pixels = zoo.entry("hf/acme/net"), pixels_for(zoo, "hf/acme/net", seed)
    assert (entry.head, entry.no_head) == (None, "the weights are an encoder without a classifier")
    with torch.inference_mode():
        output = model(pixel_values=torch.from_numpy(pixels))
    pooled = output.get("pooler_output")
    wanted = (output.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1).numpy()
    given = answers(zoo, "hf/acme/net", pixels)
    assert set(given) == {"features"}
    assert given["features"].shape == (3, entry.dim)
    np.testing.assert_allclose(given["features"], wanted, atol=1e-4)
    assert wanted.std(axis=0).max() > 0.01
