"""Expected outputs of an exported file: samples as inputs of the graph, and the outputs of the family's torch code."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from zoo.data import samples as sample_items
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

BATCHES = (1, 2, 7)


class Case(NamedTuple):
    """The graph's inputs for one batch, and the outputs that the graph must give."""

    feeds: "TensorMap"
    wanted: "TensorMap"


class Expected(NamedTuple):
    """The batches, and for each photograph the pixels [3, crop, crop] that the graph's preprocessing must give."""

    samples: str
    cases: Sequence[Case]
    images: "Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]]" = ()
    preprocess: ImagePreprocess | None = None


def pillow_pixels(image: "NDArray[np.uint8]", preprocess: ImagePreprocess) -> "NDArray[np.float32]":
    """One RGB image resized by Pillow, width first, cropped, normalised: float32 [3, crop, crop].

    torchvision and timm prepare PIL images so; the published weights were trained and evaluated on such pixels.
    """
    import numpy as np
    from PIL import Image

    height, width = preprocess.resized(*image.shape[:2])
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[preprocess.interpolation]
    # In one call Pillow 13 resizes some tall images height first, which earlier releases did not.
    resized = Image.fromarray(image).resize((width, image.shape[0]), method).resize((width, height), method)
    left, top = (preprocess.offset(side) for side in (width, height))
    cropped = np.asarray(resized.crop((left, top, left + preprocess.crop, top + preprocess.crop)), np.float32)
    mean, std = (np.array(values, np.float32) for values in (preprocess.mean, preprocess.std))
    normal: NDArray[np.float32] = (cropped / np.float32(255) - mean) / std
    return normal.transpose(2, 0, 1)


def expect(
    reference: "Reference",
    samples: Sequence[Any],
    origin: str,
    preprocess: ImagePreprocess | TextEncoder,
    *,
    is_raw: bool = False,
    prefix: bytes | None = None,
) -> Expected:
    """The outputs of `reference` for `samples` in batches of 1, 2 and 7.

    origin: the name of the samples in the report.
    is_raw: the graph takes pixels, so its preprocessing is not compared.
    prefix: the preprocessing of a file that an earlier version wrote, whose arithmetic is another one.
    """
    named = f"{len(samples)} of {origin}"
    if not isinstance(preprocess, ImagePreprocess):
        return Expected(named, [Case(feeds, reference(feeds)) for feeds in _text_batches(samples, preprocess)])
    images = _decoded(samples, preprocess)
    # `reference` gets pixels of a new preprocessing graph, because the graph in the checked file may be wrong.
    prepare = create_session(prefix or image_prefix(preprocess).SerializeToString(), "cpu", spins=False)
    cases = []
    for feeds in _image_batches(images):
        [pixels] = prepare.run([PIXELS], dict(feeds))
        prepared = {PIXELS: pixels}
        cases.append(Case(prepared if is_raw else feeds, reference(prepared)))
    if is_raw:
        return Expected(named, cases)
    # Sizes for which most weights of the resizing are simple fractions have many ties, which may be rounded either way.
    # The bundled photographs are not of such sizes; the user's images may be.
    photographs = _decoded(sample_items.bundled(preprocess)[0], preprocess)
    return Expected(named, cases, [(image, pillow_pixels(image, preprocess)) for image in photographs], preprocess)


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
