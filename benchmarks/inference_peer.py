"""A runtime that zoo is compared with, in its own process and environment, where zoo may be missing.

The protocol is that of zoo.diagnostics.timing: the first line of JSON describes the system, each further one has a
batch size and a duration; the answers are lines of JSON with the seconds of each call. `inference.py` starts it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: One call: answers the first so many items, or all texts.
Call = Callable[[int], Any]


def openvino(spec: dict[str, Any]) -> Call:
    """A graph compiled once for each batch size: OpenVINO is fastest on fixed shapes."""
    with np.load(spec["feeds"]) as stored:
        feeds = {name: stored[name] for name in stored}
    ready: dict[int, Any] = {}

    def call(batch: int) -> Any:
        if batch not in ready:
            ready[batch] = compiled(spec, {name: (batch, *array.shape[1:]) for name, array in feeds.items()})
        return ready[batch].infer({name: array[:batch] for name, array in feeds.items()}, share_inputs=True)

    return call


def openvino_texts(spec: dict[str, Any]) -> Call:
    """Texts to features: tokens, then batches of similar length within a budget of tokens, as zoo's runtime does."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(spec["tokenizer"])
    tokenizer.enable_truncation(spec["max_length"])
    tokenizer.no_padding()
    texts = json.loads(Path(spec["texts"]).read_text(encoding="utf-8"))
    request = compiled(spec, dict.fromkeys(("input_ids", "attention_mask"), (-1, -1)))

    def call(_: int) -> Any:
        rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        found: list[Any] = [None] * len(rows)
        for indices, feeds in batches(rows, spec["budget"]):
            answer = request.infer(feeds, share_inputs=True)
            for index, features in zip(indices, answer[0], strict=True):
                found[index] = np.array(features)
        return np.stack(found)

    return call


def batches(rows: list[list[int]], budget: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Yields the indices of the rows of each batch with their ids and mask, shortest first."""
    indices: list[int] = []
    for index in sorted(range(len(rows)), key=lambda row: len(rows[row])):
        if indices and len(rows[index]) * (len(indices) + 1) > budget:
            yield indices, padded([rows[each] for each in indices])
            indices = []
        indices.append(index)
    yield indices, padded([rows[each] for each in indices])


def padded(rows: list[list[int]]) -> dict[str, Any]:
    """Ids and mask, int64 [rows, longest]."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def compiled(spec: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Any:
    """An infer request of the model on these shapes, on as many threads as asked for."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(spec["model"])
    model.reshape({name: ov.PartialShape(list(shape)) for name, shape in shapes.items()})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": spec["threads"],
        # Otherwise OpenVINO computes in half precision on processors that support it.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return core.compile_model(model, "CPU", settings).create_infer_request()


def sentence_transformers(spec: dict[str, Any]) -> Call:
    """The library that published the model, used as in its documentation."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(spec["threads"])
    model = SentenceTransformer(spec["model"], device="cpu")
    texts = json.loads(Path(spec["texts"]).read_text(encoding="utf-8"))
    return lambda _: model.encode(texts, batch_size=32, show_progress_bar=False, normalize_embeddings=True)


def zoo_texts(spec: dict[str, Any]) -> Call:
    """Zoo's own runtime from texts to features."""
    from zoo.bundle import Bundle
    from zoo.runtime.session import Session

    session = Session(Bundle.open(Path(spec["model"])), "cpu")
    texts = json.loads(Path(spec["texts"]).read_text(encoding="utf-8"))
    return lambda _: session.features(texts)


def nncf(spec: dict[str, Any]) -> Call:
    """Quantise the float32 model with NNCF's defaults on the inputs in `feeds`, one item each, and save it at `out`."""
    import nncf
    import openvino as ov

    with np.load(spec["feeds"]) as stored:
        feeds = {name: stored[name] for name in stored}
    masks = feeds.get("attention_mask")
    count = len(next(iter(feeds.values())))

    def item(index: int) -> dict[str, Any]:
        length = None if masks is None else int(masks[index].sum())
        return {
            name: array[index : index + 1, ... if length is None else slice(length)] for name, array in feeds.items()
        }

    model = ov.Core().read_model(spec["model"])
    kind = {} if masks is None else {"model_type": nncf.ModelType.TRANSFORMER}
    data = nncf.Dataset(range(count), item)
    ov.save_model(nncf.quantize(model, data, subset_size=count, **kind), spec["out"], compress_to_fp16=False)
    return lambda _: None


KINDS = {each.__name__: each for each in (openvino, openvino_texts, sentence_transformers, zoo_texts, nncf)}


def serve(prepare: Callable[[dict[str, Any]], Call], time_it: Callable[[Call, dict[str, Any]], list[float]]) -> None:
    """Answer the parent: `prepare` turns its first line into a call, `time_it` each further line into seconds.

    Output of libraries goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(facts: dict[str, Any]) -> None:
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    try:
        call = prepare(json.loads(sys.stdin.buffer.readline()))
        answer({})
        while line := sys.stdin.buffer.readline():
            answer({"times": time_it(call, json.loads(line))})
    except Exception as error:  # whatever a library raises is the reason why its row is left out
        answer({"code": "error", "message": f"{type(error).__name__}: {error}"[:500], "hint": None})


def prepared(spec: dict[str, Any]) -> Call:
    """The call of a kind, made once; its answers are saved if asked for."""
    call = KINDS[spec["kind"]](spec)
    found = call(1)
    if "save" in spec:
        np.save(spec["save"], found)
    return call


def repeated(call: Call, request: dict[str, Any]) -> list[float]:
    """The seconds of each call, repeated for the requested time."""
    call(request["batch"])
    times: list[float] = []
    began = time.perf_counter()
    while not times or time.perf_counter() - began < request["seconds"]:
        start = time.perf_counter()
        call(request["batch"])
        times.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    serve(prepared, repeated)
