"""timm/NAME with the real Hub client and the loopback Hub: supported and refused repositories of timm."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.hub import COMMIT, FakeHub
from tests.kit.libraries import change_json, hub_repo, write_timm
from zoo import IntegrityError, NotFoundError, UsageError, Zoo, label_names
from zoo.data.samples import FOLDER
from zoo.export.reference import pillow_pixels
from zoo.graph.prefix import image_prefix
from zoo.runtime.ort import create_session
from zoo.runtime.pixels import PixelReader
from zoo.schema import ImagePreprocess


def answers_of(zoo: Zoo, name: str, feeds: dict[str, np.ndarray]) -> Any:
    """The features and scores of the family's reference on the pulled files."""
    folder = zoo.pull(name, trust_first=True)
    entry = zoo.entry(name)
    return zoo.plugins.backbone(entry.family)(entry, folder).reference(feeds)


@pytest.mark.parametrize(
    ("arch", "arguments"),
    [
        ("test_resnet", {}),
        ("test_vit", {}),
        ("test_efficientnet", {"num_classes": 7}),
        ("mobilenetv3_small_050", {}),
        ("test_vit3", {"img_size": 96}),
        ("test_maxvit", {}),
    ],
)
def test_timm_models_keep_their_features(hub: FakeHub, tmp_path: Path, arch: str, arguments: dict[str, Any]) -> None:
    import torch

    model = write_timm(tmp_path / "repo", arch, **arguments)
    hub.add("timm/" + arch + ".test", COMMIT, hub_repo(tmp_path / "repo"))
    zoo = Zoo()
    entry = zoo.entry(f"timm/{arch}.test")
    assert isinstance(entry.preprocess, ImagePreprocess)
    side = entry.preprocess.crop
    pixels = np.random.default_rng(0).normal(size=(2, 3, side, side)).astype(np.float32)
    with torch.inference_mode():
        scores = model(torch.from_numpy(pixels)).softmax(1).numpy()
        # timm's features: the whole model without its classifier.
        model.reset_classifier(0)
        wanted = model(torch.from_numpy(pixels)).numpy()
    assert entry.dim == wanted.shape[1]
    assert np.abs(wanted).max() > 0.01
    found = answers_of(zoo, f"timm/{arch}.test", {"pixels": pixels})
    np.testing.assert_allclose(found["features"], wanted, atol=1e-4)
    np.testing.assert_allclose(np.log(found["scores"]), np.log(scores), atol=1e-4)
    assert scores.shape[1] == len(label_names(entry.head))


