"""Standard streams: slow pipes, readers that close, closed streams, and encodings that lack characters."""

import itertools
import json
import os
import pty
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.cli import zoo
from tests.kit.outputs import rows, some_texts
from zoo import DataError, Zoo
from zoo.data.inputs import SOON, Input, Inputs, arriving
from zoo.runtime.pipeline import WINDOW

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="closes streams with a shell")


def shell(redirect: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the real command with a shell's redirection."""
    command = f"exec {shlex.join([sys.executable, '-m', 'zoo_cli', *arguments])} {redirect}"
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=300)


def test_closed_streams(kept_shelf: Path) -> None:
    done = shell("<&-", "run", "tiny-bert", "-")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: stdin is closed" in done.stderr
    for more in ([], ["--json"]):
        done = shell(">&-", "run", "tiny-bert", "my card", *more)
        assert done.returncode == 8
        assert "error: stdout is closed" in done.stderr
        assert "Traceback" not in done.stderr
    done = shell("2>&-", "run", "tiny-bert", "my card")
    assert (done.returncode, done.stdout[:8]) == (0, "my card\t")


def test_an_error_that_nobody_reads_keeps_its_code(kept_shelf: Path) -> None:
    for arguments, code in ((["run", "nosuch", "x"], 3), (["run", "tiny-bert", "gone.txt"], 3), (["run", "--no"], 2)):
        assert shell("2>&-", *arguments).returncode == code
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "zoo_cli", *arguments]
        child = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=write, check=False)
        os.close(write)
        assert child.returncode == code


@pytest.mark.parametrize("code", ["cp1252", "ascii"])
def test_letters_that_the_terminal_lacks(kept_shelf: Path, code: str) -> None:
    done = zoo("run", "tiny-bert", "śnieg 🚚", PYTHONIOENCODING=code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("\\u015bnieg \\U0001f69a\t")
    done = zoo("run", "tiny-bert", "śnieg 🚚", "--json", PYTHONIOENCODING=code)
    assert json.loads(done.stdout)["run"]["results"][0]["input"] == "śnieg 🚚"


def test_what_comes_slowly_is_answered_as_it_comes(kept_shelf: Path, tuned_bundles: Path) -> None:
    command = [sys.executable, "-m", "zoo_cli", "run", str(tuned_bundles / "tickets"), "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for text in ("late parcel", "my card", "price of the box"):
            child.stdin.write(f"{text}\n")
            child.stdin.flush()
            # The pipe stays open, so that reading to its end would never return.
            assert child.stdout.readline().startswith(f"{text}\t")
        child.stdin.close()
    assert child.returncode == 0


def test_inputs_come_in_parts_and_with_their_error() -> None:
    def broken() -> Iterator[Input]:
        for number in range(5):
            yield Input(str(number), number)
        raise DataError("it broke off")

    parts: list[list[Input]] = []
    with pytest.raises(DataError, match="it broke off"):
        parts.extend(arriving(broken(), 2))
    assert max(map(len, parts)) <= 2
    assert [each.item for part in parts for each in part] == list(range(5))


def test_a_reader_that_goes_away_is_no_error(kept_shelf: Path, tuned_bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n".join(some_texts(3 * WINDOW)) + "\n")
    command = [sys.executable, "-m", "zoo_cli", "run", str(tuned_bundles / "tickets"), str(tmp_path / "t.txt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline().startswith("t.txt:1\t")
        child.stdout.close()
        said = child.stderr.read()
    assert child.returncode == 0, said
    assert "rror" not in said


def test_a_bar_on_the_terminal_leaves_the_pipe_alone(kept_shelf: Path, tuned_bundles: Path, tmp_path: Path) -> None:
    """Answers go to stdout, one line each, also while a bar is drawn on stderr."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "zoo_cli", "run", str(tuned_bundles / "tickets"), "my\tcard\nis", "🚚 late"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower) as child:
        os.close(follower)
        assert child.stdout is not None
        lines = child.stdout.read().decode().splitlines()
        drawn = b""
        while True:
            try:
                drawn += os.read(leader, 65536)
            except OSError:
                # The other end of the terminal is closed.
                break
    os.close(leader)
    assert child.returncode == 0, drawn
    assert [line.split("\t")[0] for line in lines] == ["my\\tcard\\nis", "🚚 late"]
    assert "it/s" in drawn.decode()
    assert "late" not in drawn.decode()


def test_a_steady_pipe_is_answered_too() -> None:
    """A pipe without pauses is answered part by part, too."""

    def steady() -> Iterator[Input]:
        for number in itertools.count():
            time.sleep(SOON / 5)
            yield Input(str(number), number)

    parts = arriving(steady(), 4096)
    assert 1 <= len(next(parts)) < 100
    parts.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name == "zoo-stdin":
            thread.join(5)
            assert not thread.is_alive()


def test_an_error_of_a_later_part_has_its_index(kept_shelf: Path, tuned_bundles: Path) -> None:
    class Piped(Inputs):
        is_piped = True

        def __iter__(self) -> Iterator[Input]:
            for number in range(WINDOW + 3):
                yield Input(str(number), " " if number == WINDOW + 1 else "card")

    bundle = Zoo().open(str(tuned_bundles / "tickets"))
    answers = Zoo().session(str(bundle.path), "cpu").answers(Piped([], bundle.manifest.preprocess))
    with pytest.raises(DataError) as caught:
        list(answers)
    assert caught.value.index == WINDOW + 1


def test_a_reader_of_the_bar_that_goes_away_stops_nothing(
    kept_shelf: Path, tuned_bundles: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.csv"
    command = [sys.executable, "-m", "zoo_cli", "run", str(tuned_bundles / "tickets"), "my card", "-o", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        child.stderr.close()
    assert child.returncode == 0
    assert len(rows(out)) == 1
