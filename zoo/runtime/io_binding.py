"""Runs a session with buffers on its device, which are allocated once for each shape and reused for each batch."""

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from zoo.runtime.cuda import load_libraries
from zoo.runtime.device import onnxruntime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    #: A binding, the device buffers of its inputs by name, and the page-locked arrays that are copied to them.
    Buffers: TypeAlias = tuple[Any, dict[str, Any], dict[str, NDArray[Any]]]

#: Sets of buffers that are kept; batches of texts have many shapes.
SHAPES = 8


class Bound:
    """A session that runs through buffers on `device`, one run at a time.

    A run on a GPU then allocates nothing, and a recorded CUDA graph finds its tensors at the same addresses. Integer
    inputs stay on the CPU, where ONNX Runtime reads them, unless CUDA graphs are recorded (`fixed`).
    """

    def __init__(self, session: Any, device: str, *, fixed: bool = False) -> None:
        kind, _, index = device.partition(":")
        self.session = session
        self.fixed = fixed
        self.device = ("cpu" if kind == "cpu" else "cuda", int(index or 0))
        self._kept: dict[tuple[object, ...], Buffers] = {}

    def run(self, outputs: Sequence[str], feeds: "Mapping[str, NDArray[Any]]") -> "list[NDArray[np.float32]]":
        """The outputs for these inputs, as from `InferenceSession.run`."""
        key = (*outputs, *((name, array.shape) for name, array in feeds.items()))
        if key not in self._kept:
            if len(self._kept) == SHAPES:
                # The oldest set of buffers is dropped.
                del self._kept[next(iter(self._kept))]
            self._kept[key] = self._bind(outputs, feeds)
        binding, buffers, staged = self._kept[key]
        for name, array in feeds.items():
            # A GPU copies page-locked memory directly; the driver first copies other memory into a buffer of its own.
            if name in staged:
                staged[name][...] = array
            buffers[name].update_inplace(staged.get(name, array))
        binding.synchronize_inputs()
        self.session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        # On the CPU these arrays are the output buffers, which the next run overwrites.
        return [array.copy() for array in binding.copy_outputs_to_cpu()]

    def _bind(self, outputs: Sequence[str], feeds: "Mapping[str, NDArray[Any]]") -> "Buffers":
        import numpy as np

        value = onnxruntime().OrtValue
        binding = self.session.io_binding()
        buffers, staged = {}, {}
        for name, array in feeds.items():
            device = self.device if self.fixed or array.dtype.kind == "f" else ("cpu", 0)
            buffers[name] = value.ortvalue_from_shape_and_type(array.shape, array.dtype.type, *device)
            binding.bind_ortvalue_input(name, buffers[name])
            locked = page_locked(array, device[1]) if device[0] == "cuda" else None
            if locked is not None:
                staged[name] = locked
        shapes = {item.name: item.shape for item in self.session.get_outputs()}
        rows = next(iter(feeds.values())).shape[0]
        for name in outputs:
            shape = (rows, *shapes[name][1:])
            if all(isinstance(side, int) for side in shape):
                made = value.ortvalue_from_shape_and_type(shape, np.float32, *self.device)
                binding.bind_ortvalue_output(name, made)
            else:
                binding.bind_output(name, *self.device)
        return binding, buffers, staged


def page_locked(like: "NDArray[Any]", index: int = 0) -> "NDArray[Any] | None":
    """An array of the same shape and type in page-locked memory; None if CUDA has none.

    `index` is the GPU that copies from the array; no other GPU is initialised. cudaHostRegister locks the memory:
    https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__MEMORY.html
    """
    import numpy as np

    runtime = cuda_runtime()
    if runtime is None or not like.nbytes or runtime.cudaSetDevice(index) != 0:
        return None
    array = np.empty(like.shape, like.dtype)
    address = ctypes.c_void_p(array.ctypes.data)
    # cudaHostRegisterPortable: the memory is locked for every CUDA context, including ONNX Runtime's.
    portable = ctypes.c_uint(1)
    if runtime.cudaHostRegister(address, ctypes.c_size_t(array.nbytes), portable) != 0:
        return None
    weakref.finalize(array, runtime.cudaHostUnregister, address)
    return array


@cache
def cuda_runtime() -> Any:
    """The CUDA runtime library that ONNX Runtime uses; None if it cannot be loaded."""
    libraries = load_libraries(onnxruntime())
    return next((library for name, library in libraries.items() if "cudart" in name), None)
