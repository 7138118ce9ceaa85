"""What a person names on a command line, as the items a Session takes."""

import glob
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from zoo.encode import IMAGE_SUFFIXES, check_text
from zoo.errors import DataError, short
from zoo.folders import image_files
from zoo.schema import ImagePreprocess, Preprocess
from zoo.tables import DEFAULT_TEXT, TABLES, column, read_text

STDIN = "-"
READS_PICTURES = "this model reads pictures: give files, folders or patterns"
READS_TEXT = "give the text itself, or a .txt, .csv, .jsonl or .parquet file"


def expand(arguments: Sequence[str], preprocess: Preprocess, *, text: str | None = None) -> tuple[list[str], list[str]]:
    """(items, a name for each) of command-line arguments.

    Pictures: files, folders (their pictures), glob patterns; `-` reads paths from stdin. Texts: the argument itself,
    or the lines of a .txt file, or the column `text` of a CSV, JSON lines or Parquet file; `-` reads texts from stdin.
    Raises DataError for a path or pattern that gives nothing, an empty text, and a file of the other kind.
    """
    read = _pictures if isinstance(preprocess, ImagePreprocess) else _texts
    pairs = [pair for argument in arguments for pair in read(argument, text)]
    if not pairs:
        raise DataError("there is no input", hint="name files, or give text; - reads stdin")
    return [item for item, _ in pairs], [name for _, name in pairs]


def _pictures(argument: str, _: str | None) -> Iterator[tuple[str, str]]:
    if argument == STDIN:
        files = list(_stdin_lines())
    elif _is(Path.is_dir, argument):
        files = [str(file) for file in image_files(Path(argument))]
    elif _is(Path.exists, argument) or not glob.has_magic(argument):
        files = [argument]
    else:
        files = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
    if not files and argument != STDIN:
        raise DataError(f"{short(argument)}: no pictures there", path=argument, hint=READS_PICTURES)
    for file in files:
        if not _is(Path.exists, file):
            raise DataError(f"{short(file) or 'the empty name'}: no such picture", path=file, hint=READS_PICTURES)
        if Path(file).suffix.lower() in (".txt", *TABLES):
            raise DataError(f"{file} is not a picture", path=file, hint=READS_PICTURES)
        yield file, file


def _texts(argument: str, text: str | None) -> Iterator[tuple[str, str]]:
    if argument == STDIN:
        for line in _stdin_lines():
            yield line, line
        return
    path = Path(argument)
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES and _is(Path.is_file, argument):
        raise DataError(f"{argument} is a picture; this model reads text", path=argument, hint=READS_TEXT)
    if suffix not in (".txt", *TABLES) or not _is(Path.is_file, argument):
        # One word that ends like a file's name is a file's name that was mistyped, not a text to judge.
        if suffix in (".txt", *TABLES) and len(argument.split()) == 1:
            raise DataError(f"{argument}: no such file", path=argument, hint="check the path")
        yield check_text(argument), argument
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


def _is(test: Callable[[Path], bool], name: str) -> bool:
    try:
        # The empty path would be the current folder.
        return name != "" and test(Path(name))
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
