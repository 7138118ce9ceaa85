"""A pull shows no wrong file and fetches no right file twice, whatever the servers do."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.pulls import (
    DATA,
    SMALL,
    Notes,
    QuickHttp,
    Sources,
    assert_nothing_visible,
    file_url,
    lock_of,
    row,
)
from tests.kit.servers import Loopback, flipped, status, whole
from zoo.errors import (
    AccessError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    OfflineError,
    PluginError,
    UnpinnedError,
    UsageError,
)
from zoo.progress import Progress
from zoo.source import Announced, Source, Want
from zoo.store.pull import plan, pull, verify
from zoo.store.store import Store


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


@pytest.fixture
def store() -> Store:
    return Store()


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


def test_what_verify_found_damaged_is_mended_by_a_pull(server: Loopback, store: Store) -> None:
    """The damaged file has the size and mtime of the good one, so that only its bytes differ."""
    entry = row({"w.bin": (DATA, [server.script("/w.bin", whole(DATA))])})
    path = pull(entry, store, lock_of(store), Sources()) / "w.bin"
    status = path.stat()
    path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [seen.ok for seen in verify(entry, store, lock_of(store))] == [False]
    pull(entry, store, lock_of(store), Sources())
    assert path.read_bytes() == DATA


def test_verify_reports_what_it_finds_offline(store: Store, tmp_path: Path) -> None:
    entry = row({"w.bin": (DATA, [file_url(tmp_path / "w.bin", DATA)])})
    with pytest.raises(NotFoundError, match="not pulled") as caught:
        verify(entry, store, lock_of(store))
    assert caught.value.hint == "zoo pull toy_net.v1"
    folder = pull(entry, store, lock_of(store), Sources())
    assert verify(entry, store, lock_of(store))[0].actual == entry.files[0].sha256
    (folder / "w.bin").unlink()
    assert verify(entry, store, lock_of(store))[0][1:] == (False, None)


def test_offline_names_the_missing_files_and_loads_no_remote_plugin(store: Store, tmp_path: Path) -> None:
    local = file_url(tmp_path / "c.json", SMALL)
    files = {
        "w.bin": (DATA, ["https://example.org/w.bin", "hf://a/b@" + "0" * 40 + "/w.bin"]),
        "v.bin": (DATA, ["pypi://a==1/v.bin"]),
        "c.json": (SMALL, ["https://example.org/c.json", local]),
    }
    sources = Sources()
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        with pytest.raises(OfflineError, match=r"missing w\.bin, v\.bin$") as caught:
            pull(row(files), store, lock_of(store), sources, offline=True)
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 0.2
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
    # Now the row is pinned: other bytes are refused, and --trust-first is not needed again.
    (folder / "w.bin").unlink()
    server.script("/w.bin", whole(flipped(DATA)))
    with pytest.raises(IntegrityError, match="expected sha256"):
        pull(entry, store, lock_of(store), Sources(), trust_first=True)


def test_an_unpinned_file_is_never_empty(server: Loopback, store: Store) -> None:
    entry = row({"w.bin": (DATA, [server.script("/w.bin", whole(b""))])}, is_pinned=False)
    with pytest.raises(IntegrityError, match="sent 0 bytes instead of at least one"):
        pull(entry, store, lock_of(store), Sources(), trust_first=True)
    assert_nothing_visible(store, entry)


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
