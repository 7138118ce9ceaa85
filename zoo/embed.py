"""Features of any number of inputs into a file of vectors: in order, in bounded memory, to be continued after a break.

Of the inputs only those are held that a session has taken and not yet answered: two windows of texts, a few batches of
pictures. A break is resumed where no batch was cut through, so that the file becomes the one that no break would have
made, to the byte.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from zoo import vectorfile
from zoo.answers import Embedded, Failure
from zoo.build import graph_key
from zoo.bundle import MODEL, Bundle
from zoo.errors import AccessError, DataError, UsageError, named
from zoo.inputs import Input, Inputs
from zoo.interrupt import noticing
from zoo.pipeline import WINDOW
from zoo.progress import SILENT, Progress
from zoo.runtime import Session
from zoo.schema import ImagePreprocess
from zoo.vectorfile import Record, read_record, record_path, write_record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Failures that an answer names; the output has them all.
LISTED = 20
#: Seconds between two records of how far the work is: what a crash costs, beside a window of texts.
EVERY = 1.0


def fingerprint(bundle: Bundle) -> str:
    """sha256 over all that decides a feature's numbers, but for rounding: weights, preprocessing, precision, graph.

    A row, the bundle exported from it and one with a head on the same features share theirs. The file itself counts
    where its weights are its own: after training deeper than the head, or calibrated to eight bits.
    """
    manifest = bundle.manifest
    parts: list[object] = [graph_key(manifest.lineage.entry), manifest.precision]
    if manifest.unfrozen or manifest.precision == "int8":
        parts.append(sorted((file.path, file.sha256) for file in manifest.files if file.path.startswith(MODEL)))
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def embed(
    session: Session,
    inputs: Iterable[Any],
    out: Path,
    *,
    model: str,
    resume: bool = False,
    strict: bool = False,
    progress: Progress = SILENT,
) -> Embedded:
    """Write the features of `inputs` (items of a Session, or `Input`s with names) to the file of vectors `out`.

    An input that cannot be read is in the output with its error; with `strict` the first one is raised. With `resume`
    an output that a break left is continued; its inputs must be the first of these. After any error, and after Ctrl-C,
    the output holds what was computed and can be resumed. Raises DataError without inputs, UsageError for an output
    that is not to be replaced or not of these inputs and this model, AccessError where it cannot be written.
    """
    record = _begin(session, out, resume=resume)
    total = inputs.count() if isinstance(inputs, Inputs) else len(inputs) if isinstance(inputs, Sized) else None
    source = iter(named_inputs(inputs))
    _skip_done(source, record, out)
    first = list(islice(source, 1))
    if not first and not record.inputs:
        raise DataError("there is no input", hint="name files, or give text; - reads stdin")
    end, failures = record, list[tuple[str, Failure]]()
    if first or not record.complete:
        with _writing(out):
            run = _Run(session, out, record, strict)
            with noticing() as interrupt, run:
                what = f"vectors by {session.manifest.name} on {session.device}"
                with progress.task(what, None if total is None else total - record.inputs) as bar:
                    for _ in run.answers(chain(first, source)):
                        bar.advance(run.told())
                        if interrupt.is_asked:
                            progress.note(f"{run.record.inputs} inputs are in {out}: --resume continues")
                            raise KeyboardInterrupt
                    run.finish()
                    bar.advance(run.told())
        end, failures = run.record, run.failures
    return Embedded(
        model=model, entry=session.manifest.lineage.entry.name, device=session.device, out=str(out),
        fingerprint=end.fingerprint, dim=end.dim, inputs=end.inputs, rows=end.rows, resumed=record.inputs,
        failures=tuple(failures),
    )  # fmt: skip


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn what the disk refuses into an AccessError."""
    try:
        yield
    except OSError as error:
        raise AccessError(
            f"{out} cannot be written: {error.strerror or error}", hint="free some space, or choose another -o"
        ) from error


def _begin(session: Session, out: Path, *, resume: bool) -> Record:
    """The record to go on from. Raises UsageError for an output that must not be replaced, or not be continued."""
    vectorfile.check_name(out)
    manifest = session.manifest
    fresh = Record(
        model=manifest.name, fingerprint=fingerprint(session.bundle), precision=manifest.precision, dim=manifest.dim
    )
    before = read_record(out)
    if before is None:
        if out.exists():
            raise UsageError(f"{out} is not an output of zoo embed", hint="choose another file for -o, or remove it")
        return fresh
    if not resume:
        if not before.complete:
            raise UsageError(
                f"{out} is unfinished: it holds {before.inputs} inputs",
                hint=f"--resume continues it; remove it and {record_path(out).name} to begin again",
            )
        return fresh
    if before.fingerprint != fresh.fingerprint:
        raise UsageError(
            f"{out} was made by another model: {before.model}, {before.precision}, {before.fingerprint[:12]}",
            hint="resume with the model that it was begun with, or choose another file for -o",
        )
    return before


