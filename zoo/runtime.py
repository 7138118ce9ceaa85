"""Session: a bundle loaded in ONNX Runtime on a device that it names truthfully."""

import ctypes
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from zoo import external, graph
from zoo.bundle import Bundle
from zoo.encode import TextEncoder, check_text, decode_image
from zoo.errors import DataError, DeviceError, IntegrityError, UsageError
from zoo.extras import RUNTIME, require
from zoo.progress import SILENT, Progress
from zoo.schema import ImagePreprocess, TextPreprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.external import Bytes

    Floats = NDArray[np.float32]
    Feeds = dict[str, NDArray[Any]]

#: Told the place and the error of an item that cannot be read, which is then left out; or it raises.
Skip: TypeAlias = Callable[[int, DataError], None]
#: Items in one batch of the body. Small on a CPU, where larger batches only cost cache misses.
BATCH = {"cpu": 8, "cuda": 32}
#: Tokens (padding included) in one batch of texts: enough to fill the GEMMs, few enough to stay in cache.
TOKENS = {"cpu": 512, "cuda": 16384}
#: Texts that are tokenised, and sorted by length, at a time.
WINDOW = 4096


def onnxruntime() -> Any:
    """The onnxruntime module, its telemetry switched off before it initialises. Raises MissingExtraError."""
    require("running a model", *RUNTIME)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime  # noqa: TID251 - by this door

    return onnxruntime


