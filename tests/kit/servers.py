"""Real servers on loopback with answers scripted byte by byte."""

import mmap
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

#: The content that a server sends: bytes, or a file mapped into memory.
Data: TypeAlias = "bytes | mmap.mmap"
#: Writes one whole answer, or a part of one.
Answer: TypeAlias = "Callable[[Handler], None]"
#: The longest scripted silence in seconds, so that no test hangs.
GATE_SECONDS = 20.0


@dataclass(frozen=True)
class Seen:
    """One received request."""

    method: str
    path: str
    headers: Mapping[str, str]


class Handler(BaseHTTPRequestHandler):
    """Looks up the scripted answer of a path, once for each request."""

    server: "Loopback"

    def do_GET(self) -> None:
        self.server.requests.append(Seen(self.command, self.path, dict(self.headers)))
        self.server.answer(self.path)(self)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for
    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def head(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()

    def body(self, data: bytes | memoryview) -> None:
        if self.command != "HEAD":
            self.wfile.write(data)

    def range_start(self, etag: str | None) -> int:
        """The byte from which the client continues; 0 for a new download and for an outdated validator."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        return int(match[1]) if match and condition in (None, etag) else 0


class Loopback(ThreadingHTTPServer):
    """A server of scripted paths: the answers of a path are used in turn, the last one from then on."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[Seen] = []
        self.scripts: dict[str, list[Answer]] = {}
        self.gate = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> "Loopback":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def script(self, path: str, *answers: Answer) -> str:
        """Set the answers of a path and return its URL."""
        self.scripts[path] = list(answers)
        return self.origin + path

    def answer(self, path: str) -> Answer:
        answers = self.scripts.get(path)
        if not answers:
            return status(404)
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of every request for a path, in order."""
        return [seen.headers.get("Range") for seen in self.requests if seen.path == path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients that are killed or need no more close the connection: the tests intend that.
        pass


def whole(data: Data, *, etag: str | None = None, headers: Mapping[str, str] | None = None) -> Answer:
    """A correctly served file: ranges, If-Range, 416 past the end."""

    def answer(handler: Handler) -> None:
        start = handler.range_start(etag)
        common = {"ETag": etag} if etag else {}
        common |= headers or {}
        if start >= len(data) > 0:
            handler.head(416, {"Content-Range": f"bytes */{len(data)}"})
            return
        common["Content-Length"] = str(len(data) - start)
        if start:
            common["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        handler.head(206 if start else 200, common)
        # A view, not a copy: checkpoints of hundreds of megabytes go through here.
        handler.body(memoryview(data)[start:])

    return answer


def cut(data: bytes, at: int, *, etag: str | None = None, with_length: bool = True) -> Answer:
    """The file up to byte `at`, then a closed connection; with `with_length` the headers announce the whole length."""

    def answer(handler: Handler) -> None:
        start = handler.range_start(etag)
        headers = {"ETag": etag} if etag else {}
        if with_length:
            headers["Content-Length"] = str(len(data) - start)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        handler.head(206 if start else 200, headers)
        handler.body(data[start:at])

    return answer


def held_back(data: bytes, at: int, *, etag: str | None = None) -> Answer:
    """The file up to byte `at`, then silence until the server's gate opens."""

    def answer(handler: Handler) -> None:
        cut(data, at, etag=etag)(handler)
        handler.wfile.flush()
        handler.server.gate.wait(GATE_SECONDS)

    return answer


def dripping(data: bytes, pause: float) -> Answer:
    """The file one byte at a time, `pause` seconds apart, until the server's gate opens."""

    def answer(handler: Handler) -> None:
        handler.head(200, {"Content-Length": str(len(data))})
        for position in range(len(data)):
            handler.body(data[position : position + 1])
            if handler.server.gate.wait(pause):
                return

    return answer


def range_ignored(data: bytes) -> Answer:
    """The whole file with status 200, whatever was asked for."""

    def answer(handler: Handler) -> None:
        handler.head(200, {"Content-Length": str(len(data))})
        handler.body(data)

    return answer


def wrong_range(data: bytes) -> Answer:
    """Status 206 from another byte than the requested one."""

    def answer(handler: Handler) -> None:
        start = handler.range_start(None) + 1
        headers = {"Content-Length": str(len(data) - start)}
        handler.head(206, headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})
        handler.body(data[start:])

    return answer


def endless(chunk: bytes) -> Answer:
    """A body without a length that goes on until the client leaves (or 64 chunks)."""

    def answer(handler: Handler) -> None:
        handler.head(200)
        for _ in range(64):
            handler.body(chunk)

    return answer


def status(code: int, headers: Mapping[str, str] | None = None, body: bytes = b"no\n") -> Answer:
    """A status and a short text."""

    def answer(handler: Handler) -> None:
        handler.head(code, {"Content-Length": str(len(body)), **(headers or {})})
        handler.body(body)

    return answer


def redirect(location: str) -> Answer:
    """302 to `location`."""
    return status(302, {"Location": location})


def page() -> Answer:
    """An HTML page with status 200, as captive portals send it."""
    return status(200, {"Content-Type": "text/html; charset=utf-8"}, b"<!doctype html><title>Log in</title>")


def flipped(data: bytes) -> bytes:
    """The same length with one bit changed in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
