"""A loaded model: `Session` runs a bundle in ONNX Runtime, and reports the device that it runs on."""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from zoo.bundle import MODEL, Bundle
from zoo.data.inputs import named_inputs, one_or_more, with_names
from zoo.data.items import Skip
from zoo.data.labels import find_prompt, reads_pairs, without_head
from zoo.errors import DataError, DeviceError, IntegrityError, UsageError, counted
from zoo.extras import RUNTIME, require
from zoo.graph import external_data
from zoo.progress import SILENT, Progress
from zoo.results import Answer, Placement, RunResult
from zoo.runtime.answers import ModelAnswerer, answer_one, answers
from zoo.runtime.device import choose, onnxruntime
from zoo.runtime.optimised_graphs import OptimisedGraphs
from zoo.runtime.ort import Graphs, Settings, write_optimised
from zoo.runtime.pipeline import ImagePipeline, TextPipeline, cut_model
from zoo.schema import ImagePreprocess, Task, TextPreprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


class Session:
    """A bundle, ready to answer. Threads may share a session.

    `device` is the device that the model runs on: `cpu`, `cuda:N` or `tensorrt:N`. `placement` holds the reason, and
    the number of graph nodes on each device. Images of any size are prepared one by one on the CPU, by the graph's
    preprocessing prefix, and run through the graph's body in batches. Texts are batched by length. Results are in the
    order of the inputs.

    threads: computing threads; by default one for each core that this process may use.
    spins: let waiting threads spin; this is faster unless other threads compute at the same time, as in a server.
    fixed: fill up every batch of images to one size, so that CUDA records its kernels once.
    engines, optimised: folders that keep TensorRT's engines and optimised graphs for the next start.

    Raises UsageError for an unknown device, DeviceError if the requested device cannot be used or many nodes would run
    on the CPU (`auto` takes the CPU in these cases), IntegrityError if a file of the bundle was changed.
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
        optimised: Path | None = None,
    ) -> None:
        preprocess = bundle.manifest.preprocess
        reads_images = isinstance(preprocess, ImagePreprocess)
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}", hint="threads=1, or leave it out")
        if fixed and not reads_images:
            raise UsageError("fixed needs a model of images: batches of texts have no fixed shape", hint="leave it out")
        chosen = choose(device)
        require("running a model", *RUNTIME, "PIL" if reads_images else "tokenizers")
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.labels = self.manifest.labels
        #: Names of the files beside the model that hold its external data.
        self.table_files: list[str] = []
        # On a CPU, spinning threads of a session would take cores from the threads that decode images.
        spins = (chosen.used != "cpu" or not reads_images) if spins is None else spins
        settings = Settings(threads, spins, fixed=fixed, engines=engines, key=bundle.digest(MODEL)[:16])
        try:
            self._pipeline = self._load(chosen.used, settings, optimised)
        except DeviceError as error:
            if chosen.asked != "auto":
                raise
            chosen = Placement(asked="auto", used="cpu", why=error.message)
            self._pipeline = self._load("cpu", settings, optimised)
        self.placement = msgspec.structs.replace(chosen, nodes=self._pipeline.body.nodes)
        self.device = self.placement.used
        _check_facts(bundle, self._pipeline.facts)

    def _load(self, device: str, settings: Settings, optimised: Path | None) -> ImagePipeline | TextPipeline:
        with OptimisedGraphs(optimised, self.bundle, device) as kept:
            # Reading and hashing the model, and importing the runtime, take 0.1 s each: they run at the same time.
            with ThreadPoolExecutor(1, "zoo-read") as pool:
                reading = pool.submit(lambda: kept.find() or self._read())
                onnxruntime()
                graphs = reading.result()
            try:
                if device == "cpu":
                    pipeline = self._pipeline_of(graphs, device, settings)
                    # A second session optimises the graph again later, so that the first answer does not wait.
                    kept.keep_later(graphs, lambda folder: write_optimised(graphs.body, device, settings, folder))
                    return pipeline
                # A GPU may not have the memory for a second session.
                with kept.making(graphs) as folder:
                    return self._pipeline_of(graphs, device, settings._replace(optimised=folder))
            except IntegrityError:
                if not kept.is_used:
                    raise
            # A kept graph did not load or could not be written, for example on a full disk.
            kept.drop()
            return self._pipeline_of(self._read(), device, settings)

    def _read(self) -> Graphs:
        """The graphs from the bundle's own file, checked."""
        model = self.bundle.read_model()
        tables = external_data.files(model, self.bundle.map)
        self.table_files = sorted(tables)
        return cut_model(self.manifest.preprocess, model, self.manifest.cut, tables)

    def _pipeline_of(self, graphs: Graphs, device: str, settings: Settings) -> ImagePipeline | TextPipeline:
        preprocess, bundle = self.manifest.preprocess, self.bundle
        if isinstance(preprocess, ImagePreprocess):
            return ImagePipeline(preprocess, graphs, self.manifest.cut, device, settings)
        if isinstance(preprocess, TextPreprocess):
            bundle.check(preprocess.tokenizer)
            return TextPipeline(
                preprocess, graphs, bundle.path, device, settings,
                fills_masks=self.manifest.task is Task.FILL_MASK, pairs=reads_pairs(self.manifest),
            )  # fmt: skip
        raise IntegrityError(f"{bundle.path}: a bundle reads images or texts", hint="write the bundle again")

    def __repr__(self) -> str:
        return f"Session({self.manifest.name!r}, {counted(len(self.labels), 'label')}, {self.placement})"

    def _repr_html_(self) -> str:
        """A table for notebooks: the model, its input, outputs and labels, and the device."""
        facts = {
            "model": f"{self.manifest.name}, {self.manifest.precision}",
            "reads": "images" if isinstance(self.manifest.preprocess, ImagePreprocess) else "texts",
            "answers with": ", ".join(f"{item.name} {list(item.shape)}" for item in self.manifest.outputs),
            "labels": ", ".join(self.labels) or "none",
            "runs on": str(self.placement),
            "nodes": ", ".join(f"{name} {count}" for name, count in self.placement.nodes.items()),
        }
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(fact)}</td></tr>" for name, fact in facts.items())
        return f"<table>{rows}</table>"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs: `features`, and `scores` [batch, labels] after fine-tuning."""
        return tuple(spec.name for spec in self.manifest.outputs)

    def prompted(self, prompt: str | None) -> "Session":
        """The same loaded model with its prompt called `prompt` before each text; None means the default prompt.

        Raises UsageError for a name that the model does not have.
        """
        if prompt is None:
            return self
        text, pipeline = find_prompt(self.manifest, prompt), self._pipeline
        assert isinstance(pipeline, TextPipeline)
        session = copy(self)
        session._pipeline = pipeline.prompted(text)
        return session

    def stream(
        self, items: Iterable[Any], outputs: Sequence[str], skip: Skip | None = None
    ) -> "Iterator[tuple[list[int], dict[str, Floats]]]":
        """Yields the indices of each batch's items and the named outputs; texts are sorted within each window.

        `items` are as in `run`. They are read as needed and not kept: at most two windows of texts, or a few batches of
        images, are read ahead. An item that cannot be read raises DataError; with `skip`, it is left out and passed to
        `skip` with its error. `outputs` may also name inputs of the body (`attention_mask`, int64 [batch, sequence]).
        """
        for indices, arrays in self._pipeline.stream(one_or_more(items), outputs, skip or _refuse):
            if indices:
                yield indices, arrays

    def rows(self, items: Iterable[Any], output: str, skip: Skip) -> "Iterator[tuple[list[int], Sequence[Floats]]]":
        """The rows of one output: see `zoo.runtime.in_order.Rows`. A row that is not finite is skipped."""
        import numpy as np

        for indices, arrays in self._pipeline.stream(items, [output], skip):
            if not indices:
                yield [], []
                continue
            found = arrays[output]
            if not np.isfinite(found).all():
                is_finite = np.isfinite(found).all(axis=tuple(range(1, found.ndim)))
                for row in np.flatnonzero(~is_finite):
                    skip(indices[row], _not_finite(output))
                indices = [indices[row] for row in np.flatnonzero(is_finite)]
                found = found[is_finite]
            yield indices, found  # type: ignore[misc]

    @property
    def batches_run(self) -> Sequence[int]:
        """Sizes of the last batches."""
        return self._pipeline.batches_run

    def words(self, ids: Sequence[int]) -> list[str]:
        """The text of each token id. Raises UsageError for a model of images."""
        if not isinstance(self._pipeline, TextPipeline):
            raise UsageError("words are for models of texts: images have no tokens")
        return self._pipeline.encoder.words(ids)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text, 0 if it cannot be read. Raises UsageError for a model of images."""
        if not isinstance(self._pipeline, TextPipeline):
            raise UsageError("lengths are for models of texts: images have no tokens")
        return self._pipeline.lengths(texts)

    def infer(
        self, items: Iterable[Any], outputs: Sequence[str], progress: Progress = SILENT, skip: Skip | None = None
    ) -> "dict[str, Floats]":
        """The named outputs, each float32 [len(items), ...], in the order of `items`; NaN for a skipped item."""
        import numpy as np

        items = list(one_or_more(items))
        shapes = {spec.name: spec.shape[1:] for spec in self.manifest.outputs}
        found = {name: np.full((len(items), *map(int, shapes[name])), np.nan, np.float32) for name in outputs}
        with progress.task(f"{self.manifest.name} on {self.device}", len(items)) as bar:
            for indices, arrays in self.stream(items, outputs, skip):
                for name, array in arrays.items():
                    found[name][indices] = array
                bar.advance(len(indices))
        return found

    def run(
        self,
        inputs: Any,
        *,
        names: Sequence[str] | None = None,
        top: int = 5,
        keep_going: bool = False,
        features: bool = False,
        progress: Progress = SILENT,
    ) -> RunResult:
        """An answer for each input, in order: the `top` best labels, a number, or the features if there is no head.

        With `features` every answer is a feature vector.

        `inputs` is one input or any iterable of them: paths, bytes, PIL images or uint8 arrays [height, width, 3] (RGB,
        0 to 255) for images, str or TextPair for texts; an array [count, height, width, 3] is `count` images. `names`
        replace the inputs' own names in answers and errors. All answers are in memory; `answers` takes any number.

        Raises UsageError for a `top` below 1 or if the numbers of names and inputs differ. Raises DataError with the
        `index` of an input that cannot be read (a damaged image, an array of another type or shape, an empty text) or
        whose scores are not finite; with `keep_going` the answer to that input holds the error instead.
        """
        items = list(one_or_more(inputs))
        each = items if names is None else with_names(items, names)
        if len(items) == 1:
            # Servers call with one input, for which keeping inputs in order would double the time.
            [one] = named_inputs(each)
            answerer = ModelAnswerer(self, top, features=features)
            return self._result([answer_one(answerer, one, keep_going=keep_going)])
        found = []
        with progress.task(f"{self.manifest.name} on {self.device}", len(items)) as bar:
            for answer in self.answers(each, top=top, keep_going=keep_going, features=features):
                found.append(answer)
                bar.advance()
        return self._result(found)

    def _result(self, found: Sequence[Answer]) -> RunResult:
        return RunResult(
            model=str(self.bundle.path),
            entry=self.manifest.lineage.entry.name,
            device=self.device,
            answers=tuple(found),
            placement=self.placement,
        )

    def answers(
        self, inputs: Any, *, top: int = 5, keep_going: bool = False, features: bool = False
    ) -> Iterator[Answer]:
        """The answers of `run` for any number of inputs, in order, one by one.

        Inputs are read while answers are taken, and are not kept. At most two windows of 4,096 texts, or a few batches
        of images, are read ahead. Inputs from stdin (`Zoo.each_input`) are answered as they arrive.

        Raises the errors of `run`.
        """
        return answers(ModelAnswerer(self, top, features=features), one_or_more(inputs), keep_going=keep_going)

    async def run_async(self, inputs: Any, *, top: int = 5, keep_going: bool = False) -> RunResult:
        """The result of `run`, computed on a thread, so that the event loop is not blocked; runs may overlap.

        If the task is cancelled, the run continues to its end and its result is dropped.
        """
        import asyncio

        return await asyncio.to_thread(self.run, inputs, top=top, keep_going=keep_going)

    def scores(self, items: Iterable[Any], progress: Progress = SILENT) -> "Floats":
        """Class probabilities, float32 [len(items), len(labels)].

        Raises UsageError for a bundle without a head, and DataError as `run`.
        """
        if "scores" not in self.outputs:
            raise UsageError(
                f"{self.manifest.name} has no labels: {without_head(self.manifest)}",
                hint=f"zoo finetune {self.manifest.lineage.entry.name} DATA -o DIR",
            )
        return self._whole(items, "scores", progress)

    def features(self, items: Iterable[Any], progress: Progress = SILENT) -> "Floats":
        """Feature vectors, float32 [len(items), dim]. Raises DataError as `run`."""
        return self._whole(items, "features", progress)

    def _whole(self, items: Iterable[Any], output: str, progress: Progress) -> "Floats":
        import numpy as np

        found = self.infer(items, [output], progress)[output]
        for index in np.flatnonzero(~np.isfinite(found).all(axis=1))[:1]:
            _refuse(int(index), _not_finite(output))
        return found


def _not_finite(output: str) -> DataError:
    return DataError(
        f"its {output} are not finite numbers", hint="run with --device cpu, or export with --precision fp32"
    )


def _refuse(index: int, error: DataError) -> None:
    error.index = index
    raise error


def _check_facts(bundle: Bundle, facts: "dict[str, str]") -> None:
    """Raise IntegrityError if `zoo.json` was edited: the ONNX file has its own copy of labels and preprocessing."""
    stored = json.loads(facts.get("zoo.labels", "[]")), json.loads(facts.get("zoo.preprocess", "null"))
    listed = list(bundle.manifest.labels), json.loads(msgspec.json.encode(bundle.manifest.preprocess))
    for what, ours, theirs in zip(("labels", "preprocessing"), listed, stored, strict=True):
        if ours != theirs:
            raise IntegrityError(
                f"{bundle.path}: zoo.json and model.onnx differ in {what}", hint="write the bundle again"
            )
