"""The store: when files become visible, and how readers handle a changed folder."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.kit.pulls import names, row
from zoo import Zoo
from zoo.errors import AccessError, IntegrityError
from zoo.schema import Entry
from zoo.store.lock import Lock, LockedFile
from zoo.store.store import MANIFEST, PARTIAL_DATA, Store, pinned_files, write_manifest, zoo_home
from zoo.system.files import sha256_file, staged_dir, storage_errors, write_atomic

WEIGHTS, CONFIG = b"weights" * 1000, b"{}"
ENTRY = row({"w.bin": (WEIGHTS, ["file:///w.bin"]), "config.json": (CONFIG, ["file:///config.json"])})
NO_LOCK = Lock(Path("none"), {})


def put(store: Store, entry: Entry = ENTRY) -> Path:
    """Put the row's files into the store, as a pull does."""
    digests = pinned_files(entry)
    assert digests is not None
    folder = store.model_dir(entry, digests)
    with staged_dir(folder) as stage:
        (stage / "w.bin").write_bytes(WEIGHTS)
        (stage / "config.json").write_bytes(CONFIG)
        write_manifest(stage, entry, digests)
    return folder


def test_home_is_the_variable_or_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "a b"))
    assert zoo_home() == Store().home == tmp_path / "a b"
    monkeypatch.setenv("ZOO_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert zoo_home().name == "backbone-zoo"


def test_paths_may_be_strings(tmp_path: Path, toy_row: Path) -> None:
    house = Zoo(home=str(tmp_path / "home"), registry=str(toy_row))
    assert house.store.home == tmp_path / "home"
    assert list(house.registry) == ["toy"]


def test_write_atomic_replaces_whole_and_syncs_before_it_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "file"
    write_atomic(path, b"old")
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _real=real, _name=name: (calls.append(_name), _real(*a))[1])
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert calls == ["fsync", "replace", "fsync"]
    assert names(path.parent) == ["file"]


def test_write_atomic_leaves_the_old_bytes_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_atomic(target, b"new")
    assert names(tmp_path) == ["folder"]


def test_staged_dir_appears_whole_and_replaces_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("first", "second"):
        with staged_dir(target) as stage:
            (stage / "sub").mkdir()
            (stage / "sub" / content).write_text(content)
            assert not (target / "sub" / content).exists()
        assert names(target / "sub") == [content]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_staged_dir_leaves_no_trace_of_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()

    def write() -> None:
        with staged_dir(target) as stage:
            (stage / "new").touch()
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == ["model"]
    assert names(target) == ["old"]


def test_staged_dir_restores_the_old_folder_when_the_new_one_cannot_be_renamed(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()

    def write() -> None:
        with staged_dir(target) as stage:
            stage.rmdir()
            stage.symlink_to(tmp_path / "nowhere")
            stage.unlink()

    with pytest.raises(FileNotFoundError):
        write()
    assert names(tmp_path) == ["model"]
    assert names(target) == ["old"]


def test_staged_dir_refuses_to_replace_a_file_and_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError), staged_dir(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with staged_dir(tmp_path / "link") as stage:
        (stage / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == ["new"]


def test_staged_dir_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    script = "import os, sys; from pathlib import Path; from zoo.system.files import staged_dir\n"
    script += "with staged_dir(Path(sys.argv[1])) as s:\n (s / 'half').touch(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "model")], check=False)
    assert len(names(tmp_path)) == 1
    with staged_dir(tmp_path / "model"):
        pass
    assert names(tmp_path) == ["model"]


def test_find_gives_the_complete_folder_and_only_that(zoo_home: Path) -> None:
    store = Store()
    assert store.find(ENTRY, NO_LOCK) is None
    assert not store.is_pulled(ENTRY, NO_LOCK)
    folder = put(store)
    assert folder.parent == zoo_home / "models" / ENTRY.name
    assert store.find(ENTRY, NO_LOCK) == folder
    assert store.is_pulled(ENTRY, NO_LOCK)
    other = msgspec.structs.replace(ENTRY.files[0], sha256="0" * 64)
    assert store.find(msgspec.structs.replace(ENTRY, files=(other, ENTRY.files[1])), NO_LOCK) is None
    (folder / "config.json").unlink()
    assert store.find(ENTRY, NO_LOCK) is None
    assert not store.is_pulled(ENTRY, NO_LOCK)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]", b'{"schema_version":2,"entry":"toy_net.v1","files":[]}'])
def test_a_folder_without_a_readable_manifest_is_not_pulled(content: bytes) -> None:
    store = Store()
    (put(store) / MANIFEST).write_bytes(content)
    assert store.find(ENTRY, NO_LOCK) is None


def test_changed_bytes_are_noticed_and_an_untouched_file_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    path = put(store) / "w.bin"
    hashed: list[Path] = []
    monkeypatch.setattr("zoo.store.store.sha256_file", lambda p: (hashed.append(p), sha256_file(p))[1])
    store.find(ENTRY, NO_LOCK)
    assert hashed == []
    os.utime(path, ns=(1, 1))
    assert store.find(ENTRY, NO_LOCK) == path.parent
    assert hashed == [path]
    # The new mtime is recorded, so that the next check is cheap again.
    store.find(ENTRY, NO_LOCK)
    assert hashed == [path]
    path.write_bytes(WEIGHTS[:-1] + b"!")
    with pytest.raises(IntegrityError, match="has changed") as caught:
        store.find(ENTRY, NO_LOCK)
    assert caught.value.hint == "zoo pull toy_net.v1"
    assert caught.value.expected == ENTRY.files[0].sha256


def test_a_file_replaced_by_a_link_is_refused(tmp_path: Path) -> None:
    store = Store()
    path = put(store) / "w.bin"
    (tmp_path / "elsewhere").write_bytes(WEIGHTS)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="link"):
        store.find(ENTRY, NO_LOCK)
    assert not store.is_pulled(ENTRY, NO_LOCK)


