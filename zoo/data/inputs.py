"""What a person names on a command line, as the items a Session takes."""

import fnmatch
import glob
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

from zoo.data.folders import image_files
from zoo.data.images import IMAGE_SUFFIXES
from zoo.data.tables import DEFAULT_IMAGE, DEFAULT_TEXT, TABLES, cells, count_rows, lines, lines_of, picture_cells
from zoo.data.tokenizers import check_text
from zoo.errors import DataError, UsageError, short
from zoo.schema import ImagePreprocess, Preprocess

STDIN = "-"
READS_PICTURES = "this model reads pictures: give files, folders or patterns"
#: Seconds that an input waits for others to be answered together with it.
SOON = 0.05
READS_TEXT = "give the text itself, or a .txt, .csv, .jsonl or .parquet file"
#: Ends of names that no picture has; a word with one of them is the name of a file, and not a text.
NO_PICTURES = (".txt", ".npy", *TABLES)


class Input(NamedTuple):
    """One input: what it is called, and the item that a Session takes, or a DataError that says why there is none."""

    name: str
    item: Any


class Inputs:
    """Command-line arguments as inputs, one after another as they are asked for; none is kept.

    What `expand` takes, and for pictures tables, too, whose column `image` holds bytes or paths. A file of another kind
    in a folder and a row that cannot be used are inputs with an error. Iterating raises DataError for an argument that
    cannot be used as a whole.
    """

    def __init__(
        self, arguments: Sequence[str], preprocess: Preprocess, *, text: str | None = None, image: str | None = None
    ) -> None:
        self.arguments = arguments
        self.reads_pictures = isinstance(preprocess, ImagePreprocess)
        self.text = text or DEFAULT_TEXT
        self.image = image or DEFAULT_IMAGE

    def __iter__(self) -> Iterator[Input]:
        files = Counter(Path(argument).name for argument in self.arguments if _is_lines(argument))
        for argument in self.arguments:
            found = self._of(argument)
            if _is_lines(argument) and files[Path(argument).name] > 1:
                # train/t.csv and test/t.csv: their rows are told apart by the folder.
                found = (each._replace(name=str(Path(argument).parent / each.name)) for each in found)
            yield from found

    def _of(self, argument: str) -> Iterator[Input]:
        if not self.reads_pictures:
            return _texts(argument, self.text)
        if Path(argument).suffix.lower() in TABLES and _is(Path.is_file, argument):
            return _stored_pictures(Path(argument), self.image)
        return _pictures(argument)

    def count(self) -> int | None:
        """How many there will be, None with stdin among them. Raises what iterating would raise, before any work."""
        total = sum(self._count(argument) for argument in self.arguments if argument != STDIN)
        return None if STDIN in self.arguments else total

    @property
    def is_piped(self) -> bool:
        """Whether stdin is among them, which may come slowly and never end."""
        return STDIN in self.arguments

    def reads(self, path: Path) -> bool:
        """Whether a file of that name is, or would be, one of them."""
        wanted = path.resolve()
        for argument in self.arguments:
            if argument == STDIN or not argument:
                continue
            if self.reads_pictures and _is(Path.is_dir, argument):
                is_it = wanted.parent == Path(argument).resolve()
            elif self.reads_pictures and glob.has_magic(argument) and not _is(Path.exists, argument):
                is_it = fnmatch.fnmatch(str(wanted), str(Path(argument).absolute()))
            else:
                is_it = _is(Path.exists, argument) and Path(argument).resolve() == wanted
            if is_it:
                return True
        return False

    def _count(self, argument: str) -> int:
        if Path(argument).suffix.lower() == ".parquet" and _is(Path.is_file, argument):
            # The first row says whether the column is there; a million pictures need not be read to be counted.
            next(iter(self._one(argument)), None)
            return count_rows(Path(argument))
        return sum(1 for _ in self._one(argument))

    def _one(self, argument: str) -> "Inputs":
        found = copy(self)
        found.arguments = [argument]
        return found


