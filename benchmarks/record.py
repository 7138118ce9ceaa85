"""Shared code of the benchmarks: facts of the machine, timed commands, and RESULTS.md."""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "RESULTS.md"
PACKAGES = ("backbone-zoo", "torch", "torchvision", "onnxruntime-gpu", "onnxruntime", "numpy", "Pillow")


def timed(command: Sequence[str], environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, float]]:
    """Returns a command's last line of JSON, and its `wall` and `cpu` seconds with the machine's `load` before it.

    Wall time is the user's waiting time; on a loaded machine CPU time is more reliable.
    """
    load, before, began = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "{}"
    cost = {"wall": round(wall, 2), "cpu": round(cpu, 2), "load": round(load, 1)}
    return (json.loads(last) if last.startswith("{") else {"said": last}), cost


def zoo(*argv: str) -> list[str]:
    """The `zoo` command of this interpreter."""
    return [sys.executable, "-m", "zoo_cli", *argv]


def script(name: str, *argv: str) -> list[str]:
    """The path of a script beside this file."""
    return [sys.executable, str(HERE / name), *argv]


def machine() -> dict[str, str]:
    """The date, the processor, the usable cores, and the versions."""
    names = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*:\s*(.+)", names)
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": date.today().isoformat(),
        "cpu": f"{found[1] if found else platform.processor()}, {cores} cores",
        "python": platform.python_version(),
        **versions,
    }


def facts(machine: Mapping[str, str]) -> str:
    """The machine as a line of Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.items() if name not in ("date", "cpu"))
    return f"{machine['date']}, {machine['cpu']}; {versions}."


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown with right-aligned numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def write_section(title: str, text: str) -> None:
    """Replace the section of RESULTS.md with the same title, or append it."""
    whole = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Results\n"
    section = f"## {title}\n\n{text.strip()}\n"
    old = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", whole, re.DOTALL | re.MULTILINE)
    before, after = (whole[: old.start()], whole[old.end() :]) if old else (whole, "")
    whole = f"{before.rstrip()}\n\n{section}\n{after}"
    RESULTS.write_text(whole.rstrip() + "\n", encoding="utf-8")


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for a benchmark's folders and for writing RESULTS.md."""
    parser.add_argument("--work", type=Path, default=HERE / "out", help="exports and, unless --home says, ZOO_HOME")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--peers", type=Path, default=HERE / "out" / "peers")
    parser.add_argument("--record", action="store_true", help="write RESULTS.md")
