"""Turns raw items into batches and runs the model: images are resized one by one, texts sorted by length."""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.data.images import decode_image, load_image
from zoo.data.items import Skip, TextPair, attempt
from zoo.data.tokenizers import TextEncoder, check_item
from zoo.errors import DataError, IntegrityError
from zoo.graph.prefix import ARITHMETIC
from zoo.graph.protobuf import Wire
from zoo.runtime.in_order import ahead, windows
from zoo.runtime.io_binding import Bound
from zoo.runtime.ort import Graphs, Settings, create_session
from zoo.runtime.per_core import PerCore, outputs_for
from zoo.runtime.pixels import PixelReader
from zoo.schema import IMAGE, PIXELS, SCORES, ImagePreprocess, Preprocess, TextPreprocess
from zoo.system.cpu import cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.graph.external_data import Bytes

    Floats = NDArray[np.float32]
    Feeds = dict[str, NDArray[Any]]
    #: The tokens of each readable text of a window, by its index; and (index, error) of the others.
    Tokens = tuple[dict[int, list[int]], list[tuple[int, DataError]]]

#: Images in one batch of the body; few on a CPU, where larger batches exceed the cache and delay decoding.
BATCH = {"cpu": 4, "cuda": 32, "tensorrt": 32}
#: Tokens in one batch of texts, padding included: enough for efficient matrix products, few enough for the cache.
TOKENS = {"cpu": 512, "cuda": 16384, "tensorrt": 16384}
#: Texts that are tokenised together and sorted by length.
WINDOW = 4096
#: Images that the shared session runs first; the session for `PerCore` is worth its creation only for more images.
ALONE = 64
#: The largest model, in bytes, of which `PerCore` may hold a second copy; a memory-mapped model has no limit.
MAX_COPIED = 64 << 20


def cut_model(preprocess: Preprocess, model: bytes, cut: str | None, tables: "Mapping[str, Bytes]") -> Graphs:
    """The graphs that a pipeline's sessions run. Raises IntegrityError if the model has no tensor `cut`."""
    if not isinstance(preprocess, ImagePreprocess):
        return Graphs(model, tables=tables)
    cut = cut or PIXELS
    whole = Wire(model)
    if not whole.knows(cut):
        raise IntegrityError(f"the model has no tensor '{cut}' to cut at", hint="write the bundle again")
    # A bare backbone takes pixels: its graph has no preprocessing. An older file has an arithmetic of its own.
    key, version = ARITHMETIC
    is_ours = cut in whole.inputs or (cut == PIXELS and whole.metadata.get(key) == version)
    return Graphs(whole.cut([cut], whole.outputs), b"" if is_ours else whole.cut([IMAGE], [cut]), tables)