def one_or_more(inputs: Any) -> Iterable[Any]:
    """The inputs one by one: one text, path, picture or its bytes is one input, and not a row of signs or of lines."""
    # An array, asked without numpy's name: nothing heavy is imported to look at it. One of three axes is a picture;
    # of none or two it is nothing that can be read, and as one input it gets one error.
    # An open file would be gone through line by line.
    is_one = isinstance(inputs, str | bytes | bytearray | memoryview | Path) or not isinstance(inputs, Iterable)
    is_one = is_one or hasattr(inputs, "read")
    return [inputs] if is_one or getattr(inputs, "ndim", None) in (0, 2, 3) else inputs


def with_names(items: Sequence[Any], names: Sequence[str]) -> list[Input]:
    """Items that are called by `names`. Raises UsageError when there are not as many."""
    if len(items) != len(names):
        raise UsageError(f"{len(names)} names for {len(items)} inputs", hint="give each input one name")
    return [Input(name, item) for name, item in zip(names, items, strict=True)]


def arriving(inputs: Iterable[Input], limit: int) -> Iterator[list[Input]]:
    """The inputs in parts of at most `limit`: none waits more than SOON seconds for those that come after it."""
    come: queue.Queue[Input | _End] = queue.Queue(limit)
    is_over = threading.Event()

    def hand(each: Input | _End) -> None:
        while not is_over.is_set():
            with suppress(queue.Full):
                come.put(each, timeout=1.0)
                return

    def read() -> None:
        try:
            for each in inputs:
                hand(each)
                if is_over.is_set():
                    return
            hand(_End(None))
        except Exception as error:
            hand(_End(error))

    # Nobody waits for a reader whose pipe says nothing any more.
    threading.Thread(target=read, name="zoo-stdin", daemon=True).start()
    try:
        while True:
            each: Input | _End | None = come.get()
            part: list[Input] = []
            until = time.monotonic() + SOON
            while isinstance(each, Input):
                part.append(each)
                if len(part) == limit:
                    break
                try:
                    each = come.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    each = None
            if part:
                yield part
            if isinstance(each, _End):
                if each.error is not None:
                    raise each.error
                return
    finally:
        is_over.set()


class _End(NamedTuple):
    """The end of what comes, by an error or by itself."""

    error: Exception | None


def named_inputs(inputs: Iterable[Any]) -> Iterator[Input]:
    """Items as `Input`s: a path or a text is its own name, any other has its number."""
    for number, each in enumerate(inputs):
        if isinstance(each, Input):
            yield each
        else:
            yield Input(str(each) if isinstance(each, str | Path) else f"#{number}", each)


def expand(arguments: Sequence[str], preprocess: Preprocess, *, text: str | None = None) -> tuple[list[str], list[str]]:
    """(items, a name for each) of command-line arguments.

    Pictures: files, folders (their pictures), glob patterns; `-` reads paths from stdin. Texts: the argument itself,
    or the lines of a .txt file, or the column `text` of a CSV, JSON lines or Parquet file; `-` reads texts from stdin.
    Raises DataError for a path or pattern that gives nothing, an empty text, and a file of the other kind.
    """
    items, names = [], []
    for argument in arguments:
        found = (
            _pictures(argument) if isinstance(preprocess, ImagePreprocess) else _texts(argument, text or DEFAULT_TEXT)
        )
        for name, item in found:
            if isinstance(item, DataError):
                raise item
            items.append(item)
            names.append(name)
    if not items:
        raise DataError("there is no input", hint="name files, or give text; - reads stdin")
    return items, names


