"""`zoo similar`: the inputs that are most similar to a query, by matrix products with blocks of vectors.

With an index (the library usearch), a file of a million vectors or more is searched in a graph of neighbours, which is
stored beside the file. The vectors that the index finds are compared again exactly.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.data.inputs import Input, named_inputs
from zoo.data.items import Skip
from zoo.errors import DataError, ZooError, counted
from zoo.extras import require
from zoo.outputs.embed import fingerprint
from zoo.outputs.vector_reader import BLOCK, Stored, is_stored
from zoo.outputs.write_rows import LISTED
from zoo.progress import SILENT, Bar, Progress
from zoo.results import Failure, Ranking
from zoo.runtime.answers import check_top
from zoo.runtime.in_order import InOrder
from zoo.runtime.session import Session

if TYPE_CHECKING:
    from zoo.runtime.session import Floats

#: Files with fewer vectors are compared without an index.
INDEXED = 1_000_000


class Query(NamedTuple):
    """The item of a query, and the name of the model's prompt before it; None means the default prompt."""

    item: Any
    prompt: str | None = None


class _Match(NamedTuple):
    """One candidate. Of candidates with equal similarity the one with the lower `order` is better."""

    similarity: float
    order: int
    name: str | None
    source: int
    row: int


class _Best:
    """The `top` added vectors that are most similar to `query`."""

    def __init__(self, query: "Floats", top: int) -> None:
        import numpy as np

        self.unit = query / max(float(np.linalg.norm(query)), 1e-30)
        self.top = top
        self.compared = 0
        self.not_finite = 0
        self.matches: list[_Match] = []

    def add(self, vectors: "Floats", source: int, row: int, names: Sequence[str] | None = None) -> None:
        """Compare vectors [n, dim]; the first of them is row `row` of `source`."""
        import numpy as np

        # A vector of zeros has similarity 0.
        with np.errstate(invalid="ignore", over="ignore"):
            norms = np.linalg.norm(vectors, axis=1)
            found = vectors @ self.unit / np.maximum(norms, np.float32(1e-30))
            # The squares of large numbers overflow float32, so the cosine of such vectors is computed in float64.
            if len(odd := np.flatnonzero(~np.isfinite(norms) | ~np.isfinite(found))):
                large = vectors[odd].astype(np.float64)
                found[odd] = large @ self.unit / np.linalg.norm(large, axis=1)
        # NaN is sorted last.
        usable = int(np.isfinite(found).sum())
        self.not_finite += len(found) - usable
        best = np.argsort(np.where(np.isfinite(found), -found, np.nan), kind="stable")[: min(self.top, usable)]
        self.matches += [
            _Match(float(found[i]), self.compared + int(i), None if names is None else names[i], source, row + int(i))
            for i in best
        ]
        self.compared += len(vectors)
        self.matches = sorted(self.matches, key=lambda match: (-match.similarity, match.order))[: self.top]


def similar(
    session: Session,
    query: Query,
    inputs: Sequence[Any],
    expand: Callable[[str], Iterable[Input]],
    *,
    model: str,
    top: int = 5,
    index: bool = False,
    progress: Progress = SILENT,
) -> Ranking:
    """The `top` inputs most similar to `query`.

    Each of `inputs` is a file of vectors, an argument that `expand` expands to inputs, or an item.

    Inputs that are texts have the default prompt. Raises UsageError for an unknown prompt; DataError for a query that
    cannot be read, if there are no inputs to compare with, and for a file whose vectors are not as long as the model's.
    """
    check_top(top)
    sources = [Stored(Path(each)) if isinstance(each, str | Path) and is_stored(str(each)) else each for each in inputs]
    warnings = [line for each in sources if isinstance(each, Stored) for line in _warnings(session, each)]
    name = str(query.item) if isinstance(query.item, str | Path) else "the query"
    best = _Best(session.prompted(query.prompt).features([query.item])[0], top)
    failures: list[tuple[str, Failure]] = []
    failed, approximate = 0, False
    with progress.task(f"comparing with {name if len(name) < 40 else 'the query'}", None) as bar:
        for number, source in enumerate(sources):
            if not isinstance(source, Stored):
                rest = expand(source) if isinstance(source, str) else named_inputs([source])
                failed += _compare_inputs(session, rest, best, number, failures, bar)
            elif index and source.kind == ".npy" and len(source.matrix()) >= INDEXED:
                approximate = True
                _ask_index(source, best, number, progress)
            else:
                warnings += _compare_stored(source, best, number, bar)
    if best.compared == best.not_finite and not failed:
        hint = "give files, folders or texts, or a file that zoo embed wrote"
        raise DataError("no inputs to compare with", hint=hint)
    return Ranking(
        model=model, query=name, device=session.device, compared=best.compared - best.not_finite,
        matches=tuple(_named_matches(best.matches, sources)), warnings=tuple(warnings), failed=failed,
        failures=tuple(failures[:LISTED]), approximate=approximate, placement=session.placement,
    )  # fmt: skip


