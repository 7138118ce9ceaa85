"""The models that `inference.py` times, each with all systems that run it."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import inference_tables as tables
import numpy as np
from finetune import photo_folder, random_registry
from inference_systems import Bench, body, nncf, saved
from inference_tables import OV_FP32, OV_INT8, OV_NNCF, SENTENCE, TORCH, TORCH_LAST, ZOO_FP32, ZOO_FUSED, ZOO_INT8
from sentences import sentences

from zoo import Bundle, Variant, Zoo
from zoo.diagnostics.bench import inputs
from zoo.diagnostics.timing import Stopwatch, System
from zoo.export import accuracy_guard
from zoo.progress import SILENT
from zoo.runtime.pipeline import TOKENS
from zoo.runtime.session import Session
from zoo.schema import FEATURES, PIXELS, TextPreprocess
from zoo.system.cpu import cores

CNNS = {"resnet50": "resnet50.tv_in1k", "inception": "inception_v3.tv_in1k"}
MINILM = "all-minilm-l6-v2"
CALIBRATION = 128


def images(bench: Bench, model: str) -> None:
    """An image network: its exports, and the systems that run them."""
    name = CNNS[model]
    registry = random_registry(bench.work / "registry", name)
    house = Zoo(home=bench.home, registry=registry)
    weights, photos = house.pull(name), photo_folder(bench.work, CALIBRATION * 3 // 2)
    exact = bench.export(model, ZOO_FP32, name, [()], registry)
    small = bench.export(model, ZOO_INT8, name, [("--precision", "int8", "--calibrate", str(photos))], registry)
    if exact is None:
        return
    feeds = saved(inputs(exact, None).body, bench.work / f"{model}-feeds.npz")
    shared: dict[str, Any] = {"threads": cores(), "feeds": str(feeds)}
    turns = [(f"batch {batch}", batch, batch) for batch in (1, 8)]
    torch = {"kind": "torch", "bundle": str(exact.path), "entry": house.entry(name), "weights": str(weights), **shared}
    bench.add(model, TORCH, turns, lambda: Stopwatch(System(**torch)))
    bench.add(model, TORCH_LAST, turns, lambda: Stopwatch(System(channels_last=True, **torch)))
    bench.add(model, ZOO_FP32, turns, lambda: Stopwatch(System(kind="graph", bundle=str(exact.path), **shared)))
    exact_body = body(exact, bench.work / f"{model}-fp32.onnx")
    bench.add(model, OV_FP32, turns, lambda: bench.peer("openvino", "openvino", model=exact_body, feeds=feeds))
    if small is not None:
        bench.add(model, ZOO_INT8, turns, lambda: Stopwatch(System(kind="graph", bundle=str(small.path), **shared)))
        small_body = body(small, bench.work / f"{model}-int8.onnx")
        bench.add(model, OV_INT8, turns, lambda: bench.peer("openvino", "openvino", model=small_body, feeds=feeds))

    def quantised() -> Stopwatch:
        items = accuracy_guard.load_guard_data(
            exact, Variant(precision="int8", calibrate=str(photos)), offline=True, progress=SILENT
        )
        session = Session(exact, "cpu")
        cut = exact.manifest.cut or PIXELS
        found = [arrays[cut] for _, arrays in session.stream([each.item for each in items.calibrate], [cut, FEATURES])]
        given = saved({cut: np.concatenate(found)}, bench.work / f"{model}-calibration.npz")
        return bench.peer("openvino", "openvino", model=nncf(bench, exact_body, given), feeds=feeds)

    bench.add(model, OV_NNCF, turns, quantised)


def texts(bench: Bench) -> None:
    """MiniLM: 256 sentences from text to features, and three shapes of tokens."""
    model, house = "minilm", Zoo(home=bench.home)
    weights = house.pull(MINILM)
    given, other = (bench.work / name for name in ("texts.json", "calibration.csv"))
    chosen = sentences(256)
    given.write_text(json.dumps(chosen), encoding="utf-8")
    with other.open("w", encoding="utf-8", newline="") as file:
        rows = [(each, "xy"[index % 2]) for index, each in enumerate(sentences(CALIBRATION, 1))]
        csv.writer(file).writerows([("text", "label"), *rows])
    exact = bench.export(model, ZOO_FP32, MINILM, [()])
    if exact is None:
        return
    eight = ("--precision", "int8")
    bundles = {
        ZOO_FP32: exact,
        ZOO_FUSED: bench.export(model, ZOO_FUSED, MINILM, [("--fuse",)]),
        ZOO_INT8: bench.export(model, ZOO_INT8, MINILM, [eight, (*eight, "--calibrate", str(other))]),
    }
    lengths = sorted(Session(exact, "cpu").lengths(chosen))
    bench.facts["tokens"] = [lengths[0], int(median(lengths)), lengths[-1]]
    whole = [(tables.SENTENCES, 1, len(chosen))]
    library = library_folder(weights, exact, bench.work / "minilm-library")
    vectors = {
        name: bench.work / f"minilm-{index}.npy" for index, name in enumerate((SENTENCE, *bundles, OV_FP32, OV_NNCF))
    }
    text: dict[str, Any] = {"texts": given}
    bench.add(
        model, SENTENCE, whole,
        lambda: bench.peer("sentence", "sentence_transformers", model=library, save=vectors[SENTENCE], **text),
    )  # fmt: skip
    shapes = {(batch, length): saved(inputs(exact, length).body, bench.work / f"minilm-{length}.npz")
              for batch, length in ((1, 32), (8, 64), (16, 128))}  # fmt: skip
    torch = {"kind": "torch", "bundle": str(exact.path), "entry": house.entry(MINILM), "weights": str(weights)}

    def on_shapes(system: str, start: Callable[[Path], Stopwatch]) -> None:
        for (batch, length), feeds in shapes.items():
            bench.add(model, system, [(f"{batch}x{length}", batch, batch)], lambda feeds=feeds: start(feeds))

    on_shapes(TORCH, lambda feeds: Stopwatch(System(feeds=str(feeds), threads=cores(), **torch)))
    for system, bundle in bundles.items():
        if bundle is not None:
            path, save = bundle.path, vectors[system]
            bench.add(
                model,
                system,
                whole,
                lambda path=path, save=save: bench.peer(None, "zoo_texts", model=path, save=save, **text),
            )
            spec = {"kind": "graph", "bundle": str(path), "threads": cores()}
            on_shapes(system, lambda feeds, spec=spec: Stopwatch(System(feeds=str(feeds), **spec)))
    exact_body, preprocess = body(exact, bench.work / "minilm-fp32.onnx"), exact.manifest.preprocess
    assert isinstance(preprocess, TextPreprocess)
    text |= {
        "tokenizer": exact.path / preprocess.tokenizer, "max_length": preprocess.max_length, "budget": TOKENS["cpu"],
    }  # fmt: skip
    for system, file in ((OV_FP32, lambda: exact_body), (OV_NNCF, lambda: quantised_texts(bench, exact, exact_body))):
        save = vectors[system]
        bench.add(
            model,
            system,
            whole,
            lambda file=file, save=save: bench.peer("openvino", "openvino_texts", model=file(), save=save, **text),
        )
        on_shapes(system, lambda feeds, file=file: bench.peer("openvino", "openvino", model=file(), feeds=feeds))
    bench.facts["cosines"] = dict(cosines(vectors, {turn.system for turn in bench.running}))


def cosines(vectors: dict[str, Path], started: set[str]) -> Iterator[tuple[str, float]]:
    """For each system the smallest cosine between its features of a sentence and zoo's float32 features."""
    if ZOO_FP32 not in started:
        return
    exact = np.load(vectors[ZOO_FP32])
    for system in sorted(started & set(vectors) - {ZOO_FP32}):
        found = np.load(vectors[system])
        sizes = np.linalg.norm(found, axis=1) * np.linalg.norm(exact, axis=1)
        yield system, float(((found * exact).sum(1) / sizes).min())


def quantised_texts(bench: Bench, exact: Bundle, model: Path) -> Path:
    """MiniLM quantised by NNCF on other sentences than the timed ones."""
    from zoo.data.tokenizers import TextEncoder

    assert isinstance(exact.manifest.preprocess, TextPreprocess)
    reader = TextEncoder(exact.manifest.preprocess, exact.path)
    feeds = reader.batch(reader.tokens(sentences(CALIBRATION, 1)))
    return nncf(bench, model, saved(feeds, bench.work / "minilm-calibration.npz"))


def library_folder(weights: Path, exact: Bundle, folder: Path) -> Path:
    """The model in sentence-transformers' folder layout."""
    assert isinstance(exact.manifest.preprocess, TextPreprocess)
    limit, dim = exact.manifest.preprocess.max_length, exact.manifest.dim
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" * bool(i), "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    files: dict[str, Any] = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": limit, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": dim, "pooling_mode_mean_tokens": True},
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": limit},
    }
    (folder / "2_Normalize").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(data), encoding="utf-8")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes((weights / name).read_bytes())
    return folder