def test_copies_lists_files_of_every_pulled_version() -> None:
    store = Store()
    folder = put(store)
    assert store.copies(ENTRY) == {file.sha256: folder / file.path for file in ENTRY.files}


def test_a_partial_is_handed_on_and_an_empty_one_is_removed() -> None:
    store = Store()
    with store.claim_partial("k") as mine:
        (mine / PARTIAL_DATA).write_bytes(b"half")
    assert names(store.partials) == ["k"]
    with store.claim_partial("k") as mine:
        assert (mine / PARTIAL_DATA).read_bytes() == b"half"
        (mine / PARTIAL_DATA).unlink()
    assert names(store.partials) == []


def test_a_partial_in_use_is_left_alone() -> None:
    store = Store()
    with store.claim_partial("k") as first:
        (first / PARTIAL_DATA).write_bytes(b"first")
        with store.claim_partial("k") as second:
            assert names(second) == []
            (second / PARTIAL_DATA).write_bytes(b"second")
        assert (first / PARTIAL_DATA).read_bytes() == b"first"
    assert len(names(store.partials)) == 1


def test_partials_of_the_dead_are_taken_over_the_longest_first_and_the_rest_removed() -> None:
    store = Store()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with store.claim_partial("k") as mine:
        host = mine.name.removeprefix("k.").partition("-")[0]
    for length in (3, 9, 6):
        folder = store.partials / f"k.{host}-{gone.pid}-{secrets.token_hex(4)}"
        folder.mkdir()
        (folder / PARTIAL_DATA).write_bytes(b"x" * length)
    with store.claim_partial("k") as mine:
        assert (mine / PARTIAL_DATA).stat().st_size == 9
        assert names(store.partials) == [mine.name]


def test_a_partial_of_another_machine_is_taken_over_only_when_old() -> None:
    store = Store()
    theirs = store.partials / "k.othermachine-1-0123abcd"
    theirs.mkdir(parents=True)
    (theirs / PARTIAL_DATA).write_bytes(b"theirs")
    with store.claim_partial("k") as mine:
        assert names(mine) == []
    for path in (theirs / PARTIAL_DATA, theirs):
        os.utime(path, (1, 1))
    with store.claim_partial("k") as mine:
        assert (mine / PARTIAL_DATA).read_bytes() == b"theirs"


@pytest.fixture
def read_only_home() -> Iterator[Path]:
    """A home with ENTRY that this process, even as root, may read but not write."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    home = base / "home"
    put(Store(home))
    for folder in (home, *(path for path in home.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    yield home
    if is_root:
        os.seteuid(0)
    for folder in (home, *(path for path in home.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    shutil.rmtree(base)


def test_a_read_only_home_can_be_read_and_writing_says_what_to_do(read_only_home: Path) -> None:
    store = Store(read_only_home)
    folder = store.find(ENTRY, NO_LOCK)
    assert folder is not None
    assert (folder / "w.bin").read_bytes() == WEIGHTS
    with pytest.raises(AccessError, match="Permission denied") as caught, storage_errors(store.home):
        write_atomic(store.lock_path, b"{}")
    assert caught.value.exit_code == 8
    assert "ZOO_HOME" in str(caught.value.hint)


def test_lock_fills_unpinned_files_and_never_overrules_the_registry(tmp_path: Path) -> None:
    url = "https://example.org/w.bin"
    unpinned = row({"w.bin": (WEIGHTS, [url])}, is_pinned=False)
    pinned = row({"w.bin": (WEIGHTS, [url])})
    lock = Lock.read(tmp_path / "zoo.lock")
    assert lock.effective(unpinned) == unpinned
    other = LockedFile(sha256="1" * 64, size=5, source=url)
    lock.record(unpinned.name, {"w.bin": other})
    again = Lock.read(tmp_path / "zoo.lock")
    assert again.effective(unpinned).files[0].sha256 == "1" * 64
    assert again.effective(unpinned).files[0].size == 5
    assert again.effective(pinned) == pinned
    moved = row({"w.bin": (WEIGHTS, ["https://example.org/v2/w.bin"])}, is_pinned=False)
    assert again.effective(moved) == moved


def test_two_locks_on_one_file_keep_both_records(tmp_path: Path) -> None:
    path, file = tmp_path / "zoo.lock", LockedFile(sha256="1" * 64, size=5, source="https://example.org/a")
    first, second = Lock.read(path), Lock.read(path)
    first.record("a", {"f": file})
    second.record("b", {"f": file})
    assert set(Lock.read(path).entries) == {"a", "b"}
    assert msgspec.json.decode(path.read_bytes())["schema_version"] == 1


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"schema_version":1}', b'{"schema_version":1,"entries":{"a":{"f":{"sha256":"x"}}}}']
)
def test_a_damaged_lock_is_an_error_with_a_way_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "zoo.lock").write_bytes(content)
    with pytest.raises(IntegrityError, match="damaged") as caught:
        Lock.read(tmp_path / "zoo.lock")
    assert "--trust-first" in str(caught.value.hint)


def test_a_lock_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zoo.lock").write_bytes(b'{"schema_version":9,"entries":{}}')
    with pytest.raises(IntegrityError, match="schema 9") as caught:
        Lock.read(tmp_path / "zoo.lock")
    assert caught.value.hint == "upgrade backbone-zoo"