def _compare_stored(source: Stored, best: _Best, number: int, bar: Bar) -> list[str]:
    """Compare every vector of the file with the query; returns a warning if numbers of some are not finite."""
    row, before = 0, best.not_finite
    for block in source.blocks():
        best.add(block, number, row)
        row += len(block)
        bar.advance(len(block))
    bad = best.not_finite - before
    return [f"{source.path}: left out {counted(bad, 'vector')} with numbers that are not finite"] if bad else []


def _warnings(session: Session, stored: Stored) -> Iterator[str]:
    """Yields reasons why similarities to these vectors may be wrong. Raises DataError for vectors of another length."""
    dim = session.manifest.dim
    record = stored.record
    found, who = (record.dim, f" by {record.model}") if record else (stored.matrix().shape[1], "")
    if found != dim:
        message = f"{stored.path} holds vectors of {found} numbers{who}; this model's have {dim}"
        raise DataError(message, path=stored.path, hint="use the model that made them")
    if record is None:
        yield f"{stored.path} does not say which model made it"
        return
    ours = fingerprint(session.bundle)
    if record.fingerprint != ours:
        theirs = f"{record.model}, {record.precision}, {record.fingerprint[:12]}"
        other = f"another model ({theirs}) than this one ({session.manifest.precision}, {ours[:12]})"
        yield f"{stored.path} was made by {other}: similarities may mean nothing"
    if not record.complete:
        yield f"{stored.path} is unfinished: it holds {counted(record.inputs, 'input')}"


def _compare_inputs(
    session: Session, inputs: Iterable[Input], best: _Best, source: int, failures: list[tuple[str, Failure]], bar: Bar
) -> int:
    """Compare the features of inputs. Returns the number of unreadable inputs; the first ones go to `failures`."""
    import numpy as np

    def rows(items: Iterable[Any], skip: Skip) -> "Iterator[tuple[Sequence[int], Floats]]":
        for indices, arrays in session.stream(items, ["features"], skip):
            yield indices, arrays["features"]

    failed = 0
    for found in InOrder(rows, inputs, strict=False):  # type: ignore[arg-type]
        wrong = [(name, Failure.of(row)) for name, row in found if isinstance(row, ZooError)]
        failures += wrong[: LISTED - len(failures)]
        failed += len(wrong)
        vectors = [(name, row) for name, row in found if not isinstance(row, ZooError)]
        if vectors:
            best.add(np.stack([row for _, row in vectors]), source, 0, [name for name, _ in vectors])
        bar.advance(len(found))
    return failed


def _named_matches(matches: Sequence[_Match], sources: Sequence[Any]) -> Iterator[tuple[str, float]]:
    names = {
        number: source.names({match.row for match in matches if match.source == number})
        for number, source in enumerate(sources)
        if isinstance(source, Stored)
    }
    for match in matches:
        yield match.name if match.name is not None else names[match.source][match.row], match.similarity


def _ask_index(source: Stored, best: _Best, number: int, progress: Progress) -> None:
    """Compare the vectors that an index finds near the query. The index is built if the file has none."""
    require("searching by an index", "usearch")
    import numpy as np
    from usearch.index import Index

    matrix = source.matrix()
    path = source.path.with_name(source.path.name + ".usearch")
    index = Index(ndim=matrix.shape[1], metric="cos", dtype="f16")
    if path.is_file() and path.stat().st_mtime_ns >= source.path.stat().st_mtime_ns:
        index.load(str(path))
    if len(index) != len(matrix):
        index = Index(ndim=matrix.shape[1], metric="cos", dtype="f16")
        with progress.task(f"an index of {source.path.name} (once)", len(matrix)) as bar:
            for start in range(0, len(matrix), BLOCK):
                block = np.asarray(matrix[start : start + BLOCK], np.float32)
                index.add(np.arange(start, start + len(block)), block)
                bar.advance(len(block))
        index.save(str(path))
    # The index may miss some neighbours, so ten times as many vectors are looked up.
    rows = np.sort(index.search(best.unit, 10 * best.top).keys.astype(np.int64))
    compared = best.compared
    for row in rows:
        best.add(np.asarray(matrix[row : row + 1], np.float32), number, int(row))
    best.compared = compared + len(matrix)