def cores() -> int:
    """CPU cores this process may use: ONNX Runtime by itself counts all the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cuda_problem() -> str | None:
    """Why CUDA cannot be used here, None when it can: the driver, a device, the wheel, in this order."""
    try:
        driver = ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    except OSError:
        return "no NVIDIA driver: libcuda was not found"
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver finds no device"
    if "CUDAExecutionProvider" not in onnxruntime().get_available_providers():
        return "the installed onnxruntime is the CPU build: pip install 'backbone-zoo[gpu]'"
    return None


def choose_device(device: str) -> str:
    """`cpu` or `cuda:N` for what was asked. Raises DeviceError when cuda was asked for and cannot be had."""
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
        raise UsageError(f"unknown device '{device}'", hint="--device auto, cpu, cuda or cuda:1")
    if kind == "cpu":
        return "cpu"
    problem = cuda_problem()
    if problem is None:
        return f"cuda:{index or 0}"
    if kind == "cuda":
        raise DeviceError(f"{device} cannot be used: {problem}", device=device, hint="--device cpu, or --device auto")
    return "cpu"


def create_session(
    model: bytes,
    device: str,
    threads: int | None = None,
    tables: "Mapping[str, Bytes] | None" = None,
    *,
    spins: bool = True,
) -> Any:
    """An InferenceSession of `model` that really runs on `device` (`cpu` or `cuda:N`), or an error.

    `tables` are the files of its external data by name (zoo.external.files); the runtime itself opens none. Without
    `spins` its threads sleep while they wait, which is better where others compute beside them.
    Raises DeviceError when the provider was dropped, IntegrityError when the runtime refuses the graph or a file of its
    external data was not given.
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.log_severity_level = 4
    if not spins:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    outside = sorted({tensor.file for tensor in external.references(model)})
    if missing := [name for name in outside if name not in (tables or {})]:
        raise IntegrityError(
            f"a part of the model lies in {missing[0]}, which was not given", hint="write the bundle again"
        )
    files = [tables[name] for name in outside] if tables else []
    if files:
        # Without this entry every table would be copied; with it they must outlive the session.
        options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
        options.add_external_initializers_from_files_in_memory(outside, files, [len(file) for file in files])
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        ort.preload_dlls()
        # It warns of kinds of devices that it does not know, and `options` do not reach that. There is no asking what
        # was set before: afterwards it is what it is by default.
        ort.set_default_logger_severity(4)
        settings = {"device_id": device.partition(":")[2], "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        providers.insert(0, ("CUDAExecutionProvider", settings))
    try:
        session = ort.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions have no common root of their own
        reason = str(error).splitlines()[0]
        raise IntegrityError(f"ONNX Runtime refuses the model: {reason}", hint="export it again") from error
    finally:
        if device.startswith("cuda"):
            ort.set_default_logger_severity(2)
    if device.startswith("cuda") and session.get_providers()[0] != "CUDAExecutionProvider":
        raise DeviceError(
            f"{device} was asked for and ONNX Runtime fell back to the CPU",
            device=device,
            hint="pip install 'backbone-zoo[gpu]' brings the CUDA libraries; or --device cpu",
        )
    session.tables = files
    return session


class Session:
    """A bundle, ready to answer.

    `device` is `cpu` or `cuda:N`: what really runs. Images of any size are prepared one by one by the graph's own
    preprocessing prefix and then run through its body in batches; texts are batched by length. Order is kept.
    """

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        preprocess = bundle.manifest.preprocess
        require("running a model", *RUNTIME, "PIL" if isinstance(preprocess, ImagePreprocess) else "tokenizers")
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.device = choose_device(device)
        self.labels = self.manifest.labels
        self.batches_run: list[int] = []
        model = bundle.read_model()
        tables = external.files(model, bundle.map)
        #: Files beside the model that its numbers lie in.
        self.table_files = sorted(tables)
        self._pipeline: _ImagePipeline | _TextPipeline
        if isinstance(preprocess, ImagePreprocess):
            self._pipeline = _ImagePipeline(preprocess, model, self.manifest.cut, self.device, tables)
        elif isinstance(preprocess, TextPreprocess):
            bundle.check(preprocess.tokenizer)
            self._pipeline = _TextPipeline(preprocess, model, bundle.path, self.device, tables)
        else:
            raise IntegrityError(f"{bundle.path}: a bundle's words are tokens", hint="write the bundle again")
        _check_facts(bundle, self._pipeline.facts)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors the graph answers with: `features`, and `scores` [batch, labels] after fine-tuning."""
        return tuple(spec.name for spec in self.manifest.outputs)

    def stream(
        self, items: Iterable[Any], outputs: Sequence[str], skip: Skip | None = None
    ) -> "Iterator[tuple[list[int], dict[str, Floats]]]":
        """Batch by batch, (positions in `items`, the named outputs for them): texts shortest first, window by window.

        `items` are taken as they are needed, and not kept: texts two windows ahead at most, pictures two batches.

        Items are paths, bytes, PIL images or uint8 [height, width, 3] arrays for images; str for texts. One that cannot
        be read raises DataError; with `skip` that is told instead, and the item is in no batch. What the body takes
        (`attention_mask`, int64 [batch, sequence]) may be asked for among the outputs.
        """
        for positions, feeds in self._pipeline.batches(items, skip or _refuse):
            self.batches_run.append(len(positions))
            computed = [name for name in outputs if name not in feeds]
            arrays = dict(zip(computed, self._pipeline.body.run(computed, feeds), strict=True))
            yield positions, {name: feeds[name] if name in feeds else arrays[name] for name in outputs}

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text; 0 of one that cannot be read. Raises UsageError for a model of pictures."""
        if not isinstance(self._pipeline, _TextPipeline):
            raise UsageError("pictures have no tokens")
        return self._pipeline.lengths(texts)

    def infer(
        self, items: Iterable[Any], outputs: Sequence[str], progress: Progress = SILENT, skip: Skip | None = None
    ) -> "dict[str, Floats]":
        """The named outputs, each float32 [len(items), ...], in the order of `items`; NaN for one that `skip` took."""
        import numpy as np

        items = list(items)
        shapes = {spec.name: spec.shape[1:] for spec in self.manifest.outputs}
        found = {name: np.full((len(items), *map(int, shapes[name])), np.nan, np.float32) for name in outputs}
        with progress.task(f"{self.manifest.name} on {self.device}", len(items)) as bar:
            for positions, arrays in self.stream(items, outputs, skip):
                for name, array in arrays.items():
                    found[name][positions] = array
                bar.advance(len(positions))
        return found

    def scores(self, items: Iterable[Any], progress: Progress = SILENT) -> "Floats":
        """Class probabilities, float32 [len(items), len(labels)]. Raises UsageError on a bundle without a head."""
        if "scores" not in self.outputs:
            raise UsageError(
                f"{self.manifest.name} has no labels: it was not fine-tuned",
                hint=f"zoo finetune {self.manifest.lineage.entry.name} DATA -o DIR",
            )
        return self.infer(items, ["scores"], progress)["scores"]

    def features(self, items: Iterable[Any], progress: Progress = SILENT) -> "Floats":
        """Feature vectors, float32 [len(items), dim]."""
        return self.infer(items, ["features"], progress)["features"]


class _ImagePipeline:
    """Decoding and the prefix on helper threads, one picture each; the body on the device, a batch at a time."""

    def __init__(
        self,
        preprocess: ImagePreprocess,
        model: bytes,
        cut: str | None,
        device: str,
        tables: "Mapping[str, Bytes]",
    ) -> None:
        import onnx

        self.short_side = preprocess.resize
        self.batch = BATCH[device.partition(":")[0]]
        whole = onnx.load_from_string(model)
        self.cut = cut or graph.PIXELS
        self.facts = {item.key: item.value for item in whole.metadata_props}
        given = {item.name for item in whole.graph.input}
        if self.cut not in given.union(*(node.output for node in whole.graph.node)):
            raise IntegrityError(f"the model has no tensor '{self.cut}' to cut at", hint="write the bundle again")
        outputs = [item.name for item in whole.graph.output]
        # A bare backbone has no preprocessing of its own: it is given the pixels that one makes.
        prefix = graph.image_prefix(preprocess)
        if self.cut not in given:
            prefix = graph.extract(whole, [graph.IMAGE], [self.cut])
        self.prefix = create_session(prefix.SerializeToString(), "cpu", threads=1, tables=tables)
        body = graph.extract(whole, [self.cut], outputs).SerializeToString()
        # On a CPU the threads that decode want the cores on which its own would spin.
        self.body = create_session(body, device, tables=tables, spins=device != "cpu")

    def batches(self, items: Iterable[Any], skip: Skip) -> "Iterator[tuple[list[int], Feeds]]":
        import numpy as np

        with ThreadPoolExecutor(max(2, cores()), "zoo-decode") as pool:
            # A batch in the making and one ahead: enough to keep the body busy, little enough to hold.
            pixels = _ahead(pool, self.pixels, items, 2 * self.batch, skip)
            while group := list(islice(pixels, self.batch)):
                yield [index for index, _ in group], {self.cut: np.concatenate([each for _, each in group])}

    def pixels(self, item: Any) -> "Floats":
        """One picture through the prefix: float32 [1, 3, crop, crop]."""
        picture = decode_image(item, self.short_side)
        pixels: Floats = self.prefix.run([self.cut], {graph.IMAGE: picture[None]})[0]
        return pixels


class _TextPipeline:
    """Tokens first, then batches of similar length, each within a budget of tokens."""

    def __init__(
        self,
        preprocess: TextPreprocess,
        model: bytes,
        folder: Path,
        device: str,
        tables: "Mapping[str, Bytes]",
    ) -> None:
        self.encoder = TextEncoder(preprocess, folder)
        self.budget = TOKENS[device.partition(":")[0]]
        self.body = create_session(model, device, tables=tables)
        self.facts: dict[str, str] = self.body.get_modelmeta().custom_metadata_map

    def batches(self, items: Iterable[Any], skip: Skip) -> "Iterator[tuple[list[int], Feeds]]":
        windows = _windows(items)
        with ThreadPoolExecutor(1, "zoo-tokens") as pool:
            # The next window is tokenised while the body works on this one.
            coming = deque(pool.submit(self._rows, *window) for window in islice(windows, 1))
            while coming:
                rows, refused = coming.popleft().result()
                coming.extend(pool.submit(self._rows, *window) for window in islice(windows, 1))
                for index, error in refused:
                    skip(index, error)
                yield from self._bucketed(rows)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, 0 of one that cannot be read."""
        found = [0] * len(texts)
        for window in _windows(texts):
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

    def _rows(self, start: int, items: Sequence[Any]) -> "tuple[dict[int, list[int]], list[tuple[int, DataError]]]":
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


def _windows(items: Iterable[Any]) -> Iterator[tuple[int, list[Any]]]:
    """(where it starts, the items of a window), one after another as they are asked for."""
    rest, start = iter(items), 0
    while window := list(islice(rest, WINDOW)):
        yield start, window
        start += len(window)


def _refuse(index: int, error: DataError) -> None:
    error.index = index
    raise error


def _check_facts(bundle: Bundle, facts: "dict[str, str]") -> None:
    """Labels and preprocessing stand in `zoo.json` and in the ONNX file: a manifest that was edited shows here."""
    stored = json.loads(facts.get("zoo.labels", "[]")), json.loads(facts.get("zoo.preprocess", "null"))
    told = list(bundle.manifest.labels), json.loads(msgspec.json.encode(bundle.manifest.preprocess))
    for what, ours, theirs in zip(("labels", "preprocessing"), told, stored, strict=True):
        if ours != theirs:
            raise IntegrityError(
                f"{bundle.path}: the {what} in zoo.json are not those in model.onnx", hint="write the bundle again"
            )


def _ahead(
    pool: ThreadPoolExecutor, function: "Callable[[Any], Floats]", items: Iterable[Any], depth: int, skip: Skip
) -> "Iterator[tuple[int, Floats]]":
    """(place, function(item)) on the pool's threads, in order, at most `depth` results ahead of their use."""
    todo = enumerate(items)
    waiting: deque[tuple[int, Future[Floats]]] = deque()
    while True:
        waiting += [(index, pool.submit(function, item)) for index, item in islice(todo, depth + 1 - len(waiting))]
        if not waiting:
            return
        index, future = waiting.popleft()
        try:
            pixels = future.result()
        except DataError as error:
            skip(index, error)
        else:
            yield index, pixels
