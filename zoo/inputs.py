"""What a person names on a command line, as the items a Session takes."""

import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from zoo.data import DEFAULT_TEXT, TABLES, column, image_files
from zoo.errors import DataError
from zoo.schema import ImagePreprocess, Preprocess

STDIN = "-"


def expand(arguments: Sequence[str], preprocess: Preprocess, *, text: str | None = None) -> tuple[list[str], list[str]]:
    """(items, a name for each) of command-line arguments.

    Pictures: files, folders (their pictures), glob patterns; `-` reads paths from stdin. Texts: the argument itself,
    or the lines of a .txt file, or the column `text` of a CSV or JSON lines file; `-` reads texts from stdin.
    Raises DataError for a path or pattern that gives nothing.
    """
    read = _pictures if isinstance(preprocess, ImagePreprocess) else _texts
    pairs = [pair for argument in arguments for pair in read(argument, text)]
    if not pairs:
        raise DataError("there is no input", hint="name files, or give text; - reads stdin")
    return [item for item, _ in pairs], [name for _, name in pairs]


def _pictures(argument: str, _: str | None) -> Iterator[tuple[str, str]]:
    if argument == STDIN:
        for line in _stdin_lines():
            yield line, line
        return
    path = Path(argument)
    if path.is_dir():
        files = [str(file) for file in image_files(path)]
    elif path.exists() or not glob.has_magic(argument):
        files = [argument]
    else:
        files = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
    if not files:
        raise DataError(f"{argument}: no pictures there", path=argument)
    for file in files:
        yield file, file


def _texts(argument: str, text: str | None) -> Iterator[tuple[str, str]]:
    if argument == STDIN:
        for line in _stdin_lines():
            yield line, line
        return
    path = Path(argument)
    if len(argument) < 4096 and path.suffix in (".txt", *TABLES) and path.is_file():
        if path.suffix in TABLES:
            for line_number, cell in column(path, text or DEFAULT_TEXT):
                yield cell, f"{path.name}:{line_number}"
        else:
            for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
                if line.strip():
                    yield line, f"{path.name}:{number}"
        return
    yield argument, argument


def _stdin_lines() -> Iterator[str]:
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\n")
