"""No network traffic: all connections of a whole chain are traced, and telemetry is off before it could start."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.items import write_texts

#: Libraries with telemetry, and the variable that each reads when it is first imported.
SWITCHES = {"onnxruntime": "ORT_DISABLE_TELEMETRY", "huggingface_hub": "HF_HUB_DISABLE_TELEMETRY"}
INTERNET = re.compile(r"AF_INET6?\b")
#: Seconds to wait for a connection that must not come.
PATIENCE = 15
WITNESS = """
import json, os, sys

class Witness:
    # Asked before any other finder for every module, in this process and in those it starts.
    def find_spec(self, name, path=None, target=None):
        if name in {switches!r}:
            with open({log!r}, "a") as file:
                file.write(json.dumps([name, os.environ.get({switches!r}[name])]) + "\\n")
        return None

sys.meta_path.insert(0, Witness())
"""


def trace_problem() -> str | None:
    """Why system calls cannot be traced here, None when they can."""
    if shutil.which("strace") is None:
        return "strace is not installed: apt-get install strace"
    done = subprocess.run(["strace", "-f", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else f"strace may not trace here: {lines[-1] if lines else done.returncode}"


@pytest.fixture(scope="module")
def strace() -> str:
    """The path of strace; the test is skipped with the reason if tracing is not possible."""
    problem = trace_problem()
    if problem is not None:
        pytest.skip(problem)
    return "strace"


def connections(strace: str, command: list[str], log: Path, **environment: str) -> list[str]:
    """Every connect and sendto to an internet address by `command` and its child processes."""
    done = subprocess.run(
        [strace, "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(log), *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in log.read_text().splitlines() if INTERNET.search(line)]


def zoo(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "zoo_cli", *map(str, arguments)]


def test_the_trace_sees_a_connection_of_a_child_process(strace: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        script = f"import socket; socket.create_connection({address!r}).close()"
        command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}])"]
        found = connections(strace, command, tmp_path / "log")
    assert len(found) == 1
    assert f"htons({address[1]})" in found[0]


@pytest.mark.slow
def test_no_connection_in_a_whole_chain(strace: str, shelf: Path, zoo_home: Path, tmp_path: Path) -> None:
    """With local files and an empty home: pull, export in a child process, finetune, evaluate, run, list."""
    table, out = write_texts(tmp_path / "small.csv"), tmp_path / "out"
    shutil.rmtree(zoo_home)
    for number, arguments in enumerate(
        (
            ("finetune", "tiny-bert", table, "-o", out, "--epochs", 3),
            ("evaluate", out, table, "--held-out"),
            ("export", out, "-o", tmp_path / "exported"),
            ("run", tmp_path / "exported", "my card was charged"),
            ("list",),
            ("plugins",),
        )
    ):
        # As on a user's machine: no offline variable of zoo or of a library is set.
        said = dict.fromkeys([*SWITCHES.values(), "HF_HUB_OFFLINE", "DO_NOT_TRACK"], "")
        assert connections(strace, zoo(*arguments), tmp_path / f"{number}.log", **said) == []
    assert (zoo_home / "graphs").is_dir()


@pytest.mark.slow
def test_no_connection_of_a_session_that_stays(strace: str, shelf: Path, zoo_home: Path, tmp_path: Path) -> None:
    """Official builds report about nine seconds after the import, which a short command would not show."""
    (bundle,) = (zoo_home / "graphs").glob("tiny-bert-????????????????")
    script = f"import time; from zoo import Zoo; Zoo().run({str(bundle)!r}, ['card']); time.sleep({PATIENCE})"
    said = dict.fromkeys(SWITCHES.values(), "")
    assert connections(strace, [sys.executable, "-c", script], tmp_path / "log", **said) == []


def witnessed(tmp_path: Path, command: list[str], **environment: str) -> set[tuple[str, str | None]]:
    """Each library and its switch at its first import, in `command` and its child processes."""
    folder, log = tmp_path / "witness", tmp_path / "witness.log"
    folder.mkdir(exist_ok=True)
    log.write_text("")
    (folder / "sitecustomize.py").write_text(WITNESS.format(switches=SWITCHES, log=str(log)))
    done = subprocess.run(
        command,
        env={**os.environ, **environment, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return {(name, value) for name, value in map(json.loads, log.read_text().splitlines())}


@pytest.mark.parametrize("setting", [None, "0"])
def test_telemetry_is_off_before_its_library_is_imported(
    shelf: Path, zoo_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str | None
) -> None:
    for name in SWITCHES.values():
        monkeypatch.delenv(name)
        if setting is not None:
            monkeypatch.setenv(name, setting)
    (bundle,) = (zoo_home / "graphs").glob("tiny-bert-????????????????")
    assert witnessed(tmp_path, zoo("run", bundle, "card")) == {("onnxruntime", "1")}
    script = "from zoo.plugin.manager import Plugins; Plugins().source('hf')"
    assert witnessed(tmp_path, [sys.executable, "-c", script]) == {("huggingface_hub", "1")}


@pytest.mark.slow
def test_telemetry_is_off_in_the_child_that_exports(shelf: Path, zoo_home: Path, tmp_path: Path) -> None:
    shutil.rmtree(zoo_home / "graphs")
    seen = witnessed(tmp_path, zoo("run", "tiny-bert", "card"), **dict.fromkeys(SWITCHES.values(), "0"))
    assert ("onnxruntime", "1") in seen
    assert {value for _, value in seen} == {"1"}


def test_the_witness_sees_a_bare_import(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import huggingface_hub"]
    assert witnessed(tmp_path, command, HF_HUB_DISABLE_TELEMETRY="0") == {("huggingface_hub", "0")}
