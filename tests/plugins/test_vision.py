"""ResNet, Inception and GoogLeNet, classifiers included, against their references on the same loopback files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from zoo_plugins.backbones.efficientnet import EfficientNet
from zoo_plugins.backbones.inception import Inception

from tests.kit.upstream import ROWS, Upstream, pixels
from tests.kit.vision import FAMILIES, ours, with_config
from zoo import IntegrityError, RegistryError, Zoo
from zoo.runtime.ort import create_session
from zoo.torchkit import TorchBackbone

TORCHVISION = (
    "resnet18.tv_in1k_pth", "resnet34.tv_in1k_pth", "resnet50.tv2_in1k", "resnet101.tv_in1k", "resnet152.tv_in1k",
    "inception_v3.tv_in1k", "googlenet.tv_in1k",
)  # fmt: skip
TIMM = ("resnet18.tv_in1k", "resnet34.a1_in1k_bin", "resnet50.tv_in1k")
TRANSFORMERS = ("resnet18.ms_in1k", "resnet50.ms_in1k")
#: Rows whose whole graph is built: the two promised ones, and the smallest, whose pools round up.
EXPORTED = ("resnet50.tv_in1k", "inception_v3.tv_in1k", "googlenet.tv_in1k")
#: Large rows whose code other rows run: resnet18 the basic block, resnet50.tv2 the bottleneck, googlenet the stages of
#: Inception v3.
LARGE = {
    "resnet34.tv_in1k_pth", "resnet101.tv_in1k", "resnet152.tv_in1k", "inception_v3.tv_in1k",
    "resnet34.a1_in1k_bin", "resnet50.tv_in1k",
}  # fmt: skip
BOUND = 1e-4


def by_torchvision(row: dict[str, Any], checkpoint: Path, feed: torch.Tensor) -> dict[str, np.ndarray]:
    """The answers of torchvision's class with the checkpoint, built as torchvision builds it for its weights."""
    from safetensors.torch import load_file
    from torchvision import models

    arch, extra = row["config"]["arch"], {}
    if row["family"] == "inception":
        extra = {"init_weights": False, "aux_logits": True, "transform_input": True}
    model = models.get_model(arch, **extra)
    is_plain = checkpoint.suffix == ".safetensors"
    model.load_state_dict(load_file(checkpoint) if is_plain else torch.load(checkpoint, weights_only=True))
    scores = run(model, feed).softmax(1)
    model.fc = torch.nn.Identity()
    return {"features": run(model, feed).numpy(), "scores": scores.numpy()}


def by_timm(row: dict[str, Any], checkpoint: Path, feed: torch.Tensor, **extra: Any) -> dict[str, np.ndarray]:
    """The answers of timm's class with the checkpoint, loaded by timm."""
    import timm

    model = timm.create_model(row["config"]["arch"], pretrained=False, **extra)
    timm.models.load_checkpoint(model, str(checkpoint), weights_only=True)
    scores = run(model, feed).softmax(1)
    model.reset_classifier(0)
    return {"features": run(model, feed).numpy(), "scores": scores.numpy()}


def by_transformers(folder: Path, feed: torch.Tensor) -> dict[str, np.ndarray]:
    """The answers of transformers' classes loaded from a folder that transformers saved."""
    from transformers import ResNetForImageClassification, ResNetModel

    model = ResNetModel.from_pretrained(folder, local_files_only=True)
    classifier = ResNetForImageClassification.from_pretrained(folder, local_files_only=True)
    features = run(lambda value: model.eval()(value).pooler_output.flatten(1), feed)
    scores = run(lambda value: classifier.eval()(value).logits.softmax(1), feed)
    return {"features": features.numpy(), "scores": scores.numpy()}


def run(model: Any, feed: torch.Tensor) -> torch.Tensor:
    if isinstance(model, torch.nn.Module):
        model.eval()
    with torch.inference_mode():
        answer = model(feed)
    # timm's Inception returns the output of its auxiliary head, too.
    found: torch.Tensor = answer[0] if isinstance(answer, tuple) else answer
    return found


