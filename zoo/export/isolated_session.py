"""An onnxruntime session in a child process, which opens a finished file by its path, as a user does.

The parity check thus tests the file alone: no object of the parent process takes part.
"""

import os
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from zoo.errors import IntegrityError
from zoo.system.process import Blob, Child, EndedError, Message, Parent, python

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zoo.backbone import TensorMap

#: Found in onnxruntime's error for a file that needs a newer onnxruntime.
TOO_NEW = re.compile(r"IR version|opset|not a registered (function|op)", re.IGNORECASE)


class IsolatedSession(Child):
    """A child process with the two methods of an onnxruntime session that the parity check calls.

    `IsolatedSession()` starts the child, possibly before the file exists; `open` makes it read the file.
    """

    def __init__(self) -> None:
        super().__init__(python("-m", "zoo.export.isolated_session"), env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"})
        self._names: list[str] = []

    def open(self, path: Path, threads: int) -> None:
        """Open the file at `path`. Raises IntegrityError when onnxruntime refuses it, or the child has ended."""
        answer, _ = self._ask({"path": str(path), "threads": threads})
        if "error" in answer:
            newer = f"install a newer onnxruntime (this is {answer['version']})"
            hint = newer if TOO_NEW.search(answer["error"]) else f"export it again, or {newer}"
            raise IntegrityError(f"ONNX Runtime refuses the file: {answer['error']}", hint=hint)
        self._names = answer["outputs"]

    def get_outputs(self) -> list[SimpleNamespace]:
        """The graph's outputs, each with its `name`."""
        return [SimpleNamespace(name=name) for name in self._names]

    def run(self, names: list[str], feeds: "TensorMap") -> "list[NDArray[Any]]":
        """The outputs `names` for `feeds`.

        Raises RuntimeError with the runtime's message, and IntegrityError when the child ended.
        """
        described, given = _encoded(feeds.values())
        answer, blobs = self._ask({"names": names, "feeds": list(feeds), "arrays": described}, given)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return _arrays(answer["arrays"], blobs)

    def _ask(self, request: dict[str, Any], blobs: Sequence[Blob] = ()) -> Message:
        try:
            return self.ask(request, blobs)
        except EndedError as ended:
            raise IntegrityError(
                f"the process that opened the file ended (exit code {ended.code})",
                hint="there may not be enough memory",
            ) from ended


def main() -> None:
    """Run the child process: open files and run them until the parent closes the pipe."""
    parent = Parent()
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    session: Any = None
    while (message := parent.receive()) is not None:
        request = message.data
        try:
            if "path" in request:
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = request["threads"]
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")
                session = onnxruntime.InferenceSession(request["path"], options, providers=["CPUExecutionProvider"])
                parent.send({"outputs": [output.name for output in session.get_outputs()]})
            else:
                feeds = dict(zip(request["feeds"], _arrays(request["arrays"], message.blobs), strict=True))
                described, blobs = _encoded(session.run(request["names"], feeds))
                parent.send({"arrays": described}, blobs)
        except Exception as error:  # onnxruntime's exceptions have no common base class
            if isinstance(error, MemoryError) or "Failed to allocate memory" in str(error):
                # The file may be valid, so the parent must not report that the runtime refuses it.
                sys.exit(1)
            reason = " ".join(str(error).split())[:500]
            parent.send({"error": reason, "version": onnxruntime.__version__})


def _encoded(arrays: "Collection[NDArray[Any]]") -> tuple[list[tuple[str, tuple[int, ...]]], list[bytes]]:
    return [(array.dtype.str, array.shape) for array in arrays], [array.tobytes() for array in arrays]


def _arrays(described: Sequence[Any], blobs: Sequence[bytes]) -> "list[NDArray[Any]]":
    import numpy as np

    return [
        np.frombuffer(blob, np.dtype(dtype)).reshape(shape)
        for (dtype, shape), blob in zip(described, blobs, strict=True)
    ]


if __name__ == "__main__":
    main()
