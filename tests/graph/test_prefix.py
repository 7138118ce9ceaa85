"""The graph's own preprocessing against torchvision's transforms and Pillow, on photographs of odd sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.kit.items import photographs
from zoo.data.images import decode_image
from zoo.graph import prefix
from zoo.runtime.ort import create_session
from zoo.schema import ImagePreprocess


def torchvision_levels(image: np.ndarray, preprocess: ImagePreprocess, *, as_image: bool) -> np.ndarray:
    """Grey levels [3, crop, crop] by torchvision: its PIL path, or its own uint8 tensor kernels."""
    mode = v2.InterpolationMode(preprocess.interpolation)
    steps = v2.Compose([v2.Resize(preprocess.resize, mode, antialias=True), v2.CenterCrop(preprocess.crop)])
    if as_image:
        return np.asarray(steps(Image.fromarray(image))).transpose(2, 0, 1)
    return steps(torch.from_numpy(image.transpose(2, 0, 1).copy())).numpy()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (235, 224), (64, 64)])
def test_within_one_grey_level_of_torchvision(interpolation: str, resize: int, crop: int) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    preprocess = ImagePreprocess(resize=resize, crop=crop, interpolation=interpolation, mean=mean, std=std)
    session = create_session(prefix.image_prefix(preprocess).SerializeToString(), "cpu")
    grey = np.array(std).reshape(3, 1, 1) * 255, np.array(mean).reshape(3, 1, 1) * 255
    for image in photographs():
        levels = session.run(None, {"image": image[None]})[0][0] * grey[0] + grey[1]
        np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
        tensor = torchvision_levels(image, preprocess, as_image=False).astype(int)
        assert np.abs(levels - tensor).max() <= 1.001, f"{image.shape} by tensors"
        # Pillow resizes a tall image height first; with bicubic the difference is then larger.
        if interpolation == "bilinear" or image.shape[0] <= image.shape[1]:
            by_pillow = torchvision_levels(image, preprocess, as_image=True).astype(int)
            assert np.abs(levels - by_pillow).max() <= 1.001, f"{image.shape} by images"


def test_a_jpeg_is_shrunk_while_decoding_only_to_twice_the_target(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1600, 2400, 3), dtype=np.uint8))
    image.save(tmp_path / "large.jpg")
    for short_side in (64, 224, 256, 500, 801):
        height, width, _ = decode_image(tmp_path / "large.jpg", short_side).shape
        assert height >= min(1600, 2 * short_side)
        assert width / height == pytest.approx(1.5, rel=0.01)
    assert decode_image(tmp_path / "large.jpg", 64).shape[0] < 1600


def test_batches_and_sizes_are_free() -> None:
    preprocess = ImagePreprocess(resize=32, crop=28, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
    session = create_session(prefix.image_prefix(preprocess).SerializeToString(), "cpu")
    random = np.random.default_rng(0)
    for batch, height, width in ((1, 40, 50), (2, 90, 31), (7, 28, 28)):
        images = random.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        together = session.run(None, {"image": images})[0]
        assert together.shape == (batch, 3, 28, 28)
        for row, image in zip(together, images, strict=True):
            np.testing.assert_array_equal(session.run(None, {"image": image[None]})[0][0], row)
