"""What is wrong with this machine's zoo, and the command that mends it: `zoo doctor`."""

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from msgspec import Struct

from zoo.errors import ZooError
from zoo.points import OURS, PluginState, canonical

#: Bytes below which a pull of a large model would fill the disk.
FEW_BYTES = 2_000_000_000


class Finding(Struct, frozen=True, kw_only=True):
    """One line of `zoo doctor`: a `problem` has an exit code, a `note` only says what does not work here."""

    name: str
    state: Literal["ok", "note", "problem"]
    detail: str
    fix: str | None = None
    exit_code: int = 0


def examine(
    home: Path,
    registry: Callable[[], int],
    damaged: Sequence[ZooError],
    plugins: Callable[[], Sequence[PluginState]],
) -> list[Finding]:
    """Every finding; `registry` counts the rows or raises ZooError, `damaged` are the faults of kept models of bridges.

    `plugins` loads them all and tells their states.
    """
    machine = [*_versions(), _runtime(), _cuda(), _torch(), *_home(home)]
    return [*machine, _registry(registry), *map(_kept, damaged), *_plugins(plugins())]


def _versions() -> Iterator[Finding]:
    zoo = importlib.metadata.version("backbone-zoo")
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding(name="zoo", state="ok", detail=zoo)
    yield Finding(name="python", state="ok", detail=python)


def _runtime() -> Finding:
    """The two builds of ONNX Runtime share one import package: installed together, neither is whole."""
    found = [f"{name} {version}" for name in ("onnxruntime-gpu", "onnxruntime") if (version := _version(name))]
    if len(found) > 1:
        return Finding(
            name="onnxruntime",
            state="problem",
            detail=f"{' and '.join(found)} are both installed and overwrite each other",
            fix="pip uninstall onnxruntime onnxruntime-gpu; then pip install 'backbone-zoo[gpu]', or [cpu]",
            exit_code=7,
        )
    if not found:
        return Finding(
            name="onnxruntime",
            state="note",
            detail="not installed: models can be listed and pulled, not run",
            fix="pip install 'backbone-zoo[gpu]', or [cpu]",
        )
    return Finding(name="onnxruntime", state="ok", detail=found[0])


def _cuda() -> Finding:
    from zoo.device import cuda_problem

    try:
        problem = cuda_problem()
    except ZooError as error:
        problem = error.message
    if problem is None:
        return Finding(name="cuda", state="ok", detail="usable")
    return Finding(name="cuda", state="note", detail=f"not usable, models run on the CPU: {problem}")


def _torch() -> Finding:
    missing = [name for name in ("torch", "torchvision", "onnxscript") if find_spec(name) is None]
    if missing:
        detail = f"without {', '.join(missing)}: bundles run, nothing can be fine-tuned or exported"
        return Finding(name="torch", state="note", detail=detail, fix="pip install 'backbone-zoo[train]'")
    return Finding(name="torch", state="ok", detail=_version("torch") or "installed")


def _home(home: Path) -> Iterator[Finding]:
    """ZOO_HOME can be written, by writing; and has room."""
    nearest = next(folder for folder in (home.absolute(), *home.absolute().parents) if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=nearest):
            free = shutil.disk_usage(nearest).free
    except OSError as error:
        detail = f"{home} cannot be written: {error.strerror or error}"
        yield Finding(
            name="ZOO_HOME", state="problem", detail=detail, fix="set ZOO_HOME to a folder of your own", exit_code=8
        )
        return
    detail = f"{home}, {free / 1e9:.1f} GB free"
    if free < FEW_BYTES:
        yield Finding(name="ZOO_HOME", state="note", detail=detail, fix="set ZOO_HOME to a folder on a larger disk")
    else:
        yield Finding(name="ZOO_HOME", state="ok", detail=detail)


def _registry(count: Callable[[], int]) -> Finding:
    try:
        return Finding(name="registry", state="ok", detail=f"{count()} models")
    except ZooError as error:
        return Finding(
            name="registry", state="problem", detail=error.message, fix=error.hint, exit_code=error.exit_code
        )


def _kept(error: ZooError) -> Finding:
    return Finding(name="model", state="problem", detail=error.message, fix=error.hint, exit_code=error.exit_code)


def _plugins(states: Sequence[PluginState]) -> Iterator[Finding]:
    left_out = os.environ.get("ZOO_PLUGINS")
    chosen = "" if left_out is None else f" (those of ZOO_PLUGINS={left_out})"
    good = [state for state in states if state.state != "quarantined"]
    yield Finding(name="plugins", state="ok", detail=f"{len(good)} work{chosen}")
    for state in states:
        if state.state == "quarantined":
            yield Finding(
                name="plugin",
                state="problem",
                detail=f"{state.group} {state.title}: {state.error}".strip(),
                fix=_without(state, states),
                exit_code=9,
            )
        elif state.is_slow:
            yield Finding(name="plugin", state="note", detail=f"{state.title} takes {state.seconds:.1f} s to load")


def _without(state: PluginState, states: Sequence[PluginState]) -> str:
    """How to do without a quarantined plugin, or without those who claim what is zoo's own."""
    if canonical(state.distribution) != OURS:
        return f"pip uninstall {state.distribution}, or leave it out with ZOO_PLUGINS"
    others = {each.distribution for each in states if (each.group, each.name) == (state.group, state.name)}
    if foreign := sorted(other for other in others if canonical(other) != OURS):
        return f"pip uninstall {' '.join(foreign)}, or set ZOO_PLUGINS={OURS}"
    return f"pip install --force-reinstall {OURS}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
