"""The CPU time of a process and its children, which is nearly the same on a busy machine as on an idle one."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.kit.forks import ADDRESS


def cpu_seconds(
    command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> tuple[float, bytes]:
    """Returns the user and system time and the stdout of `command`, which must succeed; wall time without wait4."""
    started = time.perf_counter()
    env = {**(os.environ if env is None else env), ADDRESS: ""}
    child = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    with child.stdout:
        said = child.stdout.read()
    if not hasattr(os, "wait4"):
        assert child.wait() == 0
        return time.perf_counter() - started, said
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, f"{command} ended with {child.returncode}"
    return used.ru_utime + used.ru_stime, said
