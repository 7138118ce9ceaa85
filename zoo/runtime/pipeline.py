"""Raw items to batches of arrays, and the sessions that take them: pictures through the prefix, texts by length."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.data.images import decode_image
from zoo.data.items import Skip
from zoo.data.tokenizers import TextEncoder, check_text
from zoo.errors import DataError, IntegrityError
from zoo.graph.prefix import image_prefix
from zoo.graph.protobuf import Wire
from zoo.runtime.io_binding import Bound
from zoo.runtime.ort import Graphs, Settings, create_session
from zoo.runtime.per_core import Lanes
from zoo.schema import IMAGE, PIXELS, ImagePreprocess, Preprocess, TextPreprocess
from zoo.system.cpu import cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.graph.external_data import Bytes

    Floats = NDArray[np.float32]
    Feeds = dict[str, NDArray[Any]]
    #: The tokens of every item of a window that can be read, by its place; and the others with what is wrong.
    Rows = tuple[dict[int, list[int]], list[tuple[int, DataError]]]

#: Items in one batch of the body. Small on a CPU, where larger batches only cost cache misses, the more so beside those
#: that decode.
BATCH = {"cpu": 4, "cuda": 32, "tensorrt": 32}
#: Tokens (padding included) in one batch of texts: enough to fill the GEMMs, few enough to stay in cache.
TOKENS = {"cpu": 512, "cuda": 16384, "tensorrt": 16384}
#: Texts that are tokenised, and sorted by length, at a time.
WINDOW = 4096
#: Pictures after which lanes are worth their session; of those before, each is answered as soon as can be.
ALONE = 64
#: Bytes of a model that may be held twice for them, where it is not mapped.
SMALL = 64 << 20


def cut_model(preprocess: Preprocess, model: bytes, cut: str | None, tables: "Mapping[str, Bytes]") -> Graphs:
    """What a pipeline's sessions are made of. Raises IntegrityError for a model without the tensor `cut`."""
    if not isinstance(preprocess, ImagePreprocess):
        return Graphs(model, tables=tables)
    cut = cut or PIXELS
    whole = Wire(model)
    if not whole.knows(cut):
        raise IntegrityError(f"the model has no tensor '{cut}' to cut at", hint="write the bundle again")
    # A bare backbone has no preprocessing of its own: it is given the pixels that one makes.
    is_bare = cut in whole.inputs
    prefix = bytes(image_prefix(preprocess).SerializeToString()) if is_bare else whole.cut([IMAGE], [cut])
    return Graphs(whole.cut([cut], whole.outputs), prefix, tables)


class _Pipeline:
    """What both have: the session of the body on the device, and the threads that prepare what it takes.

    `facts` are the metadata in the ONNX file, `body` the session, `threads` how many prepare items.
    """

    facts: dict[str, str]
    body: Any
    threads: int

    def __init__(self, device: str, settings: Settings) -> None:
        self.device = device
        self.settings = settings
        #: Sizes of the last batches.
        self.batches_run: deque[int] = deque(maxlen=1024)
        self._lock = threading.Lock()

    def batches(self, items: Iterable[Any], skip: Skip) -> "Iterator[tuple[list[int], Feeds]]":
        """(places of the items, what the body takes for them); no places after many that cannot be read."""
        raise NotImplementedError

    def stream(
        self, items: Iterable[Any], outputs: Sequence[str], skip: Skip
    ) -> "Iterator[tuple[list[int], dict[str, Floats]]]":
        """As `batches`, with the named outputs; what the body takes may be asked for, too."""
        for places, feeds in self.batches(items, skip):
            if not places:
                yield [], {}
                continue
            self.batches_run.append(len(places))
            computed = [name for name in outputs if name not in feeds]
            # Asked for nothing, ONNX Runtime would compute everything.
            arrays = dict(zip(computed, self.run(computed, feeds) if computed else [], strict=True))
            yield places, {name: feeds[name] if name in feeds else arrays[name] for name in outputs}

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """Threads for as long as the session is there: to start one costs as much as to run a small model."""
        return ThreadPoolExecutor(self.threads, "zoo-prepare")

    @cached_property
    def _bound(self) -> Bound:
        return Bound(self.body, self.device, fixed=self.settings.fixed)

    def run(self, outputs: Sequence[str], feeds: "Feeds") -> "list[Floats]":
        """The body's outputs for one batch."""
        if self.device == "cpu" and not self.settings.fixed:
            answers: list[Floats] = self.body.run(outputs, feeds)
            return answers
        with self._lock:
            return self._bound.run(outputs, feeds)


