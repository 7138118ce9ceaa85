"""The parity gate: on real samples an exported file gives the numbers of the family's own arithmetic, or is no file.

Pictures: the graph's preprocessing is compared with an image library's, then the whole graph with the family's torch
code on the pixels that a preprocessing made anew gives. Texts: the graph with the family's code on the same tokens.
Both at batch 1, 2 and 7, and each row of the largest batch with that row alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.errors import GateError
from zoo.export.isolated_session import IsolatedSession
from zoo.export.reference import BATCHES, Case, Expected
from zoo.graph import edit, external_data, head
from zoo.runtime.ort import create_session
from zoo.schema import (
    FEATURES,
    IMAGE,
    PIXELS,
    SCORES,
    ImagePreprocess,
    Parity,
    ParityCheck,
    Precision,
    Preprocess,
    TextPreprocess,
    WordsPreprocess,
)
from zoo.system.cpu import cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zoo.backbone import TensorMap
    from zoo.graph.external_data import Bytes
    from zoo.graph.head import Layer


class Top(NamedTuple):
    """A head: its layers and what follows the last one."""

    layers: "Sequence[Layer]"
    activation: str


#: What may help where a file in fewer bits differs by too much.
REPORT = "the exported graph is not the model: report it to the family's author"
HALF = "numbers beyond half precision? export fp32"
CALIBRATE = "calibrate with data like those that it will see, or export fp32"
EIGHT = "eight bits are too few for this model: export fp16 or fp32"


class Bounds(NamedTuple):
    """What may differ at most: features and scores (relative to the largest reference value where that is above 1),
    1 - cosine of features, and each row of a batch from that row alone."""  # noqa: D205, D209

    features: float
    cosine: float
    scores: float
    alone: float
    #: Rows of a batch whose best class may be another one, though the reference's own was ahead by more than `scores`.
    moved: int = 0
    #: What may help where that is not kept.
    hint: str = REPORT


#: Half precision has 11 bits and a CPU computes with them in single precision. Of int8, with 256 levels a tensor, the
#: direction of the features has to stay, which is what a head or a search reads; single numbers and the scores of
#: items that are in doubt move. Its worth is judged by the accuracy that is left (zoo.export.accuracy_guard).
BOUNDS = {
    "fp32": Bounds(features=1e-4, cosine=1e-5, scores=1e-4, alone=1e-4),
    "fp16": Bounds(features=2e-2, cosine=1e-4, scores=3e-2, alone=2e-3, hint=HALF),
    "int8": Bounds(features=0.75, cosine=0.1, scores=0.5, alone=1e-4, moved=1, hint=CALIBRATE),
}
EXACT = BOUNDS["fp32"]
#: Of a table of words only the rows are rounded: by 1 in 2,048 of a number, or 1 in 254 of the row's largest one.
WORDS = {
    "fp32": EXACT,
    "fp16": Bounds(features=2e-3, cosine=1e-5, scores=1e-2, alone=1e-4, hint=HALF),
    "int8": Bounds(features=3e-2, cosine=1e-3, scores=0.1, alone=1e-4, hint=EIGHT),
}
#: Of an encoder of texts with a scale a row the direction of the features, which a search reads, hardly turns.
TEXTS = {**BOUNDS, "int8": Bounds(features=0.25, cosine=2e-2, scores=0.25, alone=1e-4, moved=1, hint=EIGHT)}
#: Grey levels (of 256) between the graph's preprocessing and Pillow's.
LEVELS_BOUND = 1.001


def bounds_of(precision: Precision, preprocess: Preprocess) -> Bounds:
    """What a file of that precision, of a row that prepares its input so, may differ by."""
    kinds = {ImagePreprocess: BOUNDS, TextPreprocess: TEXTS, WordsPreprocess: WORDS}
    return kinds[type(preprocess)][precision]


def check(
    path: Path,
    expected: Expected,
    *,
    top: "Top | None" = None,
    former: "Top | None" = None,
    bounds: Bounds = EXACT,
    fresh: IsolatedSession | None = None,
) -> Parity:
    """Compare the file at `path` with what is expected of it, and with `top` on the expected features.

    Where `former` is given, the head of the model that was converted, only the best class is compared with what that
    says of the expected features, in the largest batch; the scores are with those of `top` on the file's own. A process
    of its own opens the file: `fresh`, where one is there already and still runs. Raises GateError, with the report,
    when a check fails, and IntegrityError when that process refuses the file or ends.
    """
    model = path.read_bytes()
    # Said before a runtime may follow a path: where the file's external data lies.
    tables = external_data.files(model, external_data.beside(path.parent))
    checks = list(_check_pixels(model, expected, expected.preprocess, tables)) if expected.preprocess else []
    # It may have started long before it is needed, and whatever ended it since then was not this file.
    with fresh if fresh and fresh.is_alive else IsolatedSession() as whole:
        whole.open(path, cores())
        for case in expected.cases:
            checks += compare(whole, case, top, bounds, former)
        checks.append(rows_alone(whole, expected.cases[-1].feeds, bounds))
    report = Parity(samples=expected.samples, checks=tuple(checks))
    if not report.passed:
        failed = [check for check in checks if not check.passed]
        worst = max(failed, key=lambda check: check.value / check.bound)
        raise GateError(
            f"parity: {worst.name} at batch {worst.batch} differs by {worst.value:.3g}, above {worst.bound:g} "
            f"({len(failed)} of {len(checks)} checks failed); nothing was written",
            report=report,
            # The preprocessing has the same bound, and the same numbers, in every precision.
            hint=REPORT if worst.name.startswith("preprocessing") else bounds.hint,
        )
    return report


def _check_pixels(
    model: bytes, expected: Expected, preprocess: ImagePreprocess, tables: "Mapping[str, Bytes] | None"
) -> Iterator[ParityCheck]:
    """What the graph's own preprocessing makes of each picture, and whether it takes several."""
    import numpy as np
    import onnx

    cut = edit.extract(onnx.load_from_string(model), [IMAGE], [PIXELS])
    prefix = create_session(cut.SerializeToString(), "cpu", tables=tables, spins=False)
    grey = 255 * np.array(preprocess.std, np.float32).reshape(3, 1, 1)
    levels = [
        _levels(_run(prefix, {IMAGE: picture[None]}).get(PIXELS), pixels[None], grey)
        for picture, pixels in expected.pictures
    ]
    yield _judge("preprocessing (grey levels)", 1, max(levels), LEVELS_BOUND)
    for case in expected.cases:
        if not _run(prefix, case.feeds):
            yield _judge("preprocessing (batches)", len(case.feeds[IMAGE]), float("inf"), LEVELS_BOUND)


