"""The time of a graph by operator, compared with the machine's peak matrix speed.

    python benchmarks/node_times.py benchmarks/out/inference/resnet50-int8.onnx --batch 1
    python benchmarks/node_times.py benchmarks/out/inference/minilm-zoo-int8/model.onnx --batch 20 --length 25

Prints, as Markdown, the median milliseconds of each kind of operator in ONNX Runtime's own profile, and the largest
rate of a product of 2,048 x 2,048 matrices in float32 and of unsigned by signed bytes, with the same number of threads.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from zoo.runtime.device import onnxruntime
from zoo.system.cpu import cores

SIDE, RUNS = 2048, 12


def operators(path: Path, batch: int, length: int) -> Iterator[tuple[str, int, float]]:
    """Yields each operator with its number of nodes and milliseconds per item, the slowest first."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling, options.log_severity_level = cores(), True, 4
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        given = {item.name: example(item, batch, length) for item in session.get_inputs()}
        for _ in range(RUNS):
            session.run(None, given)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]][event["name"]].append(event["dur"])
    rows = [(kind, len(nodes), sum(map(median, nodes.values())) / 1000 / batch) for kind, nodes in times.items()]
    yield from sorted(rows, key=lambda row: -row[2])


def example(item: Any, batch: int, length: int) -> Any:
    """Random pixels, or token ids and a mask without padding."""
    random = np.random.default_rng(0)
    if item.type == "tensor(float)":
        return random.normal(size=(batch, *item.shape[1:])).astype(np.float32)
    high = 2 if "mask" in item.name else 1000
    return random.integers(1, high, (batch, length))


def peak(kind: str) -> float:
    """Billions of operations per second (two for a multiply-add): the best of a few matrix products."""
    ort, types = onnxruntime(), {"float32": (TensorProto.FLOAT, TensorProto.FLOAT), "bytes": (2, 3)}
    left, right = types[kind]
    dtypes = [helper.tensor_dtype_to_np_dtype(each) for each in (left, right)]
    weight = numpy_helper.from_array(np.ones((SIDE, SIDE), dtypes[1]), "weight")
    node, result = ("MatMul", TensorProto.FLOAT) if kind == "float32" else ("MatMulInteger", TensorProto.INT32)
    body = helper.make_graph(
        [helper.make_node(node, ["x", "weight"], ["y"])], "product",
        [helper.make_tensor_value_info("x", left, [SIDE, SIDE])],
        [helper.make_tensor_value_info("y", result, [SIDE, SIDE])], [weight],
    )  # fmt: skip
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = cores()
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given, best = {"x": np.ones((SIDE, SIDE), dtypes[0])}, float("inf")
    for _ in range(RUNS):
        start = time.perf_counter()
        session.run(None, given)
        best = min(best, time.perf_counter() - start)
    return 2 * SIDE**3 / best / 1e9


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=32, help="tokens of a text")
    options = parser.parse_args()
    print("| operator | how many | ms an item |\n| --- | ---: | ---: |")
    for kind, count, spent in operators(options.model, options.batch, options.length):
        if spent >= 0.01:
            print(f"| {kind} | {count} | {spent:.2f} |")
    print(f"\nProducts: float32 {peak('float32'):.0f}, bytes {peak('bytes'):.0f} billion operations a second.")
