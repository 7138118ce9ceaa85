"""A finished ONNX file in a process of its own: onnxruntime opens the path, and nothing of this process helps it.

What the parity gate asks is so answered by what a user of the file will have.
"""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import msgspec

from zoo.child import end, python
from zoo.errors import IntegrityError

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

    from zoo.backbone import TensorMap

#: Length of a message before it, in eight bytes.
LENGTH = struct.Struct(">Q")
#: What onnxruntime says of a file that is newer than itself.
TOO_NEW = re.compile(r"IR version|opset|not a registered (function|op)", re.IGNORECASE)


class Output(NamedTuple):
    """What onnxruntime's sessions give for each of their outputs, as far as it is used."""

    name: str


class FreshSession:
    """A context manager with the two methods of an onnxruntime session that the gate calls.

    The child starts with `FreshSession()`, so that it may be made before the file is; `open` has it read one.
    """

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            python("-m", "zoo.fresh"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        )
        self._names: list[str] = []

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        end(self._child)

    @property
    def is_alive(self) -> bool:
        """Whether the child still runs."""
        return self._child.poll() is None

    def open(self, path: Path, threads: int) -> None:
        """Have the file at `path` opened. Raises IntegrityError when onnxruntime refuses it, or the child has ended."""
        answer = self._ask({"path": str(path), "threads": threads})
        if "error" in answer:
            newer = f"install a newer onnxruntime (this is {answer['version']})"
            hint = newer if TOO_NEW.search(answer["error"]) else f"export it again, or {newer}"
            raise IntegrityError(f"ONNX Runtime refuses the file: {answer['error']}", hint=hint)
        self._names = answer["outputs"]

    def get_outputs(self) -> list[Output]:
        """The graph's outputs."""
        return [Output(name) for name in self._names]

    def run(self, names: list[str], feeds: "TensorMap") -> "list[NDArray[Any]]":
        """The outputs `names` for `feeds`.

        Raises RuntimeError with what the runtime says of them, IntegrityError when the child ended, as it does without
        enough memory.
        """
        answer = self._ask({"names": names, "feeds": {name: _packed(array) for name, array in feeds.items()}})
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return [_array(each) for each in answer["arrays"]]

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            _send(self._child.stdin, request)
            return _receive(self._child.stdout)
        except (OSError, EOFError) as error:
            code = self._child.wait()
            raise IntegrityError(
                f"the process that opened the file ended (exit code {code})", hint="there may not be enough memory"
            ) from error


def main() -> None:
    """The child: one file, then its answers, until nobody asks any more."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # Whatever a library prints is no answer.
    os.dup2(2, 1)
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    session: Any = None
    while True:
        try:
            request = _receive(requests)
        except EOFError:
            return
        try:
            if "path" in request:
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = request["threads"]
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")
                session = onnxruntime.InferenceSession(request["path"], options, providers=["CPUExecutionProvider"])
                _send(answers, {"outputs": [output.name for output in session.get_outputs()]})
            else:
                feeds = {name: _array(packed) for name, packed in request["feeds"].items()}
                _send(answers, {"arrays": [_packed(each) for each in session.run(request["names"], feeds)]})
        except Exception as error:  # onnxruntime's exceptions have no common root of their own
            if isinstance(error, MemoryError) or "Failed to allocate memory" in str(error):
                # Nothing is wrong with the file: the end of this process is told from a refusal.
                sys.exit(1)
            reason = " ".join(str(error).split())[:500]
            _send(answers, {"error": reason, "version": onnxruntime.__version__})


def _packed(array: "NDArray[Any]") -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.str, array.shape, array.tobytes()


def _array(packed: tuple[str, tuple[int, ...], bytes]) -> "NDArray[Any]":
    import numpy as np

    dtype, shape, data = packed
    return np.frombuffer(data, np.dtype(dtype)).reshape(shape)


def _send(pipe: "IO[bytes]", message: object) -> None:
    data = msgspec.msgpack.encode(message)
    pipe.write(LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: "IO[bytes]") -> Any:
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    (length,) = LENGTH.unpack(head)
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return msgspec.msgpack.decode(data)


if __name__ == "__main__":
    main()
