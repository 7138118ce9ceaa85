"""Session: a bundle loaded in ONNX Runtime on a device that it names truthfully."""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from zoo import external
from zoo.answers import Placement, RunResult
from zoo.bundle import MODEL, Bundle
from zoo.device import choose, onnxruntime
from zoo.engine import Settings
from zoo.errors import DataError, DeviceError, IntegrityError, UsageError
from zoo.extras import RUNTIME, require
from zoo.pipeline import ImagePipeline, Skip, TextPipeline
from zoo.progress import SILENT, Progress
from zoo.schema import ImagePreprocess, TextPreprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.external import Bytes

    Floats = NDArray[np.float32]


class Session:
    """A bundle, ready to answer.

    `device` is `cpu`, `cuda:N` or `tensorrt:N`: what really runs; `placement` says why, and on what each node of the
    graph lies. Images of any size are prepared one by one by the graph's own preprocessing prefix, on the CPU, and then
    run through its body in batches; texts are batched by length. Order is kept. Threads may share a session.

    `threads` are those that compute (every core this process may use by default). `spins` lets them wait busily, which
    is quicker where nothing else computes; a server does without. `fixed` fills up every batch of pictures, for CUDA to
    record its kernels once. TensorRT's engines are kept in the folder `engines`.

    Raises UsageError for an unknown device, DeviceError where the device that was asked for cannot be had or many nodes
    are left on the CPU (`auto` takes the CPU then, and says so), IntegrityError for a bundle that was changed.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        *,
        threads: int | None = None,
        spins: bool | None = None,
        fixed: bool = False,
        engines: Path | None = None,
    ) -> None:
        preprocess = bundle.manifest.preprocess
        reads_pictures = isinstance(preprocess, ImagePreprocess)
        if threads is not None and threads < 1:
            raise UsageError(f"{threads} threads", hint="threads=1, or leave it out")
        if fixed and not reads_pictures:
            raise UsageError("batches of texts have no fixed shape", hint="leave out fixed")
        chosen = choose(device)
        require("running a model", *RUNTIME, "PIL" if reads_pictures else "tokenizers")
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.labels = self.manifest.labels
        self.batches_run: list[int] = []
        # The file is read and hashed while the runtime is imported: each takes a tenth of a second.
        with ThreadPoolExecutor(1, "zoo-read") as pool:
            reading = pool.submit(bundle.read_model)
            onnxruntime()
            model = reading.result()
        tables = external.files(model, bundle.map)
        #: Files beside the model that its numbers lie in.
        self.table_files = sorted(tables)
        # On a CPU the threads that decode want the cores on which those of a session would spin.
        spins = (chosen.used != "cpu" or not reads_pictures) if spins is None else spins
        settings = Settings(threads, spins, fixed=fixed, engines=engines, key=bundle.digest(MODEL)[:16])
        try:
            self._pipeline = self._load(chosen.used, model, tables, settings)
        except DeviceError as error:
            if chosen.asked != "auto":
                raise
            chosen = Placement(asked="auto", used="cpu", why=error.message)
            self._pipeline = self._load("cpu", model, tables, settings)
        self.placement = msgspec.structs.replace(chosen, nodes=self._pipeline.body.nodes)
        self.device = self.placement.used
        _check_facts(bundle, self._pipeline.facts)

    def _load(
        self, device: str, model: bytes, tables: "dict[str, Bytes]", settings: Settings
    ) -> ImagePipeline | TextPipeline:
        preprocess, bundle = self.manifest.preprocess, self.bundle
        if isinstance(preprocess, ImagePreprocess):
            return ImagePipeline(preprocess, model, self.manifest.cut, device, tables, settings)
        if isinstance(preprocess, TextPreprocess):
            bundle.check(preprocess.tokenizer)
            return TextPipeline(preprocess, model, bundle.path, device, tables, settings)
        raise IntegrityError(f"{bundle.path}: a bundle's words are tokens", hint="write the bundle again")

    def __repr__(self) -> str:
        return f"Session({self.manifest.name!r}, {len(self.labels)} labels, {self.placement})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the model, what it reads and answers with, where it runs."""
        facts = {
            "model": f"{self.manifest.name}, {self.manifest.precision}",
            "reads": "pictures" if isinstance(self.manifest.preprocess, ImagePreprocess) else "texts",
            "answers with": ", ".join(f"{item.name} {list(item.shape)}" for item in self.manifest.outputs),
            "labels": ", ".join(self.labels) or "none",
            "runs on": str(self.placement),
            "nodes": ", ".join(f"{name} {count}" for name, count in self.placement.nodes.items()),
        }
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(fact)}</td></tr>" for name, fact in facts.items())
        return f"<table>{rows}</table>"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors the graph answers with: `features`, and `scores` [batch, labels] after fine-tuning."""
        return tuple(spec.name for spec in self.manifest.outputs)

    def stream(
        self, items: Iterable[Any], outputs: Sequence[str], skip: Skip | None = None
    ) -> "Iterator[tuple[list[int], dict[str, Floats]]]":
        """Batch by batch, (positions in `items`, the named outputs for them): texts shortest first, window by window.

        `items` are taken as they are needed, and not kept: texts two windows ahead at most, pictures a few batches.

        Items are paths, bytes, PIL images or uint8 [height, width, 3] arrays for images; str for texts. One that cannot
        be read raises DataError; with `skip` that is told instead, and the item is in no batch. What the body takes
        (`attention_mask`, int64 [batch, sequence]) may be asked for among the outputs.
        """
        for positions, feeds in self._pipeline.batches(items, skip or _refuse):
            self.batches_run.append(len(positions))
            computed = [name for name in outputs if name not in feeds]
            arrays = dict(zip(computed, self._pipeline.run(computed, feeds), strict=True))
            yield positions, {name: feeds[name] if name in feeds else arrays[name] for name in outputs}

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text; 0 of one that cannot be read. Raises UsageError for a model of pictures."""
        if not isinstance(self._pipeline, TextPipeline):
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

    def run(
        self,
        inputs: Any,
        *,
        names: Sequence[str] | None = None,
        top: int = 5,
        keep_going: bool = False,
        progress: Progress = SILENT,
    ) -> RunResult:
        """An answer for each input, in their order: the `top` best labels, a number, or the features without a head.

        `inputs` is one input or any iterable of them, read to its end before the first is run: paths, bytes, PIL
        images or uint8 arrays [height, width, 3] (RGB, 0 to 255) of pictures, str of texts; an array [count, height,
        width, 3] is so many pictures. `names` stand for them in answers and errors. Raises DataError for an input that
        cannot be read; with `keep_going` its answer has the error, and the others theirs.
        """
        from zoo.run import answer

        items = one_or_more(inputs)
        names = names or [str(item) if isinstance(item, str | Path) else f"#{i}" for i, item in enumerate(items)]
        answers = answer(self, items, names, top=top, keep_going=keep_going, progress=progress)
        return RunResult(
            model=str(self.bundle.path),
            entry=self.manifest.lineage.entry.name,
            device=self.device,
            answers=tuple(answers),
            placement=self.placement,
        )

    async def run_async(self, inputs: Any, *, top: int = 5, keep_going: bool = False) -> RunResult:
        """`run` on a thread beside the event loop, for a server: the loop goes on, and runs may overlap.

        A run whose task is cancelled still ends by itself; its answer is dropped.
        """
        import asyncio

        return await asyncio.to_thread(self.run, inputs, top=top, keep_going=keep_going)

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


def one_or_more(inputs: Any) -> list[Any]:
    """The inputs as a list: one text, path, picture or its bytes is one input, and not a row of signs or of lines."""
    if isinstance(inputs, str | bytes | Path) or not isinstance(inputs, Iterable):
        return [inputs]
    # An array, asked without numpy's name: nothing heavy is imported to look at it.
    return [inputs] if getattr(inputs, "ndim", None) == 3 else list(inputs)


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
