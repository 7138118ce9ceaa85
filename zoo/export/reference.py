"""Expected outputs of an exported file: samples as inputs of the graph, and the outputs of the family's torch code."""

from collections.abc import Callable, Iterator, Sequence
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
    """The graph's inputs for one batch, and the outputs that the graph must give."""

    feeds: "TensorMap"
    wanted: "TensorMap"


class Expected(NamedTuple):
    """The batches, and for each image the pixels [3, crop, crop] that the graph's preprocessing must give."""

    samples: str
    cases: Sequence[Case]
    images: "Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]]" = ()
    preprocess: ImagePreprocess | None = None


def pillow_pixels(image: "NDArray[np.uint8]", preprocess: ImagePreprocess) -> "NDArray[np.float32]":
    """One RGB image resized by Pillow (width first, as torchvision), cropped, normalised: float32 [3, crop, crop]."""
    import numpy as np
    from PIL import Image

    height, width = image.shape[:2]
    short = min(height, width)
    size = (preprocess.resize * width // short, preprocess.resize * height // short)
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[preprocess.interpolation]
    # In one call Pillow would resize tall images height first: bicubic then differs by several grey levels.
    resized = Image.fromarray(image).resize((size[0], height), method).resize(size, method)
    left, top = (round((side - preprocess.crop) / 2) for side in size)
    cropped = np.asarray(resized.crop((left, top, left + preprocess.crop, top + preprocess.crop)), np.float32)
    mean, std = (np.array(values, np.float32) for values in (preprocess.mean, preprocess.std))
    normal: NDArray[np.float32] = (cropped / np.float32(255) - mean) / std
    return normal.transpose(2, 0, 1)


def torchvision_pixels(image: "NDArray[np.uint8]", preprocess: ImagePreprocess) -> "NDArray[np.float32]":
    """One RGB image prepared by torchvision's tensor transforms, with which the published weights were evaluated."""
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
    pixels: NDArray[np.float32] = steps(torch.from_numpy(np.array(image.transpose(2, 0, 1)))).numpy()
    return pixels


def expect(
    reference: "Reference",
    samples: Sequence[Any],
    origin: str,
    preprocess: ImagePreprocess | TextEncoder,
    pixels_of: "PixelsOf | None" = pillow_pixels,
) -> Expected:
    """The outputs of `reference` for `samples` in batches of 1, 2 and 7.

    origin: the name of the samples in the report.
    pixels_of: computes the pixels that the graph's preprocessing must give; None for a graph that takes pixels.
    """
    named = f"{len(samples)} of {origin}"
    if not isinstance(preprocess, ImagePreprocess):
        return Expected(named, [Case(feeds, reference(feeds)) for feeds in _text_batches(samples, preprocess)])
    images = _decoded(samples, preprocess)
    # `reference` gets pixels of a new preprocessing graph, because the graph in the checked file may be wrong.
    prefix = create_session(image_prefix(preprocess).SerializeToString(), "cpu", spins=False)
    cases = []
    for feeds in _image_batches(images):
        [pixels] = prefix.run([PIXELS], dict(feeds))
        prepared = {PIXELS: pixels}
        cases.append(Case(feeds if pixels_of else prepared, reference(prepared)))
    if pixels_of is None:
        return Expected(named, cases)
    return Expected(named, cases, [(image, pixels_of(image, preprocess)) for image in images], preprocess)


def _text_batches(samples: Sequence[str], encoder: TextEncoder) -> "list[TensorMap]":
    """Batches of texts of many lengths, padded in each batch. The first batch is the shortest text alone."""
    rows = sorted(encoder.tokens(samples), key=len)
    starts = (0, len(rows) // 2, max(0, len(rows) - BATCHES[-1]))
    return [
        encoder.batch([rows[(start + index) % len(rows)] for index in range(batch)])
        for start, batch in zip(starts, BATCHES, strict=True)
    ]


def _decoded(samples: Sequence[Any], preprocess: ImagePreprocess) -> "list[NDArray[np.uint8]]":
    """The decoded samples and one image of several megapixels, for which the resize filter is widest."""
    import numpy as np

    images = [decode_image(sample, preprocess.resize) for sample in samples]
    times = 1 + 8 * preprocess.resize // min(images[0].shape[:2])
    return [*images, np.tile(images[0], (times, times, 1))]


def _image_batches(images: "Sequence[NDArray[np.uint8]]") -> "Iterator[TensorMap]":
    """Batches of images, cut to a common, odd size because a batch is one array."""
    import numpy as np

    for batch in BATCHES:
        chosen = [images[index % len(images)] for index in range(batch)]
        height, width = ((min(image.shape[axis] for image in chosen) - 1) | 1 for axis in (0, 1))
        yield {IMAGE: np.stack([image[:height, :width] for image in chosen])}
