"""Output of every verb: data on stdout, messages on stderr, and with `--json` one object with `schema_version`."""

import io
import json
import shlex
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from zoo import AccessError, Entry, Zoo, ZooError, to_json, to_plain

SCHEMA_VERSION = 1


def print_json(kind: str, data: Any) -> None:
    """Print one JSON object on stdout: schema_version, then `kind` with the data."""
    text = to_json({"schema_version": SCHEMA_VERSION, kind: data})
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        # A terminal with another encoding (cp1252) still gets valid JSON, with escapes.
        text = json.dumps(json.loads(text), separators=(",", ":"))
    write(text)


def print_error_json(facts: dict[str, Any]) -> None:
    """Print an error as JSON on stdout, unless stdout is closed."""
    if sys.stdout is not None:
        print_json("error", facts)


class ReaderGoneError(Exception):
    """Raised if the reader of stdout has gone, instead of BrokenPipeError, which click turns into exit code 1."""


def write(line: str = "") -> None:
    """Print a line of data on stdout. Raises AccessError if stdout is closed (>&-)."""
    if sys.stdout is None:
        raise AccessError("stdout is closed", hint="give it a file or a pipe: > FILE")
    with _read():
        sys.stdout.write(line + "\n")


def speak_any_code() -> None:
    """From now on, print letters that the terminal's encoding does not have as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Flush stdout."""
    with _read():
        sys.stdout.flush()


def say(line: str) -> None:
    """Print a message on stderr. A reader that has gone does not stop the work."""
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
    """Print a warning for each stored model of a bridge whose entry is damaged."""
    for error in zoo.damaged:
        say(f"warning: a stored model is left out: {' '.join(error.message.split())}: {error.hint}")


def next_command(*words: object) -> None:
    """Print the command to type next; words in capitals are for the user to replace."""
    say(f"next: {shlex.join(map(str, words))}")


def next_steps(entry: Entry) -> None:
    """Print the commands that use a pulled model. A model that answers without training is run first."""
    if entry.head is not None or entry.task == "word-vectors":
        next_command("zoo", "run", entry.name, "INPUT")
    next_command("zoo", "finetune", entry.name, "DATA", "-o", "DIR")


def reference(folder: object) -> str:
    """The folder of a bundle as a model reference: with a slash, because a plain name means a registry row."""
    return str(folder) if "/" in str(folder) else f"./{folder}"


def print_error(error: ZooError, *, as_json: bool) -> None:
    """Print the error on one line and its hint on another; with --json also an object on stdout.

    If a check of an exported model failed, all its comparisons are printed first.
    """
    report = getattr(error, "report", None)
    if as_json:
        facts = {"code": error.code, "message": error.message, "hint": error.hint}
        print_error_json({**facts, "report": to_plain(report)} if report is not None else facts)
    for check in getattr(report, "checks", ()):
        print_check(check)
    say(f"error: {' '.join(error.message.split())}")
    if error.hint:
        say(f"hint: {error.hint}")


def print_check(check: Any) -> None:
    """Print one comparison of an exported model with the original, on stderr."""
    name, bound = check.name, f"at most {check.bound:g}"
    if check.may_change is not None:
        name = "predictions that changed"
        bound = f"at most {check.may_change}" if check.may_change else "none allowed"
    say(f"  {'✓' if check.passed else '✗'} {name}, batch {check.batch}: {max(check.value, 0):.2g} ({bound})")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns padded to their widest cell. The caller right-aligns numbers."""
    widths = [max(_width(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        padded = (cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        write("  ".join(padded).rstrip())


def _width(text: str) -> int:
    """Terminal columns of a text: East Asian letters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def human_size(size: int | None) -> str:
    """A number of bytes as kB, MB or GB (powers of ten); ? if unknown."""
    if size is None:
        return "?"
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def counted(number: int, noun: str) -> str:
    """The number and its noun: 1 item, 2 items."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def human_count(count: int) -> str:
    """A number of parameters as 4.7M or 334M."""
    return f"{count / 1e6:.1f}M" if count < 100e6 else f"{count / 1e6:.0f}M"
