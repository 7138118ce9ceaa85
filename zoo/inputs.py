"""What a person names on a command line, as the items a Session takes."""

import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from zoo.data import DEFAULT_TEXT, TABLES, column, image_files, read_text
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
        raise DataError(f"{argument}: no pictures there", path=argument, hint="check the folder or the pattern")
    for file in files:
        yield file, file


def _texts(argument: str, text: str | None) -> Iterator[tuple[str, str]]:
    if argument == STDIN:
        for line in _stdin_lines():
            yield line, line
        return
    path = Path(argument)
    suffix = path.suffix.lower()
    if suffix not in (".txt", *TABLES) or not _is_file(path):
        # One word that ends like a file's name is a file's name that was mistyped, not a text to judge.
        if suffix in (".txt", *TABLES) and len(argument.split()) == 1:
            raise DataError(f"{argument}: no such file", path=argument, hint="check the path")
        yield argument, argument
        return
    lines = column(path, text or DEFAULT_TEXT) if suffix in TABLES else _text_lines(path)
    number = None
    for number, line in lines:
        yield line, f"{path.name}:{number}"
    if number is None:
        raise DataError(f"{argument}: no texts there", path=argument, hint="fill it, or leave it out")


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # Too long for a file's name: it is a text.
        return False


def _stdin_lines() -> Iterator[str]:
    try:
        for line in sys.stdin:
            if line.strip():
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"the input is not UTF-8: {error.reason}", hint="iconv -t UTF-8 | zoo run MODEL -") from error
