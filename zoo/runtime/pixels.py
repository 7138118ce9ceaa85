"""Preprocessing outside the graph: the pixels of `zoo.graph.prefix`, by libraries that resize with SIMD code.

cykooz-resizer, the Python package of the Rust crate fast_image_resize, is used where it is installed, else Pillow. Both
round to grey levels between the passes, width first, as the graph does. They compute in fixed point, so a few values
differ from the graph's, by one grey level or rarely two. Neither holds Python's lock while it resizes.
"""

import importlib.metadata
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias

from zoo.graph.prefix import normalisation
from zoo.schema import ImagePreprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as PilImage

    Floats = NDArray[np.float32]
    #: A resizing of the part Box of an image to a size (width, height).
    Resize: TypeAlias = Callable[[PilImage, tuple[int, int], "Box"], PilImage]

#: Left, top, width and height of a part of an image, in pixels.
Box: TypeAlias = tuple[float, float, float, float]
RESIZER = "cykooz_resizer"
#: Releases of Pillow whose images cykooz-resizer 4 reads: it takes their memory as it is, without a copy.
READABLE = ("12", "13")
#: Pixels to each side that one resized pixel depends on, if the image is not made smaller.
REACH = {"bilinear": 1, "bicubic": 2}


class PixelReader:
    """Turns an RGB image into the pixels that the graph's preprocessing makes of it."""

    def __init__(self, preprocess: ImagePreprocess) -> None:
        self.preprocess = preprocess
        self.resize = _by_cykooz if has_cykooz() else _by_pillow
        self._mean, self._inverse_std = normalisation(preprocess)

    def __call__(self, image: "PilImage") -> "Floats":
        """The pixels, float32 [1, 3, crop, crop]."""
        import numpy as np

        levels = np.asarray(self.resize(image, self.preprocess))
        pixels = levels.transpose(2, 0, 1).astype(np.float32, order="C")[None]
        pixels -= self._mean
        pixels *= self._inverse_std
        return pixels


def has_cykooz() -> bool:
    """Whether cykooz-resizer is installed and can read the images of the installed Pillow."""
    return find_spec(RESIZER) is not None and _major("Pillow") in READABLE


def resizer_version() -> str:
    """The library that resizes and its major version: part of the key of the feature cache."""
    name = "cykooz-resizer" if has_cykooz() else "Pillow"
    return f"{name} {_major(name)}"


def _major(package: str) -> str:
    return importlib.metadata.version(package).partition(".")[0]


def _by_pillow(image: "PilImage", preprocess: ImagePreprocess) -> "PilImage":
    """The image resized and cropped. In one call Pillow 13 would resize some tall images height first."""
    from PIL import Image

    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[preprocess.interpolation]

    def resize(source: "PilImage", size: tuple[int, int], box: Box) -> "PilImage":
        left, top, width, height = box
        return source.resize(size, method, box=(left, top, left + width, top + height))

    return _in_two_passes(image, preprocess, resize)


def _by_cykooz(image: "PilImage", preprocess: ImagePreprocess) -> "PilImage":
    """The image resized and cropped. In one call cykooz-resizer would resize the height first."""
    from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
    from PIL import Image

    filters = {"bilinear": FilterType.bilinear, "bicubic": FilterType.catmull_rom}
    # A resizer has buffers of its own, and threads must not share it; making one takes 4 microseconds.
    by, resizer = ResizeAlg.convolution(filters[preprocess.interpolation]), Resizer()

    def resize(source: "PilImage", size: tuple[int, int], box: Box) -> "PilImage":
        target = Image.new("RGB", size)
        resizer.resize_pil(source, target, ResizeOptions(resize_alg=by, crop_box=CropBox(*box)))
        return target

    return _in_two_passes(image, preprocess, resize)


def _in_two_passes(image: "PilImage", preprocess: ImagePreprocess, resize: "Resize") -> "PilImage":
    """The crop of the image, resized by two calls: of the columns first, then of the rows."""
    x, y, width, height = _crop(image, preprocess)
    side = preprocess.crop
    # The second pass reads only these rows.
    reach = REACH[preprocess.interpolation] * max(1.0, height / side) + 1
    top, bottom = max(0, int(y - reach)), min(image.height, int(y + height + reach) + 1)
    wide = resize(image, (side, bottom - top), (x, top, width, bottom - top))
    return resize(wide, (side, side), (0, y - top, side, height))


def _crop(image: "PilImage", preprocess: ImagePreprocess) -> Box:
    """Left, top, width and height of the crop, in pixels of the image before resizing."""
    found = []
    for length, resized in zip((image.height, image.width), preprocess.resized(image.height, image.width), strict=True):
        scale = length / resized
        start = round((resized - preprocess.crop) / 2) * scale
        # Rounding must not put the end outside the image.
        found.append((start, min(preprocess.crop * scale, length - start)))
    (y, height), (x, width) = found
    return x, y, width, height
