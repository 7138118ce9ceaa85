"""hf/ORG/NAME of images by the real command line: `zoo run` gives the answers of transformers' own pipelines."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.kit.cli import parsed, zoo
from tests.kit.hub import COMMIT, FakeHub
from tests.kit.image_models import write_image_model
from tests.kit.libraries import hub_repo
from zoo.data.labels import imagenet
from zoo.data.samples import FOLDER

slow = partial(pytest.param, marks=pytest.mark.slow)
GONE = {"HF_ENDPOINT": "http://127.0.0.1:9", "ZOO_OFFLINE": "1"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The Hub to which the children send their requests."""
    with FakeHub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.origin)
        yield running


def odd_pictures(folder: Path) -> list[Path]:
    """Photographs in shapes, modes and formats that programs often get wrong."""
    folder.mkdir()
    photos = [Image.open(path).convert("RGB") for path in sorted(FOLDER.glob("*.jpg"))]
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    clear = photos[2].resize((131, 97)).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    pictures: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "tall.png": (photos[0].resize((61, 240)), {}),
        "wide.png": (photos[1].resize((259, 90)), {}),
        "tiny.png": (photos[2].resize((9, 13)), {}),
        "grey.png": (photos[3].convert("L"), {}),
        "palette.png": (photos[4].convert("P", palette=Image.Palette.ADAPTIVE), {}),
        "clear.png": (clear, {}),
        "cmyk.jpg": (photos[5].resize((130, 101)).convert("CMYK"), {}),
        "turned.jpg": (photos[1].resize((141, 93)), {"exif": turned, "quality": 95}),
    }
    for name, (image, options) in pictures.items():
        image.save(folder / name, **options)
    return [folder / name for name in pictures]


@pytest.mark.parametrize(
    ("kind", "seed", "settings"),
    [
        ("convnext", 32, {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
        slow("vit", 31, {"config": {"image_size": 224, "patch_size": 16}}),
        slow("resnet", 33, {"size": {"shortest_edge": 224}, "crop_pct": 0.95, "resample": 2}),
        slow("dinov2", 34, {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}),
    ],
)
def test_pictures_get_the_labels_of_the_pipeline(
    server: FakeHub, tmp_path: Path, kind: str, seed: int, settings: dict[str, Any]
) -> None:
    from transformers import pipeline

    write_image_model(tmp_path / "repo", kind, seed=seed, **settings)
    server.add("acme/net", COMMIT, hub_repo(tmp_path / "repo"))
    done = zoo("pull", "hf/acme/net", "--trust-first")
    assert done.returncode == 0, done.stderr
    pictures = odd_pictures(tmp_path / "pictures")
    done = zoo("run", "hf/acme/net", *pictures, "--device", "cpu", "--top", "7", "--json", **GONE)
    given = parsed(done)["run"]["results"]
    classify = pipeline("image-classification", model=str(tmp_path / "repo"), device="cpu")
    for path, answer in zip(pictures, given, strict=True):
        wanted = classify(str(path), top_k=7)
        assert [label["name"] for label in answer["labels"]] == [each["label"] for each in wanted], path.name
        scores = [label["score"] for label in answer["labels"]]
        np.testing.assert_allclose(scores, [each["score"] for each in wanted], atol=1e-3, err_msg=path.name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "seed", "settings"),
    [
        ("dinov2", 35, {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}),
        ("swin", 36, {"config": {"image_size": 224, "patch_size": 4, "window_size": 7}}),
    ],
)
def test_pictures_get_the_features_of_the_pipeline(
    server: FakeHub, tmp_path: Path, kind: str, seed: int, settings: dict[str, Any]
) -> None:
    from transformers import pipeline

    write_image_model(tmp_path / "repo", kind, "Model", seed=seed, **settings)
    server.add("acme/net", COMMIT, hub_repo(tmp_path / "repo"))
    assert zoo("pull", "hf/acme/net", "--trust-first").returncode == 0
    assert "encoder without a classifier" in zoo("show", "hf/acme/net", **GONE).stdout
    pictures = odd_pictures(tmp_path / "pictures")
    given = parsed(zoo("run", "hf/acme/net", *pictures, "--device", "cpu", "--json", **GONE))["run"]["results"]
    extract = pipeline("image-feature-extraction", model=str(tmp_path / "repo"), device="cpu", pool=True)
    for path, answer in zip(pictures, given, strict=True):
        ours, wanted = np.array(answer["features"]), np.array(extract(str(path))).ravel()
        cosine = ours @ wanted / np.linalg.norm(ours) / np.linalg.norm(wanted)
        assert 1 - cosine <= 1e-4, path.name


@pytest.mark.slow
def test_folders_of_wordnet_ids_evaluate(server: FakeHub, tmp_path: Path) -> None:
    """A classifier of ImageNet with the Hub's names: folders may be named by WordNet ids, and both cranes differ."""
    names = dict(enumerate(imagenet().synonyms))
    write_image_model(tmp_path / "repo", "convnext", seed=37, labels=1000, config={"id2label": names})
    server.add("acme/net", COMMIT, hub_repo(tmp_path / "repo"))
    assert zoo("pull", "hf/acme/net", "--trust-first").returncode == 0
    pictures = odd_pictures(tmp_path / "pictures")
    for wordnet, path in zip(("n02123045", "n02012849", "n03126707"), pictures, strict=False):
        (tmp_path / "data" / wordnet).mkdir(parents=True)
        path.rename(tmp_path / "data" / wordnet / path.name)
    done = zoo("evaluate", "hf/acme/net", tmp_path / "data", "--device", "cpu", "--json", **GONE)
    metrics = parsed(done)["evaluation"]["metrics"]
    assert metrics["n"] == 3
    assert {"tabby, tabby cat", "crane", "crane (n03126707)"} <= set(metrics["per_class"])
