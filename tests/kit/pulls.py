"""Helpers of the tests of pulling: registry rows of known bytes, a recording progress, pulls in other processes."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from zoo_plugins.sources.file import FileSource
from zoo_plugins.sources.http import HttpSource

from zoo.errors import UnknownPluginError
from zoo.progress import Silent
from zoo.schema import Entry, ImagePreprocess, WeightFile
from zoo.source import Source, Want
from zoo.store.lock import Lock
from zoo.store.store import Store


def row(files: Mapping[str, tuple[bytes, list[str]]], *, is_pinned: bool = True, name: str = "toy_net.v1") -> Entry:
    """A registry row of files given as bytes and the URLs that serve them."""
    weights = []
    for path, (data, urls) in files.items():
        digest, size = (hashlib.sha256(data).hexdigest(), len(data)) if is_pinned else (None, None)
        weights.append(WeightFile(path=path, sha256=digest, size=size, sources=tuple(urls)))
    preprocess = ImagePreprocess(resize=8, crop=8, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
    common: dict[str, Any] = {
        "task": "image-features",
        "description": "a toy",
        "license": "CC0-1.0",
        "params": 1,
        "dim": 1,
    }
    return Entry(name=name, family="toy", preprocess=preprocess, files=tuple(weights), **common)


class Notes(Silent):
    """Progress that keeps the notes and adds up what the bars advance."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


DATA, SMALL = bytes(range(256)) * 4000, b'{"a": 1}'


class QuickHttp(HttpSource):
    backoff = 0.01


class Sources:
    """The sources of a test by scheme; records which ones were asked for."""

    def __init__(self, **more: Source) -> None:
        self.table: dict[str, Source] = {"http": QuickHttp(), "file": FileSource(), **more}
        self.asked: list[str] = []

    def __call__(self, scheme: str) -> Source:
        self.asked.append(scheme)
        if scheme not in self.table:
            raise UnknownPluginError(f"no plugin provides the scheme {scheme}", plugin=scheme)
        return self.table[scheme]


def lock_of(store: Store) -> Lock:
    return Lock.read(store.lock_path)


def file_url(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return path.as_uri()


def assert_nothing_visible(store: Store, entry: Entry) -> None:
    assert list(store.models.rglob("*.bin")) == []
    assert store.find(entry, lock_of(store)) is None


def want(url: str, partial: Path, size: int | None = len(DATA)) -> Want:
    return Want(url=url, partial=partial, size=size)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Counting(Silent):
    """Progress that adds up what the bars advance."""

    def __init__(self) -> None:
        self.total = 0

    def task(self, description: str, total: int | None, unit: str = "it") -> Any:
        counting = self

        class Bar:
            def __enter__(self) -> "Bar":
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def advance(self, amount: int = 1) -> None:
                counting.total += amount

            def describe(self, text: str) -> None:
                pass

        return Bar()


#: A child process that uses a cache, as a running command does, until its stdin ends.
HOLDER = (
    "import sys; from pathlib import Path; from zoo.store import caches\n"
    "with caches.in_use(Path(sys.argv[1]), sys.argv[2]): print('held', flush=True); sys.stdin.readline()"
)
#: A pull in its own process: reads the row from stdin, prints the folder or the error as JSON.
PULL = """
import json, sys
from pathlib import Path
import msgspec
from tests.kit.pulls import Notes
from zoo.store.pull import pull
from zoo.errors import ZooError
from zoo.store.lock import Lock
from zoo.schema import Entry
from zoo.store.store import Store

def source_for(scheme):
    if scheme == "hf":
        from zoo_plugins.sources.hub import HubSource
        return HubSource()
    from zoo_plugins.sources.http import HttpSource
    HttpSource.backoff = 0.01
    return {"http": HttpSource}[scheme]()

progress, store = Notes(), Store()
entry = msgspec.json.decode(sys.stdin.buffer.read(), type=Entry)
try:
    trust_first = "--trust-first" in sys.argv
    lock = Lock.read(store.lock_path)
    folder = pull(entry, store, lock, source_for, progress=progress, trust_first=trust_first)
    result = {"folder": str(folder)}
except ZooError as error:
    result = {"error": error.code, "message": error.message, "hint": error.hint}
print(json.dumps(result | {"notes": progress.notes}))
"""


def start_pull(entry: Entry, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
    """Start a pull into this process's ZOO_HOME; `finish` returns its result."""
    child = subprocess.Popen(
        [sys.executable, "-c", PULL, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
    )
    assert child.stdin is not None
    child.stdin.write(msgspec.json.encode(entry))
    child.stdin.close()
    child.stdin = None
    return child


def finish(child: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """The JSON that a started pull printed, with its stderr under `stderr`."""
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err.decode()
    result: dict[str, Any] = json.loads(out)
    return result | {"stderr": err.decode()}
