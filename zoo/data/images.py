"""Images as arrays: `decode_image` is what finetune, run and evaluate share.

Decode policy for pictures: JPEG, PNG, WebP and BMP only; EXIF orientation applied; converted to 8-bit RGB; the first
frame of an animation; a JPEG is shrunk while decoding only as long as its short side stays at least twice `resize`.
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
from zoo.errors import DataError
from zoo.schema import ImagePreprocess, TextPreprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as PilImage

    Pixels: TypeAlias = NDArray[np.uint8]

#: Raised whenever what this module makes of the same bytes changes: it is part of the feature cache's key.
VERSION = 1
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
#: Pictures above this are refused before they are decoded: a few bytes can announce gigabytes.
MAX_PIXELS = 100_000_000
#: A strip longer than this many times its width would resize to more pixels than it has.
MAX_ASPECT = 50

_warnings_lock = Lock()


def decode_image(
    item: "str | Path | bytes | PilImage | Pixels | augment.Viewed | DataError", short_side: int
) -> "Pixels":
    """RGB uint8 [height, width, 3] of a file, its bytes, a PIL image or an array, or of a view of one of these.

    Raises DataError naming the file for anything that is not a whole picture of an accepted format and size.
    """
    import numpy as np
    from PIL import Image

    if isinstance(item, DataError):
        # Whoever listed the items knows already why there is none.
        raise item
    if isinstance(item, augment.Viewed):
        whole = decode_image(item.item, round(augment.ROOM * short_side))
        return augment.transform(whole, item.digest, item.view)
    # Without a path an error has its item's place, and whoever has the items names it.
    path = str(item) if isinstance(item, str | Path) else None
    name = type(item).__name__ if path is None else path
    if isinstance(item, np.ndarray):
        return _checked_array(item)
    try:
        if isinstance(item, Image.Image):
            _check_size(*item.size, name, path)
            return np.asarray(_upright_rgb(item))
        if not isinstance(item, str | Path | bytes):
            raise DataError(
                f"a picture is a path, bytes, a PIL image or an array, not {name}", hint="give one of those"
            )
        with _quiet():
            picture = Image.open(BytesIO(item) if isinstance(item, bytes) else item, formats=FORMATS)
        with picture:
            _check_size(*picture.size, name, path)
            picture.draft("RGB", (2 * short_side, 2 * short_side))
            return np.asarray(_upright_rgb(picture))
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file", path=path, hint="check the path") from error
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        reason = "not a picture of an accepted format" if "cannot identify" in str(error) else str(error)
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
        what = "too long and thin to classify" if width and height else "empty"
        raise DataError(f"{name}: {width}x{height} is {what}", path=path, hint="remove it, or cut it up")


def _upright_rgb(picture: "PilImage") -> "PilImage":
    from PIL import ExifTags, Image

    turns = (
        *(None, None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM),
        *(Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90),
    )
    picture.load()
    with _quiet():
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    # ImageOps.exif_transpose would write the EXIF block anew, and fail on the many that break their own rules.
    turn = turns[orientation] if isinstance(orientation, int) and 0 < orientation < len(turns) else None
    if turn is not None:
        picture = picture.transpose(turn)
    if picture.mode.startswith("I;16"):
        # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
        import numpy as np

        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"the range of mode {picture.mode} is not known")
    if picture.mode == "P" and "transparency" in picture.info:
        # Pillow asks for this detour, by a warning; transparency itself is dropped either way.
        picture = picture.convert("RGBA")
    # A picture that is RGB already would be copied.
    return picture if picture.mode == "RGB" else picture.convert("RGB")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings from the user: about large pictures, which we judge, and untidy EXIF blocks.

    Warning filters belong to the process and not to the thread, so only short calls may be made inside.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def encoder_version(preprocess: ImagePreprocess | TextPreprocess) -> str:
    """What, beside the item's bytes, decides the arrays made of it: a part of the feature cache's key."""
    import importlib.metadata

    library = "Pillow" if isinstance(preprocess, ImagePreprocess) else "tokenizers"
    major = importlib.metadata.version(library).split(".")[0]
    return f"encode {VERSION}, {library} {major}"