class ImagePipeline(_Pipeline):
    """Decoding and the prefix on helper threads, one picture each; the body on the device, a batch at a time.

    Many pictures on a CPU of several cores go through lanes.
    """

    def __init__(
        self,
        preprocess: ImagePreprocess,
        graphs: Graphs,
        cut: str | None,
        device: str,
        settings: Settings,
    ) -> None:
        super().__init__(device, settings)
        self.short_side = preprocess.resize
        self.batch = BATCH[device.partition(":")[0]]
        # A little more than the cores: a decoder waits for the disk, too.
        self.threads = max(2, settings.threads or cores())
        self.cut = cut or PIXELS
        self.prefix = create_session(graphs.prefix, "cpu", threads=1, tables=graphs.tables)
        sides = 3, preprocess.crop, preprocess.crop
        shapes = {self.cut: ((1, *sides), (self.batch, *sides), (self.batch, *sides))}
        settings = settings._replace(kind="picture", shapes=shapes)
        self.body = create_session(graphs.body, device, tables=graphs.tables, settings=settings)
        self.facts = self.body.get_modelmeta().custom_metadata_map
        lanes = settings.threads or cores()
        is_small = isinstance(graphs.body, Path) or len(graphs.body) <= SMALL
        self._spare = graphs if device == "cpu" and lanes > 1 and not settings.fixed and is_small else None
        self._lane_count = lanes
        self._lanes: Lanes | None = None

    def stream(
        self, items: Iterable[Any], outputs: Sequence[str], skip: Skip
    ) -> "Iterator[tuple[list[int], dict[str, Floats]]]":
        """As `_Pipeline` has it, in order."""
        rest = iter(items)
        taken = 0

        def shared() -> Iterator[Any]:
            nonlocal taken
            for item in islice(rest, ALONE if self._spare is not None else None):
                taken += 1
                yield item

        if self._lanes is None:
            yield from super().stream(shared(), outputs, skip)
            if taken < ALONE or not (first := list(islice(rest, 1))):
                return
            rest = chain(first, rest)
        elif len(first := list(islice(rest, self.batch + 1))) <= self.batch:
            yield from super().stream(first, outputs, skip)
            return
        else:
            rest = chain(first, rest)
        lanes = self._opened_lanes()
        if lanes is None:
            for places, arrays in super().stream(rest, outputs, lambda place, error: skip(place + taken, error)):
                yield [place + taken for place in places], arrays
            return
        for places, arrays in lanes.stream(rest, outputs, skip, taken):
            if places:
                self.batches_run.append(len(places))
            yield places, arrays

    def _opened_lanes(self) -> Lanes | None:
        with self._lock:
            if self._lanes is None and self._spare is not None:
                graphs, self._spare = self._spare, None
                # A kept graph may be gone by now. It goes on as it has begun.
                with suppress(IntegrityError):
                    body = create_session(graphs.body, "cpu", threads=1, tables=graphs.tables)
                    self._lanes = Lanes(body, self.cut, self.pixels, self.pool, lot=self.batch, count=self._lane_count)
            return self._lanes

    def batches(self, items: Iterable[Any], skip: Skip) -> "Iterator[tuple[list[int], Feeds]]":
        """(places of the items, what the body takes for them), in order; no places after many that cannot be read."""
        import numpy as np

        rest = iter(items)
        first = list(islice(rest, 2))
        # Some batches ahead, or work for every thread: enough to keep the body busy, little enough to hold.
        depth = self.batch + max((3 if self.device == "cpu" else 1) * self.batch, self.threads)
        if len(first) > 1:
            pixels = _ahead(self.pool, self.pixels, chain(first, rest), depth, skip)
        else:
            pixels = _here(self.pixels, first, skip)
        positions: list[int] = []
        arrays: list[Floats] = []
        skipped = 0
        for index, each in pixels:
            if each is None:
                skipped += 1
                if skipped % self.batch == 0:
                    # Whoever asked can pass on what `skip` was told, and need not hold it until a picture can be read.
                    yield [], {}
                continue
            positions.append(index)
            arrays.append(each)
            if len(arrays) == self.batch:
                yield positions, {self.cut: np.concatenate(arrays)}
                positions, arrays = [], []
        if arrays:
            yield positions, {self.cut: np.concatenate(arrays) if len(arrays) > 1 else arrays[0]}

    def run(self, outputs: Sequence[str], feeds: "Feeds") -> "list[Floats]":
        """The body's outputs for one batch, filled up with black pictures where every batch has the same size."""
        pixels = feeds[self.cut]
        missing = self.batch - len(pixels) if self.settings.fixed else 0
        if missing <= 0:
            return super().run(outputs, feeds)
        import numpy as np

        full = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), pixels.dtype)])
        return [array[: len(pixels)] for array in super().run(outputs, {self.cut: full})]

    def pixels(self, item: Any) -> "Floats":
        """One picture through the prefix: float32 [1, 3, crop, crop]."""
        picture = decode_image(item, self.short_side)
        pixels: Floats = self.prefix.run([self.cut], {IMAGE: picture[None]})[0]
        return pixels


