"""What an exported file must answer: samples as the graph takes them, with what the family's own arithmetic says."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from zoo.data.images import decode_image
from zoo.data.tokenizers import TextEncoder
from zoo.graph.prefix import image_prefix
from zoo.runtime.ort import create_session
from zoo.schema import IMAGE, PIXELS, ImagePreprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.backbone import TensorMap

    Reference: TypeAlias = Callable[[TensorMap], TensorMap]
    PixelsOf: TypeAlias = Callable[[NDArray[np.uint8], ImagePreprocess], NDArray[np.float32]]

BATCHES = (1, 2, 7)


class Case(NamedTuple):
    """One batch as the graph takes it, and the tensors that it must give."""

    feeds: "TensorMap"
    wanted: "TensorMap"


class Expected(NamedTuple):
    """The batches, and for pictures what preprocessing must make of each: (picture, pixels [3, crop, crop])."""

    samples: str
    cases: Sequence[Case]
    pictures: "Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]]" = ()
    preprocess: ImagePreprocess | None = None


def expect(
    reference: "Reference",
    samples: Sequence[Any],
    origin: str,
    preprocess: ImagePreprocess | TextEncoder,
    pixels_of: "PixelsOf | None" = None,
    *,
    raw: bool = False,
) -> Expected:
    """What `reference` says of `samples`, which come from `origin`, at batch 1, 2 and 7.

    `pixels_of` says what the graph's preprocessing must make of a picture: `pillow_pixels` unless given. A `raw` graph
    has none: it is given pixels.
    """
    words = f"{len(samples)} of {origin}"
    if isinstance(preprocess, ImagePreprocess):
        return _pictures(reference, samples, words, preprocess, None if raw else pixels_of or pillow_pixels)
    # The shortest alone, then longer ones: as many lengths as the samples have, each padded beside others.
    rows = sorted(preprocess.tokens(samples), key=len)
    starts = (0, len(rows) // 2, max(0, len(rows) - BATCHES[-1]))
    batches = [
        preprocess.batch([rows[(start + index) % len(rows)] for index in range(batch)])
        for start, batch in zip(starts, BATCHES, strict=True)
    ]
    return Expected(words, [Case(feeds, reference(feeds)) for feeds in batches])


def _odd(side: int) -> int:
    return side if side % 2 else max(1, side - 1)


def pillow_pixels(picture: "NDArray[np.uint8]", preprocess: ImagePreprocess) -> "NDArray[np.float32]":
    """What Pillow makes of one RGB picture, width first as torchvision, normalised: float32 [3, crop, crop]."""
    import numpy as np
    from PIL import Image

    height, width = picture.shape[:2]
    short = min(height, width)
    size = (preprocess.resize * width // short, preprocess.resize * height // short)
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[preprocess.interpolation]
    # In one call Pillow resizes tall pictures height first, and torchvision does not: bicubic then differs by levels.
    resized = Image.fromarray(picture).resize((size[0], height), method).resize(size, method)
    left, top = (round((side - preprocess.crop) / 2) for side in size)
    cropped = np.asarray(resized.crop((left, top, left + preprocess.crop, top + preprocess.crop)), np.float32)
    mean, std = (np.array(values, np.float32) for values in (preprocess.mean, preprocess.std))
    normal: NDArray[np.float32] = (cropped / np.float32(255) - mean) / std
    return normal.transpose(2, 0, 1)


def torchvision_pixels(picture: "NDArray[np.uint8]", preprocess: ImagePreprocess) -> "NDArray[np.float32]":
    """What torchvision's tensor transforms, which the published weights were judged with, make of one RGB picture."""
    import numpy as np
    import torch
    from torchvision.transforms import v2

    steps = v2.Compose(
        [
            v2.Resize(preprocess.resize, v2.InterpolationMode(preprocess.interpolation), antialias=True),
            v2.CenterCrop(preprocess.crop),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocess.mean, preprocess.std),
        ]
    )
    pixels: NDArray[np.float32] = steps(torch.from_numpy(np.array(picture.transpose(2, 0, 1)))).numpy()
    return pixels


def _pictures(
    reference: "Reference",
    samples: Sequence[Any],
    words: str,
    preprocess: ImagePreprocess,
    pixels_of: "PixelsOf | None",
) -> Expected:
    """Batches of pictures; where there is no `pixels_of` that judges preprocessing, of the pixels made of them."""
    import numpy as np

    pictures = [decode_image(sample, preprocess.resize) for sample in samples]
    # Several megapixels of real detail: what is shrunk a lot is filtered by other weights than what is shrunk a little.
    times = 1 + 8 * preprocess.resize // min(pictures[0].shape[:2])
    pictures.append(np.tile(pictures[0], (times, times, 1)))
    # What the body is given is made here anew, whatever the file's own preprocessing makes.
    prefix = create_session(image_prefix(preprocess).SerializeToString(), "cpu", spins=False)
    cases = []
    for batch in BATCHES:
        # A batch is one array, so its pictures are cut to a common size.
        chosen = [pictures[index % len(pictures)] for index in range(batch)]
        height, width = (_odd(min(picture.shape[axis] for picture in chosen)) for axis in (0, 1))
        feeds = {IMAGE: np.stack([picture[:height, :width] for picture in chosen])}
        [pixels] = prefix.run([PIXELS], dict(feeds))
        given = {PIXELS: pixels}
        cases.append(Case(feeds if pixels_of else given, reference(given)))
    if pixels_of is None:
        return Expected(words, cases)
    shown = [(picture, pixels_of(picture, preprocess)) for picture in pictures]
    return Expected(words, cases, shown, preprocess)
