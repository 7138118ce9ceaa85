"""Random views of an image, for augmentation: a crop, a mirror and a shift of colours before the usual preprocessing.

Views are made with Pillow on the threads that decode. A view keeps the resolution of its crop, so that it is resampled
once, by the preprocessing of the graph.
"""

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from zoo.system.files import sha256

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Incremented when the same view gives another image: part of the key of cached views.
VERSION = 1
#: SCALE: the smallest fraction of the area that is kept. RATIO: the largest change of the aspect ratio.
SCALE, RATIO = 0.5, 4 / 3
#: Brightness, contrast and saturation are multiplied by 1 - JITTER to 1 + JITTER.
JITTER = 0.2
#: The short side of a view is at least 1 / ROOM of its image's, so images are decoded larger by this factor.
ROOM = 1.7


class View(Struct, frozen=True):
    """View `k` of every image, for a seed of the augmentation."""

    seed: int
    k: int


class Viewed(Struct, frozen=True):
    """One view of the image `item`, in any form that a Session takes; `digest` is the sha256 of the image's bytes."""

    item: Any
    digest: str
    view: View


def key(digest: str, view: View | None) -> str:
    """The key of an item in a cache: its digest, or a sha256 of its digest and the view."""
    if view is None:
        return digest
    return sha256(f"{digest} view {VERSION} {view.seed} {view.k}")


def transform(pixels: "NDArray[np.uint8]", digest: str, view: View) -> "NDArray[np.uint8]":
    """The view of an RGB image, uint8 [height, width, 3]; only the digest, the seed and `k` decide it.

    A crop of at least half the area (chosen as by torchvision's RandomResizedCrop, but not stretched), mirrored half of
    the time, with colours shifted a little.
    """
    import numpy as np
    from PIL import Image, ImageEnhance

    area, shape, left, top, mirror, *colours = _numbers(key(digest, view))
    height, width = pixels.shape[:2]
    part, slant = SCALE + (1 - SCALE) * area, RATIO ** (2 * shape - 1)
    wide = max(1, min(width, round(width * (part * slant) ** 0.5)))
    high = max(1, min(height, round(height * (part / slant) ** 0.5)))
    x, y = round((width - wide) * left), round((height - high) * top)
    image = Image.fromarray(pixels[y : y + high, x : x + wide])
    if mirror < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhancer, number in zip(enhancers, colours, strict=True):
        image = enhancer(image).enhance(1 + JITTER * (2 * number - 1))
    return np.asarray(image)


def _numbers(word: str) -> tuple[float, ...]:
    """Eight pseudo-random numbers in 0..1 from a sha256: the generator of a library may change with its version."""
    digest = bytes.fromhex(sha256(word))
    return tuple(int.from_bytes(digest[start : start + 4], "big") / 2**32 for start in range(0, 32, 4))
