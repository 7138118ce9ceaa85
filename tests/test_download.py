"""The verified pull: nothing wrong becomes visible, nothing right is fetched twice, whatever the servers do."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from zoo_plugins.sources.file import FileSource
from zoo_plugins.sources.http import HttpSource

from tests.pulls import Notes, finish, row, start_pull
from tests.servers import Loopback, flipped, held_back, status, whole
from zoo.download import plan, pull, verify
from zoo.errors import (
    AccessError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    OfflineError,
    PluginError,
    UnknownPluginError,
    UnpinnedError,
    UsageError,
)
from zoo.lock import Lock
from zoo.progress import Progress
from zoo.schema import Entry
from zoo.source import Announced, Source, Want
from zoo.store import Store

DATA, SMALL = bytes(range(256)) * 4000, b'{"a": 1}'


class QuickHttp(HttpSource):
    backoff = 0.01


class Sources:
    """The sources of a test by scheme; remembers which ones were asked for."""

    def __init__(self, **more: Source) -> None:
        self.table: dict[str, Source] = {"http": QuickHttp(), "file": FileSource(), **more}
        self.asked: list[str] = []

    def __call__(self, scheme: str) -> Source:
        self.asked.append(scheme)
        if scheme not in self.table:
            raise UnknownPluginError(f"no plugin gives the scheme {scheme}", plugin=scheme)
        return self.table[scheme]


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


@pytest.fixture
def store() -> Store:
    return Store()


def lock_of(store: Store) -> Lock:
    return Lock.read(store.lock_path)


def file_url(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return path.as_uri()


def assert_nothing_visible(store: Store, entry: Entry) -> None:
    assert list(store.models.rglob("*.bin")) == []
    assert store.find(entry, lock_of(store)) is None


def test_pull_makes_a_folder_of_real_files_and_then_leaves_it_alone(server: Loopback, store: Store) -> None:
    urls = [server.script("/w.bin", whole(DATA)), server.script("/c.json", whole(SMALL))]
    entry = row({"w.bin": (DATA, urls[:1]), "c.json": (SMALL, urls[1:])})
    folder = pull(entry, store, lock_of(store), Sources())
    assert (folder / "w.bin").read_bytes() == DATA
    assert (folder / "c.json").read_bytes() == SMALL
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in folder.iterdir())
    assert store.find(entry, lock_of(store)) == folder
    assert list(store.partials.iterdir()) == []
    before = {path: path.stat() for path in store.home.rglob("*")}
    sources = Sources()
    assert pull(entry, store, lock_of(store), sources) == folder
    assert sources.asked == []
    assert {path: path.stat() for path in store.home.rglob("*")} == before


@pytest.mark.parametrize("sent", [flipped(DATA), DATA[:-1], DATA + b"!"], ids=["flipped", "short", "long"])
def test_wrong_bytes_leave_nothing_and_name_both_sides(server: Loopback, store: Store, sent: bytes) -> None:
    entry = row({"w.bin": (DATA, [server.script("/w.bin", whole(sent))])})
    with pytest.raises(IntegrityError) as caught:
        pull(entry, store, lock_of(store), Sources())
    expected, actual = (entry.files[0].sha256, hashlib.sha256(sent).hexdigest())
    if len(sent) != len(DATA):
        expected, actual = str(len(DATA)), str(caught.value.actual)
        assert caught.value.actual == len(sent)
    assert str(caught.value.expected) == expected
    assert expected in caught.value.message
    assert actual in caught.value.message or "more than" in caught.value.message
    assert "registry or the server is wrong" in str(caught.value.hint)
    assert caught.value.exit_code == 5
    assert_nothing_visible(store, entry)
    assert list(store.partials.iterdir()) == []


def test_the_second_mirror_is_used_when_the_first_is_corrupt(server: Loopback, store: Store) -> None:
    bad, good = server.script("/bad", whole(flipped(DATA))), server.script("/good", whole(DATA))
    entry = row({"w.bin": (DATA, [bad, good])})
    notes = Notes()
    folder = pull(entry, store, lock_of(store), Sources(), progress=notes)
    assert (folder / "w.bin").read_bytes() == DATA
    assert server.ranges("/good") == [None]
    assert len(notes.notes) == 1
    assert bad in notes.notes[0]
    assert good in notes.notes[0]


def test_wrong_bytes_outweigh_a_later_network_error(server: Loopback, store: Store) -> None:
    bad, gone = server.script("/bad", whole(flipped(DATA))), server.script("/gone", status(404))
    with pytest.raises(IntegrityError):
        pull(row({"w.bin": (DATA, [bad, gone])}), store, lock_of(store), Sources())
    with pytest.raises(NetworkError, match="404"):
        pull(row({"w.bin": (DATA, [gone])}), store, lock_of(store), Sources())
    denied = server.script("/denied", status(403))
    with pytest.raises(AccessError, match="403"):
        pull(row({"w.bin": (DATA, [denied, gone])}), store, lock_of(store), Sources())


def test_a_failing_file_does_not_cost_its_neighbour_the_source(server: Loopback, store: Store, tmp_path: Path) -> None:
    denied, good = server.script("/denied", status(403)), server.script("/good", whole(DATA))
    local = file_url(tmp_path / "c.json", SMALL)
    entry = row({"c.json": (SMALL, [denied, local]), "w.bin": (DATA, [good])})
    folder = pull(entry, store, lock_of(store), Sources())
    assert (folder / "c.json").read_bytes() == SMALL
    assert (folder / "w.bin").read_bytes() == DATA


def test_a_missing_plugin_and_a_broken_one_count_as_failing_sources(store: Store, tmp_path: Path) -> None:
    class Broken(Source):
        scheme = "broken"

        def fetch(self, wants: object, progress: Progress) -> None:
            raise ZeroDivisionError("a bug")

    local = file_url(tmp_path / "w.bin", DATA)
    sources = Sources(broken=Broken())
    notes = Notes()
    entry = row({"w.bin": (DATA, ["unheard://of", "broken://x", local])})
    assert (pull(entry, store, lock_of(store), sources, progress=notes) / "w.bin").read_bytes() == DATA
    assert ["unheard" in notes.notes[0], "ZeroDivisionError" in notes.notes[1]] == [True, True]
    with pytest.raises(PluginError, match="unheard"):
        pull(row({"x.bin": (SMALL, ["unheard://of"])}), store, lock_of(store), sources)


def test_files_of_one_scheme_are_asked_for_together(store: Store) -> None:
    class Archive(Source):
        scheme = "archive"
        calls: list[list[str]] = []  # noqa: RUF012 - one list for the one test

        def fetch(self, wants: list[Want], progress: Progress) -> None:
            self.calls.append([want.url for want in wants])
            for want in wants:
                want.partial.write_bytes(DATA if want.url.endswith("w") else SMALL)

    entry = row({"w.bin": (DATA, ["archive://a/w"]), "c.json": (SMALL, ["archive://a/c"])})
    pull(entry, store, lock_of(store), Sources(archive=Archive()))
    assert Archive.calls == [["archive://a/w", "archive://a/c"]]


def test_a_kill_in_the_middle_is_resumed_from_the_byte_that_was_there(server: Loopback, store: Store) -> None:
    half = len(DATA) // 2
    url = server.script("/w.bin", held_back(DATA, half, etag='"v1"'), whole(DATA, etag='"v1"'))
    entry = row({"w.bin": (DATA, [url])})
    child = start_pull(entry)
    deadline = time.monotonic() + 20
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


def test_a_damaged_model_is_repaired_by_fetching_the_damaged_file_alone(server: Loopback, store: Store) -> None:
    urls = [server.script("/w.bin", whole(DATA)), server.script("/c.json", whole(SMALL))]
    entry = row({"w.bin": (DATA, urls[:1]), "c.json": (SMALL, urls[1:])})
    folder = pull(entry, store, lock_of(store), Sources())
    (folder / "c.json").write_bytes(b"damaged!")
    assert [(seen.expected.path, seen.ok) for seen in verify(entry, store, lock_of(store))] == [
        ("w.bin", True),
        ("c.json", False),
    ]
    server.requests.clear()
    notes = Notes()
    assert pull(entry, store, lock_of(store), Sources(), progress=notes) == folder
    assert [seen.path for seen in server.requests] == ["/c.json"]
    assert "has changed" in notes.notes[0]
    assert all(seen.ok for seen in verify(entry, store, lock_of(store)))


def test_verify_reports_what_it_finds_offline(store: Store, tmp_path: Path) -> None:
    entry = row({"w.bin": (DATA, [file_url(tmp_path / "w.bin", DATA)])})
    with pytest.raises(NotFoundError, match="not pulled") as caught:
        verify(entry, store, lock_of(store))
    assert caught.value.hint == "zoo pull toy_net.v1"
    folder = pull(entry, store, lock_of(store), Sources())
    assert verify(entry, store, lock_of(store))[0].actual == entry.files[0].sha256
    (folder / "w.bin").unlink()
    assert verify(entry, store, lock_of(store))[0][1:] == (False, None)


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


def test_offline_names_the_missing_files_and_loads_no_remote_plugin(store: Store, tmp_path: Path) -> None:
    local = file_url(tmp_path / "c.json", SMALL)
    files = {
        "w.bin": (DATA, ["https://example.org/w.bin", "hf://a/b@" + "0" * 40 + "/w.bin"]),
        "v.bin": (DATA, ["pypi://a==1/v.bin"]),
        "c.json": (SMALL, ["https://example.org/c.json", local]),
    }
    sources = Sources()
    started = time.monotonic()
    with pytest.raises(OfflineError, match=r"missing w\.bin, v\.bin$") as caught:
        pull(row(files), store, lock_of(store), sources, offline=True)
    assert time.monotonic() - started < 0.2
    assert caught.value.exit_code == 4
    assert set(sources.asked) == {"file"}
    only_local = row({"c.json": files["c.json"]})
    folder = pull(only_local, store, lock_of(store), sources, offline=True)
    assert (folder / "c.json").read_bytes() == SMALL
    assert pull(only_local, store, lock_of(store), Sources(), offline=True) == folder


def test_only_one_scheme_can_be_asked_for(server: Loopback, store: Store, tmp_path: Path) -> None:
    local = file_url(tmp_path / "w.bin", DATA)
    entry = row({"w.bin": (DATA, [server.script("/w.bin", whole(DATA)), local])})
    pull(entry, store, lock_of(store), Sources(), only="file")
    assert server.requests == []
    with pytest.raises(UsageError, match="hf://") as caught:
        plan(entry, store, lock_of(store), only="hf")
    assert "http, file" in str(caught.value.hint)


def test_plan_says_what_a_pull_would_do_and_does_nothing(store: Store, tmp_path: Path) -> None:
    local = file_url(tmp_path / "w.bin", DATA)
    entry = row({"w.bin": (DATA, ["https://example.org/w.bin", local])})
    [planned] = plan(entry, store, lock_of(store), only="file")
    assert planned.urls == (local,)
    assert (planned.path, planned.size, planned.sha256) == ("w.bin", len(DATA), entry.files[0].sha256)
    assert not planned.present
    assert not store.home.exists()
    pull(entry, store, lock_of(store), Sources(), only="file")
    assert plan(entry, store, lock_of(store))[0].present


def test_an_unpinned_file_needs_trust_once_and_is_recorded(server: Loopback, store: Store) -> None:
    url = server.script("/w.bin", whole(DATA))
    entry = row({"w.bin": (DATA, [url])}, is_pinned=False)
    with pytest.raises(UnpinnedError, match=r"w\.bin") as caught:
        pull(entry, store, lock_of(store), Sources())
    assert caught.value.exit_code == 5
    assert caught.value.hint == "zoo pull toy_net.v1 --trust-first"
    assert server.requests == []
    folder = pull(entry, store, lock_of(store), Sources(), trust_first=True)
    assert json.loads(store.lock_path.read_bytes()) == {
        "schema_version": 1,
        "entries": {
            "toy_net.v1": {"w.bin": {"sha256": hashlib.sha256(DATA).hexdigest(), "size": len(DATA), "source": url}}
        },
    }
    assert pull(entry, store, lock_of(store), Sources()) == folder
    # From now on the row is as good as pinned: other bytes are refused, and trust is not asked for again.
    (folder / "w.bin").unlink()
    server.script("/w.bin", whole(flipped(DATA)))
    with pytest.raises(IntegrityError, match="expected sha256"):
        pull(entry, store, lock_of(store), Sources(), trust_first=True)


@pytest.mark.parametrize("announced", [Announced(sha256="0" * 64), Announced(size=5)])
def test_trust_first_compares_with_what_the_source_announces(
    server: Loopback, store: Store, announced: Announced
) -> None:
    class Announcing(QuickHttp):
        def announced(self, url: str) -> Announced:
            return announced

    entry = row({"w.bin": (DATA, [server.script("/w.bin", whole(DATA))])}, is_pinned=False)
    with pytest.raises(IntegrityError):
        pull(entry, store, lock_of(store), Sources(http=Announcing()), trust_first=True)
    assert not store.lock_path.exists()
    assert_nothing_visible(store, entry)


def test_an_unpinned_file_never_mixes_bytes_of_two_sources(server: Loopback, store: Store) -> None:
    class Half(Source):
        scheme = "half"

        def fetch(self, wants: list[Want], progress: Progress) -> None:
            wants[0].partial.write_bytes(b"other bytes")
            raise NetworkError("half way", url=wants[0].url)

    url = server.script("/w.bin", whole(DATA))
    entry = row({"w.bin": (DATA, ["half://w", url])}, is_pinned=False)
    folder = pull(entry, store, lock_of(store), Sources(half=Half()), trust_first=True)
    assert (folder / "w.bin").read_bytes() == DATA
    assert server.ranges("/w.bin") == [None]


def test_space_is_checked_before_the_first_byte(server: Loopback, store: Store) -> None:
    entry = row({"w.bin": (DATA, [server.script("/w.bin", whole(DATA))])})
    huge = msgspec.structs.replace(entry.files[0], size=10**18)
    with pytest.raises(AccessError, match="needs 1,000,000,000,000.0 MB, has") as caught:
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
    child = subprocess.run(
        [sys.executable, "-c", script + SWEEP_PULL], input=msgspec.json.encode(entry), capture_output=True
    )
    assert child.stdout.decode().startswith("access cannot write under")
    assert_nothing_visible(store, entry)


SWEEP_PULL = """
import sys, msgspec
from zoo.download import pull
from zoo.errors import ZooError
from zoo.lock import Lock
from zoo.schema import Entry
from zoo.store import Store
from zoo_plugins.sources.file import FileSource
entry = msgspec.json.decode(sys.stdin.buffer.read(), type=Entry)
def run():
    store = Store()
    return pull(entry, store, Lock.read(store.lock_path), lambda scheme: FileSource(), trust_first=True)
if __name__ == "__main__" and not sys.argv[1:]:
    try:
        run()
    except ZooError as error:
        print(error.code, error.message)
"""

#: Forks a pull for N = 1, 2, 3, ... that kills itself at its N-th change of the file system under ZOO_HOME.
SWEEP = (
    SWEEP_PULL
    + """
import os, shutil, signal
from zoo.store import sha256_file, zoo_home
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
    assert list(store.partials.iterdir()) == [], (n, list(store.partials.iterdir()))
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
        [sys.executable, "-c", SWEEP, "sweep"],
        input=msgspec.json.encode(row(files, is_pinned=is_pinned)),
        capture_output=True,
        env=dict(os.environ),
    )
    assert child.returncode == 0, child.stderr.decode()
    assert int(child.stdout) > 20