def _pictures(argument: str) -> Iterator[Input]:
    if argument == STDIN:
        for name, line in _stdin_lines():
            yield Input(name, line if isinstance(line, DataError) else _picture_problem(line) or line)
        return
    files: Iterator[str | DataError]
    if _is(Path.is_dir, argument):
        files = image_files(Path(argument))
    elif _is(Path.exists, argument) or not glob.has_magic(argument):
        files = iter([argument])
    else:
        files = iter(sorted(glob.glob(argument, recursive=True)))  # noqa: PTH207 - Path.glob refuses absolute patterns
    is_empty = True
    for file in files:
        is_empty = False
        if isinstance(file, DataError):
            yield Input(str(file.path), file)
            continue
        problem = _picture_problem(file)
        if problem is not None and file == argument:
            # What was typed is mistyped: said before anything runs.
            raise problem
        yield Input(file, problem or file)
    if is_empty:
        raise DataError(f"{short(argument)}: no pictures there", path=argument, hint=READS_PICTURES)


def _picture_problem(file: str) -> DataError | None:
    if not _is(Path.exists, file):
        return DataError(f"{short(file) or 'the empty name'}: no such picture", path=file, hint=READS_PICTURES)
    if Path(file).suffix.lower() in NO_PICTURES:
        return DataError(f"{file} is not a picture", path=file, hint=READS_PICTURES)
    # A pipe would be waited for, and a device may never end.
    if not _is(Path.is_file, file) and not _is(Path.is_dir, file):
        return DataError(f"{file} is no regular file", path=file, hint="save it as a file first")
    return None


def _stored_pictures(path: Path, column: str) -> Iterator[Input]:
    yield from _numbered(path, picture_cells(path, column), "pictures")


def _texts(argument: str, text: str) -> Iterator[Input]:
    if argument == STDIN:
        for name, line in _stdin_lines():
            yield Input(name, line)
        return
    path = Path(argument)
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES and _is(Path.is_file, argument):
        raise DataError(f"{argument} is a picture; this model reads text", path=argument, hint=READS_TEXT)
    if suffix == ".npy" and _is(Path.is_file, argument):
        raise DataError(f"{argument} holds vectors; this model reads text", path=argument, hint=READS_TEXT)
    if suffix not in (".txt", *TABLES) or not _is(Path.is_file, argument):
        # One word that ends like a file's name is a file's name that was mistyped, not a text to judge.
        if suffix in NO_PICTURES and len(argument.split()) == 1:
            what = "no regular file" if _is(Path.exists, argument) else "no such file"
            raise DataError(f"{argument}: {what}", path=argument, hint="check the path")
        yield Input(argument, check_text(argument))
        return
    yield from _numbered(path, cells(path, text) if suffix in TABLES else lines(path), "texts")


def _numbered(path: Path, rows: Iterator[tuple[int, Any]], what: str) -> Iterator[Input]:
    number = None
    for number, item in rows:
        yield Input(f"{path.name}:{number}", item)
    if number is None:
        raise DataError(f"{path}: no {what} there", path=path, hint="fill it, or leave it out")


def _is_lines(argument: str) -> bool:
    """Whether it is a file of which each line, or row, is an input."""
    return Path(argument).suffix.lower() in (".txt", *TABLES) and _is(Path.is_file, argument)


def _is(test: Callable[[Path], bool], name: str) -> bool:
    try:
        # The empty path would be the current folder.
        return name != "" and test(Path(name))
    except (OSError, ValueError):
        # Too long for a file's name, or with a zero byte: it is a text.
        return False


def _stdin_lines() -> Iterator[tuple[str, str | DataError]]:
    """(its name, a line) of stdin: one that can be read is its own name."""
    # Python has none where it was closed (<&-), and a notebook's has no bytes.
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise DataError("stdin is closed", hint="name files, or give text; - reads a pipe")
    try:
        for number, line in lines_of(stream, Path("stdin")):
            yield f"stdin:{number}" if isinstance(line, DataError) else line, line
    except OSError as error:
        raise DataError(f"stdin cannot be read: {error.strerror}", hint="give it a pipe or a file") from error
