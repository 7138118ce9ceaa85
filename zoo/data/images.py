"""The decoding of images into arrays, which is the same for every verb.

Accepted are JPEG, PNG, WebP and BMP. The EXIF orientation is applied. The result is 8-bit RGB; of an animation it is
the first frame. A JPEG is shrunk while decoding only as long as both its sides stay at least twice `resize`. This saves
half of the time of a large photograph, and changes the scores of EfficientNet-Lite0 by up to 0.012 from those of the
fully decoded image (0.011 if the sides stayed at least three times `resize`, 0.006 for four times).
"""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias

from zoo.data import augment
from zoo.errors import DataError, MissingFileError
from zoo.schema import ImagePreprocess, TextPreprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as PilImage

    Pixels: TypeAlias = NDArray[np.uint8]
    ImageItem: TypeAlias = str | Path | bytes | PilImage | Pixels | augment.Viewed | DataError

#: Incremented when the same bytes give another array: part of the key of the feature cache.
VERSION = 1
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
#: Larger images are refused before they are decoded: a few bytes can announce gigabytes.
MAX_PIXELS = 100_000_000
#: The largest ratio of the long side to the short side: resizing a longer image would enlarge it too much.
MAX_ASPECT = 50

_warnings_lock = Lock()


def decode_image(item: "ImageItem", short_side: int) -> "Pixels":
    """RGB uint8 [height, width, 3] of an image: see `load_image`, whose errors it raises."""
    import numpy as np

    if isinstance(item, np.ndarray):
        return _checked_array(item)
    if isinstance(item, augment.Viewed):
        whole = decode_image(item.item, round(augment.ROOM * short_side))
        return augment.transform(whole, item.digest, item.view)
    return np.asarray(load_image(item, short_side))


def load_image(item: "ImageItem", short_side: int) -> "PilImage":
    """The RGB image in a file, its bytes, a PIL image, an array, or a view of one of these.

    Raises MissingFileError, and DataError for anything but a whole image of an accepted format and size.
    """
    import numpy as np
    from PIL import Image

    if isinstance(item, DataError):
        # The error was found when the items were listed.
        raise item
    path = str(item) if isinstance(item, str | Path) else None
    name = type(item).__name__ if path is None else path
    if isinstance(item, np.ndarray | augment.Viewed):
        return Image.fromarray(decode_image(item, short_side))
    try:
        if isinstance(item, Image.Image):
            _check_size(*item.size, name, path)
            return _upright_rgb(item)
        if not isinstance(item, str | Path | bytes):
            raise DataError(f"an image is a path, bytes, a PIL image or an array, not {name}", hint="give one of those")
        with _quiet():
            image = Image.open(BytesIO(item) if isinstance(item, bytes) else item, formats=FORMATS)
        with image:
            _check_size(*image.size, name, path)
            image.draft("RGB", (2 * short_side, 2 * short_side))
            return _upright_rgb(image)
    except FileNotFoundError as error:
        raise MissingFileError(f"{name}: no such file", path=path, hint="check the path") from error
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        reason = "not an image of an accepted format" if "cannot identify" in str(error) else str(error)
        raise DataError(
            f"{name}: cannot be decoded: {reason}",
            path=path,
            hint=f"accepted: {', '.join(FORMATS)}; remove or repair it",
        ) from error


def _checked_array(item: "NDArray[Any]") -> "Pixels":
    if item.dtype != "uint8" or item.ndim != 3 or item.shape[2] != 3 or 0 in item.shape:
        raise DataError(
            f"an image array must be uint8 [height, width, 3], not {item.dtype} {list(item.shape)}",
            hint="convert it to 8-bit RGB",
        )
    height, width = item.shape[:2]
    _check_size(width, height, "an image array", None)
    return item


def _check_size(width: int, height: int, name: str, path: str | None) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name}: {width}x{height} is above the cap of {MAX_PIXELS:,} pixels", path=path, hint="make it smaller"
        )
    if not 0 < max(width, height) <= MAX_ASPECT * min(width, height):
        what = "too long and thin" if width and height else "empty"
        raise DataError(f"{name}: {width}x{height} is {what}", path=path, hint="remove it, or cut it up")


def _upright_rgb(image: "PilImage") -> "PilImage":
    from PIL import ExifTags, Image

    turns = (
        *(None, None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM),
        *(Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90),
    )
    image.load()
    with _quiet():
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    # ImageOps.exif_transpose would also rewrite the EXIF block, and fail if the block is malformed, as many are.
    turn = turns[orientation] if isinstance(orientation, int) and 0 < orientation < len(turns) else None
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
        import numpy as np

        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"the range of mode {image.mode} is not known")
    if image.mode == "P" and "transparency" in image.info:
        # A warning of Pillow asks for this step. Transparency is dropped in any case.
        image = image.convert("RGBA")
    # An image that is RGB already is returned as it is, because convert() would copy it.
    return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Pillow's warnings, about large images (checked here) and untidy EXIF blocks.

    Warning filters apply to all threads of the process, so the block must be short.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def encoder_version(preprocess: ImagePreprocess | TextPreprocess) -> str:
    """The versions of the code that turns items into arrays: part of the key of the feature cache."""
    import importlib.metadata

    library = "Pillow" if isinstance(preprocess, ImagePreprocess) else "tokenizers"
    major = importlib.metadata.version(library).split(".")[0]
    return f"encode {VERSION}, {library} {major}"