def check_same(got: Any, wanted: dict[str, np.ndarray]) -> None:
    """Features and scores agree within BOUND, and differ enough between images for that bound to mean something."""
    assert wanted["features"].std(axis=0).mean() > 0.05
    assert np.abs(wanted["features"]).max() > 0.5
    np.testing.assert_allclose(got["features"], wanted["features"], atol=BOUND, rtol=0)
    # Each of a thousand scores is small, so they are compared as logarithms.
    logs = np.log(wanted["scores"])
    assert logs.shape[1] == 1000
    assert logs.std(axis=1).mean() > 100 * BOUND
    np.testing.assert_allclose(np.log(got["scores"]), logs, atol=3 * BOUND, rtol=0)


def rows(names: Sequence[str]) -> pytest.MarkDecorator:
    """Run a test once for each row; large rows are slow."""
    marked = [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in names]
    return pytest.mark.parametrize("name", marked)


@rows(TORCHVISION)
def test_features_are_torchvisions(upstream: Upstream, name: str) -> None:
    backbone, feed = ours(upstream, name), pixels(ROWS[name])
    got = backbone.reference({"pixels": feed.numpy()})
    checkpoint = upstream.provide(name) / ROWS[name]["files"][0]["path"]
    check_same(got, by_torchvision(ROWS[name], checkpoint, feed))
    check_stages(backbone, feed[:2])


@rows(TIMM)
def test_features_are_timms(upstream: Upstream, name: str) -> None:
    feed = pixels(ROWS[name])
    got = ours(upstream, name).reference({"pixels": feed.numpy()})
    checkpoint = upstream.provide(name) / ROWS[name]["files"][0]["path"]
    check_same(got, by_timm(ROWS[name], checkpoint, feed))


@rows(TRANSFORMERS)
def test_features_are_transformers(upstream: Upstream, name: str) -> None:
    feed = pixels(ROWS[name])
    got = ours(upstream, name).reference({"pixels": feed.numpy()})
    check_same(got, by_transformers(upstream.provide(name), feed))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_the_onnx_graph_is_torchvisions(upstream: Upstream, name: str) -> None:
    """At full size the graph passes its parity check and equals torchvision from the pixels on."""
    import onnx

    from zoo.graph import edit

    checkpoint = upstream.provide(name) / ROWS[name]["files"][0]["path"]
    upstream.pull(name)
    bundle = Zoo(home=upstream.home, registry=upstream.registry).graph(name)
    assert bundle.manifest.parity.passed
    body = edit.extract(onnx.load_from_string(bundle.read_model()), ["pixels"], ["features", "scores"])
    feed = pixels(ROWS[name])
    answers = create_session(body.SerializeToString(), "cpu").run(None, {"pixels": feed.numpy()})
    got = dict(zip(("features", "scores"), answers, strict=True))
    check_same(got, by_torchvision(ROWS[name], checkpoint, feed))


def test_twins_are_the_same_weights(upstream: Upstream) -> None:
    feed = {"pixels": pixels(ROWS["resnet18.tv_in1k"], 3).numpy()}
    plain, pickled = (ours(upstream, name).reference(feed) for name in ("resnet18.tv_in1k", "resnet18.tv_in1k_pth"))
    np.testing.assert_array_equal(plain["features"], pickled["features"])


@pytest.mark.slow
def test_timms_inception_takes_other_pixels(upstream: Upstream, tmp_path: Path) -> None:
    """timm's pixels are normalised to 0.5 outside of the network, so `transform_input` is false; the features agree."""
    from safetensors.torch import save_file

    name = "inception_v3.tv_in1k"
    row = ROWS[name]
    state = torch.load(upstream.provide(name) / row["files"][0]["path"], weights_only=True)
    save_file(state, tmp_path / "model.safetensors")
    half = {**row["preprocess"], "mean": [0.5] * 3, "std": [0.5] * 3}
    feed, other = pixels({**row, "preprocess": half}, 2), pixels(row, 2)
    inside = ours(upstream, name)
    outside = Inception(with_config(inside.entry, "model.safetensors", transform_input=False), tmp_path)
    got = outside.reference({"pixels": feed.numpy()})
    check_same(got, by_timm(row, tmp_path / "model.safetensors", feed, aux_logits=True))
    renormalised = inside.reference({"pixels": other.numpy()})["features"]
    np.testing.assert_allclose(got["features"], renormalised, atol=BOUND)
    mixed_up = outside.reference({"pixels": other.numpy()})["features"]
    assert np.abs(mixed_up - renormalised).max() > 0.1


