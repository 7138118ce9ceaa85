"""Standard streams that are closed, that nobody reads, or of a code that lacks letters: never an unexpected error."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_cli import zoo

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="closes streams with a shell")


def shell(redirect: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The real command behind a shell's redirection."""
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
    for arguments, code in ((["run", "nosuch", "x"], 3), (["run", "tiny-bert", "gone.txt"], 2), (["run", "--no"], 2)):
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
