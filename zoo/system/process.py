"""Child processes of zoo's own, and the one protocol that parent and child speak.

A message is one line of JSON. If the line is an object with the key `blobs`, a list of lengths, that many byte strings
follow the line: arrays and images travel so, without being encoded. An object with the keys `code`, `message` and
`hint` is an error, which `Child.receive` raises again in the parent. A program that is not zoo's needs nothing but a
JSON library to speak it.
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
    """What was received: the JSON value, and the byte strings that came with it."""

    data: Any
    blobs: list[bytes]


class EndedError(Exception):
    """Raised when a child ends, or is not ready in time, before it answers; its text goes on after "the process".

    `code` is the exit code (negative: the signal), None for a child that took too long and still runs.
    """

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


def python(*arguments: str) -> list[str]:
    """The command of this interpreter with `arguments`, such as `-m zoo.export.build`."""
    # -P: nothing that lies in the current folder is imported in place of a package.
    return [sys.executable, "-P", *arguments]


class Child:
    """A context manager: a running child process, ended with all its own children when the block is left.

    The child is in a session of its own, so that Ctrl-C reaches this process alone. `command` is given to
    `subprocess.Popen`; `stderr` too (None: the parent's). Raises OSError when the command cannot be started.
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
        """Send a message. If the child is gone already, `receive` says how it ended."""
        assert self.process.stdin is not None
        with suppress(OSError):
            _write(self.process.stdin, data, blobs)

    def receive(self, seconds: float | None = None, limit: float | None = None) -> Message:
        """The next message, waiting `seconds` for it at most; `limit` is the time that an error names instead.

        Raises EndedError when none comes, and the ZooError that the child sent in place of an answer.
        """
        try:
            message = self._messages.get(timeout=seconds)
        except queue.Empty:
            raise EndedError(f"took more than {limit or seconds or 0:g} s") from None
        if message is None:
            # Whoever asks again is told the same.
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
        """Kill the child and what it started, and close its pipes. May be called again."""
        if self.is_alive:
            if os.name == "posix":
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()
        # Part of a message that the child did not live to read may be buffered: closing the pipe would try to write it.
        with suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        # A grandchild in a session of its own may hold the other end of the pipe open for as long as it likes.
        self._reader.join(1.0)
        if self.process.stdout is not None and not self._reader.is_alive():
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        try:
            while (message := _receive(self.process.stdout)) is not None:
                self._messages.put(message)
        except (OSError, ValueError):
            # No message, or the pipe is closed: nothing more can be understood of this child.
            self.process.kill()
        self._messages.put(None)


class Parent:
    """The parent, as the child sees it. What was stdout carries messages alone; whatever is printed goes to stderr."""

    def __init__(self) -> None:
        self._requests = sys.stdin.buffer
        self._answers = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def receive(self) -> Message | None:
        """The next message, or None when the parent sends no more."""
        return _receive(self._requests)

    def send(self, data: object, blobs: Sequence[Blob] = ()) -> None:
        """Send a message."""
        _write(self._answers, data, blobs)

    def fail(self, error: ZooError) -> None:
        """Have `Child.receive` raise this error in the parent."""
        self.send({"code": error.code, "message": error.message, "hint": error.hint})


def last_words(code: int) -> str:
    """How a process that ended with `code` ended, in words that go on after its name."""
    if code < 0:
        return f"crashed the process ({signal.Signals(-code).name})"
    return f"ended the process with exit code {code}"


def _write(pipe: "IO[bytes]", data: object, blobs: Sequence[Blob]) -> None:
    if blobs:
        data = {**msgspec.to_builtins(data), "blobs": [len(blob) for blob in blobs]}
    # msgspec writes no line feed inside a line.
    pipe.write(msgspec.json.encode(data) + b"\n")
    for blob in blobs:
        pipe.write(blob)
    pipe.flush()


def _receive(pipe: "IO[bytes]") -> Message | None:
    """The next message; None at the end of the pipe, also in the midst of a message."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        return None
    data = json.loads(line)
    blobs = [pipe.read(length) for length in data.pop("blobs", ())] if isinstance(data, dict) else []
    return Message(data, blobs)
