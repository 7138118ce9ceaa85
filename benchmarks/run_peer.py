"""The systems that `run.py` compares, each in its own process; the peers' environments have no zoo.

The protocol is like that of inference_peer.py: the first line of JSON describes the system, each further one has a
number of items; the answers are lines of JSON with the seconds. The process writes its chosen settings into the file
`facts` of the first line.
"""

import json
import time
from collections.abc import Callable, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from inference_peer import Call, batches, sentence_transformers, serve

Key = TypeVar("Key")
#: The batch sizes of images, and the tokens in a batch of texts, of which a bare loop uses the fastest.
IMAGES = (1, 4, 8, 16)
BUDGETS = (256, 512, 1024, 2048)
#: The batch sizes of fastembed; 256 is its default.
SENTENCES = (16, 64, 256)
#: Texts whose vectors are compared.
COMPARED = 256


def bare_images(spec: dict[str, Any], facts: dict[str, Any]) -> Call:
    """A bare loop of ONNX Runtime over prepared pixels, in batches of the fastest size."""
    session, pixels = bare(spec), np.load(spec["feeds"])
    name = session.get_inputs()[0].name

    def loop(batch: int) -> Call:
        ready = [{name: pixels[start : start + batch]} for start in range(0, len(pixels), batch)]

        def call(count: int) -> None:
            for feeds in islice(cycle(ready), count // batch):
                session.run(["features"], feeds)

        return call

    facts["batch"], best = quickest({batch: loop(batch) for batch in IMAGES}, max(IMAGES) * 2)
    return best


def bare_texts(spec: dict[str, Any], facts: dict[str, Any]) -> Call:
    """A bare loop of ONNX Runtime over all texts, in prepared batches of tokens by length."""
    from tokenizers import Tokenizer

    session = bare(spec)
    tokenizer = Tokenizer.from_file(spec["tokenizer"])
    tokenizer.enable_truncation(spec["max_length"])
    tokenizer.no_padding()
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts(spec))]

    def loop(rows: list[list[int]], budget: int) -> Call:
        ready = [feeds for _, feeds in batches(rows, budget)]

        def call(_: int) -> None:
            for feeds in ready:
                session.run(["features"], feeds)

        return call

    facts["tokens in a batch"], _ = quickest({budget: loop(rows[:COMPARED], budget) for budget in BUDGETS}, 0)
    return loop(rows, facts["tokens in a batch"])


def zoo_images(spec: dict[str, Any], facts: dict[str, Any]) -> Call:
    """A Session's answers for the next files, called as by `zoo run`."""
    from zoo.bundle import Bundle
    from zoo.runtime.session import Session

    session = Session(Bundle.open(Path(spec["bundle"])), "cpu")
    paths = cycle(json.loads(Path(spec["photos"]).read_text(encoding="utf-8")))
    facts["threads"] = spec["threads"]
    return lambda count: session.run(list(islice(paths, count)), keep_going=True)


def zoo_embed(spec: dict[str, Any], facts: dict[str, Any]) -> Call:
    """The function of `zoo embed`: all texts into a new file, which is on disk when the function returns."""
    from zoo.bundle import Bundle
    from zoo.outputs.embed import embed
    from zoo.runtime.session import Session

    session, out, given = Session(Bundle.open(Path(spec["bundle"])), "cpu"), Path(spec["out"]), texts(spec)
    facts["threads"] = spec["threads"]

    def call(_: int) -> Any:
        for path in out.parent.glob(f"{out.name}*"):
            path.unlink()
        embed(session, given, out, model=spec["bundle"])
        return np.load(out)

    return call


def fastembed(spec: dict[str, Any], facts: dict[str, Any]) -> Call:
    """The library with the same graph as a custom model; its answers are pooled, normalised vectors."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="zoo/minilm", pooling=PoolingType.DISABLED, normalization=False, sources=ModelSource(hf="zoo/minilm"),
        dim=spec["dim"], model_file="model.onnx", output_name="features",
    )  # fmt: skip
    model = TextEmbedding("zoo/minilm", specific_model_path=spec["model"], threads=spec["threads"], cuda=False)
    given = texts(spec)

    def loop(texts: list[str], batch: int) -> Call:
        return lambda _: np.stack(list(model.embed(texts, batch_size=batch)))

    facts["batch"], _ = quickest({batch: loop(given[:COMPARED], batch) for batch in SENTENCES}, 0)
    return loop(given, facts["batch"])


def library(spec: dict[str, Any], facts: dict[str, Any]) -> Call:
    """sentence-transformers, used as in its documentation: batches of 32, by length."""
    facts["batch"] = 32
    return sentence_transformers(spec)


def bare(spec: Mapping[str, Any]) -> Any:
    """A session of the body with ONNX Runtime's defaults, but with zoo's number of threads."""
    from zoo.runtime.device import onnxruntime

    options = onnxruntime().SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    return onnxruntime().InferenceSession(spec["body"], options, providers=["CPUExecutionProvider"])


def texts(spec: Mapping[str, Any]) -> list[str]:
    """The sentences."""
    found: list[str] = json.loads(Path(spec["texts"]).read_text(encoding="utf-8"))
    return found


def quickest(calls: Mapping[Key, Call], count: int) -> tuple[Key, Call]:
    """Returns the key and the call that is fastest for `count` items; each is tried twice by turns."""
    found = dict.fromkeys(calls, float("inf"))
    for _ in range(2):
        for key, call in calls.items():
            found[key] = min(found[key], seconds(call, count))
    best = min(found, key=found.__getitem__)
    return best, calls[best]


def seconds(call: Call, count: int) -> float:
    """The seconds of one call."""
    began = time.perf_counter()
    call(count)
    return time.perf_counter() - began


Prepare = Callable[[dict[str, Any], dict[str, Any]], Call]
KINDS: dict[str, Prepare] = {
    each.__name__: each for each in (bare_images, bare_texts, zoo_images, zoo_embed, fastembed, library)
}


def prepared(spec: dict[str, Any], kinds: Mapping[str, Prepare] = KINDS) -> Call:
    """The call of a kind, made once; its answers and its chosen settings are saved."""
    facts: dict[str, Any] = {}
    call = kinds[spec["kind"]](spec, facts)
    found = call(spec["warm"])
    if "save" in spec:
        np.save(spec["save"], found[:COMPARED])
    Path(spec["facts"]).write_text(json.dumps(facts), encoding="utf-8")
    return call


if __name__ == "__main__":
    serve(prepared, lambda call, request: [seconds(call, request["batch"])])