def _skip_done(source: Iterator[Input], record: Record, out: Path) -> None:
    """Take the inputs that are done from `source`. Raises UsageError when they are not those that were done."""
    digests = ""
    for each in islice(source, record.inputs):
        digests = _chained(digests, _digest(each))
    if digests != record.inputs_sha256:
        raise UsageError(
            f"the inputs are not those that {out} was begun with",
            hint="give the same inputs in the same order, or choose another file for -o",
        )


class _Run:
    """One run: takes inputs, and writes their answers in order. As a context it leaves the output valid."""

    def __init__(self, session: Session, out: Path, record: Record, strict: bool) -> None:
        self.session, self.out, self.strict = session, out, strict
        self.record = msgspec.structs.replace(record, complete=False)
        # First: from here on a break leaves something that can be resumed.
        write_record(out, self.record)
        self.writer = vectorfile.open_writer(out, record)
        self.record = msgspec.structs.replace(self.record, sizes=self.writer.sizes)
        self.failures: list[tuple[str, Failure]] = []
        #: Texts are resumed where a window begins, pictures anywhere: their batches follow one another.
        self.step = 1 if isinstance(session.manifest.preprocess, ImagePreprocess) else WINDOW
        self.start = self.taken = self.ready = record.inputs
        self._waiting: dict[int, tuple[Input, bytes]] = {}
        self._found: dict[int, NDArray[np.float32] | Failure] = {}
        self._told = 0
        self._recorded = time.monotonic()

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, OSError):
            # What a full disk took only in part is not counted: the record before stands.
            self.writer.drop()
            return
        self.writer.close(self.record)
        self._keep()

    def answers(self, inputs: Iterable[Input]) -> Iterator[None]:
        """Once a batch, after what is complete of it was written."""
        import numpy as np

        for positions, arrays in self.session.stream(self._take(inputs), ["features"], self._fail):
            vectors = arrays["features"]
            is_finite: list[bool] = np.isfinite(vectors).all(axis=1).tolist()  # type: ignore[assignment]
            for position, vector, is_whole in zip(positions, vectors, is_finite, strict=True):
                if is_whole:
                    self._found[self.start + position] = vector
                else:
                    self._fail(position, DataError("its features are not finite", hint="--device cpu, or fp32"))
            self._write()
            yield

    def finish(self) -> None:
        """Write the rest: every input is answered."""
        self._write(is_end=True)
        self.record = msgspec.structs.replace(self.record, complete=True)

    def told(self) -> int:
        """How many inputs were answered since it was last asked."""
        found = len(self._found) + self.record.inputs - self.start
        new, self._told = found - self._told, found
        return new

    def _take(self, inputs: Iterable[Input]) -> Iterator[Any]:
        for each in inputs:
            self._waiting[self.taken] = Input(each.name, None), _digest(each)
            if each.name == each.item:
                # An error of a text that is its own name need not name it.
                self._waiting[self.taken] = each, self._waiting[self.taken][1]
            self.taken += 1
            yield each.item

    def _fail(self, position: int, error: DataError) -> None:
        (name, item), _ = self._waiting[self.start + position]
        error = named(error, name, item)  # type: ignore[assignment]
        if self.strict:
            self._write()
            raise error
        failure = Failure.of(error)
        self._found[self.start + position] = failure
        if len(self.failures) < LISTED:
            self.failures.append((name, failure))

    def _write(self, *, is_end: bool = False) -> None:
        """Append the answers up to the last place that can be resumed from."""
        while self.ready in self._found:
            self.ready += 1
        limit = self.ready if is_end else self.ready - (self.ready - self.start) % self.step
        begin, digests = self.record.inputs, self.record.inputs_sha256
        if limit == begin:
            return
        found = [(self._waiting[place][0].name, self._found[place]) for place in range(begin, limit)]
        self.writer.append(found)
        for place in range(begin, limit):
            del self._found[place]
            digests = _chained(digests, self._waiting.pop(place)[1])
        rows = self.record.rows + sum(not isinstance(vector, Failure) for _, vector in found)
        self.record = msgspec.structs.replace(
            self.record, inputs=limit, rows=rows, inputs_sha256=digests, sizes=self.writer.sizes
        )
        if time.monotonic() - self._recorded > EVERY:
            self.writer.flush()
            self._keep()

    def _keep(self) -> None:
        write_record(self.out, self.record)
        self._recorded = time.monotonic()


def named_inputs(inputs: Iterable[Any]) -> Iterator[Input]:
    """Items as `Input`s: a path or a text is its own name, any other has its number."""
    for number, each in enumerate(inputs):
        if isinstance(each, Input):
            yield each
        else:
            yield Input(str(each) if isinstance(each, str | Path) else f"#{number}", each)


def _digest(each: Input) -> bytes:
    """sha256 of an input's name and its text or bytes; of a picture in a file the name alone."""
    item = each.item if isinstance(each.item, bytes | str) else b""
    data = item.encode("utf-8", "surrogatepass") if isinstance(item, str) else item
    return hashlib.sha256(each.name.encode("utf-8", "surrogatepass") + b"\0" + data).digest()


def _chained(digests: str, digest: bytes) -> str:
    return hashlib.sha256(bytes.fromhex(digests) + digest).hexdigest()
