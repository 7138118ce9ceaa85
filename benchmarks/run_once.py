"""A measurement of `run.py` without a peer, in its own process: `run_once.py KIND JSON` prints JSON.

stages     seconds per item of each stage of a model, each alone
overhead   a call with one item compared with the bare sessions' calls, by turns
memory     the memory of a long run above the loaded model
"""

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from run_peer import texts
from sentences import sentences

from zoo.bundle import Bundle
from zoo.data.images import load_image
from zoo.data.inputs import named_inputs
from zoo.outputs.embed import embed
from zoo.outputs.resumable_file import OutputRecord
from zoo.outputs.vector_file import NpyWriter
from zoo.runtime.pipeline import ImagePipeline, TextPipeline
from zoo.runtime.session import Session
from zoo.schema import FEATURES
from zoo.system.cpu import cores

#: Texts that are made at a time.
CHUNK = 1000


def stages(spec: dict[str, Any]) -> dict[str, float]:
    """Milliseconds per item: on one core for the stages that work image by image, on all cores for the body."""
    session = Session(Bundle.open(Path(spec["bundle"])), "cpu")
    pipeline = session._pipeline
    if isinstance(pipeline, TextPipeline):
        return text_stages(session, pipeline, texts(spec))
    paths = json.loads(Path(spec["photos"]).read_text(encoding="utf-8"))[: spec["count"]]
    images, decoding = timed(lambda: [load_image(path, pipeline.short_side) for path in paths])
    levels, preparing = timed(lambda: [pipeline.reader.levels(image) for image in images])
    size = pipeline.batch
    ready, joining = timed(
        lambda: [pipeline.join(levels[start : start + size]) for start in range(0, len(levels), size)]
    )
    pipeline.run([FEATURES], {pipeline.cut: ready[0]})
    _, computing = timed(lambda: [pipeline.run([FEATURES], {pipeline.cut: each}) for each in ready])
    rates = {"decode": decoding, "resize, crop": preparing, "normalise": joining, "body": computing}
    found = {name: 1000 * seconds / len(paths) for name, seconds in rates.items()}
    # The time if decoders and the body shared the cores without loss.
    ideal = (found["decode"] + found["resize, crop"] + found["normalise"]) / cores() + found["body"]
    return {**found, "all, at best": ideal}


def text_stages(session: Session, pipeline: TextPipeline, given: list[str]) -> dict[str, float]:
    """Milliseconds per sentence: to tokens, into batches, the body, and the answers into a file."""
    (tokens, _), tokenising = timed(lambda: pipeline._tokens(0, given))
    ready, joining = timed(lambda: list(pipeline._bucketed(tokens)))
    vectors = np.zeros((len(given), session.manifest.dim), np.float32)

    def compute() -> None:
        for indices, feeds in ready:
            vectors[indices] = pipeline.run([FEATURES], feeds)[0]

    compute()
    _, computing = timed(compute)

    def write() -> None:
        record = OutputRecord(verb="embed", model="", fingerprint="", precision="", dim=session.manifest.dim)
        with tempfile.TemporaryDirectory() as folder:
            writer = NpyWriter(Path(folder) / "vectors.npy", record)
            writer.start()
            writer.append([(each.name, vector) for each, vector in zip(named_inputs(given), vectors, strict=True)])
            writer.close(record)

    _, writing = timed(write)
    rates = {"tokenise": tokenising, "normalise": joining, "body": computing, "write": writing}
    found = {name: 1000 * seconds / len(given) for name, seconds in rates.items()}
    # The first window is tokenised before the body starts, the others while it runs.
    return {**found, "all, one after another": sum(found.values())}


def overhead(spec: dict[str, Any]) -> dict[str, float]:
    """Median milliseconds of `Session.run` with one item and of the bare sessions' calls, by turns."""
    session = Session(Bundle.open(Path(spec["bundle"])), "cpu", spins=False)
    pipeline = session._pipeline
    outputs = [FEATURES]
    if isinstance(pipeline, ImagePipeline):
        item: Any = load_image(json.loads(Path(spec["photos"]).read_text(encoding="utf-8"))[0], pipeline.short_side)

        def bare() -> None:
            pipeline.body.run(outputs, {pipeline.cut: pipeline.join([pipeline.prepare(item)])})
    else:
        item = min(texts(spec), key=len)

        def bare() -> None:
            pipeline.body.run(outputs, pipeline.encoder.batch(pipeline.encoder.tokens([item])))

    pairs = [(timed(lambda: session.run(item))[1], timed(bare)[1]) for _ in range(spec["count"])]
    ours, theirs = (1000 * median(times) for times in zip(*pairs, strict=True))
    return {"ours": ours, "bare": theirs, "over": 1000 * median(one - other for one, other in pairs)}


def memory(spec: dict[str, Any]) -> dict[str, float]:
    """Megabytes of the process after loading and one batch, and its peak from then on."""
    session = Session(Bundle.open(Path(spec["bundle"])), "cpu")
    out = Path(spec["out"])
    for path in out.parent.glob(f"{out.name}*"):
        path.unlink()
    if isinstance(session._pipeline, TextPipeline):
        items: Iterator[Any] = itertools.chain.from_iterable(sentences(CHUNK, seed) for seed in itertools.count())
        batch: list[Any] = [next(items)]
    else:
        paths = json.loads(Path(spec["photos"]).read_text(encoding="utf-8"))
        items, batch = itertools.cycle(paths), paths[: session._pipeline.batch]
    session.features(batch)
    # Reset the kernel's peak, which would include that of loading.
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    found = embed(session, itertools.islice(items, spec["count"]), out, model="")
    after = status("VmHWM")
    for path in out.parent.glob(f"{out.name}*"):
        path.unlink()
    return {"inputs": found.inputs, "rows": found.rows, "before": before, "peak": after, "above": after - before}


def status(field: str) -> float:
    """A size from this process' status, in megabytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kilobytes) * 1024 / 1e6


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Returns the result of the call and its seconds."""
    began = time.perf_counter()
    found = call()
    return found, time.perf_counter() - began


KINDS = {each.__name__: each for each in (stages, overhead, memory)}

if __name__ == "__main__":
    print(json.dumps(KINDS[sys.argv[1]](json.loads(sys.argv[2]))))
