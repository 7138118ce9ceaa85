"""The parity gate: on real samples an exported file gives the numbers of the family's own arithmetic, or is no file.

Pictures: the graph's preprocessing is compared with an image library's, then the whole graph with the family's torch
code on the same pixels. Texts: the graph with the family's code on the same tokens. Both at batch 1, 2 and 7, and each
row of the largest batch with that row alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from zoo import graph, head
from zoo.encode import TextEncoder, decode_image
from zoo.errors import GateError
from zoo.runtime import create_session
from zoo.schema import ImagePreprocess, Parity, ParityCheck

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.backbone import TensorMap
    from zoo.external import Bytes
    from zoo.head import Layer

    Reference: TypeAlias = Callable[[TensorMap], TensorMap]
    PixelsOf: TypeAlias = Callable[[NDArray[np.uint8], ImagePreprocess], NDArray[np.float32]]


class Top(NamedTuple):
    """A head: its layers and what follows the last one."""

    layers: "Sequence[Layer]"
    activation: str


BATCHES = (1, 2, 7)
#: Differences are relative to the largest reference value where that is above 1.
FEATURES_BOUND = 1e-4
COSINE_BOUND = 1e-5
SCORES_BOUND = 1e-4
#: Grey levels (of 256) between the graph's preprocessing and Pillow's.
LEVELS_BOUND = 1.001


def check(
    model: bytes,
    reference: "Reference",
    samples: Sequence[Any],
    origin: str,
    *,
    preprocess: ImagePreprocess | TextEncoder,
    top: "Top | None" = None,
    expected: "PixelsOf | None" = None,
    tables: "Mapping[str, Bytes] | None" = None,
) -> Parity:
    """Compare `model` with `reference` (and with `top` on its features) on `samples`, which come from `origin`.

    `tables` are the files of its external data. `expected` says what the graph's preprocessing must make of a picture:
    `pillow_pixels` unless given.
    Raises GateError, with the report, when a check fails.
    """
    if isinstance(preprocess, ImagePreprocess):
        checks = list(_check_images(model, reference, samples, preprocess, top, expected or pillow_pixels, tables))
    else:
        checks = list(_check_texts(model, reference, samples, preprocess, top, tables))
    report = Parity(samples=f"{len(samples)} of {origin}", checks=tuple(checks))
    if not report.passed:
        failed = [check for check in checks if not check.passed]
        worst = max(failed, key=lambda check: check.value / check.bound)
        raise GateError(
            f"parity: {worst.name} at batch {worst.batch} differs by {worst.value:.3g}, above {worst.bound:g} "
            f"({len(failed)} of {len(checks)} checks failed); nothing was written",
            report=report,
            hint="the exported graph is not the model: report it to the family's author",
        )
    return report


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


def _check_images(
    model: bytes,
    reference: "Reference",
    samples: Sequence[Any],
    preprocess: ImagePreprocess,
    top: "Top | None",
    expected: "PixelsOf",
    tables: "Mapping[str, Bytes] | None",
) -> Iterator[ParityCheck]:
    import numpy as np
    import onnx

    pictures = [decode_image(sample, preprocess.resize) for sample in samples]
    # Several megapixels of real detail: what is shrunk a lot is filtered by other weights than what is shrunk a little.
    times = 1 + 8 * preprocess.resize // min(pictures[0].shape[:2])
    pictures.append(np.tile(pictures[0], (times, times, 1)))
    cut = graph.extract(onnx.load_from_string(model), [graph.IMAGE], [graph.PIXELS])
    prefix = create_session(cut.SerializeToString(), "cpu", tables=tables, spins=False)
    whole = create_session(model, "cpu", tables=tables, spins=False)
    grey = 255 * np.array(preprocess.std, np.float32).reshape(3, 1, 1)
    levels = [
        _levels(_run(prefix, {graph.IMAGE: picture[None]}).get(graph.PIXELS), expected(picture, preprocess)[None], grey)
        for picture in pictures
    ]
    yield _judge("preprocessing (grey levels)", 1, max(levels), LEVELS_BOUND)
    for batch in BATCHES:
        # A batch is one array, so its pictures are cut to a common size.
        chosen = [pictures[index % len(pictures)] for index in range(batch)]
        height, width = (min(picture.shape[axis] for picture in chosen) for axis in (0, 1))
        feeds = {graph.IMAGE: np.stack([picture[:height, :width] for picture in chosen])}
        pixels = _run(prefix, feeds)
        if not pixels:
            yield _judge("preprocessing (batches)", batch, float("inf"), LEVELS_BOUND)
            continue
        yield from compare(whole, reference, top, feeds, pixels)
    yield rows_alone(whole, feeds)


def _check_texts(
    model: bytes,
    reference: "Reference",
    samples: Sequence[str],
    encoder: TextEncoder,
    top: "Top | None",
    tables: "Mapping[str, Bytes] | None",
) -> Iterator[ParityCheck]:
    whole = create_session(model, "cpu", tables=tables, spins=False)
    rows = encoder.tokens(samples)
    for batch in BATCHES:
        feeds = encoder.batch([rows[index % len(rows)] for index in range(batch)])
        yield from compare(whole, reference, top, feeds, feeds)
    yield rows_alone(whole, feeds)


def compare(
    session: Any,
    reference: "Reference",
    top: "Top | None",
    feeds: "TensorMap",
    reference_feeds: "TensorMap",
) -> Iterator[ParityCheck]:
    """The graph in `session` against the family's own arithmetic (and the head `top` on it) on one batch.

    Of a graph that ends before the features, every tensor that the reference gives.
    """
    import numpy as np

    batch = len(next(iter(feeds.values())))
    got = _run(session, feeds)
    features, scores = got.get(graph.FEATURES), got.get(graph.SCORES)
    answers = reference(reference_feeds)
    if graph.FEATURES not in answers:
        for name, tensor in answers.items():
            yield _judge(f"{name} (max difference)", batch, _difference(got.get(name), tensor), FEATURES_BOUND)
        return
    wanted = np.asarray(answers[graph.FEATURES], np.float32)
    yield _judge("features (max difference)", batch, _difference(features, wanted), FEATURES_BOUND)
    yield _judge("features (1 - cosine)", batch, _angle(features, wanted), COSINE_BOUND)
    if top is not None:
        right = head.apply(top.layers, wanted, top.activation)
        yield _judge("scores (max difference)", batch, _difference(scores, right), SCORES_BOUND)
        if top.activation == "softmax":
            yield _judge("top-1 (rows that differ)", batch, _moved(scores, right), 0.5)


def rows_alone(session: Any, feeds: "TensorMap") -> ParityCheck:
    """Each row of a batch against that row alone: a frozen or leaking batch axis shows here."""
    import numpy as np

    batch = len(next(iter(feeds.values())))
    alone = [_run(session, {name: array[row : row + 1] for name, array in feeds.items()}) for row in range(batch)]
    worst = 0.0 if all(alone) else float("inf")
    for name, together in _run(session, feeds).items():
        one_by_one = np.concatenate([answer[name] for answer in alone]) if all(alone) else None
        worst = max(worst, _difference(one_by_one, together))
    return _judge("each row alone (max difference)", batch, worst, FEATURES_BOUND)


def _run(session: Any, feeds: "TensorMap") -> "TensorMap":
    """The graph's answers by name; none where the runtime refuses the shapes, as it does after a frozen axis."""
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except Exception:  # onnxruntime's exceptions have no common root of their own
        return {}


