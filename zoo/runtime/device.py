"""Devices: which one was asked for, why it can or cannot be had, and on which one a session's nodes really lie."""

import ctypes
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from zoo.errors import DeviceError, UsageError
from zoo.extras import RUNTIME, require
from zoo.results import Placement

#: ONNX Runtime's names of what a device's nodes run on, best first; what none of them takes is left to the CPU.
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
#: The share of a graph's nodes that may be left on the CPU where CUDA or TensorRT was asked for. A few are always: ONNX
#: Runtime computes shapes there, on purpose.
ON_CPU = 0.1
DEVICE = re.compile(r"(auto|cpu|cuda|tensorrt)(?::(\d+))?")
#: The release that this ONNX Runtime's TensorRT provider is linked with.
TENSORRT = 10
HINT = "--device cpu, or --device auto"


def onnxruntime() -> Any:
    """The onnxruntime module, its telemetry switched off before it initialises. Raises MissingExtraError."""
    require("running a model", *RUNTIME)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    # Ctrl-C while numpy is imported by onnxruntime would be an ImportError of it.
    import numpy  # noqa: F401
    import onnxruntime  # noqa: TID251 - by this door

    return onnxruntime


def choose(device: str) -> Placement:
    """The device for what was asked (`auto`, `cpu`, `cuda[:N]`, `tensorrt[:N]`): `cpu`, `cuda:N` or `tensorrt:N`.

    `auto` is the first CUDA device where there is one that works, and says why not where there is none. Raises
    UsageError for anything else, DeviceError when the device cannot be had, with the piece that is missing.
    """
    kind, index = parse(device)
    if kind == "cpu":
        return Placement(asked=device, used="cpu")
    problem = tensorrt_problem() if kind == "tensorrt" else cuda_problem()
    if problem is None:
        return Placement(asked=device, used=f"{'cuda' if kind == 'auto' else kind}:{index}")
    if kind == "auto":
        return Placement(asked=device, used="cpu", why=problem)
    raise DeviceError(f"{device} cannot be used: {problem}", device=device, hint=HINT)


def choose_device(device: str) -> str:
    """`cpu` or `cuda:N`, where torch computes, too. Raises UsageError for `tensorrt`, and what `choose` does."""
    if parse(device)[0] == "tensorrt":
        raise UsageError("TensorRT runs exported models, and nothing else", hint="--device cuda, or --device auto")
    return choose(device).used


def parse(device: str) -> tuple[str, int]:
    """(`auto`, `cpu`, `cuda` or `tensorrt`; the number of the device). Raises UsageError for anything else."""
    match = DEVICE.fullmatch(device)
    if match is None or (match[2] is not None and match[1] in ("auto", "cpu")):
        raise UsageError(f"unknown device '{device}'", hint="--device auto, cpu, cuda, cuda:1 or tensorrt")
    return match[1], int(match[2] or 0)


def cuda_problem() -> str | None:
    """Why CUDA cannot be used here, None when it can: the driver, a device, the wheel, CUDA's version, a library."""
    try:
        driver = ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    except OSError:
        return "no NVIDIA driver: libcuda was not found"
    count, version = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver finds no device"
    runtime = onnxruntime()
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        return "the installed onnxruntime is the CPU build: pip install 'backbone-zoo[gpu]'"
    driver.cuDriverGetVersion(ctypes.byref(version))
    return _version_problem(version.value, cuda_of_wheel()) or (_library_problem() if os.name == "posix" else None)


def tensorrt_problem() -> str | None:
    """Why TensorRT cannot be used here, None when it can: all that CUDA needs, its provider, its library."""
    if (problem := cuda_problem()) is not None:
        return problem
    if "TensorrtExecutionProvider" not in onnxruntime().get_available_providers():
        return "the installed onnxruntime was built without TensorRT"
    if _loads_tensorrt():
        return None
    return f"libnvinfer.so.{TENSORRT} was not found: pip install 'backbone-zoo[tensorrt]'"


