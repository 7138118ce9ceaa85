"""Distributions as pip leaves them in a folder of the path, for tests of plugins."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

#: Loopback's port for throwing things away, where nothing listens.
NOBODY = "http://127.0.0.1:9"
FAMILY = """
from zoo.backbone import Backbone
from zoo.hookspecs import hookimpl

class Toy(Backbone):
    family = "{name}"
    def export(self, path, options): ...
    def reference(self, feeds): return feeds

@hookimpl
def zoo_register_backbones():
    return [Toy]
"""
SOURCE = """
from zoo.hookspecs import hookimpl
from zoo.source import Source

class ToySource(Source):
    scheme = "{name}"
    made = 0
    def __init__(self):
        ToySource.made += 1
    def fetch(self, wants, progress): ...

@hookimpl
def zoo_register_sources():
    yield ToySource
"""


class Site:
    """A folder on sys.path to which distributions are installed as pip leaves them: a module and its dist-info."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: A command that starts the command line, where it is not to be started plainly.
        self.prefix: list[str] = []

    def install(self, distribution: str, code: str, *lines: str, version: str = "1.0") -> str:
        """A distribution with one module; `lines` are entry_points.txt, where {module} is that module's name."""
        module = distribution.replace("-", "_")
        (self.folder / f"{module}.py").write_text(code)
        self._info(distribution, module, lines, version)
        return module

    def _info(self, distribution: str, module: str, lines: Sequence[str], version: str) -> None:
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text("\n".join(lines).format(module=module) + "\n")

    def family(self, distribution: str, name: str, code: str = FAMILY) -> str:
        return self.install(distribution, code.replace("{name}", name), "[zoo.backbones]", f"{name} = {{module}}")

    def source(self, distribution: str, name: str, code: str = SOURCE) -> str:
        return self.install(distribution, code.replace("{name}", name), "[zoo.sources]", f"{name} = {{module}}")

    def shelf(self, distribution: str, name: str, registry: str) -> str:
        """A distribution whose package holds nothing but a registry file."""
        package = distribution.replace("-", "_")
        (self.folder / package).mkdir()
        (self.folder / package / "__init__.py").write_text("raise SystemExit('a shelf is not imported')")
        (self.folder / package / "registry.yaml").write_text(registry)
        self._info(distribution, package, ["[zoo.shelves]", f"{name} = {{module}}"], "1.0")
        return package

    def zoo(self, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
        """The command line in a process of its own, with this folder on its path."""
        return subprocess.run(
            [*self.prefix, sys.executable, "-m", "zoo_cli", *map(str, arguments)],
            # `zoo doctor` asks the Hub: unless a test has one, nobody answers.
            env={"HF_ENDPOINT": NOBODY, **os.environ, "PYTHONPATH": str(self.folder), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