def _levels(got: "NDArray[Any] | None", wanted: "NDArray[Any]", grey: "NDArray[Any]") -> float:
    import numpy as np

    if got is None or got.shape != wanted.shape:
        return float("inf")
    return _finite(float(np.abs((got - wanted) * grey).max()))


def _moved(got: "NDArray[Any] | None", wanted: "NDArray[Any]") -> float:
    """Rows whose best class is another one, where the reference is not on the fence itself."""
    import numpy as np

    if got is None or got.shape != wanted.shape:
        return float("inf")
    top = np.sort(wanted, axis=1)
    clear = top[:, -1] - top[:, -2] > SCORES_BOUND
    return float(((got.argmax(1) != wanted.argmax(1)) & clear).sum())


def _difference(got: "NDArray[Any] | None", wanted: "NDArray[Any]") -> float:
    import numpy as np

    if got is None or got.shape != wanted.shape:
        return float("inf")
    return _finite(float(np.abs(got - wanted).max() / max(1.0, float(np.abs(wanted).max()))))


def _finite(value: float) -> float:
    """Infinity for a NaN: comparisons and max() would let one pass."""
    return value if value < float("inf") else float("inf")


def _angle(got: "NDArray[Any] | None", wanted: "NDArray[Any]") -> float:
    import numpy as np

    if got is None or got.shape != wanted.shape:
        return float("inf")
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(wanted, axis=1)
    # A text without a known word is all zeros on both sides, and has no direction.
    cosines = np.where(
        (got == wanted).all(1), 1, np.sum(got * wanted, axis=1, dtype=np.float64) / np.maximum(norms, 1e-12)
    )
    return _finite(float(np.max(1 - cosines)))


def _judge(name: str, batch: int, value: float, bound: float) -> ParityCheck:
    # Written so that a NaN fails.
    return ParityCheck(name=name, batch=batch, value=value, bound=bound, passed=bool(value <= bound))
