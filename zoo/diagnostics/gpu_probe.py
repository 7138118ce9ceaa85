"""The runtime and the GPU, tried in a process of its own: driver, import, one node on the CPU, libraries, one on CUDA.

What is broken may crash, hang or print, so this is a child (`python -m zoo.diagnostics.gpu_probe`) that answers one
JSON object a step; what libraries print goes to stderr, even from C. The steps of a child that ended too early are
missing.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from zoo.extras import RUNTIME, require
from zoo.runtime.device import onnxruntime
from zoo.system.process import Parent

DRIVER = "libcuda.so.1" if os.name == "posix" else "nvcuda.dll"
#: What CUDA answers where there is a driver and nothing that it could drive.
NO_DEVICE = 100
#: No answer of CUDA's: there is a driver, and it cannot be asked.
BROKEN = -1
#: What only rare operators need: a runtime without them runs models.
OPTIONAL = ("cufft", "nvrtc")
CUDA = "CUDAExecutionProvider"


class Device(Struct, frozen=True, kw_only=True):
    """One GPU; memory in bytes, `free` None where the driver does not say it."""

    name: str
    total: int | None = None
    free: int | None = None


class Driver(Struct, frozen=True, kw_only=True):
    """What the NVIDIA driver says: `cuda` is the newest CUDA it can run, `code` what it answered instead of 0."""

    problem: str | None = None
    code: int | None = None
    cuda: tuple[int, int] | None = None
    devices: tuple[Device, ...] = ()


class Runtime(Struct, frozen=True, kw_only=True):
    """The onnxruntime that an import finds; `cuda` is the version that it was built for, None for a build without."""

    problem: str | None = None
    version: str | None = None
    cuda: str | None = None


class Libraries(Struct, frozen=True, kw_only=True):
    """The libraries that the runtime's CUDA part needs: those that cannot be loaded, and what cuDNN says of itself.

    `cudnn` is its version, `cudnn_cuda` the major of the CUDA that it was built for.
    """

    missing: tuple[str, ...] = ()
    cudnn: str | None = None
    cudnn_cuda: int | None = None


class Ran(Struct, frozen=True, kw_only=True):
    """A session of one node: why it did not run, None when it ran and answered rightly."""

    problem: str | None = None


class Trial(Struct, frozen=True, kw_only=True):
    """What the child found; `ended` says how it ended where it did not come to its end."""

    driver: Driver | None = None
    runtime: Runtime | None = None
    cpu: Ran | None = None
    libraries: Libraries | None = None
    cuda: Ran | None = None
    ended: str | None = None


def steps() -> Iterator[tuple[str, Struct]]:
    """(field of Trial, what was found), in the order in which each needs the ones before."""
    found = driver()
    yield "driver", found
    try:
        require("running a model", *RUNTIME)
        ort = onnxruntime()
        model = _one_node()
        built_for = _cuda_of(ort)
        runtime = Runtime(version=ort.__version__, cuda=built_for)
    except Exception as error:  # half an installation fails in many ways
        yield "runtime", Runtime(problem=_first_line(error))
        return
    yield "runtime", runtime
    ort.set_default_logger_severity(4)
    yield "cpu", _run(ort, model, "CPUExecutionProvider")
    if built_for is None:
        return
    ort.preload_dlls()
    yield "libraries", _libraries(ort)
    if found.devices:
        ran = _run(ort, model, CUDA)
        yield "cuda", Ran(problem=_linker(ort) or ran.problem) if ran.problem else ran


def driver() -> Driver:
    """What the driver says about itself and its devices."""
    try:
        library = ctypes.CDLL(DRIVER)
    except OSError as error:
        # One that is there and cannot be loaded says something else, or it of something else.
        if os.name == "posix" and not str(error).startswith(f"{DRIVER}: cannot open"):
            return Driver(problem=f"libcuda cannot be loaded: {error}", code=BROKEN)
        return Driver(problem="no NVIDIA driver: libcuda was not found")
    version, count = ctypes.c_int(), ctypes.c_int()
    code = library.cuInit(0)
    _call(library, "cuDriverGetVersion", ctypes.byref(version))
    cuda = (version.value // 1000, version.value % 1000 // 10) if version.value else None
    code = code or library.cuDeviceGetCount(ctypes.byref(count))
    if code == 0 and count.value == 0:
        code = NO_DEVICE
    if code != 0:
        return Driver(problem=f"the NVIDIA driver finds no device: {_error_name(library, code)}", code=code, cuda=cuda)
    return Driver(cuda=cuda, devices=tuple(_device(library, index) for index in range(count.value)))


def _device(library: Any, index: int) -> Device:
    name, handle = ctypes.create_string_buffer(128), ctypes.c_int()
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    _call(library, "cuDeviceGet", ctypes.byref(handle), index)
    _call(library, "cuDeviceGetName", name, len(name), handle)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(total), handle)
    device = Device(name=name.value.decode(errors="replace") or f"device {index}", total=total.value or None)
    # How much is free is only told inside a context.
    if _call(library, "cuDevicePrimaryCtxRetain", ctypes.byref(context), handle) != 0:
        return device
    try:
        _call(library, "cuCtxSetCurrent", context)
        if _call(library, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total)) != 0:
            return device
    finally:
        _call(library, "cuCtxSetCurrent", None)
        _call(library, "cuDevicePrimaryCtxRelease_v2", handle)
    return msgspec.structs.replace(device, free=free.value)


def _call(library: Any, name: str, *arguments: Any) -> int:
    """What a function of a library answers, -1 where there is none of that name."""
    function = getattr(library, name, None)
    return -1 if function is None else int(function(*arguments))


def _error_name(library: Any, code: int) -> str:
    name = ctypes.c_char_p()
    if _call(library, "cuGetErrorName", code, ctypes.byref(name)) == 0 and name.value:
        return f"{name.value.decode(errors='replace')} ({code})"
    return f"CUDA error {code}"


def _cuda_of(ort: Any) -> str | None:
    """The CUDA version that the runtime was built for; None for a build without CUDA."""
    if CUDA not in ort.get_available_providers():
        return None
    return str(getattr(ort, "cuda_version", None) or "unknown")


def _libraries(ort: Any) -> Libraries:
    # The wheel knows the names best; a later one that no longer tells them still has its session tried.
    paths = getattr(ort, "_get_nvidia_dll_paths", lambda is_windows: ())(os.name == "nt")
    names = [path[-1] for path in paths if not any(word in path[-1] for word in OPTIONAL)]
    loaded = {name: _load(name) for name in names}
    missing = tuple(name for name, library in loaded.items() if library is None)
    cudnn = next((library for name, library in loaded.items() if "cudnn" in name), None)
    if cudnn is None:
        return Libraries(missing=missing)
    number, cuda = _call(cudnn, "cudnnGetVersion"), _call(cudnn, "cudnnGetCudartVersion")
    version = f"{number // 10000}.{number % 10000 // 100}.{number % 100}" if number > 0 else None
    return Libraries(missing=missing, cudnn=version, cudnn_cuda=cuda // 1000 if cuda > 0 else None)


def _load(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _linker(ort: Any) -> str | None:
    """Why the runtime's CUDA part cannot be loaded, in the linker's words; None where it can."""
    folder = Path(ort.__file__).parent / "capi"
    try:
        if os.name == "posix":
            ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return str(error).replace(f"{folder}{os.sep}", "")
    return None


def _one_node() -> bytes:
    """A model of one convolution, 3x3 of ones: on CUDA it needs cuBLAS's and cuDNN's libraries, as models do."""
    from onnx import TensorProto, helper

    pixels = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 3, 3])
    sums = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 1])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 3, 3], [1.0] * 9)
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "one-node", [pixels], [sums], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def _run(ort: Any, model: bytes, provider: str) -> Ran:
    """Run the one node by `provider`, and by nothing else in its place."""
    import numpy as np

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    settings = {}
    if provider == CUDA:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        settings = {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    try:
        session = ort.InferenceSession(model, options, providers=[(provider, settings)], enable_fallback=0)
        (found,) = session.run(None, {"x": np.ones((1, 1, 3, 3), np.float32)})
    except Exception as error:  # onnxruntime's exceptions have no common root of their own
        return Ran(problem=_first_line(error))
    if found.item() != 9.0:
        return Ran(problem=f"the sum of nine ones comes out as {found.item()}")
    return Ran()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _answer_parent() -> None:
    """Send each step's finding as it is made."""
    parent = Parent()
    for name, found in steps():
        parent.send({name: found})
    # What a broken driver's library does at exit is not waited for.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _answer_parent()
