"""The image rows agree with their publishers' preprocessing, sizes and addresses."""

from math import floor

import pytest
import timm
from torchvision import models

from zoo.registry.registry import builtin_registry_path, load_registry
from zoo.schema import Entry, ImagePreprocess

REGISTRY = load_registry([builtin_registry_path()])
HOST = "https://download.pytorch.org/models/"
#: All weights of torchvision by URL.
PUBLISHED = {
    weights.url: weights for name in models.list_models(module=models) for weights in models.get_model_weights(name)
}


def names(prefix: str, *, tags: tuple[str, ...] = ("",)) -> list[str]:
    return [
        entry.name
        for entry in REGISTRY.values()
        if entry.files[0].sources[0].startswith(prefix) and entry.name.partition(".")[2].startswith(tags)
    ]


def image(entry: Entry) -> ImagePreprocess:
    assert isinstance(entry.preprocess, ImagePreprocess)
    return entry.preprocess


@pytest.mark.parametrize("name", names(HOST))
def test_torchvisions_rows_are_preprocessed_by_its_transforms(name: str) -> None:
    entry = REGISTRY.entry(name)
    # torchvision's table has only the present file, which replaced the older one.
    newer = REGISTRY.entry(name.removesuffix("_old"))
    weights = PUBLISHED[newer.files[0].sources[0]]
    steps, preprocess = weights.transforms(), image(entry)
    assert ([preprocess.resize], [preprocess.crop]) == (steps.resize_size, steps.crop_size)
    assert preprocess.interpolation == steps.interpolation.value
    assert (list(preprocess.mean), list(preprocess.std)) == (steps.mean, steps.std)
    assert entry.params == weights.meta["num_params"]


def test_the_older_inception_is_in_timms_table() -> None:
    old = REGISTRY.entry("inception_v3.tv_in1k_old")
    assert timm.get_pretrained_cfg("inception_v3.tv_in1k").url == old.files[0].sources[0]


@pytest.mark.parametrize(
    "name", names("hf://timm/") + names("https://github.com/huggingface/pytorch-image-models/releases/")
)
def test_timms_rows_are_preprocessed_by_its_table(name: str) -> None:
    entry = REGISTRY.entry(name)
    known = timm.get_pretrained_cfg(name.removesuffix("_pth").removesuffix("_bin"))
    preprocess = image(entry)
    _, height, width = known.input_size
    assert height == width == preprocess.crop
    assert preprocess.resize == floor(height / known.crop_pct)
    assert preprocess.interpolation == known.interpolation
    assert (preprocess.mean, preprocess.std) == (known.mean, known.std)
    assert known.license.lower() == entry.license.lower()
    url = entry.files[0].sources[0]
    hub = f"hf://timm/{known.architecture}.{known.tag}@"
    assert url.startswith(hub) or url == known.url.replace("/rwightman/", "/huggingface/")


def test_timms_copies_of_torchvisions_weights_name_the_same_file() -> None:
    twins = [name for name in names("hf://timm/", tags=("tv",)) if f"{name}_pth" in REGISTRY]
    assert twins == ["resnet18.tv_in1k", "resnet34.tv_in1k", "resnet50.tv_in1k"]
    for name in twins:
        assert timm.get_pretrained_cfg(name).url == REGISTRY.entry(f"{name}_pth").files[0].sources[0]


def test_microsofts_rows_are_resized_by_transformers_image_processor() -> None:
    """Their preprocessor_config.json names ConvNextImageProcessor with its own crop fraction and filter."""
    from transformers import ConvNextImageProcessor
    from transformers.image_utils import PILImageResampling

    for name in ("resnet18.ms_in1k", "resnet50.ms_in1k"):
        preprocess = image(REGISTRY.entry(name))
        assert preprocess.resize == int(preprocess.crop / ConvNextImageProcessor.crop_pct)
        assert ConvNextImageProcessor.resample is PILImageResampling[preprocess.interpolation.upper()]
