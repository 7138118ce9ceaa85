"""The preprocessing of images that `preprocessor_config.json` of transformers describes.

Defaults are those of transformers' image processors (transformers/models/*/image_processing_*.py), which are built
from the settings of the file. Processors with another arithmetic than resize, crop, rescale and normalise are refused.
"""

from typing import TYPE_CHECKING, Any, Literal

from zoo_plugins.bridges.hf.files import read_json

from zoo.errors import UsageError, quote
from zoo.schema import ImagePreprocess, Rgb
from zoo.torchkit import described_by_config

if TYPE_CHECKING:
    from zoo.hub import Repository

#: Files with the settings of an image processor; the second one has them in a part of their own.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
#: Image processors that resize, crop, rescale and normalise, each in its own way. Names without "ImageProcessor".
KNOWN = frozenset(
    {
        *("Beit", "Bit", "CLIP", "ChineseCLIP", "ConvNext", "DINOv3ViT", "DeiT", "EfficientNet", "Levit"),
        *("MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer", "Pvt", "Segformer", "Siglip", "ViT"),
    }
)
#: Pillow's numbers of interpolations.
INTERPOLATIONS: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
#: ConvNeXt's processor squashes an image to this side or a longer one; to a shorter one it crops.
SQUASHED_FROM = 384


def image_preprocess(repository: "Repository", model_type: str) -> ImagePreprocess:
    """The preprocessing of a repository of transformers. Raises UsageError for one that zoo does not support."""
    name, settings = _settings(repository, model_type)
    if name not in KNOWN:
        raise _unsupported(repository, f"has the processor {quote(name)}")
    import transformers

    with described_by_config("transformers"):
        processor = getattr(transformers, f"{name}ImageProcessor").from_dict(settings)
        resize, crop, squash = _geometry(name, processor)
        mean, std = _normalisation(name, processor)
    problem = (
        "does not resize images" if not processor.do_resize
        else "swaps red and blue" if getattr(processor, "do_flip_channel_order", False)
        else "pads images" if getattr(processor, "do_pad", False)
        else f"resizes by Pillow's filter {processor.resample}" if processor.resample not in INTERPOLATIONS
        else "does not prepare squares" if not resize or not crop
        else f"crops {crop} of {resize} pixels" if crop > resize
        else "divides by a negative number" if min(std) <= 0
        else None
    )  # fmt: skip
    if problem:
        raise _unsupported(repository, problem)
    # The library drops half a pixel in the offset of a crop.
    return ImagePreprocess(
        resize=resize,
        crop=crop,
        interpolation=INTERPOLATIONS[processor.resample],
        mean=mean,
        std=std,
        squash=squash,
        floor=resize != crop or not squash,
    )


def _settings(repository: "Repository", model_type: str) -> tuple[str, dict[str, Any]]:
    """Returns the name of the image processor, without "ImageProcessor", and its settings."""
    path = next((path for path in PROCESSORS if path in repository.sizes), None)
    settings = read_json(repository, path) if path else {}
    settings = settings.get("image_processor", settings) if path == PROCESSORS[1] else settings
    if not isinstance(settings, dict) or not settings:
        raise _unsupported(repository, f"has no {PROCESSORS[0]}")
    name = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    if name is None:
        from transformers.models.auto import image_processing_auto

        names: dict[str, dict[str, str]] = image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]
        name = names.get(model_type, {}).get("torchvision", "none")
    name = str(name)
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(ending)
    # Nothing that names a class or code reaches the library.
    return name, {key: value for key, value in settings.items() if key not in ("auto_map", "image_processor_type")}


def _geometry(name: str, processor: Any) -> tuple[int, int, bool]:
    """Returns the side to resize to, the side of the crop, and whether images are squashed; 0 for other shapes."""
    given = {key: value for key, value in dict(processor.size).items() if value}
    if set(given) not in ({"shortest_edge"}, {"height", "width"}) or len(set(given.values())) > 1:
        return 0, 0, False
    side, squash = int(next(iter(given.values()))), "height" in given
    if name == "ConvNext":
        return (side, side, True) if side >= SQUASHED_FROM else (int(side / processor.crop_pct), side, False)
    if name == "PoolFormer" and processor.crop_pct:
        side, squash = int(side / processor.crop_pct), False
    if name == "Levit" and not squash:
        side = int(256 / 224 * side)
    if not getattr(processor, "do_center_crop", False):
        return side, side if squash else 0, squash
    crop = {key: value for key, value in dict(processor.crop_size).items() if value}
    return side, int(crop["height"]) if set(crop) == {"height", "width"} and len(set(crop.values())) == 1 else 0, squash


def _normalisation(name: str, processor: Any) -> tuple[Rgb, Rgb]:
    """Returns the mean and the standard deviation of channels in 0..1 that have the effect of the settings.

    A processor computes (grey level * factor - offset - mean) / std.
    """
    import numpy as np

    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = np.zeros(3), np.ones(3)
    if processor.do_normalize:
        mean, std = mean + processor.image_mean, std * processor.image_std
    if name == "EfficientNet":
        mean = mean + bool(processor.do_rescale and processor.rescale_offset)
        if processor.include_top:
            # Its pixels are divided by the standard deviation once more.
            std = std * processor.image_std
    # 1/255 is written with few digits in some files.
    levels = 1.0 if abs(factor * 255 - 1) < 1e-6 else factor * 255
    return tuple((mean / levels).tolist()), tuple((std / levels).tolist())


def _unsupported(repository: "Repository", problem: str) -> UsageError:
    return UsageError(
        f"{repository.origin} {problem}, which zoo does not support",
        hint="choose a model whose images are resized to a square, or cropped to one, bilinear or bicubic",
    )
