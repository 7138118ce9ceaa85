"""Pulls that are killed or interrupted, run at once, or have a full disk: the same command finishes the work."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.kit.pulls import DATA, SMALL, Sources, assert_nothing_visible, file_url, finish, lock_of, row, start_pull
from tests.kit.servers import Loopback, held_back, whole
from zoo.errors import (
    AccessError,
)
from zoo.progress import Progress
from zoo.source import Source, Want
from zoo.store.pull import pull, verify
from zoo.store.store import Store


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


@pytest.fixture
def store() -> Store:
    return Store()


def test_a_kill_in_the_middle_is_resumed_from_the_byte_that_was_there(server: Loopback, store: Store) -> None:
    half = len(DATA) // 2
    url = server.script("/w.bin", held_back(DATA, half, etag='"v1"'), whole(DATA, etag='"v1"'))
    entry = row({"w.bin": (DATA, [url])})
    child = start_pull(entry)
    deadline = time.monotonic() + 60
    while sum(path.stat().st_size for path in store.partials.glob("*/data")) < half:
        assert time.monotonic() < deadline, "the child never got there"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert_nothing_visible(store, entry)
    folder = pull(entry, store, lock_of(store), Sources())
    assert (folder / "w.bin").read_bytes() == DATA
    assert server.ranges("/w.bin") == [None, f"bytes={half}-"]
    assert server.requests[-1].headers["If-Range"] == '"v1"'
    assert list(store.partials.iterdir()) == []


def test_ctrl_c_keeps_the_partial_and_shows_nothing(server: Loopback, store: Store) -> None:
    class Interrupted(Source):
        scheme = "http"

        def fetch(self, wants: list[Want], progress: Progress) -> None:
            wants[0].partial.write_bytes(DATA[:1000])
            raise KeyboardInterrupt

    entry = row({"w.bin": (DATA, [server.script("/w.bin", whole(DATA))])})
    with pytest.raises(KeyboardInterrupt):
        pull(entry, store, lock_of(store), Sources(http=Interrupted()))
    assert_nothing_visible(store, entry)
    pull(entry, store, lock_of(store), Sources())
    assert server.ranges("/w.bin") == ["bytes=1000-"]


def test_a_partial_that_went_bad_is_fetched_again_from_the_same_source(server: Loopback, store: Store) -> None:
    entry = row({"w.bin": (DATA, [server.script("/w.bin", whole(DATA))])})
    with store.claim_partial(str(entry.files[0].sha256)) as mine:
        (mine / "data").write_bytes(b"x" * 1000)
    assert (pull(entry, store, lock_of(store), Sources()) / "w.bin").read_bytes() == DATA
    assert server.ranges("/w.bin") == ["bytes=1000-", None]


def test_a_whole_partial_needs_no_request(server: Loopback, store: Store) -> None:
    entry = row({"w.bin": (DATA, [server.script("/w.bin", whole(DATA))])})
    with store.claim_partial(str(entry.files[0].sha256)) as mine:
        (mine / "data").write_bytes(DATA)
    assert (pull(entry, store, lock_of(store), Sources()) / "w.bin").read_bytes() == DATA
    assert server.requests == []


def test_two_processes_at_once_both_succeed(server: Loopback, store: Store) -> None:
    entry = row({"w.bin": (DATA, [server.script("/w.bin", held_back(DATA, 1000), whole(DATA))])})
    children = [start_pull(entry) for _ in range(3)]
    time.sleep(0.5)
    server.gate.set()
    results = [finish(child) for child in children]
    assert len({result["folder"] for result in results}) == 1
    assert all(seen.ok for seen in verify(entry, store, lock_of(store)))
    assert [path.name for path in (store.models / entry.name).iterdir()] == [Path(results[0]["folder"]).name]
    assert list(store.partials.iterdir()) == []


def test_space_is_checked_before_the_first_byte(server: Loopback, store: Store) -> None:
    entry = row({"w.bin": (DATA, [server.script("/w.bin", whole(DATA))])})
    huge = msgspec.structs.replace(entry.files[0], size=10**18)
    with pytest.raises(AccessError, match=r"needs 1,000,000,000,000\.0 MB, has") as caught:
        pull(msgspec.structs.replace(entry, files=(huge,)), store, lock_of(store), Sources())
    assert "ZOO_HOME" in str(caught.value.hint)
    assert server.requests == []


def test_a_home_that_cannot_be_made_is_an_access_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "home")
    entry = row({"w.bin": (DATA, [file_url(tmp_path / "w.bin", DATA)])})
    with pytest.raises(AccessError, match="cannot write under") as caught:
        pull(entry, store, lock_of(store), Sources())
    assert caught.value.exit_code == 8
    assert "ZOO_HOME" in str(caught.value.hint)


def test_a_disk_that_fills_up_is_an_access_error_and_loses_nothing(tmp_path: Path, store: Store) -> None:
    entry = row({"w.bin": (DATA, [file_url(tmp_path / "w.bin", DATA)])})
    script = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    script += PULL_HERE + OR_THE_ERROR
    child = subprocess.run([sys.executable, "-c", script], input=msgspec.json.encode(entry), capture_output=True)
    assert child.stdout.decode().startswith("access cannot write under"), child.stderr.decode()
    assert [path.stat().st_size for path in store.partials.glob("*/data")] == [100_000]
    assert_nothing_visible(store, entry)


PULL_HERE = """
import sys, msgspec
from zoo.store.pull import pull
from zoo.errors import ZooError
from zoo.store.lock import Lock
from zoo.schema import Entry
from zoo.store.store import Store
from zoo_plugins.sources.file import FileSource
entry = msgspec.json.decode(sys.stdin.buffer.read(), type=Entry)
def run():
    store = Store()
    return pull(entry, store, Lock.read(store.lock_path), lambda scheme: FileSource(), trust_first=True)
