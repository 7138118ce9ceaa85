"""Random views of a picture, for augmentation: a crop, a mirror, a shift of colours, and then the usual preprocessing.

Made with Pillow on the threads that decode, so that neither the order of the work nor torch comes into it. A view is
a picture of its own size: it is resampled once, by the same prefix that serves.
"""

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from zoo.system.files import sha256

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Raised whenever the same view would become another picture: it is part of the key of what is cached of it.
VERSION = 1
#: Least part of the area that is kept, and the sides' ratio beside the picture's own, at most this either way.
SCALE, RATIO = 0.5, 4 / 3
#: Brightness, contrast and saturation change by a factor of 1 -+ this.
JITTER = 0.2
#: A view has a short side of at least 1 / ROOM of its picture's: so much larger must the picture be decoded.
ROOM = 1.7


class View(Struct, frozen=True):
    """View number `k` of every picture, by the seed of the augmentation."""

    seed: int
    k: int


class Viewed(Struct, frozen=True):
    """A picture (what a Session takes) of the digest `digest`, to be looked at in one view."""

    item: Any
    digest: str
    view: View


def key(digest: str, view: View | None) -> str:
    """What stands for an item in a cache: its digest, or a sha256 of that and its view."""
    if view is None:
        return digest
    return sha256(f"{digest} view {VERSION} {view.seed} {view.k}")


def transform(picture: "NDArray[np.uint8]", digest: str, view: View) -> "NDArray[np.uint8]":
    """The view of an RGB picture, uint8 [height, width, 3]: decided by the digest, the seed and the number alone.

    A crop of half the area or more, anywhere and of nearly any shape (as RandomResizedCrop of torchvision chooses it,
    and never stretched), mirrored half of the time, colours shifted a little.
    """
    import numpy as np
    from PIL import Image, ImageEnhance

    area, shape, left, top, mirror, *colours = _numbers(key(digest, view))
    height, width = picture.shape[:2]
    part, slant = SCALE + (1 - SCALE) * area, RATIO ** (2 * shape - 1)
    wide = max(1, min(width, round(width * (part * slant) ** 0.5)))
    high = max(1, min(height, round(height * (part / slant) ** 0.5)))
    x, y = round((width - wide) * left), round((height - high) * top)
    image = Image.fromarray(picture[y : y + high, x : x + wide])
    if mirror < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhancer, number in zip(enhancers, colours, strict=True):
        image = enhancer(image).enhance(1 + JITTER * (2 * number - 1))
    return np.asarray(image)


def _numbers(word: str) -> tuple[float, ...]:
    """Eight numbers in 0..1 that look random; no library's generator, which a new version may change."""
    digest = bytes.fromhex(sha256(word))
    return tuple(int.from_bytes(digest[start : start + 4], "big") / 2**32 for start in range(0, 32, 4))
