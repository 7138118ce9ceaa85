"""The command line as tests call it, and its answers."""

import json
import os
import subprocess
import sys
from typing import Any


def zoo(*arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    command = [sys.executable, "-m", "zoo_cli", *map(str, arguments)]
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **environment},
    )


def fails(code: int, words: str, *arguments: object, **environment: str) -> str:
    """The command fails with `code`, one error line that says `words`, and a hint; returns the hint."""
    done = zoo(*arguments, **environment)
    lines = done.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert done.returncode == code, done.stderr
    assert len(errors) == 1, done.stderr
    assert words in errors[0]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    hints = [line for line in lines if line.startswith("hint: ")]
    assert len(hints) == 1, done.stderr
    return hints[0]


def parsed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON object on stdout."""
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["schema_version"] == 1
    return answer


def plain(metrics: object, prefix: str = "") -> dict[str, float]:
    if isinstance(metrics, dict):
        pairs = [(f"{prefix}.{name}", value) for name, value in metrics.items()]
        return {key: number for name, value in pairs for key, number in plain(value, name).items()}
    if isinstance(metrics, list):
        return {
            key: number for at, value in enumerate(metrics) for key, number in plain(value, f"{prefix}[{at}]").items()
        }
    assert isinstance(metrics, int | float)
    return {prefix: float(metrics)}