"""
OR_THE_ERROR = """
try:
    run()
except ZooError as error:
    print(error.code, error.message)
"""

#: Forks a pull for N = 1, 2, 3, ... that kills itself at its N-th change of the file system under ZOO_HOME.
SWEEP = (
    PULL_HERE
    + """
import os, shutil, signal
from zoo.system.files import sha256_file
from zoo.store.store import zoo_home
CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "shutil.move"}
def die_at(n):
    left = [n]
    def hook(event, args):
        if event in CHANGES and str(args[0]).startswith(str(zoo_home())):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
n, killed = 0, True
while killed:
    n += 1
    shutil.rmtree(zoo_home(), ignore_errors=True)
    child = os.fork()
    if child == 0:
        die_at(n)
        run()
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    store = Store()
    lock = Lock.read(store.lock_path)
    visible = store.find(entry, lock)
    again = run()
    assert visible in (None, again), (n, visible)
    for file in Lock.read(store.lock_path).effective(entry).files:
        assert sha256_file(again / file.path) == file.sha256, n
    assert list(store.partials.glob("*/data")) == [], (n, list(store.partials.rglob("*")))
    assert [p for p in store.models.rglob(".*")] == [], (n, list(store.models.rglob(".*")))
print(n - 1)
"""
)


@pytest.mark.parametrize("is_pinned", [True, False], ids=["pinned", "trust-first"])
def test_a_kill_at_any_change_on_disk_leaves_a_state_that_the_same_pull_finishes(
    tmp_path: Path, is_pinned: bool
) -> None:
    files = {
        "w.bin": (DATA, [file_url(tmp_path / "w.bin", DATA)]),
        "c.json": (SMALL, [file_url(tmp_path / "c.json", SMALL)]),
    }
    child = subprocess.run(
        [sys.executable, "-c", SWEEP],
        input=msgspec.json.encode(row(files, is_pinned=is_pinned)),
        capture_output=True,
        env=dict(os.environ),
    )
    assert child.returncode == 0, child.stderr.decode()
    assert int(child.stdout) > 20
