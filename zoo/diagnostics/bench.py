"""`zoo bench`: size, start-up time and speed of a model on this machine; on request also those of torch.

Each system (zoo, torch) runs in its own process. The systems take turns, so that a disturbance affects all of them.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from zoo.bundle import Bundle
from zoo.data import samples
from zoo.data.images import decode_image
from zoo.diagnostics import macs
from zoo.diagnostics.timing import SIDE, Stopwatch, System, cold_start
from zoo.errors import UsageError
from zoo.export.build import encoder, parity_words, versions
from zoo.graph import edit, external_data
from zoo.graph.prefix import image_prefix
from zoo.options import BATCHES, BenchOptions
from zoo.progress import SILENT, Progress
from zoo.results import Benchmark, ColdStart, Timing, Verdict
from zoo.runtime.device import choose_device
from zoo.runtime.ort import create_session
from zoo.schema import IMAGE, PIXELS, Entry, ImagePreprocess, TextPreprocess
from zoo.system.cpu import cores

if TYPE_CHECKING:
    from zoo.backbone import TensorMap

#: Default length in tokens of the timed texts.
LENGTH = 32
GRAPH, WHOLE, TORCH, CHANNELS_LAST, PEAK = "zoo", "zoo, whole graph", "torch", "torch, channels_last", "peak"
#: The most cold starts that are timed; a start takes seconds, and the times differ little.
STARTS = 3


class Rival(NamedTuple):
    """The original weights, which torch runs: the pulled registry row, and the folder of its files."""

    entry: Entry
    weights: Path


class TimedInputs(NamedTuple):
    """The timed inputs. `body`: inputs of the backbone for the largest batch; `raw`: one input of the whole graph."""

    body: "TensorMap"
    raw: "TensorMap"


def bench(
    bundle: Bundle,
    model: str,
    options: BenchOptions,
    *,
    rival: Rival | None = None,
    progress: Progress = SILENT,
) -> Benchmark:
    """The timings of `bundle`, reported under the name `model`, and of torch with the same weights if `rival` is given.

    An image model is timed without its preprocessing, and at batch 1 also with it. A text model is timed on tokens.
    Raises UsageError for a length above the model's limit, and for any length if the model reads images.
    """
    device = choose_device(options.device)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    length = _length(bundle, options.length)
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder, ExitStack() as children:
        size, given = external_data.total_size(bundle.model), inputs(bundle, length)
        work = _work(bundle, given.body)
        files = {name: _saved(feeds, Path(folder) / f"{name}.npz") for name, feeds in given._asdict().items()}
        threads = options.threads or cores()
        systems = _systems(bundle, device, threads, files, rival)
        starts = _starts(bundle, systems, files["raw"], threads, device, min(options.rounds, STARTS), progress)
        running = {name: children.enter_context(Stopwatch(system)) for name, system in systems.items()}
        times = _rounds(running, options, progress)
    peak = 2 * SIDE**3 / min(min(calls) for calls in times.pop((PEAK, 1)))
    timings = tuple(_timing(name, batch, found, work, peak) for (name, batch), found in times.items())
    return Benchmark(
        model=model,
        entry=bundle.manifest.lineage.entry.name,
        precision=bundle.manifest.precision,
        device=device,
        threads=threads,
        size=size,
        length=length,
        macs=work,
        peak=peak / 1e9,
        peak_is=f"a product of two float32 matrices of {SIDE} x {SIDE} by ONNX Runtime",
        rounds=options.rounds,
        seconds=options.seconds,
        load=load,
        versions=versions(),
        cold=tuple(
            ColdStart(system=name, seconds=median(found), low=min(found), high=max(found))
            for name, found in starts.items()
        ),
        timings=timings,
        rival=options.against if rival else None,
        verdicts=tuple(verdicts(timings)) if rival else (),
    )


def inputs(bundle: Bundle, length: int | None) -> TimedInputs:
    """The bundled samples as inputs of the graph: preprocessed images, or texts of `length` tokens each."""
    import numpy as np
    import onnx

    preprocess, count = bundle.manifest.preprocess, max(BATCHES)
    if isinstance(preprocess, ImagePreprocess):
        images = [decode_image(path, preprocess.resize)[None] for path in samples.bundled(preprocess)[0]]
        cut = bundle.manifest.cut or PIXELS
        # A graph without preprocessing takes pixels, so a separate preprocessing graph computes them.
        prefix = image_prefix(preprocess)
        if not _is_bare(bundle):
            prefix = edit.extract(onnx.load_from_string(bundle.read_model()), [IMAGE], [cut])
        session = create_session(prefix.SerializeToString(), "cpu", spins=False)
        pixels = [session.run([cut], {IMAGE: image})[0] for image in images]
        body = np.concatenate([pixels[index % len(pixels)] for index in range(count)])
        return TimedInputs({cut: body}, {cut: body[:1]} if _is_bare(bundle) else {IMAGE: images[0]})
    assert isinstance(preprocess, TextPreprocess)
    assert length is not None
    bundle.check(preprocess.tokenizer)
    reader = encoder(msgspec.structs.replace(preprocess, max_length=length), bundle.path)
    assert not isinstance(reader, ImagePreprocess)
    texts = [str(text) for text in samples.bundled(preprocess, parity_words(bundle.manifest.lineage.entry, reader))[0]]
    # Each row starts with a different text, followed by the next texts until it has `length` tokens.
    rows = reader.tokens([" ".join(islice(cycle(texts), index, index + length)) for index in range(count)])
    feeds = reader.batch(rows)
    return TimedInputs(feeds, {name: array[:1] for name, array in feeds.items()})


def verdicts(timings: Sequence[Timing]) -> Iterator[Verdict]:
    """Yields for each batch size the faster of zoo and torch's faster layout; no winner if their ranges overlap."""
    for batch in BATCHES:
        at = {each.system: each for each in timings if each.batch == batch}
        ours, theirs = at[GRAPH], min((at[name] for name in (TORCH, CHANNELS_LAST) if name in at), key=lambda t: t.ms)
        first, second = sorted((ours, theirs), key=lambda each: each.ms)
        is_apart = first.high < second.low
        yield Verdict(
            batch=batch,
            winner=first.system if is_apart else None,
            loser=second.system if is_apart else None,
            times=second.ms / first.ms,
        )


