"""Real servers on loopback with answers scripted byte by byte, and a small Hub that huggingface_hub can talk to."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias
from urllib.parse import parse_qs

#: Writes one whole answer, or breaks off where the script says.
Answer: TypeAlias = "Callable[[Handler], None]"
#: How long a scripted silence lasts at most: no test may hang on it.
GATE_SECONDS = 20.0


@dataclass(frozen=True)
class Seen:
    """One request that a server got."""

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

    def body(self, data: bytes) -> None:
        if self.command != "HEAD":
            self.wfile.write(data)

    def range_start(self, etag: str | None) -> int:
        """Where the client wants to go on, 0 when it does not or when its validator is out of date."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        return int(match[1]) if match and condition in (None, etag) else 0


class Loopback(ThreadingHTTPServer):
    """A server of scripted paths: the answers of a path are given in turn, the last one from then on."""

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
        # A client that is killed or has seen enough closes the connection: that is part of the scripts.
        pass


def whole(data: bytes, *, etag: str | None = None, headers: Mapping[str, str] | None = None) -> Answer:
    """A well-behaved file: ranges, If-Range, 416 past the end."""

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
        handler.body(data[start:])

    return answer


def cut(data: bytes, at: int, *, etag: str | None = None, with_length: bool = True) -> Answer:
    """The file up to byte `at`, then a closed connection; `with_length` says that more was to come."""

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
    """Status 206 from another byte than the one asked for."""

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


@dataclass
class HubRepo:
    """One repository at one commit: paths to bytes; those in `lfs` are served from another host by redirect."""

    files: dict[str, bytes]
    lfs: frozenset[str] = frozenset()
    is_gated: bool = False
    #: What the Hub announces of a file, where that differs from the truth.
    announced: dict[str, str] = field(default_factory=dict)


class FakeHub(Loopback):
    """What huggingface_hub asks of a Hub for one file at a commit: resolve (HEAD, GET), the LFS host, paths-info."""

    def __init__(self) -> None:
        super().__init__()
        self.repos: dict[tuple[str, str], HubRepo] = {}
        self.cdn = Loopback()

    def __enter__(self) -> "FakeHub":
        super().__enter__()
        self.cdn.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.cdn.__exit__(*details)
        super().__exit__(*details)

    def add(self, repo: str, commit: str, content: HubRepo) -> None:
        self.repos[repo, commit] = content
        for path in content.lfs:
            digest = content.announced.get(path) or hashlib.sha256(content.files[path]).hexdigest()
            self.cdn.script(f"/lfs/{digest}", whole(content.files[path], etag=f'"{digest}"'))

    def answer(self, path: str) -> Answer:
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if resolve:
            return self._resolve(*resolve.groups())
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", path)
        return self._listing(*listing.groups()) if listing else status(404)

    def _resolve(self, name: str, commit: str, path: str) -> Answer:
        repo = self.repos.get((name, commit))
        if repo is None:
            return status(404, {"X-Error-Code": "RepoNotFound"})
        if repo.is_gated:
            return _unless_token(status(403, {"X-Error-Code": "GatedRepo"}), self._file(repo, commit, path))
        return self._file(repo, commit, path)

    def _file(self, repo: HubRepo, commit: str, path: str) -> Answer:
        if path not in repo.files:
            return status(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        data = repo.files[path]
        if path not in repo.lfs:
            blob = hashlib.sha1(data, usedforsecurity=False).hexdigest()
            return whole(data, etag=f'"{blob}"', headers={"X-Repo-Commit": commit})
        digest = repo.announced.get(path) or hashlib.sha256(data).hexdigest()
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": commit}
        return status(302, linked | {"Location": f"{self.cdn.origin}/lfs/{digest}"})

    def _listing(self, name: str, commit: str) -> Answer:
        def answer(handler: Handler) -> None:
            repo = self.repos.get((name, commit))
            form = parse_qs(handler.rfile.read(int(handler.headers["Content-Length"])).decode())
            if repo is None:
                status(404, {"X-Error-Code": "RepoNotFound"})(handler)
                return
            rows = [_row(repo, path) for path in form["paths"] if path in repo.files]
            status(200, {"Content-Type": "application/json"}, json.dumps(rows).encode())(handler)

        return answer


def _row(repo: HubRepo, path: str) -> dict[str, object]:
    data = repo.files[path]
    blob = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    row: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if path in repo.lfs:
        digest = repo.announced.get(path) or hashlib.sha256(data).hexdigest()
        row["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
    return row


def _unless_token(refusal: Answer, otherwise: Answer) -> Answer:
    def answer(handler: Handler) -> None:
        has_token = handler.headers.get("Authorization") == "Bearer hf_of_the_test"
        (otherwise if has_token else refusal)(handler)

    return answer
