"""Child processes: the protocol with real children, and what they import.

No child of zoo imports Python files from the current folder.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo.errors import OfflineError, UsageError
from zoo.store.unpickle import as_safetensors
from zoo.system.process import Child, EndedError, python

PARENT = """
import os, sys, time
from zoo.errors import UsageError
from zoo.system.process import Parent
parent = Parent()
"""


def child(code: str, *, is_zoo: bool = True) -> Child:
    """A child that runs `code`, in which `parent` is defined if `is_zoo`."""
    return Child(python("-c", (PARENT if is_zoo else "import os, sys, time\n") + code))


def ended(running: Child, seconds: float | None = 60) -> EndedError:
    with pytest.raises(EndedError) as caught:
        running.receive(seconds)
    return caught.value


def test_messages_with_blobs_cross_in_both_directions() -> None:
    code = """
while (message := parent.receive()) is not None:
    print("a print is no message")
    os.system("echo nor is this")
    parent.send({**message.data, "count": len(message.blobs)}, message.blobs[::-1])
"""
    large = os.urandom(3_000_000)
    with child(code) as running:
        for blobs in ([], [b""], [b"a\nb", large, b""], [memoryview(large)[::2].tobytes(), bytearray(b"{}")]):
            data, back = running.ask({"text": "line\nfeed \u2028"}, blobs, seconds=60)
            assert data == {"text": "line\nfeed \u2028", "count": len(blobs)}
            assert back == [bytes(blob) for blob in blobs[::-1]]
        assert running.is_alive
    assert not running.is_alive


def test_values_that_are_no_objects_are_messages_too() -> None:
    with child("while True: parent.send(parent.receive().data)") as running:
        for value in (None, 1, "text", [1, {"code": 2}], {"code": "usage", "message": "no hint, no error"}):
            assert running.ask(value, seconds=60).data == value


def test_an_error_is_raised_in_the_parent_and_the_child_goes_on() -> None:
    code = """
parent.receive()
parent.fail(UsageError("two files", hint="give one"))
parent.send({"code": "offline", "message": "no network", "hint": None})
parent.send("still here")
"""
    with child(code) as running:
        with pytest.raises(UsageError, match="two files") as caught:
            running.ask("a request", seconds=60)
        assert caught.value.hint == "give one"
        with pytest.raises(OfflineError, match="no network"):
            running.receive(60)
        assert running.receive(60).data == "still here"


def test_a_child_that_exits() -> None:
    with child("parent.send(1); sys.exit(3)") as running:
        # Messages sent before the exit are not lost.
        assert running.receive(60).data == 1
        for _ in range(2):
            error = ended(running)
            assert (str(error), error.code) == ("ended the process with exit code 3", 3)
        running.send("nobody reads this")


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("number", "name"), [(signal.SIGSEGV, "SIGSEGV"), (35, "signal 35")])
def test_a_child_that_crashes(number: int, name: str) -> None:
    with child(f"os.kill(os.getpid(), {int(number)}); time.sleep(60)") as running:
        error = ended(running)
    assert (str(error), error.code) == (f"crashed the process ({name})", -number)


def test_a_child_that_hangs() -> None:
    start = time.monotonic()
    with child("time.sleep(600)") as running:
        error = ended(running, 0.2)
        assert (str(error), error.code) == ("took more than 0.2 s", None)
        with pytest.raises(EndedError, match="took more than 5 s"):
            running.receive(0.1, limit=5)
        assert running.is_alive
    assert not running.is_alive
    assert time.monotonic() - start < 300
    running.close()


@pytest.mark.parametrize(
    "line",
    [
        *(b"hello\n", b"\xff\xfe\n", b"\n", b'{"blobs": 3}\n', b'{"blobs": ["a"]}\n', b'{"blobs": [-1]}\n'),
        *(b'{"blobs": {"a": 1}}\n', b"[" * 100_000 + b"\n"),
        # Lengths that exceed the memory and the largest allowed length.
        *(b'{"blobs": [1000000000000000]}\n', b'{"blobs": [99999999999999999999999]}\n'),
    ],
    ids=repr,
)
def test_a_child_that_talks_nonsense_is_killed(line: bytes) -> None:
    code = f"sys.stdout.buffer.write({line[:50]!r} if {len(line)} < 100 else b'[' * 100000 + bytes([10]))"
    with child(f"{code}; sys.stdout.flush(); time.sleep(600)", is_zoo=False) as running:
        assert ended(running).code == -signal.SIGKILL


@pytest.mark.parametrize("cut", ["b'{\"half\": '", "b'{\"blobs\": [4]}' + bytes([10]) + b'abc'"], ids=["line", "blob"])
def test_a_child_that_ends_inside_a_message(cut: str) -> None:
    with child(f"sys.stdout.buffer.write({cut})", is_zoo=False) as running:
        assert ended(running).code == 0


@pytest.mark.parametrize(
    "code", ["sys.exit(4)", "parent.receive(); sys.exit(4)", "sys.stdin.buffer.read(9); os._exit(4)"]
)
def test_a_child_that_dies_while_a_large_message_is_sent(code: str) -> None:
    with child(code) as running:
        running.send({}, [b"x" * 20_000_000])
        assert ended(running).code == 4


def test_a_parent_that_closes_ends_the_messages() -> None:
    with child("assert parent.receive() is None; sys.exit(5)") as running:
        assert running.process.stdin is not None
        running.process.stdin.close()
        assert ended(running).code == 5


def test_a_child_that_is_closed_before_a_message_is_sent() -> None:
    running = child("parent.receive()")
    running.close()
    running.send({}, [b"nobody reads this"])
    assert ended(running).code == -signal.SIGKILL
    with pytest.raises(TypeError):
        running.send(object())


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Child([str(tmp_path / "absent")])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_grandchildren_are_killed_with_the_child() -> None:
    code = """
import subprocess
parent.send(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)
time.sleep(600)
"""
    with child(code) as running:
        grandchild = running.receive(60).data
        assert is_running(grandchild)
    wait_for(lambda: not is_running(grandchild))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that modules in the current folder write when they are imported."""
    path, here = tmp_path / "marker", tmp_path / "here"
    here.mkdir()
    code = f"import pathlib; pathlib.Path({str(path)!r}).touch(); raise SystemExit('not a package')\n"
    for name in ("torch", "json", "importlib", "numpy", "re", "zoo"):
        (here / f"{name}.py").write_text(code)
    monkeypatch.chdir(here)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["run", "tiny-bert", "a text", "--device", "cpu"], ["plugins", "check", "bert", "--row", "tiny-bert"]],
    ids=lambda arguments: arguments[0],
)
def test_the_commands_children(marker: Path, shelf_file: Path, arguments: list[str]) -> None:
    """Children that build, check a family and import its module; a last one shows that the marker can be written."""
    # The installed command, because `python -m zoo_cli` itself imports from the current folder.
    command = str(Path(sys.executable).with_name("zoo"))
    environment = {**os.environ, "ZOO_REGISTRY": str(shelf_file)}
    done = subprocess.run(
        [command, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert not marker.exists(), done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    subprocess.run([sys.executable, "-m", "json"], capture_output=True, check=False)
    assert marker.exists()


def test_the_child_that_opens_pickles(marker: Path, tmp_path: Path) -> None:
    import torch

    torch.save({"weight": torch.ones(2)}, tmp_path / "net.pth")
    assert as_safetensors(tmp_path / "net.pth").is_file()
    assert not marker.exists()
