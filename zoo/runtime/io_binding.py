"""Runs of a session whose arrays stay on its device: buffers made once a shape, written again for each batch."""

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.runtime.cuda import load_libraries
from zoo.runtime.device import onnxruntime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Sets of buffers that are kept: batches of texts come in many shapes.
SHAPES = 8
#: cudaHostRegisterPortable: locked for every context, ONNX Runtime's among them.
PORTABLE = 1


class _Buffers(NamedTuple):
    """A binding, its inputs' buffers on the device by name, and those in page-locked memory that are copied there."""

    binding: Any
    device: dict[str, Any]
    staged: "dict[str, NDArray[Any]]"


class Bound:
    """A session run through buffers on `device`. It serves one run at a time.

    On a GPU a run then allocates nothing, and a recorded CUDA graph, which needs its tensors where they were, finds
    them there. Integers stay on the CPU unless the graph was recorded: ONNX Runtime reads them there.
    """

    def __init__(self, session: Any, device: str, *, fixed: bool = False) -> None:
        kind, _, index = device.partition(":")
        self.session = session
        self.fixed = fixed
        self.place = ("cpu" if kind == "cpu" else "cuda", int(index or 0))
        self._kept: dict[tuple[object, ...], _Buffers] = {}

    def run(self, outputs: Sequence[str], feeds: "Mapping[str, NDArray[Any]]") -> "list[NDArray[np.float32]]":
        """The outputs for these inputs, as `InferenceSession.run` gives them."""
        key = (*outputs, *((name, array.shape) for name, array in feeds.items()))
        if key not in self._kept:
            if len(self._kept) == SHAPES:
                # The oldest one.
                del self._kept[next(iter(self._kept))]
            self._kept[key] = self._bind(outputs, feeds)
        binding, buffers, staged = self._kept[key]
        for name, array in feeds.items():
            # From pages that stay where they are a GPU copies at once, and not by way of a buffer of its driver's.
            if name in staged:
                staged[name][...] = array
            buffers[name].update_inplace(staged.get(name, array))
        binding.synchronize_inputs()
        self.session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        # On the CPU these are the buffers themselves, which the next run overwrites.
        return [array.copy() for array in binding.copy_outputs_to_cpu()]

    def _bind(self, outputs: Sequence[str], feeds: "Mapping[str, NDArray[Any]]") -> "_Buffers":
        import numpy as np

        value = onnxruntime().OrtValue
        binding = self.session.io_binding()
        buffers, staged = {}, {}
        for name, array in feeds.items():
            place = self.place if self.fixed or array.dtype.kind == "f" else ("cpu", 0)
            buffers[name] = value.ortvalue_from_shape_and_type(array.shape, array.dtype.type, *place)
            binding.bind_ortvalue_input(name, buffers[name])
            locked = page_locked(array, place[1]) if place[0] == "cuda" else None
            if locked is not None:
                staged[name] = locked
        shapes = {item.name: item.shape for item in self.session.get_outputs()}
        rows = next(iter(feeds.values())).shape[0]
        for name in outputs:
            shape = (rows, *shapes[name][1:])
            if all(isinstance(side, int) for side in shape):
                made = value.ortvalue_from_shape_and_type(shape, np.float32, *self.place)
                binding.bind_ortvalue_output(name, made)
            else:
                binding.bind_output(name, *self.place)
        return _Buffers(binding, buffers, staged)


def page_locked(like: "NDArray[Any]", index: int = 0) -> "NDArray[Any] | None":
    """An array like this one, whose pages the system does not move; None where CUDA has none to give.

    `index` is the GPU that copies from it: another one is not woken. By cudaHostRegister: https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__MEMORY.html
    """
    import numpy as np

    runtime = cuda_runtime()
    if runtime is None or not like.nbytes or runtime.cudaSetDevice(index) != 0:
        return None
    array = np.empty(like.shape, like.dtype)
    address = ctypes.c_void_p(array.ctypes.data)
    if runtime.cudaHostRegister(address, ctypes.c_size_t(array.nbytes), ctypes.c_uint(PORTABLE)) != 0:
        return None
    weakref.finalize(array, runtime.cudaHostUnregister, address)
    return array


@cache
def cuda_runtime() -> Any:
    """The CUDA runtime library that ONNX Runtime uses; None if it cannot be loaded."""
    libraries = load_libraries(onnxruntime())
    return next((library for name, library in libraries.items() if "cudart" in name), None)