@pytest.mark.parametrize(("name", "heads"), [("inception_v3.tv_in1k", "AuxLogits."), ("googlenet.tv_in1k", "aux")])
def test_auxiliary_heads_may_be_absent(upstream: Upstream, tmp_path: Path, name: str, heads: str) -> None:
    backbone = ours(upstream, name)
    state = torch.load(upstream.provide(name) / ROWS[name]["files"][0]["path"], weights_only=True)
    bare = {key: tensor for key, tensor in state.items() if not key.startswith((heads, "fc."))}
    assert len(bare) < len(state) - 2
    torch.save(bare, tmp_path / "bare.pth")
    feed = {"pixels": pixels(ROWS[name], 2).numpy()}
    entry = with_config(backbone.entry, "bare.pth")
    with pytest.raises(IntegrityError, match=r"bare\.pth lacks weight, bias"):
        Inception(entry, tmp_path).reference(feed)
    got = Inception(msgspec.structs.replace(entry, head=None), tmp_path).reference(feed)["features"]
    np.testing.assert_array_equal(got, backbone.reference(feed)["features"])


@pytest.mark.parametrize(
    ("name", "config", "problem", "known"),
    [
        ("resnet18.tv_in1k", {"arch": "resnet20"}, "config.arch is 'resnet20'", "resnet18, resnet34"),
        ("resnet18.tv_in1k", {"arch": None}, "config.arch is None", "resnet152"),
        ("resnet18.tv_in1k", {"arch": ["resnet18"]}, "config.arch is", "resnet152"),
        ("resnet18.ms_in1k", {"layout": "jax"}, "config.layout is 'jax'", "torchvision, transformers"),
        ("googlenet.tv_in1k", {"arch": "inception_v4"}, "config.arch is 'inception_v4'", "inception_v3, googlenet"),
        ("googlenet.tv_in1k", {"transform_input": None}, "config.transform_input is None", "false for 0.5"),
        ("googlenet.tv_in1k", {"transform_input": "yes"}, "config.transform_input is 'yes'", "true for ImageNet"),
    ],
)
def test_unknown_config_is_the_registrys_fault(
    tmp_path: Path, name: str, config: dict[str, Any], problem: str, known: str
) -> None:
    entry = Zoo().entry(name)
    with pytest.raises(RegistryError, match=problem) as caught:
        FAMILIES[entry.family](with_config(entry, "w.pth", **config), tmp_path)
    assert known in str(caught.value.hint)


def check_stages(backbone: TorchBackbone, feed: torch.Tensor) -> None:
    """The stages one after another equal the module to the bit, and only the first one gets the pixels."""
    stages = backbone.stages()
    assert len(stages) >= 4
    tensors = {"pixels": feed}
    with torch.inference_mode():
        for number, stage in enumerate(stages):
            tensors = stage(tensors)
            assert list(tensors) == (["activations"] if number < len(stages) - 1 else ["features"])
        torch.testing.assert_close(tensors["features"], backbone.module(feed), rtol=0, atol=0)
    owned = [parameter for stage in stages for parameter in stage.parameters()]
    assert {id(each) for each in owned} == {id(each) for each in backbone.module.parameters()}
    assert len(owned) == len(list(backbone.module.parameters()))


def test_efficientnet_says_its_stages(shelf: Path) -> None:
    zoo = Zoo()
    backbone = EfficientNet(zoo.entry("tiny-lite"), zoo.pull("tiny-lite"))
    check_stages(backbone, torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    assert len(backbone.stages()) == 9