def cuda_of_wheel() -> int:
    """The major version of CUDA that the installed onnxruntime was built for; 0 for a CPU build."""
    from importlib import import_module

    found = getattr(import_module(f"{onnxruntime().__name__}.capi.build_and_package_info"), "cuda_version", "")
    return int(str(found).partition(".")[0] or 0)


def preload() -> None:
    """Load the CUDA libraries that pip installed, for a session to find. What is missing is not printed."""
    with redirect_stdout(StringIO()):
        onnxruntime().preload_dlls()


@contextmanager
def silenced() -> Iterator[None]:
    """No line of ONNX Runtime's own on stderr: of devices that it does not know, and of providers that it drops.

    The logger of the process, which a session's options do not reach. There is no asking what was set before:
    afterwards it is what it is by default.
    """
    runtime = onnxruntime()
    runtime.set_default_logger_severity(4)
    try:
        yield
    finally:
        runtime.set_default_logger_severity(2)


def placed(device: str, providers: Iterable[str], assignment: Iterable[Any]) -> dict[str, int]:
    """The nodes of a session by provider (`CUDA`, `CPU`), checked against the device that was asked for.

    `providers` and `assignment` are what the session reports: get_providers() and
    get_provider_graph_assignment_info(). Raises DeviceError when the provider was dropped, or when more than `ON_CPU`
    of the nodes are left on the CPU.
    """
    kind, _, _ = device.partition(":")
    wanted = PROVIDERS[kind][0]
    if wanted not in providers:
        raise DeviceError(
            f"{device} was asked for and ONNX Runtime fell back to the CPU",
            device=device,
            hint="pip install 'backbone-zoo[gpu]' brings the CUDA libraries; or " + HINT,
        )
    nodes: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for part in assignment:
        for node in part.get_nodes():
            nodes[part.ep_name.removesuffix("ExecutionProvider")] += 1
            if part.ep_name == "CPUExecutionProvider":
                left[node.op_type] += 1
    total = sum(nodes.values())
    if kind != "cpu" and left.total() > ON_CPU * total:
        kinds = ", ".join(f"{name} {count}" for name, count in left.most_common(4))
        raise DeviceError(
            f"{device} was asked for, got {left.total()} of {total} nodes on the CPU ({kinds})",
            device=device,
            hint=HINT,
        )
    return dict(nodes)


def _version_problem(driver: int, wheel: int) -> str | None:
    """`driver` as CUDA numbers its versions (12040 is 12.4), `wheel` the major version."""
    major, minor = driver // 1000, driver % 1000 // 10
    if major >= wheel:
        return None
    return f"the NVIDIA driver supports CUDA {major}.{minor}, the installed onnxruntime needs CUDA {wheel}: update it"


def _library_problem() -> str | None:
    """The first of the libraries that the CUDA provider needs and that cannot be loaded."""
    preload()
    major = cuda_of_wheel()
    needed = (f"libcudart.so.{major}", f"libcublasLt.so.{major}", f"libcublas.so.{major}", "libcurand.so.10")
    for name in (*needed, "libcudnn.so.9"):
        try:
            ctypes.CDLL(name)
        except OSError:
            return f"{name} was not found: pip install 'backbone-zoo[gpu]'"
    return None


def _loads_tensorrt() -> bool:
    """Whether TensorRT's library of our release loads: pip's package of it is not where a loader looks."""
    spec = find_spec("tensorrt_libs")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    windows = os.name != "posix"
    for stem in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        name = f"{stem}_{TENSORRT}.dll" if windows else f"lib{stem}.so.{TENSORRT}"
        for place in (*(str(folder / name) for folder in folders), name):
            with suppress(OSError):
                ctypes.CDLL(place, mode=ctypes.RTLD_GLOBAL)
                break
        else:
            return False
    return True