def _is_bare(bundle: Bundle) -> bool:
    """Whether the graph takes pixels because it has no preprocessing."""
    return PIXELS in {spec.name for spec in bundle.manifest.inputs}


def _length(bundle: Bundle, asked: int | None) -> int | None:
    preprocess, name = bundle.manifest.preprocess, bundle.manifest.name
    if isinstance(preprocess, ImagePreprocess):
        if asked is not None:
            raise UsageError(f"{name} reads images, which have no length in tokens", hint="leave --length out")
        return None
    assert isinstance(preprocess, TextPreprocess)
    if asked is not None and asked > (limit := preprocess.max_length):
        raise UsageError(f"--length must be at most {limit} tokens for {name}, got {asked}", hint=f"--length {limit}")
    return asked or min(LENGTH, preprocess.max_length)


def _systems(
    bundle: Bundle, device: str, threads: int, files: dict[str, Path], rival: Rival | None
) -> dict[str, System]:
    """The timed systems by name, in the order of their turns."""
    shared: dict[str, Any] = {"bundle": str(bundle.path.absolute()), "device": device, "threads": threads}
    is_image = isinstance(bundle.manifest.preprocess, ImagePreprocess)
    found = {
        PEAK: System(kind="peak", device=device, threads=threads),
        GRAPH: System(kind="graph", feeds=str(files["body"]), **shared),
    }
    if is_image and not _is_bare(bundle):
        found[WHOLE] = System(kind="whole", feeds=str(files["raw"]), **shared)
    if rival is not None:
        weights: dict[str, Any] = {"entry": rival.entry, "weights": str(rival.weights), "feeds": str(files["body"])}
        found[TORCH] = System(kind="torch", **weights, **shared)
        if is_image:
            found[CHANNELS_LAST] = System(kind="torch", channels_last=True, **weights, **shared)
    return found


def _starts(
    bundle: Bundle, systems: dict[str, System], raw: Path, threads: int, device: str, rounds: int, progress: Progress
) -> dict[str, list[float]]:
    """Seconds of each cold start, by system."""
    found: dict[str, list[float]] = {name: [] for name in ("onnxruntime", TORCH) if name != TORCH or name in systems}
    with progress.task("cold starts", rounds * len(found)) as bar:
        for name, seconds in [*found.items()] * rounds:
            if name == TORCH:
                with Stopwatch(systems[TORCH]) as child:
                    seconds.append(child.started)
            else:
                seconds.append(cold_start(bundle.model, raw, threads, device))
            bar.advance(1)
    return found


def _rounds(
    running: dict[str, Stopwatch], options: BenchOptions, progress: Progress
) -> dict[tuple[str, int], list[list[float]]]:
    """Seconds of the calls of each round, by system and batch."""
    turns = [(name, batch) for batch in BATCHES for name in running if batch == 1 or name not in (PEAK, WHOLE)]
    found: dict[tuple[str, int], list[list[float]]] = {turn: [] for turn in turns}
    with progress.task("timing", options.rounds * len(turns)) as bar:
        for name, batch in turns * options.rounds:
            found[name, batch].append(running[name].time(batch, options.seconds))
            bar.advance(1)
    return found


def _timing(name: str, batch: int, found: list[list[float]], work: int | None, peak: float) -> Timing:
    rounds = [median(calls) for calls in found]
    middle = median(rounds)
    of_peak = 2 * work * batch / middle / peak if work and name != WHOLE else None
    return Timing(
        system=name,
        batch=batch,
        ms=1000 * middle,
        low=1000 * min(rounds),
        high=1000 * max(rounds),
        per_second=batch / middle,
        of_peak=of_peak,
    )


def _work(bundle: Bundle, feeds: "TensorMap") -> int | None:
    """Multiply-adds of one item, without its preprocessing."""
    import onnx

    data = bundle.read_model()
    model = onnx.load_from_string(data)
    if bundle.manifest.cut:
        model = edit.extract(model, [bundle.manifest.cut], [spec.name for spec in bundle.manifest.outputs])
    one = {name: array[:1] for name, array in feeds.items()}
    return macs.count(model, one, external_data.files(data, bundle.map))


def _saved(feeds: "TensorMap", path: Path) -> Path:
    import numpy as np

    np.savez(path, **dict[str, Any](feeds))
    return path
