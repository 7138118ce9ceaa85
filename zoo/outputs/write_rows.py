"""Writes the rows of any number of inputs to a file: in order, in bounded memory; an interrupted run can be resumed.

Memory only holds inputs that the model has taken and not yet answered: two windows of texts, or a few batches of
images. A run resumes where a batch may begin, so the finished file is identical to that of an uninterrupted run.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from zoo.data.inputs import Input, Inputs, named_inputs, one_or_more
from zoo.data.items import TextPair
from zoo.errors import AccessError, DataError, UsageError, ZooError, counted
from zoo.outputs.resumable_file import NamedRow, OpenWriter, OutputRecord, Writer, record_path
from zoo.progress import SILENT, Progress
from zoo.results import Failure, Placement, Written
from zoo.runtime.in_order import InOrder, Rows
from zoo.runtime.pipeline import WINDOW
from zoo.schema import ImagePreprocess, Preprocess
from zoo.system.files import NO_SPACE, sha256
from zoo.system.interrupt import noticing

Result = TypeVar("Result", bound=Written)
#: The number of failures that a result lists; the output has all of them.
LISTED = 20
#: Seconds between two writes of the record. A crash loses the work of this time and of a window of texts.
RECORD_EVERY = 1.0


class WriteJob(NamedTuple, Generic[Result]):
    """A model whose rows are written to a file.

    result       a function that makes the result from the facts of `Written`
    rows         a function that computes the rows
    step         a run may resume after a multiple of this many inputs
    fresh        the record of an output without inputs
    open         a function that opens the output's writer
    description  the text beside the progress bar
    """

    result: Callable[..., Result]
    rows: Rows
    step: int
    fresh: OutputRecord
    open: OpenWriter
    description: str
    entry: str = ""
    device: str = "cpu"
    placement: Placement | None = None


def step_of(preprocess: Preprocess) -> int:
    """The number of inputs between points at which a run may resume: a window for texts, 1 for images."""
    return 1 if isinstance(preprocess, ImagePreprocess) else WINDOW


def write_rows(
    job: WriteJob[Result],
    inputs: Iterable[Any],
    out: Path,
    *,
    model: str,
    resume: bool = False,
    strict: bool = False,
    progress: Progress = SILENT,
) -> Result:
    """Write the rows of `inputs` (a model's items, or `Input`s with names) to `out`, and return the job's result.

    The caller has already checked the name of `out`. The error of an input that fails is written to the output; with
    `strict` it is raised. `resume` continues an interrupted output; `inputs` must begin with the inputs of that output.
    After any error, and after Ctrl-C, the output holds all rows that were computed.

    Raises DataError without inputs, UsageError for an output that must not be replaced or belongs to other inputs or
    another model, AccessError if the output cannot be written.
    """
    for path in (out, record_path(out), out.with_name(f"{out.name}.jsonl")):
        if isinstance(inputs, Inputs) and inputs.reads(path):
            raise UsageError(f"{path} would be one of the inputs", hint="choose another file for -o")
    inputs = one_or_more(inputs)
    before = _begin(job.fresh, out, resume=resume)
    source = iter(named_inputs(inputs))
    again = _skip_done(source, before, out)
    first = list(islice(source, 1))
    if not first and not before.inputs:
        raise DataError("there is no input", hint="name files, or give text; - reads stdin")
    record, resumed, failures = before, before.inputs, []
    if first or not before.complete:
        total = inputs.count() if isinstance(inputs, Inputs) else len(inputs) if isinstance(inputs, Sized) else None
        run = _Run(job, out, before)
        resumed = run.record.inputs
        run.write_all(chain(again, first, source), total, strict=strict, progress=progress)
        record, failures = run.record, run.failures
    return job.result(
        model=model, entry=job.entry, device=job.device, placement=job.placement, out=str(out),
        fingerprint=record.fingerprint, inputs=record.inputs, rows=record.rows, resumed=resumed,
        failures=tuple(failures),
    )  # fmt: skip


def _begin(fresh: OutputRecord, out: Path, *, resume: bool) -> OutputRecord:
    """The record to continue from. Raises UsageError for an output that must not be replaced or continued."""
    before = OutputRecord.read(out, fresh.verb)
    if before is None:
        _check_ours([out], fresh.verb)
        return fresh
    if not resume:
        if not before.complete:
            raise UsageError(
                f"{out} is unfinished: it holds {counted(before.inputs, 'input')}",
                hint=f"--resume continues it; remove it and {record_path(out).name} to start again",
            )
        return fresh
    if before.fingerprint != fresh.fingerprint:
        raise UsageError(
            f"{out} was made by another model: {before.model}, {before.precision}, {before.fingerprint[:12]}",
            hint="resume with the model that it was started with, or choose another file for -o",
        )
    if before.answering != fresh.answering:
        raise UsageError(
            f"{out} was started with another --top", hint="resume with the same --top, or choose another file for -o"
        )
    if before.prompt != fresh.prompt:
        raise UsageError(
            f"{out} was started with another --prompt",
            hint=f"resume with --prompt {before.prompt}" if before.prompt else "resume without --prompt",
        )
    return before


def _skip_done(source: Iterator[Input], record: OutputRecord, out: Path) -> list[Input]:
    """Take the inputs that `out` already holds from `source`, and return those after the record's mark.

    Raises UsageError if the inputs are not those in `out`.
    """
    digests, after_mark = "", []
    start = record.inputs if record.mark is None else record.mark.inputs
    for index, each in enumerate(islice(source, record.inputs)):
        digests = _chained(digests, _digest(each))
        if index >= start:
            after_mark.append(each)
    if digests != record.inputs_sha256:
        raise UsageError(
            f"the inputs are not those that {out} was started with",
            hint="give the same inputs in the same order, or choose another file for -o",
        )
    return after_mark


def _check_ours(paths: Iterable[Path], verb: str) -> None:
    """Raise UsageError for a non-empty file that has no record."""
    for path in paths:
        if path.exists() and path.stat().st_size:
            hint = "choose another file for -o, or remove it"
            raise UsageError(f"{path} is not an output of zoo {verb}", hint=hint)


def _check_alone(writer: Writer, out: Path, fresh: OutputRecord, record: OutputRecord) -> None:
    """Raise UsageError if the record has changed, or if a file of the output was not written by zoo.

    Call this after the files are locked, because another process may have written them after `record` was read.
    """
    now = OutputRecord.read(out, fresh.verb)
    if now is None:
        _check_ours(writer.paths, fresh.verb)
    elif record.inputs and now != record:
        raise UsageError(f"{out} was just written by another process", hint="try again")


class _Run:
    """One run that writes an output. After its context ends, the output is valid.

    Existing files are not changed before the first row is written.
    """

    def __init__(self, job: WriteJob[Any], out: Path, before: OutputRecord) -> None:
        self.job, self.out, self.step = job, out, job.step
        record = before.at_mark()
        with self._written():
            self.writer = job.open(out, record)
            try:
                _check_alone(self.writer, out, job.fresh, before)
            except BaseException:
                self.writer.drop()
                raise
        self.record = msgspec.structs.replace(record, complete=False)
        self.failures: list[tuple[str, Failure]] = []
        self._digests: deque[str] = deque()
        self._waiting: list[NamedRow] = []
        self._is_started = self._is_broken = False
        self._recorded = time.monotonic()

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_broken or not self._is_started:
            # On a full disk the last rows may be incomplete; the record from before these rows stays valid.
            self.writer.drop()
            return
        with self._written():
            self.writer.close(self.record)
            self._keep()

    def write_all(self, inputs: Iterable[Input], total: int | None, *, strict: bool, progress: Progress) -> None:
        """Write the rows of `inputs`. Raises KeyboardInterrupt after Ctrl-C.

        `total` is the number of inputs in the finished output; None for inputs that come slowly and once, from a pipe.
        """
        is_stream = total is None
        # The next batch is computed while a thread writes this one. The thread ends before the context of the run does.
        with noticing() as interrupt, self, ThreadPoolExecutor(1, "zoo-write") as pool:
            if is_stream:
                # Inputs from a pipe cannot be read again, so all that have arrived are answered and written.
                inputs = interrupt.before(
                    inputs,
                    lambda: progress.note("stopping after the inputs that have arrived; Ctrl-C again stops at once"),
                )
            ordered = InOrder(self.job.rows, self.noted(inputs), strict=strict)
            with progress.task(self.job.description, None if total is None else total - self.record.inputs) as bar:
                reported, writing = 0, pool.submit(self.add, ())
                for rows in ordered:
                    writing.result()
                    writing = pool.submit(self.add, rows)
                    bar.advance(ordered.answered - reported)
                    reported = ordered.answered
                    if interrupt.is_asked and not is_stream:
                        break
                writing.result()
                if is_stream or not interrupt.is_asked:
                    self.finish(complete=not interrupt.is_asked)
                if interrupt.is_asked:
                    progress.note(f"{self.out} holds {counted(self.record.inputs, 'input')}: --resume continues")
                    raise KeyboardInterrupt

    def noted(self, inputs: Iterable[Input]) -> Iterator[Input]:
        """Yields the same inputs, and notes their digests for the record."""
        for each in inputs:
            self._digests.append(_digest(each))
            yield each

    def add(self, rows: Sequence[NamedRow]) -> None:
        """Take the next rows, and write all rows up to the last point at which a run can resume."""
        rows = [(name, Failure.of(row) if isinstance(row, ZooError) else row) for name, row in rows]
        failures = [(name, row) for name, row in rows if isinstance(row, Failure)]
        self.failures += failures[: LISTED - len(self.failures)]
        self._waiting += rows
        # Steps are counted from the run's first input: every run begins at the start of a step.
        with self._written():
            self._write(len(self._waiting) - len(self._waiting) % self.step)

    def finish(self, *, complete: bool) -> None:
        """Write the remaining rows; `complete` is true if no input follows them."""
        with self._written():
            self._start()
            if len(self._waiting) % self.step:
                self._write(len(self._waiting) - len(self._waiting) % self.step)
                self.record = self.record.marked()
            self._write(len(self._waiting))
        self.record = msgspec.structs.replace(self.record, complete=complete)

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Inside, an error of the disk is raised as AccessError; after that nothing more is written."""
        try:
            yield
        except OSError as error:
            self._is_broken = True
            hint = "free some space, or choose another -o" if error.errno in NO_SPACE else "choose another -o"
            raise AccessError(f"{self.out} cannot be written: {error.strerror or error}", hint=hint) from error

    def _start(self) -> None:
        if self._is_started:
            return
        self._is_started = True
        # The record is written first, so that from here on an interrupted run can be resumed.
        self.record.write(self.out)
        self.writer.start()
        self.record = msgspec.structs.replace(self.record, sizes=self.writer.sizes)

    def _write(self, count: int) -> None:
        if not count:
            return
        self._start()
        rows, self._waiting = self._waiting[:count], self._waiting[count:]
        self.writer.append(rows)
        digests = self.record.inputs_sha256
        for _ in rows:
            digests = _chained(digests, self._digests.popleft())
        self.record = msgspec.structs.replace(
            self.record,
            inputs=self.record.inputs + count,
            rows=self.record.rows + sum(not isinstance(row, Failure) for _, row in rows),
            inputs_sha256=digests,
            sizes=self.writer.sizes,
        )
        if time.monotonic() - self._recorded > RECORD_EVERY:
            self.writer.flush()
            self._keep()

    def _keep(self) -> None:
        self.record.write(self.out)
        self._recorded = time.monotonic()


def _digest(each: Input) -> str:
    """sha256 of an input's name and its text, pair or bytes; for an image file, of the name alone."""
    if isinstance(each.item, TextPair):
        return _digest(Input(each.name, "\0".join(each.item)))
    item = each.item if isinstance(each.item, bytes | str) else b""
    data = item.encode("utf-8", "surrogatepass") if isinstance(item, str) else item
    return sha256(each.name.encode("utf-8", "surrogatepass") + b"\0" + data)


def _chained(digests: str, digest: str) -> str:
    return sha256(bytes.fromhex(digests + digest))
