"""The parts that CUDA and TensorRT need: the NVIDIA driver, its devices, onnxruntime's build, NVIDIA's libraries.

`device.cuda_problem` and `zoo doctor` both look here. Functions that take `ort` get the imported onnxruntime module.
"""

import ctypes
import os
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

PROVIDER = "CUDAExecutionProvider"
#: CUDA_ERROR_NO_DEVICE of cuda.h: the driver works and finds no GPU.
NO_DEVICE = 100
#: zoo's own code for a driver that is installed and cannot be loaded or queried; CUDA does not use this number.
BROKEN = -1


class Device(Struct, frozen=True, kw_only=True):
    """One GPU; memory in bytes, None if the driver does not report it."""

    name: str
    total: int | None = None
    free: int | None = None


class Driver(Struct, frozen=True, kw_only=True):
    """The state of the NVIDIA driver: `cuda` is the newest CUDA version that it runs, `code` its error code."""

    problem: str | None = None
    code: int | None = None
    cuda: tuple[int, int] | None = None
    devices: tuple[Device, ...] = ()


def find_driver(*, describe: bool = False) -> Driver:
    """The NVIDIA driver and its devices; `describe` adds names and memory, and opens a context on each device."""
    name = "libcuda.so.1" if os.name == "posix" else "nvcuda.dll"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        # Any other message means that the driver was found: its file is damaged, or a library that it needs is missing.
        if os.name == "posix" and not str(error).startswith(f"{name}: cannot open"):
            return Driver(problem=f"libcuda cannot be loaded: {error}", code=BROKEN)
        return Driver(problem="no NVIDIA driver: libcuda was not found")
    version, count = ctypes.c_int(), ctypes.c_int()
    code = library.cuInit(0)
    call(library, "cuDriverGetVersion", ctypes.byref(version))
    cuda = (version.value // 1000, version.value % 1000 // 10) if version.value else None
    code = code or library.cuDeviceGetCount(ctypes.byref(count))
    if code == 0 and count.value == 0:
        code = NO_DEVICE
    if code != 0:
        return Driver(problem=f"the NVIDIA driver finds no device: {_error_name(library, code)}", code=code, cuda=cuda)
    indices = range(count.value)
    devices = (_describe(library, index) if describe else Device(name=f"device {index}") for index in indices)
    return Driver(cuda=cuda, devices=tuple(devices))


def _describe(library: Any, index: int) -> Device:
    name, handle = ctypes.create_string_buffer(128), ctypes.c_int()
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    call(library, "cuDeviceGet", ctypes.byref(handle), index)
    call(library, "cuDeviceGetName", name, len(name), handle)
    call(library, "cuDeviceTotalMem_v2", ctypes.byref(total), handle)
    device = Device(name=name.value.decode(errors="replace") or f"device {index}", total=total.value or None)
    # The driver reports free memory only inside a context.
    if call(library, "cuDevicePrimaryCtxRetain", ctypes.byref(context), handle) != 0:
        return device
    try:
        call(library, "cuCtxSetCurrent", context)
        if call(library, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total)) != 0:
            return device
    finally:
        call(library, "cuCtxSetCurrent", None)
        call(library, "cuDevicePrimaryCtxRelease_v2", handle)
    return msgspec.structs.replace(device, free=free.value)


def call(library: Any, name: str, *arguments: Any) -> int:
    """The integer that a function of a library returns; -1 if the library has no function of that name."""
    function = getattr(library, name, None)
    return -1 if function is None else int(function(*arguments))


def _error_name(library: Any, code: int) -> str:
    name = ctypes.c_char_p()
    if call(library, "cuGetErrorName", code, ctypes.byref(name)) == 0 and name.value:
        return f"{name.value.decode(errors='replace')} ({code})"
    return f"CUDA error {code}"


def built_for(ort: Any) -> str | None:
    """The CUDA version that onnxruntime was built for; None for a build without CUDA."""
    if PROVIDER not in ort.get_available_providers():
        return None
    return str(getattr(ort, "cuda_version", None) or "unknown")


def version_problem(cuda: tuple[int, int] | None, wheel: str) -> tuple[str, str] | None:
    """Returns the problem and its fix if a driver for `cuda` is too old for onnxruntime built for `wheel`, or None."""
    major = int(wheel.partition(".")[0]) if wheel.partition(".")[0].isdecimal() else 0
    if cuda is None or cuda[0] >= major:
        return None
    # The oldest driver for each CUDA version, from NVIDIA's compatibility table.
    oldest = {12: 525, 13: 580}.get(major)
    problem = f"onnxruntime is built for CUDA {wheel}, the driver runs CUDA up to {cuda[0]}.{cuda[1]}"
    return problem, f"update the NVIDIA driver{f' to {oldest} or newer' if oldest else ''}"


def preload(ort: Any) -> None:
    """Load the CUDA libraries that pip installed, so that a session finds them; onnxruntime's messages are dropped."""
    with redirect_stdout(StringIO()):
        ort.preload_dlls()


def load_libraries(ort: Any) -> dict[str, Any]:
    """The libraries that onnxruntime's CUDA provider needs, by file name; None for one that cannot be loaded."""
    preload(ort)
    # A later onnxruntime may not have this function. Missing libraries then only show when a session is created.
    paths = getattr(ort, "_get_nvidia_dll_paths", lambda is_windows: ())(os.name == "nt")
    # Only rare operators need these libraries, and models run without them.
    optional = ("cufft", "nvrtc")
    return {path[-1]: _load(path[-1]) for path in paths if not any(word in path[-1] for word in optional)}


def loads_tensorrt(release: int) -> bool:
    """Whether TensorRT's libraries of this major release load: from pip's package, or from where the system looks."""
    spec = find_spec("tensorrt_libs")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    for stem in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        name = f"lib{stem}.so.{release}" if os.name == "posix" else f"{stem}_{release}.dll"
        paths = [*(str(folder / name) for folder in folders), name]
        if not any(_load(path, ctypes.RTLD_GLOBAL) for path in paths):
            return False
    return True


def _load(path: str, mode: int = ctypes.DEFAULT_MODE) -> Any:
    with suppress(OSError):
        return ctypes.CDLL(path, mode=mode)
    return None
