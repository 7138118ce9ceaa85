"""The preprocessing of image processors of transformers, compared with these processors on photographs."""

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from zoo_plugins.bridges.hf.pixels import image_preprocess

from tests.kit.hub import COMMIT
from zoo import UsageError, ZooError
from zoo.data.samples import FOLDER
from zoo.export.reference import pillow_pixels
from zoo.hub import Repository
from zoo.schema import ImagePreprocess


class Local(Repository, frozen=True, kw_only=True):
    """A repository whose small files are given."""

    files: dict[str, Any]

    def read(self, path: str) -> bytes:
        return json.dumps(self.files[path]).encode()


def repository(settings: Any, path: str = "preprocessor_config.json") -> Local:
    files = {path: settings}
    return Local(
        name="acme/net", commit=COMMIT, sizes=dict.fromkeys(files, 9), license="mit", parameters=None, files=files
    )


def saved(kind: str, **settings: Any) -> dict[str, Any]:
    """The file that transformers writes for an image processor."""
    import transformers

    return dict(json.loads(getattr(transformers, f"{kind}ImageProcessor")(**settings).to_json_string()))


HALF, IMAGENET = {"mean": (0.5,) * 3, "std": (0.5,) * 3}, {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
CASES = [
    ("ViT", {}, {"resize": 224, "crop": 224, "interpolation": "bilinear", **HALF, "squash": True}),
    ("ViT", {"size": 96}, {"resize": 96, "crop": 96, "interpolation": "bilinear", **HALF, "squash": True}),
    ("DeiT", {}, {"resize": 256, "crop": 224, "interpolation": "bicubic", **HALF, "squash": True, "floor": True}),
    ("Siglip", {}, {"resize": 224, "crop": 224, "interpolation": "bicubic", **HALF, "squash": True}),
    ("CLIP", {"size": 224}, {"resize": 224, "crop": 224, "interpolation": "bicubic", **CLIP, "floor": True}),
    (
        "Bit",
        {"size": {"shortest_edge": 256}},
        {"resize": 256, "crop": 224, "interpolation": "bicubic", **CLIP, "floor": True},
    ),
    (
        "ConvNext",
        {"size": 224, "crop_pct": 0.95, "resample": 2},
        {"resize": 235, "crop": 224, "interpolation": "bilinear", **HALF, "floor": True},
    ),
    ("ConvNext", {"size": 384}, {"resize": 384, "crop": 384, "interpolation": "bicubic", **HALF, "squash": True}),
    ("Levit", {}, {"resize": 256, "crop": 224, "interpolation": "bicubic", **IMAGENET, "floor": True}),
    ("PoolFormer", {}, {"resize": 248, "crop": 224, "interpolation": "bicubic", **IMAGENET, "floor": True}),
    ("MobileNetV2", {}, {"resize": 256, "crop": 224, "interpolation": "bilinear", **HALF, "floor": True}),
    (
        "EfficientNet",
        {"resample": 3, "size": 64},
        {"resize": 64, "crop": 64, "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.25,) * 3, "squash": True},
    ),
    (
        "EfficientNet",
        {"rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False, "do_normalize": False, "size": 64},
        {"resize": 64, "crop": 64, "interpolation": "bicubic", **HALF, "squash": True},
    ),
    (
        "ViT",
        {"do_rescale": False, "image_mean": 127.5, "image_std": 127.5},
        {"resize": 224, "crop": 224, "interpolation": "bilinear", **HALF, "squash": True},
    ),
    (
        "ViT",
        {"do_normalize": False},
        {
            "resize": 224,
            "crop": 224,
            "interpolation": "bilinear",
            "mean": (0.0,) * 3,
            "std": (1.0,) * 3,
            "squash": True,
        },
    ),
]


@pytest.mark.parametrize(("kind", "settings", "wanted"), CASES)
def test_settings_and_pixels_are_those_of_the_library(
    kind: str, settings: dict[str, Any], wanted: dict[str, Any]
) -> None:
    import transformers

    preprocess = image_preprocess(repository(saved(kind, **settings)), "vit")
    expected = ImagePreprocess(**wanted)
    for name in ("resize", "crop", "interpolation", "squash", "floor"):
        assert getattr(preprocess, name) == getattr(expected, name), name
    np.testing.assert_allclose([preprocess.mean, preprocess.std], [expected.mean, expected.std], atol=1e-9)
    processor = getattr(transformers, f"{kind}ImageProcessor")(**settings)
    photos = [Image.open(path).convert("RGB") for path in sorted(FOLDER.glob("*.jpg"))]
    for photo, size in zip(photos, [(300, 217), (131, 402), (33, 41), (640, 251), (225, 225)], strict=False):
        image = photo.resize(size)
        theirs = processor(image, return_tensors="np")["pixel_values"][0]
        levels = (
            np.abs(pillow_pixels(np.asarray(image), preprocess) - theirs) * np.reshape(preprocess.std, (3, 1, 1)) * 255
        )
        assert levels.max() <= 2.01
        # torchvision resizes tensors with fewer bits than Pillow; Pillow 13 resizes some images height first.
        assert (levels > 1.01).mean() <= 0.002
        assert (levels > 0.5).mean() <= 0.02


def test_settings_may_lie_in_the_file_of_the_processor_or_name_no_class() -> None:
    settings = saved("Siglip", size={"height": 96, "width": 96})
    wanted = image_preprocess(repository(settings), "siglip")
    nested = {"image_processor": settings, "processor_class": "SiglipProcessor"}
    assert image_preprocess(repository(nested, "processor_config.json"), "siglip") == wanted
    bare = {key: value for key, value in settings.items() if key != "image_processor_type"}
    assert image_preprocess(repository(bare), "siglip") == wanted
    old = {**bare, "feature_extractor_type": "SiglipFeatureExtractor"}
    assert image_preprocess(repository(old), "vit") == wanted
    fast = {**bare, "image_processor_type": "SiglipImageProcessorFast"}
    assert image_preprocess(repository(fast), "vit") == wanted


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (saved("ViT", size={"height": 224, "width": 192}), "does not prepare squares"),
        (saved("ViT", size={"shortest_edge": 224, "longest_edge": 300}), "does not prepare squares"),
        (saved("Bit", do_center_crop=False), "does not prepare squares"),
        (saved("Bit", crop_size={"height": 224, "width": 200}), "does not prepare squares"),
        (saved("Bit", crop_size=256), "crops 256 of 224 pixels"),
        (saved("ViT", do_resize=False), "does not resize"),
        (saved("ViT", resample=1), "Pillow's filter 1"),
        (saved("MobileViT"), "swaps red and blue"),
        (saved("ViT", image_std=[0.5, 0.5, -1]), "divides by a negative number"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "has the processor 'Siglip2'"),
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "has the processor 'Wav2Vec2'"),
        ({"image_processor_type": "../x\nImageProcessor", "auto_map": {"x": "y"}}, "has the processor"),
        ({}, "has no preprocessor_config.json"),
        (saved("ViT", image_mean=[0.5]) | {"image_mean": "x"}, "not describe a network"),
        (saved("ViT") | {"size": {"height": "a", "width": "a"}}, "not describe a network"),
    ],
)
def test_what_zoo_does_not_support_is_refused_in_a_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ZooError, match=said) as caught:
        image_preprocess(repository(settings), "vit")
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UsageError) or "network" in said
