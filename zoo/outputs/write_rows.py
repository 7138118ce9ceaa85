"""The rows of any number of inputs into a file: in order, in bounded memory, to be continued after a break.

Of the inputs only those are held that a model has taken and not yet answered: two windows of texts, a few batches of
pictures. A break is resumed where no batch was cut through, so that the file becomes the one that no break would have
made, to the byte.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from zoo.data.inputs import Input, Inputs, named_inputs, one_or_more
from zoo.errors import AccessError, DataError, UsageError, ZooError
from zoo.outputs.resumable_file import Found, OpenWriter, Record, Writer, read_record, record_path, write_record
from zoo.progress import SILENT, Progress
from zoo.results import Failure
from zoo.runtime.in_order import InOrder, Rows
from zoo.runtime.pipeline import WINDOW
from zoo.schema import ImagePreprocess, Preprocess
from zoo.system.files import NO_SPACE, sha256
from zoo.system.interrupt import noticing

#: Failures that an answer names; the output has them all.
LISTED = 20
#: Seconds between two records of how far the work is: what a crash costs, beside a window of texts.
EVERY = 1.0


class Kind(NamedTuple):
    """What is written: `rows` of a model, resumed after a multiple of `step` inputs.

    `fresh` is the record of a file without inputs, `open` makes its writer, `what` stands beside the bar.
    """

    rows: Rows
    step: int
    fresh: Record
    open: OpenWriter
    what: str


class Done(NamedTuple):
    """The record at the end, how many inputs were there before, and the first that failed in this run."""

    record: Record
    resumed: int
    failures: tuple[tuple[str, Failure], ...]


def step_of(preprocess: Preprocess) -> int:
    """Texts are resumed where a window begins, pictures anywhere: their batches follow one another."""
    return 1 if isinstance(preprocess, ImagePreprocess) else WINDOW


def into_file(
    kind: Kind, inputs: Iterable[Any], out: Path, *, resume: bool, strict: bool, progress: Progress = SILENT
) -> Done:
    """Write the rows of `inputs` (a model's items, or `Input`s with names) to `out`, whose name the caller has checked.

    An input that fails is in the output with its error; with `strict` the first one is raised. With `resume` an output
    that a break left is continued; its inputs must be the first of these. After any error, and after Ctrl-C, the output
    holds what was computed and can be resumed. Raises DataError without inputs, UsageError for an output that is not to
    be replaced or not of these inputs and this model, AccessError where it cannot be written.
    """
    for path in (out, record_path(out), out.with_name(f"{out.name}.jsonl")):
        if isinstance(inputs, Inputs) and inputs.reads(path):
            raise UsageError(f"{path} would be one of the inputs", hint="choose another place for -o")
    inputs = one_or_more(inputs)
    before = _begin(kind.fresh, out, resume=resume)
    record = before.at_mark()
    total = inputs.count() if isinstance(inputs, Inputs) else len(inputs) if isinstance(inputs, Sized) else None
    source = iter(named_inputs(inputs))
    again = _skip_done(source, before, out)
    first = list(islice(source, 1))
    if not first and not before.inputs:
        raise DataError("there is no input", hint="name files, or give text; - reads stdin")
    if not first and before.complete:
        return Done(before, before.inputs, ())
    with _writing(out):
        run = _Run(kind, out, before)
    rest: Iterable[Input] = chain(again, first, source)
    # The next batch is computed while this one is written. What is being written is waited for before the end.
    with noticing() as interrupt, run, ThreadPoolExecutor(1, "zoo-write") as pool:
        may_wait = inputs.is_piped if isinstance(inputs, Inputs) else not isinstance(inputs, Sized)
        if may_wait:
            # What has come by a pipe does not come again: it is all answered and written.
            rest = interrupt.before(rest, lambda: progress.note("stopping after what has come; Ctrl-C again: at once"))
        found = InOrder(kind.rows, run.noted(rest), strict=strict)
        with progress.task(kind.what, None if total is None else total - record.inputs) as bar:
            told, writing = 0, pool.submit(run.add, ())
            for whole in found:
                writing.result()
                writing = pool.submit(run.add, whole)
                told, new = found.answered, found.answered - told
                bar.advance(new)
                if interrupt.is_asked and not may_wait:
                    break
            writing.result()
            if may_wait or not interrupt.is_asked:
                run.finish(complete=not interrupt.is_asked)
            if interrupt.is_asked:
                progress.note(f"{run.record.inputs} inputs are in {out}: --resume continues")
                raise KeyboardInterrupt
    return Done(run.record, record.inputs, tuple(run.failures))


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn what the disk refuses into an AccessError."""
    try:
        yield
    except OSError as error:
        hint = "free some space, or choose another -o" if error.errno in NO_SPACE else "choose another -o"
        raise AccessError(f"{out} cannot be written: {error.strerror or error}", hint=hint) from error


def _begin(fresh: Record, out: Path, *, resume: bool) -> Record:
    """The record to go on from. Raises UsageError for an output that must not be replaced, or not be continued."""
    before = read_record(out, fresh.verb)
    if before is None:
        if out.exists() and out.stat().st_size:
            raise UsageError(
                f"{out} is not an output of zoo {fresh.verb}", hint="choose another file for -o, or remove it"
            )
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
    if before.answering != fresh.answering:
        raise UsageError(
            f"{out} was begun with another --top", hint="resume with the same, or choose another file for -o"
        )
    return before


def _skip_done(source: Iterator[Input], record: Record, out: Path) -> list[Input]:
    """Take the inputs that are done from `source`, and return those after the record's mark.

    Raises UsageError when they are not those that were done.
    """
    digests, after_mark = "", []
    start = record.inputs if record.mark is None else record.mark.inputs
    for number, each in enumerate(islice(source, record.inputs)):
        digests = _chained(digests, _digest(each))
        if number >= start:
            after_mark.append(each)
    if digests != record.inputs_sha256:
        raise UsageError(
            f"the inputs are not those that {out} was begun with",
            hint="give the same inputs in the same order, or choose another file for -o",
        )
    return after_mark


def _check_alone(writer: Writer, out: Path, fresh: Record, record: Record) -> None:
    """Raise UsageError when the output is no longer what `record` says, or when one of its files is somebody else's.

    Asked once the files are held: another process may have gone on in between.
    """
    now = read_record(out, fresh.verb)
    if now is None:
        strange = [path for path in writer.paths if path.exists() and path.stat().st_size]
        if strange:
            raise UsageError(
                f"{strange[0]} is not an output of zoo {fresh.verb}", hint="choose another file for -o, or remove it"
            )
    elif record.inputs and now != record:
        raise UsageError(f"{out} was written by another process meanwhile", hint="try again")


class _Run:
    """One run into a file: notes the inputs, and writes their rows. As a context it leaves the output valid.

    Nothing that was there is touched before the first row is written.
    """

    def __init__(self, kind: Kind, out: Path, before: Record) -> None:
        self.out, self.step = out, kind.step
        record = before.at_mark()
        self.writer = kind.open(out, record)
        try:
            _check_alone(self.writer, out, kind.fresh, before)
        except BaseException:
            self.writer.drop()
            raise
        self.record = msgspec.structs.replace(record, complete=False)
        self.failures: list[tuple[str, Failure]] = []
        self._digests: deque[str] = deque()
        self._whole: list[Found] = []
        self._is_started = self._is_broken = False
        self._recorded = time.monotonic()

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_broken or not self._is_started:
            # What a full disk took only in part is not counted: the record before stands.
            self.writer.drop()
            return
        with self._written():
            self.writer.close(self.record)
            self._keep()

    def noted(self, inputs: Iterable[Input]) -> Iterator[Input]:
        """The same inputs, whose digests will be in the record."""
        for each in inputs:
            self._digests.append(_digest(each))
            yield each

    def add(self, found: Sequence[tuple[str, Any]]) -> None:
        """Take the next rows, and write all up to the last place that can be resumed from."""
        for name, row in found:
            if isinstance(row, ZooError):
                failure = Failure.of(row)
                self._whole.append((name, failure))
                if len(self.failures) < LISTED:
                    self.failures.append((name, failure))
            else:
                self._whole.append((name, row))
        # Every run begins where a step does.
        with self._written():
            self._write(len(self._whole) - len(self._whole) % self.step)

    def finish(self, *, complete: bool) -> None:
        """Write the rest; `complete` when there is no input after it."""
        with self._written():
            self._start()
            if len(self._whole) % self.step:
                self._write(len(self._whole) - len(self._whole) % self.step)
                self.record = self.record.marked()
            self._write(len(self._whole))
        self.record = msgspec.structs.replace(self.record, complete=complete)

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            with _writing(self.out):
                yield
        except AccessError:
            self._is_broken = True
            raise

    def _start(self) -> None:
        if self._is_started:
            return
        self._is_started = True
        # First: from here on a break leaves something that can be resumed.
        write_record(self.out, self.record)
        self.writer.start()
        self.record = msgspec.structs.replace(self.record, sizes=self.writer.sizes)

    def _write(self, count: int) -> None:
        if not count:
            return
        self._start()
        found, self._whole = self._whole[:count], self._whole[count:]
        self.writer.append(found)
        digests = self.record.inputs_sha256
        for _ in found:
            digests = _chained(digests, self._digests.popleft())
        self.record = msgspec.structs.replace(
            self.record,
            inputs=self.record.inputs + count,
            rows=self.record.rows + sum(not isinstance(row, Failure) for _, row in found),
            inputs_sha256=digests,
            sizes=self.writer.sizes,
        )
        if time.monotonic() - self._recorded > EVERY:
            self.writer.flush()
            self._keep()

    def _keep(self) -> None:
        write_record(self.out, self.record)
        self._recorded = time.monotonic()


def _digest(each: Input) -> str:
    """sha256 of an input's name and its text or bytes; of a picture in a file the name alone."""
    item = each.item if isinstance(each.item, bytes | str) else b""
    data = item.encode("utf-8", "surrogatepass") if isinstance(item, str) else item
    return sha256(each.name.encode("utf-8", "surrogatepass") + b"\0" + data)


def _chained(digests: str, digest: str) -> str:
    return sha256(bytes.fromhex(digests + digest))
