"""Preprocessing outside the graph: the pixels of `zoo.graph.prefix`, by libraries that resize with SIMD code.

cykooz-resizer, the Python package of the Rust crate fast_image_resize, is used where it is installed, else Pillow. Both
round to grey levels between the passes, width first, as the graph does. They compute in fixed point, so a few values
differ from the graph's by one grey level, or rarely two: 0.1 % (bilinear) and 0.3 % (bicubic) with cykooz-resizer, and
0.1 % and 0.02 % with Pillow, which takes five times as long. Neither holds Python's lock while it resizes.
"""

import importlib.metadata
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from zoo.graph.prefix import normalisation
from zoo.schema import ImagePreprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as PilImage

    Floats = NDArray[np.float32]

RESIZER = "cykooz_resizer"
#: Releases of Pillow whose images cykooz-resizer 4 reads: it takes their memory as it is, without a copy.
READABLE = ("12", "13")
#: Pixels to each side that one resized pixel depends on, if the image is not made smaller.
REACH = {"bilinear": 1, "bicubic": 2}


class PixelReader:
    """Turns RGB images into the pixels that the graph's preprocessing makes of them."""

    def __init__(self, preprocess: ImagePreprocess) -> None:
        self.preprocess = preprocess
        self.resize = _by_cykooz if has_cykooz() else _by_pillow
        self._mean, self._inverse_std = normalisation(preprocess)

    def levels(self, image: "PilImage") -> "NDArray[np.uint8]":
        """The grey levels of the resized and cropped image, [crop, crop, 3]."""
        import numpy as np

        return np.asarray(self.resize(image, self.preprocess))

    def pixels(self, levels: "Sequence[NDArray[np.uint8]]") -> "Floats":
        """A batch of images, float32 [batch, 3, crop, crop], from the levels of each.

        Joining bytes and normalising the batch takes a fifth of the time of joining normalised images.
        """
        import numpy as np

        pixels = np.stack(levels).transpose(0, 3, 1, 2).astype(np.float32, order="C")
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
    """The image resized, width first, and cropped: exactly Pillow's pixels.

    In one call Pillow 13 would resize some tall images height first. With `box` it would compute the crop alone, but it
    rounds the box to float32, and more values would differ.
    """
    from PIL import Image

    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[preprocess.interpolation]
    height, width = preprocess.resized(image.height, image.width)
    left, top = (preprocess.offset(side) for side in (width, height))
    # Rows on which the crop does not depend stay black.
    first, last = _rows(image, preprocess)
    wide = Image.new("RGB", (preprocess.crop, image.height))
    columns = image.resize((width, last - first), method, box=(0, first, image.width, last))
    wide.paste(columns.crop((left, 0, left + preprocess.crop, last - first)), (0, first))
    high = wide.resize((preprocess.crop, height), method)
    return high.crop((0, top, preprocess.crop, top + preprocess.crop))


def _by_cykooz(image: "PilImage", preprocess: ImagePreprocess) -> "PilImage":
    """The image resized and cropped, by two calls: in one call cykooz-resizer would resize the height first."""
    from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
    from PIL import Image

    filters = {"bilinear": FilterType.bilinear, "bicubic": FilterType.catmull_rom}
    # A resizer has buffers of its own, and threads must not share it; making one takes 4 microseconds.
    by, resizer = ResizeAlg.convolution(filters[preprocess.interpolation]), Resizer()

    def resize(source: "PilImage", rows: int, *box: float) -> "PilImage":
        target = Image.new("RGB", (preprocess.crop, rows))
        resizer.resize_pil(source, target, ResizeOptions(resize_alg=by, crop_box=CropBox(*box)))
        return target

    height, width = preprocess.resized(image.height, image.width)
    (x, wide), (y, high) = (_part(*sides, preprocess) for sides in ((image.width, width), (image.height, height)))
    first, last = _rows(image, preprocess)
    columns = resize(image, last - first, x, first, wide, last - first)
    return resize(columns, preprocess.crop, 0, y - first, preprocess.crop, high)


def _part(length: int, resized: int, preprocess: ImagePreprocess) -> tuple[float, float]:
    """Start and length of the crop on a side of `length` pixels that is resized to `resized`."""
    scale = length / resized
    start = preprocess.offset(resized) * scale
    # Rounding must not put the end outside the image.
    return start, min(preprocess.crop * scale, length - start)


def _rows(image: "PilImage", preprocess: ImagePreprocess) -> tuple[int, int]:
    """The first row of the image that the crop depends on, and the row after the last one."""
    resized = preprocess.resized(image.height, image.width)[0]
    start, length = _part(image.height, resized, preprocess)
    reach = REACH[preprocess.interpolation] * max(1.0, image.height / resized) + 1
    return max(0, int(start - reach)), min(image.height, int(start + length + reach) + 1)
