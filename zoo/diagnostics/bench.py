"""zoo bench: how large, how soon and how fast a model is on this machine, and torch beside it.

Every system is a process of its own, and they take turns, round by round: what disturbs the machine disturbs them all.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
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
from zoo.export.build import encoder, gate_words, versions
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

#: Tokens of each text that is timed.
LENGTH = 32
GRAPH, WHOLE, TORCH, CHANNELS_LAST, PEAK = "zoo", "zoo, whole graph", "torch", "torch, channels_last", "peak"
#: Cold starts are seconds long and spread little: no more of them than this.
STARTS = 3


class Rival(NamedTuple):
    """The original weights: the row as it was pulled, and the folder of its files."""

    entry: Entry
    weights: Path


class Inputs(NamedTuple):
    """What is timed: `body` as the backbone takes it, one row for each item of the largest batch; `raw` one item."""

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
    """Time `bundle`, which is called `model`, and torch with the same weights where there is a `rival`.

    Of pictures the graph is timed from the prepared pixels on, and at batch 1 also whole, where it has preprocessing;
    of texts on tokens. Raises UsageError for a length that the model does not have, or that pictures have not.
    """
    device = choose_device(options.device)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    length = _length(bundle, options.length)
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder, ExitStack() as children:
        size, given = _size(bundle), inputs(bundle, length)
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
        cold=tuple(_cold(name, found) for name, found in starts.items()),
        timings=timings,
        rival=options.against if rival else None,
        verdicts=tuple(verdicts(timings)) if rival else (),
    )


def inputs(bundle: Bundle, length: int | None) -> Inputs:
    """The bundled samples as the graph takes them: pictures prepared by it, texts filled up to `length` tokens each."""
    import numpy as np
    import onnx

    preprocess, count = bundle.manifest.preprocess, max(BATCHES)
    if isinstance(preprocess, ImagePreprocess):
        pictures = [decode_image(path, preprocess.resize)[None] for path in samples.bundled(preprocess)[0]]
        cut = bundle.manifest.cut or PIXELS
        # A bare backbone has no preprocessing of its own: it is given the pixels that one makes.
        prefix = image_prefix(preprocess)
        if not _is_bare(bundle):
            prefix = edit.extract(onnx.load_from_string(bundle.read_model()), [IMAGE], [cut])
        session = create_session(prefix.SerializeToString(), "cpu", spins=False)
        pixels = [session.run([cut], {IMAGE: picture})[0] for picture in pictures]
        body = np.concatenate([pixels[index % len(pixels)] for index in range(count)])
        return Inputs({cut: body}, {cut: body[:1]} if _is_bare(bundle) else {IMAGE: pictures[0]})
    assert isinstance(preprocess, TextPreprocess)
    assert length is not None
    bundle.check(preprocess.tokenizer)
    reader = encoder(msgspec.structs.replace(preprocess, max_length=length), bundle.path)
    assert not isinstance(reader, ImagePreprocess)
    texts = [str(text) for text in samples.bundled(preprocess, gate_words(bundle.manifest.lineage.entry, reader))[0]]
    # Each row begins with another text, and goes on with those behind it until it is full.
    rows = reader.tokens([" ".join(islice(cycle(texts), index, index + length)) for index in range(count)])
    feeds = reader.batch(rows)
    return Inputs(feeds, {name: array[:1] for name, array in feeds.items()})


def verdicts(timings: Sequence[Timing]) -> Iterator[Verdict]:
    """For each batch which of zoo's graph and the faster of torch's layouts is faster, if their ranges are apart."""
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
    """Whether the graph is given pixels, and not pictures."""
    return PIXELS in {spec.name for spec in bundle.manifest.inputs}


def _length(bundle: Bundle, asked: int | None) -> int | None:
    preprocess, name = bundle.manifest.preprocess, bundle.manifest.name
    if isinstance(preprocess, ImagePreprocess):
        if asked is not None:
            raise UsageError(f"{name} reads pictures: they have no length in tokens", hint="leave --length out")
        return None
    assert isinstance(preprocess, TextPreprocess)
    if asked is not None and asked > preprocess.max_length:
        limit = preprocess.max_length
        raise UsageError(f"{name} reads {limit} tokens at most, not {asked}", hint=f"--length {limit}")
    return asked or min(LENGTH, preprocess.max_length)


def _systems(
    bundle: Bundle, device: str, threads: int, files: dict[str, Path], rival: Rival | None
) -> dict[str, System]:
    """What is timed, by its name, in the order of its turns."""
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
    """Seconds of each cold start, by turns."""

    def torch() -> float:
        with Stopwatch(systems[TORCH]) as child:
            return child.started

    ways: dict[str, Callable[[], float]] = {"onnxruntime": lambda: cold_start(bundle.model, raw, threads, device)}
    if TORCH in systems:
        ways[TORCH] = torch
    found: dict[str, list[float]] = {name: [] for name in ways}
    with progress.task("cold starts", rounds * len(ways)) as bar:
        for _ in range(rounds):
            for name, start in ways.items():
                found[name].append(start())
                bar.advance(1)
    return found


def _rounds(
    running: dict[str, Stopwatch], options: BenchOptions, progress: Progress
) -> dict[tuple[str, int], list[list[float]]]:
    """By system and batch, seconds of the calls of each round."""
    turns = [(name, batch) for batch in BATCHES for name in running if batch == 1 or name not in (PEAK, WHOLE)]
    found: dict[tuple[str, int], list[list[float]]] = {turn: [] for turn in turns}
    with progress.task("timing", options.rounds * len(turns)) as bar:
        for _ in range(options.rounds):
            for name, batch in turns:
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


def _cold(name: str, found: list[float]) -> ColdStart:
    return ColdStart(system=name, seconds=median(found), low=min(found), high=max(found))


def _work(bundle: Bundle, feeds: "TensorMap") -> int | None:
    """Multiply-adds of one item behind the preprocessing."""
    import onnx

    data = bundle.read_model()
    model = onnx.load_from_string(data)
    if bundle.manifest.cut:
        model = edit.extract(model, [bundle.manifest.cut], [spec.name for spec in bundle.manifest.outputs])
    one = {name: array[:1] for name, array in feeds.items()}
    return macs.count(model, one, external_data.files(data, bundle.map))


def _size(bundle: Bundle) -> int:
    """Bytes of the ONNX file and of those that its external data lies in."""
    outside = {tensor.file for tensor in external_data.references(bundle.read_model())}
    return sum((bundle.path / name).stat().st_size for name in {bundle.model.name, *outside})


def _saved(feeds: "TensorMap", path: Path) -> Path:
    import numpy as np

    arrays: dict[str, Any] = dict(feeds)
    np.savez(path, **arrays)
    return path