def compare(
    session: Any, case: Case, top: "Top | None" = None, bounds: Bounds = EXACT, former: "Top | None" = None
) -> Iterator[ParityCheck]:
    """The graph in `session` against what is wanted of it (and the heads on that: see `check`) on one batch.

    Of a graph that ends before the features, every tensor that is wanted.
    """
    import numpy as np

    batch = len(next(iter(case.feeds.values())))
    got = _run(session, case.feeds)
    features, scores = got.get(FEATURES), got.get(SCORES)
    if FEATURES not in case.wanted:
        for name, tensor in case.wanted.items():
            yield _judge(f"{name} (max difference)", batch, _difference(got.get(name), tensor), bounds.features)
        return
    wanted = np.asarray(case.wanted[FEATURES], np.float32)
    yield _judge("features (max difference)", batch, _difference(features, wanted), bounds.features)
    yield _judge("features (1 - cosine)", batch, _angle(features, wanted), bounds.cosine)
    if top is None:
        return
    right = head.apply((former or top).layers, wanted, top.activation)
    if former is None:
        yield _judge("scores (max difference)", batch, _difference(scores, right), bounds.scores)
    elif features is not None:
        own = head.apply(top.layers, np.asarray(features, np.float32), top.activation)
        yield _judge("scores of its features (max difference)", batch, _difference(scores, own), EXACT.scores)
    # Where rows may move they are counted once, in the largest batch: as few as there are in the others prove nothing.
    if top.activation == "softmax" and (former is None or batch == BATCHES[-1]):
        moved = _moved(scores, right, bounds.scores, _distinct(case.feeds))
        yield _judge("top-1 (rows that differ)", batch, moved, bounds.moved + 0.5)


def rows_alone(session: Any, feeds: "TensorMap", bounds: Bounds = EXACT) -> ParityCheck:
    """Each row of a batch against that row alone: a frozen or leaking batch axis shows here."""
    import numpy as np

    batch = len(next(iter(feeds.values())))
    alone = [_run(session, {name: array[row : row + 1] for name, array in feeds.items()}) for row in range(batch)]
    together = _run(session, feeds)
    worst = 0.0 if together and all(alone) else float("inf")
    for name, rows in together.items():
        one_by_one = np.concatenate([answer[name] for answer in alone]) if all(alone) else None
        worst = max(worst, _difference(one_by_one, rows))
    return _judge("each row alone (max difference)", batch, worst, bounds.alone)


def _run(session: Any, feeds: "TensorMap") -> "TensorMap":
    """The graph's answers by name; none where the runtime refuses the shapes, as it does after a frozen axis.

    Raises IntegrityError when the process that was asked has ended, which says nothing of the graph.
    """
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except Exception as error:
        # onnxruntime's exceptions have no common root of their own; its wrapper and IsolatedSession raise Python's.
        if isinstance(error, RuntimeError | ValueError) or type(error).__module__.startswith("onnxruntime."):
            return {}
        raise


def _distinct(feeds: "TensorMap") -> list[int]:
    """The first place of each row: a batch of fewer samples than it has rows repeats some."""
    rows = zip(*([row.tobytes() for row in array] for array in feeds.values()), strict=True)
    places: dict[tuple[bytes, ...], int] = {}
    for place, row in enumerate(rows):
        places.setdefault(row, place)
    return list(places.values())


def _levels(got: "NDArray[Any] | None", wanted: "NDArray[Any]", grey: "NDArray[Any]") -> float:
    import numpy as np

    if got is None or got.shape != wanted.shape:
        return float("inf")
    return _finite(float(np.abs((got - wanted) * grey).max()))


def _moved(
    got: "NDArray[Any] | None", wanted: "NDArray[Any]", room: float, rows: "Sequence[int] | slice" = slice(None)
) -> float:
    """How many of `rows` have another best class, where the reference's own is ahead by more than `room`."""
    import numpy as np

    if got is None or got.shape != wanted.shape:
        return float("inf")
    top = np.sort(wanted, axis=1)
    clear = top[:, -1] - top[:, -2] > room
    return float(((got.argmax(1) != wanted.argmax(1)) & clear)[rows].sum())


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
