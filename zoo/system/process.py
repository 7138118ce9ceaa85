"""Child processes, and the one protocol between parent and child.

A message is one line of JSON. If the line is an object with the key `blobs`, a list of lengths, byte strings of these
lengths follow the line: arrays and images are sent without being encoded. An object with the keys `code`, `message` and
`hint` is an error, which `Child.receive` raises again in the parent. A program in another language needs nothing but a
JSON library to take part.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec

from zoo.errors import ZooError

if TYPE_CHECKING:
    from typing import Self

Blob: TypeAlias = bytes | bytearray | memoryview


class Message(NamedTuple):
    """A received message: the JSON value, and the byte strings that followed it."""

    data: Any
    blobs: list[bytes]


class EndedError(Exception):
    """Raised when a child ends, or takes too long, before it answers.

    The text is the end of a sentence, after a subject such as "loading the plugin". `code` is the exit code (negative:
    the signal), None if the child took too long and still runs.
    """

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


def python(*arguments: str) -> list[str]:
    """The command of this interpreter with `arguments`, such as `-m zoo.export.build`."""
    # -P: a file in the current folder is never imported in place of a package.
    return [sys.executable, "-P", *arguments]


class Child:
    """A running child process; leaving it as a context manager kills the child and the processes that it started.

    The child gets its own session, so Ctrl-C reaches the parent only. `command`, `env` and `stderr` (None: the
    parent's) are those of `subprocess.Popen`. Raises OSError when the command cannot be started.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, stderr: int | None = None
    ) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            env=env,
        )
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="zoo-child", daemon=True)
        self._reader.start()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def is_alive(self) -> bool:
        """Whether the child still runs."""
        return self.process.poll() is None

    def send(self, data: object, blobs: Sequence[Blob] = ()) -> None:
        """Send a message. If the child has ended or is closed, nothing is sent, and `receive` raises EndedError."""
        assert self.process.stdin is not None
        parts = _encode(data, blobs)
        # ValueError: another thread has closed the pipe.
        with suppress(OSError, ValueError):
            self.process.stdin.writelines(parts)
            self.process.stdin.flush()

    def receive(self, seconds: float | None = None, limit: float | None = None) -> Message:
        """The next message, for which it waits at most `seconds`.

        Raises EndedError when no message comes, and the ZooError that the child sent instead of an answer. `limit` is
        the time that the EndedError names, in seconds, if it is not `seconds`.
        """
        try:
            message = self._messages.get(timeout=seconds)
        except queue.Empty:
            raise EndedError(f"took more than {limit or seconds or 0:g} s") from None
        if message is None:
            # Put the end mark back, so that the next call raises the same error.
            self._messages.put(None)
            code = self.process.wait()
            raise EndedError(last_words(code), code)
        if isinstance(message.data, dict) and message.data.keys() >= {"code", "message", "hint"}:
            raise ZooError.restore(message.data["code"], message.data["message"], message.data["hint"])
        return message

    def ask(self, data: object, blobs: Sequence[Blob] = (), *, seconds: float | None = None) -> Message:
        """`send`, then `receive`."""
        self.send(data, blobs)
        return self.receive(seconds)

    def close(self) -> None:
        """Kill the child and its process group, and close its pipes. May be called again."""
        if self.is_alive:
            if os.name == "posix":
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()
        # Closing the pipe flushes the rest of a message, which fails because the child has ended.
        with suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        # A grandchild in a session of its own is not killed, and may keep the other end of the pipe open.
        self._reader.join(1.0)
        if self.process.stdout is not None and not self._reader.is_alive():
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        try:
            while (message := _receive(self.process.stdout)) is not None:
                self._messages.put(message)
        except Exception:  # JSON of any form, and blobs of any length, have errors without a common root
            # After bytes that are no message, the start of the next message is unknown. (Or `close` closed the pipe.)
            self.process.kill()
        finally:
            self._messages.put(None)


class Parent:
    """The child's end of the pipes. Creating it sends all printed text to stderr: stdout carries only messages."""

    def __init__(self) -> None:
        self._requests = sys.stdin.buffer
        self._answers = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def receive(self) -> Message | None:
        """The next message, None when the parent has closed the pipe."""
        return _receive(self._requests)

    def send(self, data: object, blobs: Sequence[Blob] = ()) -> None:
        """Send a message."""
        self._answers.writelines(_encode(data, blobs))
        self._answers.flush()

    def fail(self, error: ZooError) -> None:
        """Send an error, which `Child.receive` raises in the parent."""
        self.send({"code": error.code, "message": error.message, "hint": error.hint})


def last_words(code: int) -> str:
    """How a process with this exit code ended, as the end of a sentence: "crashed the process (SIGSEGV)"."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"crashed the process ({name})"
    return f"ended the process with exit code {code}"


def _encode(data: object, blobs: Sequence[Blob]) -> list[Blob]:
    """The parts of a message, in order."""
    if blobs:
        data = {**msgspec.to_builtins(data), "blobs": [len(blob) for blob in blobs]}
    # msgspec escapes line feeds, so the message is one line.
    return [msgspec.json.encode(data), b"\n", *blobs]


def _receive(pipe: "IO[bytes]") -> Message | None:
    """The next message, None when the pipe ends before a whole message. Raises an exception for other bytes."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        return None
    data = json.loads(line)
    lengths = data.pop("blobs", ()) if isinstance(data, dict) else ()
    if any(length < 0 for length in lengths):
        raise ValueError("a blob of negative length")
    blobs = [pipe.read(length) for length in lengths]
    is_whole = all(len(blob) == length for blob, length in zip(blobs, lengths, strict=True))
    return Message(data, blobs) if is_whole else None
