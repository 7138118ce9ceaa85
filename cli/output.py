"""How verbs speak: data on stdout, talk on stderr, `--json` as one object with `schema_version`."""

import io
import json
import shlex
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from zoo import AccessError, Zoo, ZooError, to_json, to_plain

SCHEMA_VERSION = 1


def print_json(kind: str, data: Any) -> None:
    """One JSON object on stdout: schema_version, then `kind` with the data."""
    text = to_json({"schema_version": SCHEMA_VERSION, kind: data})
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        # A terminal of another code (cp1252) still gets JSON, with every other letter as an escape.
        text = json.dumps(json.loads(text), separators=(",", ":"))
    write(text)


def print_error_json(facts: dict[str, Any]) -> None:
    """What went wrong as JSON, where there is a stdout to take it."""
    if sys.stdout is not None:
        print_json("error", facts)


class ReaderGoneError(Exception):
    """Raised when nobody reads what is printed any more: click would make exit code 1 of the plain error."""


def write(line: str = "") -> None:
    """A line of data on stdout. Raises AccessError where it is closed (>&-)."""
    if sys.stdout is None:
        raise AccessError("stdout is closed", hint="give it a file or a pipe: > FILE")
    with _read():
        sys.stdout.write(line + "\n")


def speak_any_code() -> None:
    """Let every letter be printed, as an escape where the terminal's code has no sign for it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Pass on the data that was written."""
    with _read():
        sys.stdout.flush()


def say(line: str) -> None:
    """A line for people on stderr. Where nobody listens any more that is no reason to stop the work."""
    if sys.stderr is not None:
        with suppress(BrokenPipeError):
            sys.stderr.write(line + "\n")


@contextmanager
def _read() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGoneError from error


def warn_damaged(zoo: Zoo) -> None:
    """A line for each kept model of a bridge that is left out because its entry is damaged."""
    for error in zoo.damaged:
        say(f"warning: a kept model is left out: {' '.join(error.message.split())}: {error.hint}")


def next_command(*words: object) -> None:
    """Every success ends with what to type next; words in capitals stand for what only the reader knows."""
    say(f"next: {shlex.join(map(str, words))}")


def reference(folder: object) -> str:
    """A bundle's folder as a model reference: a bare name would be one of the registry's."""
    return str(folder) if "/" in str(folder) else f"./{folder}"


def print_error(error: ZooError, *, as_json: bool) -> None:
    """The error in one line, and how to mend it in another; with --json also as an object on stdout.

    Before them, where a gate has failed, everything that it compared.
    """
    report = getattr(error, "report", None)
    if as_json:
        facts = {"code": error.code, "message": error.message, "hint": error.hint}
        print_error_json({**facts, "report": to_plain(report)} if report is not None else facts)
    for check in getattr(report, "checks", ()):
        mark = "✓" if check.passed else "✗"
        say(f"  {mark} {check.name}, batch {check.batch}: {max(check.value, 0):.2g} (at most {check.bound:g})")
    say(f"error: {' '.join(error.message.split())}")
    if error.hint:
        say(f"hint: {error.hint}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns padded to their widest cell; numbers are the caller's to right-align."""
    widths = [max(_width(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        padded = (cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        write("  ".join(padded).rstrip())


def _width(text: str) -> int:
    """Columns that a terminal takes for it: letters of East Asia take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def human_size(size: int | None) -> str:
    """Bytes as kB, MB or GB (powers of ten); ? when unknown."""
    if size is None:
        return "?"
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def human_count(count: int) -> str:
    """Parameters as 4.7M or 334M."""
    return f"{count / 1e6:.1f}M" if count < 100e6 else f"{count / 1e6:.0f}M"