class _Pipeline(ABC):
    """The common part of both pipelines: a session of the body on the device, and threads that prepare its input.

    `facts` is the metadata of the ONNX file, `threads` the number of threads that prepare items.
    """

    def __init__(self, graphs: Graphs, device: str, settings: Settings, threads: int) -> None:
        self.device = device
        self.settings = settings
        self.threads = threads
        self.body = create_session(graphs.body, device, tables=graphs.tables, settings=settings)
        self.facts: dict[str, str] = self.body.get_modelmeta().custom_metadata_map
        #: Sizes of the last batches.
        self.batches_run: deque[int] = deque(maxlen=1024)
        self._lock = threading.Lock()

    @abstractmethod
    def batches(self, items: Iterable[Any], skip: Skip) -> "Iterator[tuple[list[int], Feeds]]":
        """Yields the indices of items and the body's inputs for them; no indices after many unreadable items."""

    def stream(
        self, items: Iterable[Any], outputs: Sequence[str], skip: Skip
    ) -> "Iterator[tuple[list[int], dict[str, Floats]]]":
        """Yields the indices and the named outputs of each batch; `outputs` may also name inputs of the body."""
        for indices, feeds in self.batches(items, skip):
            if not indices:
                yield [], {}
                continue
            self.batches_run.append(len(indices))
            yield indices, outputs_for(outputs, feeds, self.run)

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """Threads that live as long as the pipeline, because starting one takes as long as running a small model."""
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
    """The pipeline of images: threads decode and prepare single images, the device runs the body batch by batch.

    On a CPU with several cores, many images go through `PerCore`.
    """

    def __init__(
        self, preprocess: ImagePreprocess, graphs: Graphs, cut: str | None, device: str, settings: Settings
    ) -> None:
        self.short_side = preprocess.resize
        self.batch = BATCH[device.partition(":")[0]]
        self.cut = cut or PIXELS
        #: The graph's preprocessing, if `PixelReader` does not compute the same.
        self.prefix = create_session(graphs.prefix, "cpu", threads=1, tables=graphs.tables) if graphs.prefix else None
        self.reader = PixelReader(preprocess)
        sides = 3, preprocess.crop, preprocess.crop
        shapes = {self.cut: ((1, *sides), (self.batch, *sides), (self.batch, *sides))}
        self._cores = settings.threads or cores()
        # At least two threads, because decoding also waits for the disk.
        super().__init__(graphs, device, settings._replace(kind="image", shapes=shapes), max(2, self._cores))
        is_small = isinstance(graphs.body, Path) or len(graphs.body) <= MAX_COPIED
        #: The graphs for `PerCore`, until it is created.
        self._spare = graphs if device == "cpu" and self._cores > 1 and not settings.fixed and is_small else None
        self._per_core: PerCore | None = None

    def stream(
        self, items: Iterable[Any], outputs: Sequence[str], skip: Skip
    ) -> "Iterator[tuple[list[int], dict[str, Floats]]]":
        """Yields the indices of each batch's items and the named outputs, in order."""
        rest, start = iter(items), 0
        if self._per_core is None:
            start = ALONE
            yield from super().stream(islice(rest, ALONE if self._spare is not None else None), outputs, skip)
            if not (head := list(islice(rest, 1))):
                return
        elif len(head := list(islice(rest, self.batch + 1))) <= self.batch:
            yield from super().stream(head, outputs, skip)
            return
        per_core = self._open_per_core()
        answer = super().stream if per_core is None else per_core.stream
        for indices, arrays in answer(chain(head, rest), outputs, lambda index, error: skip(index + start, error)):
            if indices and per_core is not None:
                self.batches_run.append(len(indices))
            yield [index + start for index in indices], arrays

    def _open_per_core(self) -> PerCore | None:
        with self._lock:
            if self._per_core is None and self._spare is not None:
                graphs, self._spare = self._spare, None
                # The file of an optimised graph may have been removed; the shared session then runs all images.
                with suppress(IntegrityError):
                    body = create_session(graphs.body, "cpu", threads=1, tables=graphs.tables)
                    self._per_core = PerCore(
                        body, self.cut, self.prepare, self.join, self.pool, self.batch, self._cores
                    )
            return self._per_core

    def batches(self, items: Iterable[Any], skip: Skip) -> "Iterator[tuple[list[int], Feeds]]":
        """Yields the indices of items and their pixels, in order; no indices after many unreadable items."""
        rest = iter(items)
        head = list(islice(rest, 2))
        prepare = partial(attempt, self.prepare)
        found: Iterator[NDArray[Any] | DataError]
        if len(head) > 1:
            # Some batches are prepared ahead, at least one image per thread: the body stays busy, memory stays small.
            depth = self.batch + max((3 if self.device == "cpu" else 1) * self.batch, self.threads)
            found = ahead(self.pool, prepare, chain(head, rest), depth)
        else:
            # For a single image it is faster not to wake another thread.
            found = map(prepare, head)
        prepared: dict[int, NDArray[Any]] = {}
        skipped = 0
        for index, each in enumerate(found):
            if isinstance(each, DataError):
                skip(index, each)
                skipped += 1
                if skipped % self.batch == 0:
                    # An empty batch lets the caller report the skipped items before the next readable image.
                    yield [], {}
                continue
            prepared[index] = each
            if len(prepared) == self.batch:
                yield list(prepared), {self.cut: self.join(list(prepared.values()))}
                prepared = {}
        if prepared:
            yield list(prepared), {self.cut: self.join(list(prepared.values()))}

    def run(self, outputs: Sequence[str], feeds: "Feeds") -> "list[Floats]":
        """The body's outputs for one batch; with `fixed`, black images fill the batch up to its one size."""
        pixels = feeds[self.cut]
        missing = self.batch - len(pixels) if self.settings.fixed else 0
        if missing <= 0:
            return super().run(outputs, feeds)
        import numpy as np

        full = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), pixels.dtype)])
        return [array[: len(pixels)] for array in super().run(outputs, {self.cut: full})]

    def prepare(self, item: Any) -> "NDArray[Any]":
        """One image as `join` takes it: grey levels, or the output of the prefix. Raises DataError."""
        if self.prefix is None:
            return self.reader.levels(load_image(item, self.short_side))
        image = decode_image(item, self.short_side)
        pixels: Floats = self.prefix.run([self.cut], {IMAGE: image[None]})[0]
        return pixels

    def join(self, prepared: "Sequence[NDArray[Any]]") -> "Floats":
        """The body's input for some prepared images: float32 [batch, 3, crop, crop]."""
        import numpy as np

        if self.prefix is None:
            return self.reader.pixels(prepared)
        return np.concatenate(prepared) if len(prepared) > 1 else prepared[0]


