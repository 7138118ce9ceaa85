"""A child process that tries the NVIDIA driver, onnxruntime and CUDA, and sends its parent one message for each step.

A broken driver or library may crash, hang or print, so `zoo doctor` runs `python -m zoo.diagnostics.gpu_probe`. If that
process ends early, the remaining steps are missing. `zoo.runtime.cuda` has the functions that find the parts.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from zoo.extras import RUNTIME, require
from zoo.runtime import cuda
from zoo.runtime.cuda import Driver
from zoo.runtime.device import onnxruntime
from zoo.system.process import Parent


class Runtime(Struct, frozen=True, kw_only=True):
    """The imported onnxruntime; `cuda` is the CUDA version that it was built for, None for a build without CUDA."""

    problem: str | None = None
    version: str | None = None
    cuda: str | None = None


class Libraries(Struct, frozen=True, kw_only=True):
    """The libraries that onnxruntime's CUDA provider needs; `missing` are the names of those that cannot be loaded.

    `cudnn` is cuDNN's version, `cudnn_cuda` the major version of CUDA that cuDNN was built for.
    """

    missing: tuple[str, ...] = ()
    cudnn: str | None = None
    cudnn_cuda: int | None = None


class Ran(Struct, frozen=True, kw_only=True):
    """The result of a run of a one-node model: `problem` is None if the output was right."""

    problem: str | None = None


class Trial(Struct, frozen=True, kw_only=True):
    """The results of all steps; `ended` describes how the child ended if it did not finish."""

    driver: Driver | None = None
    runtime: Runtime | None = None
    cpu: Ran | None = None
    libraries: Libraries | None = None
    cuda: Ran | None = None
    ended: str | None = None


def steps() -> Iterator[tuple[str, Struct]]:
    """Yields the field of Trial and the result of each step; a step needs the steps before it."""
    driver = cuda.find_driver(describe=True)
    yield "driver", driver
    try:
        require("running a model", *RUNTIME)
        ort = onnxruntime()
        model = _one_node()
        built_for = cuda.built_for(ort)
        runtime = Runtime(version=ort.__version__, cuda=built_for)
    except Exception as error:  # an incomplete installation may raise any error
        yield "runtime", Runtime(problem=_first_line(error))
        return
    yield "runtime", runtime
    ort.set_default_logger_severity(4)
    yield "cpu", _run(ort, model, "CPUExecutionProvider")
    if built_for is None:
        return
    yield "libraries", _libraries(ort)
    if driver.devices:
        ran = _run(ort, model, cuda.PROVIDER)
        yield "cuda", Ran(problem=_linker(ort) or ran.problem) if ran.problem else ran


def _libraries(ort: Any) -> Libraries:
    loaded = cuda.load_libraries(ort)
    missing = tuple(name for name, library in loaded.items() if library is None)
    cudnn = next((library for name, library in loaded.items() if "cudnn" in name), None)
    if cudnn is None:
        return Libraries(missing=missing)
    number, runtime = cuda.call(cudnn, "cudnnGetVersion"), cuda.call(cudnn, "cudnnGetCudartVersion")
    version = f"{number // 10000}.{number % 10000 // 100}.{number % 100}" if number > 0 else None
    return Libraries(missing=missing, cudnn=version, cudnn_cuda=runtime // 1000 if runtime > 0 else None)


def _linker(ort: Any) -> str | None:
    """The dynamic linker's reason why onnxruntime's CUDA provider cannot be loaded; None if it loads.

    This stays out of `zoo.runtime.cuda`, because only a provider that already failed needs an explanation.
    """
    folder = Path(ort.__file__).parent / "capi"
    try:
        if os.name == "posix":
            ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return str(error).replace(f"{folder}{os.sep}", "")
    return None


def _one_node() -> bytes:
    """A model of one 3x3 convolution with weights of 1; on CUDA it needs cuBLAS and cuDNN, like real models."""
    from onnx import parser

    model = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        one_node (float[1, 1, 3, 3] x) => (float[1, 1, 1, 1] y)
        <float[1, 1, 3, 3] w = {1, 1, 1, 1, 1, 1, 1, 1, 1}> { y = Conv(x, w) }""")
    return bytes(model.SerializeToString())


def _run(ort: Any, model: bytes, provider: str) -> Ran:
    """The result of the one-node model, run by `provider` without a fallback."""
    import numpy as np

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    settings = {}
    if provider == cuda.PROVIDER:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        settings = {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    try:
        session = ort.InferenceSession(model, options, providers=[(provider, settings)], enable_fallback=0)
        (found,) = session.run(None, {"x": np.ones((1, 1, 3, 3), np.float32)})
    except Exception as error:  # onnxruntime's exceptions have no common base class
        return Ran(problem=_first_line(error))
    return Ran(problem=None if found.item() == 9.0 else f"the sum of nine ones is computed as {found.item()}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _answer_parent() -> None:
    """Send the result of each step as soon as it is known."""
    parent = Parent()
    for name, found in steps():
        parent.send({name: found})
    # The process ends without exit handlers, because those of a broken driver's library may hang.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _answer_parent()
