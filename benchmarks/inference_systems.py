"""The processes of the systems that `inference.py` times, with their environments, exports and files."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import record

from zoo import Bundle, ZooError
from zoo.diagnostics.timing import Stopwatch
from zoo.graph import edit
from zoo.schema import FEATURES
from zoo.system.cpu import cores

PEERS = {
    "openvino": ("openvino>=2026.4,<2026.5", "nncf>=3.4,<3.5", "onnx", "tokenizers", "Pillow"),
    "sentence": ("torch>=2.14,<2.15", "sentence-transformers>=6.2,<6.3"),
    "fastembed": ("fastembed>=0.9,<0.10",),
}
IMPORTS = {"openvino": "openvino, nncf, tokenizers, PIL", "sentence": "sentence_transformers", "fastembed": "fastembed"}


class Turn(NamedTuple):
    """A timed call: one system with a batch of `items` of `shape`."""

    model: str
    system: str
    shape: str
    batch: int
    items: int


class Bench:
    """The processes of all systems, with their facts."""

    def __init__(self, arguments: argparse.Namespace, children: ExitStack) -> None:
        self.arguments, self.children = arguments, children
        self.work: Path = arguments.work.resolve() / "inference"
        self.home: Path = arguments.home or self.work / "home"
        self.work.mkdir(parents=True, exist_ok=True)
        self.running: dict[Turn, Stopwatch] = {}
        self.skipped: dict[tuple[str, str], str] = {}
        self.facts: dict[str, Any] = {}
        self._pythons: dict[str, str | ZooError] = {}

    def add(
        self, model: str, system: str, turns: Sequence[tuple[str, int, int]], start: Callable[[], Stopwatch]
    ) -> None:
        """Start a system if it was asked for, and note the reason when that fails."""
        wanted = self.arguments.systems
        if wanted and not any(name.lower() in system.lower() for name in wanted.split(",")):
            return
        try:
            child = self.children.enter_context(start())
        except (ZooError, OSError) as error:
            self.skip(model, system, str(error))
            return
        self.running |= {Turn(model, system, *turn): child for turn in turns}

    def skip(self, model: str, system: str, reason: str) -> None:
        """Leave a row out, with the reason."""
        self.skipped[model, system] = " ".join(reason.split())
        say(f"{model}: {system} is left out: {reason}")

    def python(self, name: str) -> str:
        """The interpreter of a peer's environment, which is made if it is missing. Raises ZooError."""
        if name not in self._pythons:
            self._pythons[name] = self._made(name)
        found = self._pythons[name]
        if isinstance(found, ZooError):
            raise found
        return found

    def _made(self, name: str) -> str | ZooError:
        folder = self.arguments.peers.resolve() / name
        python = folder / "bin" / "python"
        check = [str(python), "-c", f"import {IMPORTS[name]}"]
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        if subprocess.run(check, capture_output=True, check=False).returncode:
            say(f"installing {', '.join(PEERS[name])} into {folder}")
            done = subprocess.run([python, "-m", "pip", "install", "-q", *PEERS[name]], check=False)
            if done.returncode or subprocess.run(check, capture_output=True, check=False).returncode:
                return ZooError(f"{', '.join(PEERS[name])} cannot be installed here")
        return str(python)

    def peer(self, environment: str | None, kind: str, **spec: Any) -> Stopwatch:
        """A process of inference_peer.py, in the environment of that name or in this one."""
        python = self.python(environment) if environment else sys.executable
        facts = {key: str(value) if isinstance(value, Path) else value for key, value in spec.items()}
        request = {"kind": kind, "threads": cores(), **facts}
        return Stopwatch(request, [python, str(record.HERE / "inference_peer.py")])

    def export(
        self, model: str, system: str, name: str, ways: Sequence[Sequence[str]], registry: Path | None = None
    ) -> Bundle | None:
        """The export with the first of these options that `zoo export` accepts; None if it accepts none."""
        out = self.work / f"{model}-{system.replace(' ', '-').replace(',', '')}"
        environment = {**os.environ, "ZOO_HOME": str(self.home), "ZOO_DEVICE": "cpu"}
        if registry:
            environment["ZOO_REGISTRY"] = str(registry)
        for options in ways:
            command = record.zoo("export", name, "-o", str(out), *options)
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                self.facts[f"{model}, {system}"] = f"zoo export {' '.join(map(short, options))}".strip()
                return Bundle.open(out)
            lines = [line for line in done.stderr.splitlines() if "rror" in line or "o such option" in line]
            reason = (lines or done.stderr.splitlines() or ["no reason was given"])[-1].strip(" │")
        self.skip(model, system, f"zoo export {' '.join(map(short, ways[-1]))}: {reason}")
        return None


def nncf(bench: Bench, model: Path, feeds: Path) -> Path:
    """`model` quantised to int8 by NNCF, once in each run."""
    out = model.with_name(f"{model.stem}-nncf.xml")
    if f"nncf {out.name}" not in bench.facts:
        with bench.peer("openvino", "nncf", model=model, feeds=feeds, out=out) as child:
            bench.facts[f"nncf {out.name}"] = f"{child.started:.0f} s"
    return out


def body(bundle: Bundle, path: Path) -> Path:
    """The bundle's graph without its preprocessing, as a file."""
    model = onnx.load_from_string(bundle.read_model())
    if bundle.manifest.cut:
        model = edit.extract(model, [bundle.manifest.cut], [FEATURES])
    edit.save(model, path)
    return path


def saved(feeds: Any, path: Path) -> Path:
    """The file with the arrays."""
    np.savez(path, **feeds)
    return path


def short(option: str) -> str:
    """An option without the paths of this machine."""
    return Path(option).name if option.startswith("/") else option


def say(line: str) -> None:
    """Print a line on stderr."""
    print(line, file=sys.stderr, flush=True)
