"""The parity check: an exported file is written only if its numbers equal those of the family's torch code on samples.

Images: the graph's preprocessing is compared with Pillow's. The whole graph is compared with the family's
code on pixels of a separate preprocessing graph. Texts: the graph is compared with the family's code on the same
tokens. Both are compared at batch 1, 2 and 7. Each row of the largest batch is also compared with the same row alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.errors import GateError
from zoo.export.isolated_session import IsolatedSession
from zoo.export.reference import BATCHES, Case, Expected
from zoo.graph import edit, external_data, head
from zoo.graph.prefix import ARITHMETIC
from zoo.runtime.ort import create_session
from zoo.schema import (
    CHANGED,
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
    """A head: its layers, and the activation after the last one."""

    layers: "Sequence[Layer]"
    activation: str


#: Hints of the error that a failed check raises.
REPORT = "the exported graph computes other numbers than the model: report it to the family's author"
HALF = "the model may have numbers beyond half precision: export fp32"
CALIBRATE = "calibrate with data like those that the model will get, or export fp32"
EIGHT = "int8 is too coarse for this model: export fp16 or fp32"


class Bounds(NamedTuple):
    """The largest allowed differences of one precision.

    features, scores: the largest difference, relative to the largest reference value if that is above 1.
    cosine: 1 - cosine of features.
    alone: the difference between a row of a batch and the same row run alone.
    """

    features: float
    cosine: float
    scores: float
    alone: float
    #: Rows of a batch whose predicted class may change although the reference's class leads by more than `scores`.
    moved: int = 0
    hint: str = REPORT


#: fp16: a mantissa has 11 bits, and a CPU computes such numbers in single precision. int8: a tensor has 256 levels, so
#: single numbers and the scores of doubtful items change. The direction of the features must stay, because heads and
#: searches use it. zoo.export.accuracy_guard measures the accuracy of int8.
BOUNDS = {
    "fp32": Bounds(features=1e-4, cosine=1e-5, scores=1e-4, alone=1e-4),
    "fp16": Bounds(features=2e-2, cosine=1e-4, scores=3e-2, alone=2e-3, hint=HALF),
    "int8": Bounds(features=0.75, cosine=0.1, scores=0.5, alone=1e-4, moved=1, hint=CALIBRATE),
}
EXACT = BOUNDS["fp32"]
#: Of a word model only the table is rounded: by 1/2,048 of a number (fp16) or 1/254 of a row's largest number (int8).
WORD_BOUNDS = {
    "fp32": EXACT,
    "fp16": Bounds(features=2e-3, cosine=1e-5, scores=1e-2, alone=1e-4, hint=HALF),
    "int8": Bounds(features=3e-2, cosine=1e-3, scores=0.1, alone=1e-4, hint=EIGHT),
}
#: Text encoders have a scale for each row: the direction of the features hardly changes.
TEXTS = {**BOUNDS, "int8": Bounds(features=0.25, cosine=2e-2, scores=0.25, alone=1e-4, moved=1, hint=EIGHT)}
#: Grey levels (of 256) by which the graph's preprocessing may differ from Pillow's. One in RARE values may differ by
#: one level more: the second pass reads values of the first, some of which differ by a level already.
LEVELS_BOUND, RARE = 1.001, 10_000
#: The fraction of values that may differ from Pillow's. Measured for 190 pairs of a size and a crop: 0.001 in the mean,
#: 0.007 at most. Without rounding between the two passes it would be 0.16.
SHARE_BOUND = 0.02


def bounds_of(precision: Precision, preprocess: Preprocess) -> Bounds:
    """The bounds for a file in this precision, made from a model with this preprocessing."""
    kinds = {ImagePreprocess: BOUNDS, TextPreprocess: TEXTS, WordsPreprocess: WORD_BOUNDS}
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
    """Compare the file at `path` with the `expected` features, and its scores with the head `top` on these features.

    `former` is the head before conversion. With it, scores are compared with `top` applied to the exported file's own
    features, and the predicted class with `former` applied to the expected features (largest batch only).

    `fresh` is a process, started earlier, that opens the file; if it has ended, a new one is started. Raises GateError
    with the report when a check fails, IntegrityError when ONNX Runtime refuses the file or the process ends.
    """
    model = path.read_bytes()
    # The paths of external data are checked before a runtime may open them.
    tables = external_data.files(model, external_data.beside(path.parent))
    checks = list(_check_pixels(model, expected, tables))
    with fresh if fresh and fresh.is_alive else IsolatedSession() as session:
        session.open(path, cores())
        for case in expected.cases:
            checks += compare(session, case, top, bounds, former)
        checks.append(rows_alone(session, expected.cases[-1].feeds, bounds))
    report = Parity(samples=expected.samples, checks=tuple(checks))
    if not report.passed:
        failed = [check for check in checks if not check.passed]
        worst = max(failed, key=lambda check: check.value / check.bound)
        found = f"{worst.name} at batch {worst.batch} differs by {worst.value:.3g}, above {worst.bound:g}"
        if worst.may_change is not None:
            found = (
                f"predictions changed at batch {worst.batch}: {worst.value:g}, at most {worst.may_change} may change"
            )
        raise GateError(
            f"parity: {found} ({len(failed)} of {len(checks)} checks failed); nothing was written",
            report=report,
            # The preprocessing is the same in every precision.
            hint=REPORT if worst.name.startswith("preprocessing") else bounds.hint,
        )
    return report


def _check_pixels(model: bytes, expected: Expected, tables: "Mapping[str, Bytes]") -> Iterator[ParityCheck]:
    """Compare the graph's own preprocessing, if it has one, with the expected pixels; run it on each batch."""
    import numpy as np
    import onnx

    if expected.preprocess is None:
        return
    whole = onnx.load_from_string(model)
    cut = edit.extract(whole, [IMAGE], [PIXELS])
    prefix = create_session(cut.SerializeToString(), "cpu", tables=tables, spins=False)
    grey = 255 * np.array(expected.preprocess.std, np.float32).reshape(3, 1, 1)

    def levels(got: "NDArray[Any]", wanted: "NDArray[Any]") -> Any:
        differences = np.sort(np.abs((got - wanted) * grey), axis=None)
        return max(differences[-1 - len(differences) // RARE], differences[-1] - 1)

    def share(got: "NDArray[Any]", wanted: "NDArray[Any]") -> Any:
        return (np.abs((got - wanted) * grey) > 0.5).mean()

    pairs = [(_run(prefix, {IMAGE: image[None]}).get(PIXELS), pixels[None]) for image, pixels in expected.images]
    yield _result("preprocessing (grey levels)", 1, max(_measured(*pair, levels) for pair in pairs), LEVELS_BOUND)
    if ARITHMETIC in edit.metadata_of(whole).items():
        shares = [_measured(*pair, share) for pair in pairs]
        yield _result("preprocessing (fraction of values that differ)", 1, sum(shares) / len(shares), SHARE_BOUND)
    for case in expected.cases:
        if not _run(prefix, case.feeds):
            yield _result("preprocessing (batches)", len(case.feeds[IMAGE]), float("inf"), LEVELS_BOUND)


def compare(
    session: Any, case: Case, top: "Top | None" = None, bounds: Bounds = EXACT, former: "Top | None" = None
) -> Iterator[ParityCheck]:
    """Checks of one batch: the outputs of `session` against `case.wanted`, and the scores (see `check`).

    A graph that ends before the features is checked on every tensor of `case.wanted`.
    """
    import numpy as np

    batch = len(next(iter(case.feeds.values())))
    got = _run(session, case.feeds)
    features, scores = got.get(FEATURES), got.get(SCORES)
    if FEATURES not in case.wanted:
        for name, tensor in case.wanted.items():
            yield _result(f"{name} (max difference)", batch, _difference(got.get(name), tensor), bounds.features)
        return
    wanted = np.asarray(case.wanted[FEATURES], np.float32)
    yield _result("features (max difference)", batch, _difference(features, wanted), bounds.features)
    yield _result("features (1 - cosine)", batch, _angle(features, wanted), bounds.cosine)
    if top is None:
        if SCORES in case.wanted:
            yield from _pretrained(scores, case, bounds)
        return
    reference = head.apply((former or top).layers, wanted, top.activation)
    if former is None:
        yield _result("scores (max difference)", batch, _difference(scores, reference), bounds.scores)
    elif features is not None:
        own = head.apply(top.layers, np.asarray(features, np.float32), top.activation)
        yield _result("scores of its features (max difference)", batch, _difference(scores, own), EXACT.scores)
    # After a conversion some rows may change; the smaller batches have too few rows to count them.
    if top.activation == "softmax" and (former is None or batch == BATCHES[-1]):
        moved = _moved(scores, reference, bounds.scores, _distinct(case.feeds))
        yield _result(CHANGED, batch, moved, bounds.moved + 0.5)


def _pretrained(scores: "NDArray[Any] | None", case: Case, bounds: Bounds) -> Iterator[ParityCheck]:
    """Checks of the scores of a head that came with the weights."""
    import numpy as np

    wanted = np.asarray(case.wanted[SCORES], np.float32)
    batch = len(wanted)
    yield _result("scores (max difference)", batch, _difference(scores, wanted), bounds.scores)
    if wanted.shape[1] > 1 and (bounds == EXACT or batch == BATCHES[-1]):
        moved = _moved(scores, wanted, bounds.scores, _distinct(case.feeds))
        yield _result(CHANGED, batch, moved, bounds.moved + 0.5)


def rows_alone(session: Any, feeds: "TensorMap", bounds: Bounds = EXACT) -> ParityCheck:
    """The check of each row of a batch against the same row run alone. It finds a frozen or leaking batch axis."""
    import numpy as np

    batch = len(next(iter(feeds.values())))
    alone = [_run(session, {name: array[row : row + 1] for name, array in feeds.items()}) for row in range(batch)]
    together = _run(session, feeds)
    worst = 0.0 if together and all(alone) else float("inf")
    for name, rows in together.items():
        one_by_one = np.concatenate([answer[name] for answer in alone]) if all(alone) else None
        worst = max(worst, _difference(one_by_one, rows))
    return _result("each row alone (max difference)", batch, worst, bounds.alone)


def _run(session: Any, feeds: "TensorMap") -> "TensorMap":
    """The graph's outputs by name; {} if the runtime refuses the shapes, for example because an axis is frozen.

    Raises IntegrityError when the process of the session has ended.
    """
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except Exception as error:
        # onnxruntime's exceptions have no common base class; its wrapper and IsolatedSession raise built-in ones.
        if isinstance(error, RuntimeError | ValueError) or type(error).__module__.startswith("onnxruntime."):
            return {}
        raise


def _distinct(feeds: "TensorMap") -> list[int]:
    """The first index of each distinct row. A batch repeats samples if there are too few of them."""
    indices: dict[tuple[bytes, ...], int] = {}
    for index, rows in enumerate(zip(*feeds.values(), strict=True)):
        indices.setdefault(tuple(row.tobytes() for row in rows), index)
    return list(indices.values())


def _measured(
    got: "NDArray[Any] | None", wanted: "NDArray[Any]", measure: "Callable[[NDArray[Any], NDArray[Any]], Any]"
) -> float:
    """`measure(got, wanted)`; infinity for a missing tensor, a different shape, or a result that is NaN."""
    if got is None or got.shape != wanted.shape:
        return float("inf")
    value = float(measure(got, wanted))
    return value if value < float("inf") else float("inf")


def _moved(
    got: "NDArray[Any] | None", wanted: "NDArray[Any]", margin: float, rows: "Sequence[int] | slice" = slice(None)
) -> float:
    """The number of `rows` whose best class differs although the reference's class leads by more than `margin`."""
    import numpy as np

    best = np.sort(wanted, axis=1)
    clear = best[:, -1] - best[:, -2] > margin
    return _measured(got, wanted, lambda got, wanted: ((got.argmax(1) != wanted.argmax(1)) & clear)[rows].sum())


def _difference(got: "NDArray[Any] | None", wanted: "NDArray[Any]") -> float:
    """The largest difference, relative to the largest value of `wanted` if that is above 1."""
    import numpy as np

    return _measured(
        got, wanted, lambda got, wanted: np.abs(got - wanted).max() / max(1.0, float(np.abs(wanted).max()))
    )


def _angle(got: "NDArray[Any] | None", wanted: "NDArray[Any]") -> float:
    """The largest 1 - cosine between a row of `got` and the same row of `wanted`."""
    import numpy as np

    def measure(got: "NDArray[Any]", wanted: "NDArray[Any]") -> Any:
        norms = np.linalg.norm(got, axis=1) * np.linalg.norm(wanted, axis=1)
        cosines = np.sum(got * wanted, axis=1, dtype=np.float64) / np.maximum(norms, 1e-12)
        # The features of a text without a known word are zeros on both sides and have no direction: they are equal.
        return np.max(1 - np.where((got == wanted).all(1), 1, cosines))

    return _measured(got, wanted, measure)


def _result(name: str, batch: int, value: float, bound: float) -> ParityCheck:
    # `value <= bound` is False for NaN, so NaN fails.
    return ParityCheck(name=name, batch=batch, value=value, bound=bound, passed=bool(value <= bound))