@pytest.mark.parametrize(
    ("changes", "some"),
    [
        ({"num_classes": 21841}, {0: "organism, being", 1000: "snapping turtle"}),
        ({"num_classes": 11821}, {}),
        ({"num_classes": 3, "label_names": ["n1", "n2", "n3"]}, {0: "n1"}),
        (
            {
                "num_classes": 3,
                "label_names": ["n1", "n2", "n3"],
                "label_descriptions": {"n1": "crane", "n2": "egg", "n3": "crane"},
            },
            {0: "crane (n1)", 1: "egg", 2: "crane (n3)"},
        ),
        ({"num_classes": 5}, {4: "LABEL_4"}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_labels_of_timms_classifiers(
    hub: FakeHub, tmp_path: Path, changes: dict[str, Any], some: dict[int, str]
) -> None:
    write_timm(tmp_path, "test_convnext")
    change_json(tmp_path / "config.json", **changes)
    hub.add("timm/test_convnext.test", COMMIT, hub_repo(tmp_path))
    head = Zoo().entry("timm/test_convnext.test").head
    assert head is not None
    labels = label_names(head)
    assert len(labels) == len(set(labels)) == changes["num_classes"]
    assert {index: labels[index] for index in some} == some
    assert head.ids == () or len(head.ids) == len(labels)


def test_timm_weights_without_a_classifier_say_so(hub: FakeHub, tmp_path: Path) -> None:
    write_timm(tmp_path, "test_convnext", num_classes=0)
    hub.add("timm/test_convnext.test", COMMIT, hub_repo(tmp_path))
    entry = Zoo().entry("timm/test_convnext.test")
    assert (entry.head, entry.no_head) == (None, "timm lists no classifier for these weights")
    with pytest.raises(UsageError, match="has no labels: timm lists no classifier for these weights"):
        Zoo().evaluate("timm/test_convnext.test", FOLDER)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_classes": 3, "label_names": ["a", "b"]}, "config.json lists 2 labels for 3 classes"),
        ({"num_classes": 3, "label_names": ["a", "b", "a"]}, "config.json lists a label twice"),
    ],
)
def test_labels_that_do_not_fit_are_an_error(hub: FakeHub, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write_timm(tmp_path, "test_convnext")
    change_json(tmp_path / "config.json", **changes)
    hub.add("timm/test_convnext.test", COMMIT, hub_repo(tmp_path))
    with pytest.raises(IntegrityError, match=said) as caught:
        Zoo().entry("timm/test_convnext.test")
    assert caught.value.hint


def test_a_classifier_of_another_size_is_an_error(hub: FakeHub, tmp_path: Path) -> None:
    write_timm(tmp_path, "test_convnext")
    change_json(tmp_path / "config.json", num_classes=7)
    hub.add("timm/test_convnext.test", COMMIT, hub_repo(tmp_path))
    side = Zoo().entry("timm/test_convnext.test").preprocess.crop  # type: ignore[union-attr]
    with pytest.raises(IntegrityError, match=r"model\.safetensors has wrong shapes for head\.fc\.bias, head"):
        answers_of(Zoo(), "timm/test_convnext.test", {"pixels": np.zeros((1, 3, side, side), np.float32)})


def test_a_timm_entry_says_what_the_repository_says(hub: FakeHub, tmp_path: Path) -> None:
    write_timm(tmp_path, "test_convnext")
    hub.add("timm/test_convnext.r160_in1k", COMMIT, hub_repo(tmp_path, card="license: cc-by-nc-4.0"))
    entry = Zoo().entry("timm/Test_ConvNeXt.r160_in1k".replace("Test_ConvNeXt", "test_convnext"))
    assert (entry.name, entry.family, entry.license) == ("timm/test_convnext.r160_in1k", "timm", "CC-BY-NC-4.0")
    assert (entry.origin, entry.dim) == ("https://huggingface.co/timm/test_convnext.r160_in1k", 64)
    preprocess = ImagePreprocess(resize=168, crop=160, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert entry.preprocess == preprocess
    assert [file.path for file in entry.files] == ["config.json", "model.safetensors"]
    assert all(f"@{COMMIT}/" in url for file in entry.files for url in file.sources)
    assert not entry.is_pinned
    # The 65,000 numbers of the classifier are included, as on the Hub.
    assert entry.params == 207128 + 65000
    # A bare architecture means timm's default weights.
    assert Zoo().entry("timm/test_convnext").files == entry.files


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_timms_preprocessing_is_timms_transform(
    hub: FakeHub, tmp_path: Path, crop_mode: str, interpolation: str
) -> None:
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    write_timm(tmp_path, "test_convnext")
    changes = {"crop_mode": crop_mode, "interpolation": interpolation}
    config = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"] | changes
    change_json(tmp_path / "config.json", pretrained_cfg=config)
    hub.add("timm/test_convnext.test", COMMIT, hub_repo(tmp_path))
    preprocess = Zoo().entry("timm/test_convnext.test").preprocess
    assert isinstance(preprocess, ImagePreprocess)
    assert preprocess.squash == (crop_mode == "squash")
    data = resolve_data_config(pretrained_cfg=config)
    transform = create_transform(**data)
    assert data["crop_mode"] == crop_mode
    session = create_session(image_prefix(preprocess).SerializeToString(), "cpu")
    reader, shares = PixelReader(preprocess), []
    for path in sorted(FOLDER.glob("*.jpg")):
        image = Image.open(path).convert("RGB").resize((520, 391) if "coffee" in path.name else (417, 480))
        wanted = transform(image).numpy()
        by_reader = reader.pixels([reader.levels(image)])
        [by_graph] = session.run(None, {"image": np.asarray(image)[None]})
        for ours in (pillow_pixels(np.asarray(image), preprocess), by_graph[0], by_reader[0]):
            # One grey level is 1 / 255 / std.
            levels = np.abs(ours - wanted) * 255 * 0.5
            assert levels.max() <= 2.001
            shares.append((levels > 0.5).mean())
    assert np.mean(shares) < 0.004


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crop_mode": "border"}, "crop mode border"),
        ({"input_size": [3, 160, 192]}, "160x192 pixels, which is not square"),
        ({"interpolation": "lanczos"}, "lanczos interpolation"),
        ({"crop_pct": 1.2}, "crop_pct 1.2"),
    ],
)
def test_preprocessing_that_cannot_be_said_is_an_error(
    hub: FakeHub, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    write_timm(tmp_path, "test_convnext")
    config = json.loads((tmp_path / "config.json").read_text())
    change_json(tmp_path / "config.json", pretrained_cfg={**config["pretrained_cfg"], **changes})
    hub.add("timm/test_convnext.test", COMMIT, hub_repo(tmp_path))
    with pytest.raises(UsageError, match=said) as caught:
        Zoo().entry("timm/test_convnext.test")
    assert caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "hf-hub:evil/net"},
        {"architecture": "local-dir:/tmp"},
        {"model_args": {"checkpoint_path": "CANARY"}},
        {"model_args": {"pretrained": True}},
        {"model_args": {"norm_layer": {"code": "x"}}},
        {"model_args": {"features_only": True}},
        {"model_args": {"in_chans": 1}},
        {"model_args": {"no_such_argument": 1}},
        {"model_args": {"depths": "many"}},
        {"pretrained_cfg": {"input_size": [3, "x", 224]}},
    ],
    ids=str,
)
def test_a_timm_configuration_that_is_refused(hub: FakeHub, tmp_path: Path, changes: dict[str, Any]) -> None:
    write_timm(tmp_path / "repo", "test_convnext")
    canary = tmp_path / "canary.pth"
    text = json.dumps(changes).replace("CANARY", str(canary))
    change_json(tmp_path / "repo" / "config.json", **json.loads(text))
    hub.add("timm/test_convnext.test", COMMIT, hub_repo(tmp_path / "repo"))
    said = "not an argument of the network|has no architecture|feature maps|a network that timm can build: [^\\n]+$"
    with pytest.raises((IntegrityError, NotFoundError), match=said):
        Zoo().entry("timm/test_convnext.test")


def test_an_unknown_architecture_of_timm_is_guessed(hub: FakeHub) -> None:
    with pytest.raises(NotFoundError, match="no architecture 'convnext_tinny'") as caught:
        Zoo().entry("timm/convnext_tinny.fb_in1k")
    assert "convnext_tiny" in (caught.value.hint or "")
    assert hub.requests == []
    with pytest.raises(NotFoundError, match="no such repository") as caught:
        Zoo().entry("timm/convnext_tiny.fb_in1kk")
    assert "timm/convnext_tiny.fb_in1k " in (caught.value.hint or "")