class TextPipeline(_Pipeline):
    """The pipeline of texts: they are tokenised, then batched by similar length within a budget of tokens.

    With `fills_masks` scores are only computed for texts with one mask. With `pairs` an item may be a pair.
    """

    def __init__(
        self, preprocess: TextPreprocess, graphs: Graphs, folder: Path, device: str, settings: Settings, *,
        fills_masks: bool = False, pairs: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(graphs, device, settings, threads=1)
        self.fills_masks, self.pairs = fills_masks, pairs
        self.encoder = TextEncoder(preprocess, folder)
        self.budget = TOKENS[device.partition(":")[0]]
        self.check = self.encoder.check_known

    def stream(
        self, items: Iterable[Any], outputs: Sequence[str], skip: Skip
    ) -> "Iterator[tuple[list[int], dict[str, Floats]]]":
        """Yields the indices and the named outputs of each batch. Scores of a model that fills masks need a mask."""
        pipeline = self
        if self.fills_masks and SCORES in outputs:
            pipeline = copy(self)
            pipeline.check = self.encoder.check_masked
        yield from _Pipeline.stream(pipeline, items, outputs, skip)

    def prompted(self, prompt: str) -> "TextPipeline":
        """The same pipeline with another prompt before each text."""
        pipeline = copy(self)
        pipeline.encoder = copy(self.encoder)
        pipeline.encoder.prompt = prompt
        return pipeline

    def batches(self, items: Iterable[Any], skip: Skip) -> "Iterator[tuple[list[int], Feeds]]":
        """Yields the indices of items and the body's input for them, shortest first within each window.

        No indices after a window in which no text can be read.
        """
        coming = windows(items, WINDOW)
        found = [self._tokens(*window) for window in islice(coming, 1)]
        while found:
            # The next window is tokenised while the body runs on this one.
            futures: list[Future[Tokens]] = [self.pool.submit(self._tokens, *window) for window in islice(coming, 1)]
            for tokens, failed in found:
                for index, error in failed:
                    skip(index, error)
                if tokens:
                    yield from self._bucketed(tokens)
                else:
                    yield [], {}
            found = [future.result() for future in futures]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text; 0 for a text that cannot be read."""
        found = [0] * len(texts)
        for window in windows(texts, WINDOW):
            for index, tokens in self._tokens(*window)[0].items():
                found[index] = len(tokens)
        return found

    def _bucketed(self, tokens: dict[int, list[int]]) -> "Iterator[tuple[list[int], Feeds]]":
        indices: list[int] = []
        for index in sorted(tokens, key=lambda index: len(tokens[index])):
            # Texts come sorted by length, so the new text is the longest and sets the padded width of the batch.
            if indices and len(tokens[index]) * (len(indices) + 1) > self.budget:
                yield indices, self.encoder.batch([tokens[i] for i in indices])
                indices = []
            indices.append(index)
        if indices:
            yield indices, self.encoder.batch([tokens[i] for i in indices])

    def _tokens(self, start: int, items: Sequence[Any]) -> "Tokens":
        found: dict[int, str | TextPair | list[int] | DataError]
        check = partial(check_item, pairs=self.pairs)
        found = {index: attempt(check, item) for index, item in enumerate(items, start)}
        texts = {index: text for index, text in found.items() if isinstance(text, str | TextPair)}
        for index, tokens in zip(texts, self.encoder.tokens(list(texts.values())), strict=True):
            error: DataError | None = attempt(self.check, texts[index], tokens)
            found[index] = error or tokens
        failed = [(index, each) for index, each in found.items() if isinstance(each, DataError)]
        return {index: each for index, each in found.items() if isinstance(each, list)}, failed
