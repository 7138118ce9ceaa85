"""The items for a Session that command-line arguments, or inputs of the Python interface, mean."""

import fnmatch
import glob
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from zoo.data.folders import image_files
from zoo.data.images import IMAGE_SUFFIXES
from zoo.data.items import TextPair
from zoo.data.tables import DEFAULT_IMAGE, TABLES, cells, count_rows, image_cells, lines, lines_of
from zoo.data.tokenizers import check_text
from zoo.errors import DataError, MissingFileError, UsageError, short
from zoo.schema import ImagePreprocess, Preprocess

STDIN = "-"
READS_IMAGES = "this model reads images: give files, folders or patterns"
#: Seconds that an input waits for more inputs of its batch.
SOON = 0.05
READS_TEXT = "give the text itself, or a .txt, .csv, .jsonl or .parquet file"
#: Suffixes that no image has. A single word with such a suffix counts as the name of a file.
NO_IMAGES = (".txt", ".npy", *TABLES)


class Input(NamedTuple):
    """One input: its name, and the item that a Session takes or the DataError of an item that cannot be read."""

    name: str
    item: Any


class Inputs:
    """The inputs that command-line arguments name, read one by one as they are needed; none is kept.

    The arguments are those of `expand`, and for images also tables, whose column `image` holds bytes or paths. A file
    of another kind in a folder and a row that cannot be used are inputs with an error. `pair` is the second text of
    every input; with `pairs` the column `text_pair` of a table holds it, if there is one. A table with
    that column is refused if it would not be read, unless `text` names the column to read. Iterating raises DataError
    for an argument that cannot be used as a whole.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        preprocess: Preprocess,
        *,
        text: str | None = None,
        image: str | None = None,
        pair: str | None = None,
        pairs: bool = False,
    ) -> None:
        if pair is not None and not pair.strip():
            raise UsageError("--pair is empty", hint="give the second text of every input")
        self.arguments = arguments
        self.reads_images = isinstance(preprocess, ImagePreprocess)
        self.text = text
        self.image = image or DEFAULT_IMAGE
        self.pair, self.pairs = pair, pairs

    def __iter__(self) -> Iterator[Input]:
        files = Counter(Path(argument).name for argument in self.arguments if _is_lines(argument))
        for argument in self.arguments:
            found = self._of(argument)
            if _is_lines(argument) and files[Path(argument).name] > 1:
                # Add the folder, to distinguish the rows of train/t.csv and test/t.csv.
                found = (each._replace(name=str(Path(argument).parent / each.name)) for each in found)
            yield from found

    def _of(self, argument: str) -> Iterator[Input]:
        if not self.reads_images:
            found = _texts(argument, self.text, pairs=self.pairs and self.pair is None)
            return found if self.pair is None else (each._replace(item=_paired(each.item, self.pair)) for each in found)
        if Path(argument).suffix.lower() in TABLES and _is(Path.is_file, argument):
            return _numbered(Path(argument), image_cells(Path(argument), self.image), "images")
        return _images(argument)

    def count(self) -> int | None:
        """The number of inputs, None if stdin is among the arguments. Raises the errors of iterating."""
        total = sum(self._count(argument) for argument in self.arguments if argument != STDIN)
        return None if STDIN in self.arguments else total

    @property
    def is_piped(self) -> bool:
        """Whether stdin, which may be slow and never end, is among the arguments."""
        return STDIN in self.arguments

    def reads(self, path: Path) -> bool:
        """Whether a file at `path` is, or would be, one of the inputs."""
        wanted = path.resolve()
        for argument in self.arguments:
            if argument == STDIN or not argument:
                continue
            if self.reads_images and _is(Path.is_dir, argument):
                is_it = wanted.parent == Path(argument).resolve()
            elif self.reads_images and glob.has_magic(argument) and not _is(Path.exists, argument):
                is_it = fnmatch.fnmatch(str(wanted), str(Path(argument).absolute()))
            else:
                is_it = _is(Path.exists, argument) and Path(argument).resolve() == wanted
            if is_it:
                return True
        return False

    def _count(self, argument: str) -> int:
        if Path(argument).suffix.lower() == ".parquet" and _is(Path.is_file, argument):
            # The first row shows whether the column exists; the footer has the number of rows.
            next(self._of(argument), None)
            return count_rows(Path(argument))
        return sum(1 for _ in self._of(argument))


def one_or_more(inputs: Any) -> Iterable[Any]:
    """The inputs one by one; a single text, path, image or its bytes is one input and not a sequence."""
    # `ndim` finds arrays without importing numpy. An array with three axes is one image. An array with none or two is
    # one unreadable input. An open file is one input, because iterating it would give its lines.
    is_one = isinstance(inputs, str | bytes | bytearray | memoryview | Path | TextPair)
    is_one = is_one or not isinstance(inputs, Iterable) or hasattr(inputs, "read")
    return [inputs] if is_one or getattr(inputs, "ndim", None) in (0, 2, 3) else inputs


def with_names(items: Sequence[Any], names: Sequence[str]) -> list[Input]:
    """The items as Inputs with these names. Raises UsageError if there are not as many names as items."""
    if len(items) != len(names):
        raise UsageError(f"{len(names)} names for {len(items)} inputs", hint="give each input one name")
    return [Input(name, item) for name, item in zip(names, items, strict=True)]


def arriving(inputs: Iterable[Input], limit: int) -> Iterator[list[Input]]:
    """The inputs in batches of at most `limit`; none waits more than SOON seconds for later inputs."""
    # Pairs (input, None); the last pair is (None, None), or (None, the error of `inputs`).
    come: queue.Queue[tuple[Input | None, Exception | None]] = queue.Queue(limit)
    is_over = threading.Event()

    def hand(each: Input | None, error: Exception | None = None) -> None:
        while not is_over.is_set():
            with suppress(queue.Full):
                come.put((each, error), timeout=1.0)
                return

    def read() -> None:
        try:
            for each in inputs:
                hand(each)
                if is_over.is_set():
                    return
            hand(None)
        except Exception as error:
            hand(None, error)

    # A daemon thread, because the process must not wait for a pipe that never ends.
    threading.Thread(target=read, name="zoo-stdin", daemon=True).start()
    try:
        while True:
            each, error = come.get()
            part: list[Input] = []
            until = time.monotonic() + SOON
            with suppress(queue.Empty):
                while each is not None:
                    part.append(each)
                    if len(part) == limit:
                        break
                    each, error = come.get(timeout=max(0.0, until - time.monotonic()))
            if part:
                yield part
            if error is not None:
                raise error
            if each is None:
                return
    finally:
        is_over.set()


def named_inputs(inputs: Iterable[Any]) -> Iterator[Input]:
    """Items as `Input`s: a path or a text is its own name, a pair has its first text, any other item its index."""
    for number, each in enumerate(inputs):
        if isinstance(each, Input):
            yield each
        else:
            name = each.text if isinstance(each, TextPair) else each
            yield Input(str(name) if isinstance(name, str | Path) else f"#{number}", each)


def expand(arguments: Sequence[str], preprocess: Preprocess, *, text: str | None = None) -> tuple[list[str], list[str]]:
    """Returns the items that command-line arguments mean, and their names.

    Images: files, folders (their images), glob patterns; `-` reads paths from stdin. Texts: the argument itself,
    or the lines of a .txt file, or the column `text` of a CSV, JSON lines or Parquet file; `-` reads texts from stdin.
    Raises MissingFileError, and DataError for no items, an empty text and a file that the model does not read.
    """
    found: list[Input] = []
    for argument in arguments:
        reads_images = isinstance(preprocess, ImagePreprocess)
        for each in _images(argument) if reads_images else _texts(argument, text):
            if isinstance(each.item, DataError):
                raise each.item
            found.append(each)
    if not found:
        raise DataError("there is no input", hint="name files, or give text; - reads stdin")
    return [each.item for each in found], [each.name for each in found]


def _images(argument: str) -> Iterator[Input]:
    if argument == STDIN:
        for name, line in _stdin_lines():
            yield Input(name, line if isinstance(line, DataError) else _image_problem(line) or line)
    elif _is(Path.is_dir, argument):
        is_empty = True
        for file in image_files(Path(argument)):
            is_empty = False
            yield Input(str(file.path if isinstance(file, DataError) else file), file)
        if is_empty:
            raise DataError(f"{argument}: no images there", path=argument, hint=READS_IMAGES)
    elif _is(Path.exists, argument) or not glob.has_magic(argument):
        if (problem := _image_problem(argument)) is not None:
            # A mistyped argument is an error before anything runs.
            raise problem
        yield Input(argument, argument)
    else:
        matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
        if not matches:
            raise MissingFileError(f"{short(argument)}: no file matches", path=argument, hint=READS_IMAGES)
        for match in matches:
            yield Input(match, _image_problem(match) or match)


def _image_problem(file: str) -> DataError | None:
    if not file:
        return DataError("an input is empty", path=file, hint=READS_IMAGES)
    if not _is(Path.exists, file):
        return MissingFileError(f"{short(file)}: no such file", path=file, hint=READS_IMAGES)
    if Path(file).suffix.lower() in NO_IMAGES:
        return DataError(f"{file} is not an image", path=file, hint=READS_IMAGES)
    # Reading a pipe would wait, and a device may never end.
    if not _is(Path.is_file, file) and not _is(Path.is_dir, file):
        return DataError(f"{file} is not a regular file", path=file, hint="save it as a file first")
    return None


def _paired(item: Any, pair: str) -> Any:
    return TextPair(item, pair) if isinstance(item, str) else item


def _texts(argument: str, text: str | None, *, pairs: bool = False) -> Iterator[Input]:
    if argument == STDIN:
        for name, line in _stdin_lines():
            yield Input(name, line)
        return
    path = Path(argument)
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES and _is(Path.is_file, argument):
        raise DataError(f"{argument} is an image; this model reads text", path=argument, hint=READS_TEXT)
    if suffix == ".npy" and _is(Path.is_file, argument):
        raise DataError(f"{argument} holds vectors; this model reads text", path=argument, hint=READS_TEXT)
    if suffix not in (".txt", *TABLES) or not _is(Path.is_file, argument):
        # A single word with the suffix of a file is the mistyped name of a file, not a text.
        if suffix in NO_IMAGES and len(argument.split()) == 1:
            if not _is(Path.exists, argument):
                raise MissingFileError(f"{argument}: no such file", path=argument, hint="check the path")
            raise DataError(f"{argument} is not a regular file", path=argument, hint="save it as a file first")
        yield Input(argument, check_text(argument))
        return
    yield from _numbered(path, cells(path, text, pairs=pairs) if suffix in TABLES else lines(path), "texts")


def _numbered(path: Path, rows: Iterator[tuple[int, Any]], what: str) -> Iterator[Input]:
    number = None
    for number, item in rows:
        yield Input(f"{path.name}:{number}", item)
    if number is None:
        raise DataError(f"{path}: no {what} there", path=path, hint="fill it, or leave it out")


def _is_lines(argument: str) -> bool:
    """Whether an argument is a file in which each line or row is an input."""
    return Path(argument).suffix.lower() in (".txt", *TABLES) and _is(Path.is_file, argument)


def _is(test: Callable[[Path], bool], name: str) -> bool:
    try:
        # Path("") is the current folder.
        return name != "" and test(Path(name))
    except (OSError, ValueError):
        # A text is not the name of a file if it is too long, or has a zero byte.
        return False


def _stdin_lines() -> Iterator[tuple[str, str | DataError]]:
    """Yields a name and the text or error of each line of stdin; the name of a readable line is its text."""
    # sys.stdin is None when it was closed (<&-), and has no `buffer` in a notebook.
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise DataError("stdin is closed", hint="name files, or give text; - reads a pipe")
    try:
        for number, line in lines_of(stream, Path("stdin")):
            yield f"stdin:{number}" if isinstance(line, DataError) else line, line
    except OSError as error:
        raise DataError(f"stdin cannot be read: {error.strerror}", hint="give it a pipe or a file") from error
