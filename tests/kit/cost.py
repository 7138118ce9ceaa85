"""The CPU time of a process and its children, which is nearly the same on a busy machine as on an idle one."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from tests.kit.forks import ADDRESS

P = ParamSpec("P")
T = TypeVar("T")


def untraced(function: Callable[P, T]) -> Callable[P, T]:
    """`function` without the time that coverage takes to trace it."""

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> T:
        # Tracer.stop and start are C functions. Python ones would add frames that the tracer sees only half of.
        tracer: Any = sys.gettrace()
        if not hasattr(tracer, "stop"):
            return function(*arguments, **options)
        tracer.stop()
        try:
            return function(*arguments, **options)
        finally:
            tracer.start()

    return call


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