class TextPipeline(_Pipeline):
    """Tokens first, then batches of similar length, each within a budget of tokens."""

    threads = 1

    def __init__(
        self,
        preprocess: TextPreprocess,
        graphs: Graphs,
        folder: Path,
        device: str,
        settings: Settings,
    ) -> None:
        super().__init__(device, settings)
        self.encoder = TextEncoder(preprocess, folder)
        self.budget = TOKENS[device.partition(":")[0]]
        self.body = create_session(graphs.body, device, tables=graphs.tables, settings=settings)
        self.facts = self.body.get_modelmeta().custom_metadata_map

    def batches(self, items: Iterable[Any], skip: Skip) -> "Iterator[tuple[list[int], Feeds]]":
        """(places of the items, what the body takes for them), the shortest first, window by window.

        No places after a window of which no text can be read.
        """
        coming_windows = windows(items)
        found = [self._rows(*window) for window in islice(coming_windows, 1)]
        while found:
            # The next window is tokenised while the body works on this one.
            coming: list[Future[Rows]] = [self.pool.submit(self._rows, *window) for window in islice(coming_windows, 1)]
            for rows, refused in found:
                for index, error in refused:
                    skip(index, error)
                if rows:
                    yield from self._bucketed(rows)
                else:
                    yield [], {}
            found = [future.result() for future in coming]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, 0 of one that cannot be read."""
        found = [0] * len(texts)
        for window in windows(texts):
            for index, row in self._rows(*window)[0].items():
                found[index] = len(row)
        return found

    def _bucketed(self, rows: dict[int, list[int]]) -> "Iterator[tuple[list[int], Feeds]]":
        positions: list[int] = []
        for index in sorted(rows, key=lambda index: len(rows[index])):
            # Sorted, so the newcomer is the longest and sets the padded width of the whole batch.
            if positions and len(rows[index]) * (len(positions) + 1) > self.budget:
                yield positions, self.encoder.batch([rows[i] for i in positions])
                positions = []
            positions.append(index)
        if positions:
            yield positions, self.encoder.batch([rows[i] for i in positions])

    def _rows(self, start: int, items: Sequence[Any]) -> "Rows":
        """The tokens of every item of a window that can be read, by its place; and the others with what is wrong."""
        texts: dict[int, str] = {}
        refused: list[tuple[int, DataError]] = []
        for index, item in enumerate(items, start):
            try:
                texts[index] = check_text(item, index)
            except DataError as error:
                refused.append((index, error))
        rows = dict(zip(texts, self.encoder.tokens(list(texts.values())), strict=True))
        for index, text in texts.items():
            try:
                self.encoder.check_known(text, rows[index], index)
            except DataError as error:
                refused.append((index, error))
                del rows[index]
        return rows, sorted(refused, key=lambda each: each[0])


def windows(items: Iterable[Any], size: int = WINDOW) -> Iterator[tuple[int, list[Any]]]:
    """(where it starts, the items of a window), one after another as they are asked for."""
    rest, start = iter(items), 0
    while window := list(islice(rest, size)):
        yield start, window
        start += len(window)


def _here(
    function: "Callable[[Any], Floats]", items: Iterable[Any], skip: Skip
) -> "Iterator[tuple[int, Floats | None]]":
    """(place, function(item), None for one that was skipped): for one item no thread need be woken."""
    for index, item in enumerate(items):
        pixels: Floats | None = None
        try:
            pixels = function(item)
        except DataError as error:
            skip(index, error)
        yield index, pixels


def _ahead(
    pool: ThreadPoolExecutor, function: "Callable[[Any], Floats]", items: Iterable[Any], depth: int, skip: Skip
) -> "Iterator[tuple[int, Floats | None]]":
    """(place, function(item)) on the pool's threads, in order, at most `depth` results ahead of their use.

    None stands for the result of one that was skipped.
    """
    todo = enumerate(items)
    waiting: deque[tuple[int, Future[Floats]]] = deque()
    try:
        while True:
            waiting += [(index, pool.submit(function, item)) for index, item in islice(todo, depth + 1 - len(waiting))]
            if not waiting:
                return
            index, future = waiting.popleft()
            pixels: Floats | None = None
            try:
                pixels = future.result()
            except DataError as error:
                skip(index, error)
            yield index, pixels
    finally:
        # Whoever asked has gone, by an error or by a break: what has not begun need not be done.
        for _, future in waiting:
            future.cancel()
