"""Session: a bundle loaded in ONNX Runtime on a device that it names truthfully."""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from zoo.bundle import MODEL, Bundle
from zoo.data.inputs import named_inputs, one_or_more, with_names
from zoo.data.items import Skip
from zoo.errors import DataError, DeviceError, IntegrityError, UsageError
from zoo.extras import RUNTIME, require
from zoo.graph import external_data
from zoo.progress import SILENT, Progress
from zoo.results import Answer, Placement, RunResult
from zoo.runtime.answers import ByModel, answer_one, answers
from zoo.runtime.device import choose, onnxruntime
from zoo.runtime.optimised_graphs import Keeper
from zoo.runtime.ort import Graphs, Settings, write_optimised
from zoo.runtime.pipeline import ImagePipeline, TextPipeline, cut_model
from zoo.schema import ImagePreprocess, TextPreprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


class Session:
    """A bundle, ready to answer.

    `device` is `cpu`, `cuda:N` or `tensorrt:N`: what really runs; `placement` says why, and on what each node of the
    graph lies. Images of any size are prepared one by one by the graph's own preprocessing prefix, on the CPU, and then
    run through its body in batches; texts are batched by length. Order is kept. Threads may share a session.

    `threads` are those that compute (every core this process may use by default). `spins` lets them wait busily, which
    is quicker where nothing else computes; a server does without. `fixed` fills up every batch of pictures, for CUDA to
    record its kernels once. TensorRT's engines are kept in the folder `engines`,
    graphs as ONNX Runtime optimised them in `optimised`, for the next start.

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
        optimised: Path | None = None,
    ) -> None:
        preprocess = bundle.manifest.preprocess
        reads_pictures = isinstance(preprocess, ImagePreprocess)
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}", hint="threads=1, or leave it out")
        if fixed and not reads_pictures:
            raise UsageError("batches of texts have no fixed shape", hint="leave out fixed")
        chosen = choose(device)
        require("running a model", *RUNTIME, "PIL" if reads_pictures else "tokenizers")
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.labels = self.manifest.labels
        #: Files beside the model that its numbers lie in.
        self.table_files: list[str] = []
        # On a CPU the threads that decode want the cores on which those of a session would spin.
        spins = (chosen.used != "cpu" or not reads_pictures) if spins is None else spins
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
        with Keeper(optimised, self.bundle, device) as keeper:
            # What is read is hashed while the runtime is imported: each takes a tenth of a second.
            with ThreadPoolExecutor(1, "zoo-read") as pool:
                reading = pool.submit(lambda: keeper.find() or self._read())
                onnxruntime()
                graphs = reading.result()
            try:
                if device == "cpu":
                    pipeline = self._pipeline_of(graphs, device, settings)
                    # By a second session: the first answer need not wait.
                    keeper.keep_beside(graphs, lambda folder: write_optimised(graphs.body, device, settings, folder))
                    return pipeline
                # Memory of a GPU may not be enough for two.
                with keeper.making(graphs) as folder:
                    return self._pipeline_of(graphs, device, settings._replace(optimised=folder))
            except IntegrityError:
                if not keeper.is_used:
                    raise
            # What was kept, or was to be, does not load; or the disk is full.
            keeper.drop()
            return self._pipeline_of(self._read(), device, settings)

    def _read(self) -> Graphs:
        """The bundle's own graph, checked."""
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
            return TextPipeline(preprocess, graphs, bundle.path, device, settings)
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
        for positions, arrays in self._pipeline.stream(one_or_more(items), outputs, skip or _refuse):
            if positions:
                yield positions, arrays

    def rows(self, items: Iterable[Any], output: str, skip: Skip) -> "Iterator[tuple[list[int], Sequence[Floats]]]":
        """Batch by batch (positions in `items`, the row of each in one output), as `zoo.runtime.in_order.Rows` has it.

        `skip` is told of an item whose numbers are not finite, too.
        """
        import numpy as np

        for positions, arrays in self._pipeline.stream(items, [output], skip):
            if not positions:
                yield [], []
                continue
            found = arrays[output]
            if not np.isfinite(found).all():
                is_whole = np.isfinite(found).all(axis=tuple(range(1, found.ndim)))
                for place in np.flatnonzero(~is_whole):
                    skip(positions[place], _not_finite(output))
                positions = [positions[place] for place in np.flatnonzero(is_whole)]
                found = found[is_whole]
            yield positions, found  # type: ignore[misc]

    @property
    def batches_run(self) -> Sequence[int]:
        """Sizes of the last batches."""
        return self._pipeline.batches_run

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

        items = list(one_or_more(items))
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

        `inputs` is one input or any iterable of them: paths, bytes, PIL images or uint8 arrays [height, width, 3] (RGB,
        0 to 255) of pictures, str of texts; an array [count, height, width, 3] is so many pictures. `names` stand for
        them in answers and errors. All answers are held: `answers` is for any number of inputs.

        Raises UsageError for a `top` below 1 and for fewer or more names than inputs. Raises DataError, whose `index`
        is the input's place, for one that cannot be read (no whole picture, an array of
        another type or shape, an empty text) or whose scores are not finite; with `keep_going` its answer has the
        error, and the others theirs.
        """
        items = list(one_or_more(inputs))
        each = items if names is None else with_names(items, names)
        if len(items) == 1:
            # A server's case: what keeps many in order would cost as much as all the rest.
            [one] = named_inputs(each)
            return self._result([answer_one(ByModel(self, top), one, keep_going=keep_going)])
        found = []
        with progress.task(f"{self.manifest.name} on {self.device}", len(items)) as bar:
            for answer in self.answers(each, top=top, keep_going=keep_going):
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

    def answers(self, inputs: Any, *, top: int = 5, keep_going: bool = False) -> Iterator[Answer]:
        """As `run`, but for any number of inputs: they are read as answers are asked for, in order, and none is kept.

        Texts are read two windows of 4,096 ahead at most, pictures a few batches; of stdin (`Zoo.each_input`) what has
        come is answered at once. Raises what `run` does.
        """
        return answers(ByModel(self, top), one_or_more(inputs), keep_going=keep_going)

    async def run_async(self, inputs: Any, *, top: int = 5, keep_going: bool = False) -> RunResult:
        """`run` on a thread beside the event loop, for a server: the loop goes on, and runs may overlap.

        A run whose task is cancelled still ends by itself; its answer is dropped.
        """
        import asyncio

        return await asyncio.to_thread(self.run, inputs, top=top, keep_going=keep_going)

    def scores(self, items: Iterable[Any], progress: Progress = SILENT) -> "Floats":
        """Class probabilities, float32 [len(items), len(labels)]. Raises UsageError on a bundle without a head.

        Raises DataError as `run` does, for one whose scores are not finite, too.
        """
        if "scores" not in self.outputs:
            raise UsageError(
                f"{self.manifest.name} has no labels: it was not fine-tuned",
                hint=f"zoo finetune {self.manifest.lineage.entry.name} DATA -o DIR",
            )
        return self._whole(items, "scores", progress)

    def features(self, items: Iterable[Any], progress: Progress = SILENT) -> "Floats":
        """Feature vectors, float32 [len(items), dim]. Raises DataError as `scores` does."""
        return self._whole(items, "features", progress)

    def _whole(self, items: Iterable[Any], output: str, progress: Progress) -> "Floats":
        import numpy as np

        found = self.infer(items, [output], progress)[output]
        for index in np.flatnonzero(~np.isfinite(found).all(axis=1))[:1]:
            _refuse(int(index), _not_finite(output))
        return found


def _not_finite(output: str) -> DataError:
    return DataError(f"its {output} are not finite", hint="--device cpu, or fp32")


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
