"""Runs of a session whose arrays stay on its device: buffers made once a shape, written again for each batch."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoo.device import onnxruntime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Sets of buffers that are kept: batches of texts come in many shapes.
SHAPES = 8


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
        self._kept: dict[tuple[object, ...], tuple[Any, dict[str, Any]]] = {}

    def run(self, outputs: Sequence[str], feeds: "Mapping[str, NDArray[Any]]") -> "list[NDArray[np.float32]]":
        """The outputs for these inputs, as `InferenceSession.run` gives them."""
        key = (*outputs, *((name, array.shape) for name, array in feeds.items()))
        if key not in self._kept:
            if len(self._kept) == SHAPES:
                # The oldest one.
                del self._kept[next(iter(self._kept))]
            self._kept[key] = self._bind(outputs, feeds)
        binding, buffers = self._kept[key]
        for name, array in feeds.items():
            buffers[name].update_inplace(array)
        binding.synchronize_inputs()
        self.session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        # On the CPU these are the buffers themselves, which the next run overwrites.
        return [array.copy() for array in binding.copy_outputs_to_cpu()]

    def _bind(self, outputs: Sequence[str], feeds: "Mapping[str, NDArray[Any]]") -> tuple[Any, dict[str, Any]]:
        import numpy as np

        value = onnxruntime().OrtValue
        binding = self.session.io_binding()
        buffers = {}
        for name, array in feeds.items():
            place = self.place if self.fixed or array.dtype.kind == "f" else ("cpu", 0)
            buffers[name] = value.ortvalue_from_shape_and_type(array.shape, array.dtype.type, *place)
            binding.bind_ortvalue_input(name, buffers[name])
        shapes = {item.name: item.shape for item in self.session.get_outputs()}
        rows = next(iter(feeds.values())).shape[0]
        for name in outputs:
            shape = (rows, *shapes[name][1:])
            if all(isinstance(side, int) for side in shape):
                made = value.ortvalue_from_shape_and_type(shape, np.float32, *self.place)
                binding.bind_ortvalue_output(name, made)
            else:
                binding.bind_output(name, *self.place)
        return binding, buffers
