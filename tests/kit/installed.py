"""Distributions as pip installs them into a folder on the path, for tests of plugins."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

#: The discard port of loopback, on which nothing listens.
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
CRASH = "import ctypes; ctypes.string_at(0)"
#: A family without torch; a test that needs a wrong graph changes its class attributes.
PLAIN = """
from zoo.backbone import Backbone

class Toy(Backbone):
    family = "toy"
    output, opset, domain, nodes = "features", 20, "", ()

    def export(self, path, options):
        import numpy as np
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        extra = [helper.make_node(*each[:3], **each[3]) for each in self.nodes]
        last = extra[-1].output[0] if extra else "mean"
        nodes = [
            helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["mean"]),
            *extra,
            helper.make_node("Identity", [last], [self.output]),
        ]
        graph = helper.make_graph(
            nodes,
            "toy",
            [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 32, 32])],
            [helper.make_tensor_value_info(self.output, TensorProto.FLOAT, ["batch", 3])],
            [numpy_helper.from_array(np.array([1, 3], np.int64), "one_row")],
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=options.ir_version), path)

    def reference(self, feeds):
        return {"features": feeds["pixels"].mean((2, 3))}
"""
HOOK = """

from zoo.hookspecs import hookimpl

@hookimpl
def zoo_register_backbones():
    return [Toy]
"""


class Site:
    """A folder on sys.path with installed distributions: a module and a dist-info folder each, as pip installs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: The words in front of the command line, such as those of a wrapper.
        self.prefix: list[str] = []

    def install(self, distribution: str, code: str, *lines: str, version: str = "1.0") -> str:
        """Install a distribution with one module, {module} in `lines`, which are its entry_points.txt."""
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
        """Install a distribution whose package has only a registry file."""
        package = distribution.replace("-", "_")
        (self.folder / package).mkdir()
        (self.folder / package / "__init__.py").write_text("raise SystemExit('a shelf is not imported')")
        (self.folder / package / "registry.yaml").write_text(registry)
        self._info(distribution, package, ["[zoo.shelves]", f"{name} = {{module}}"], "1.0")
        return package

    def zoo(self, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run zoo in its own process, with this folder on its path."""
        return subprocess.run(
            [*self.prefix, sys.executable, "-m", "zoo_cli", *map(str, arguments)],
            # `zoo doctor` sends a request to the Hub, which nothing answers unless a test has a Hub.
            env={"HF_ENDPOINT": NOBODY, **os.environ, "PYTHONPATH": str(self.folder), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


def pip_install(source: Path, site: Path) -> None:
    """Install the distribution at `source` into the folder `site`, from a copy, because a build leaves files behind."""
    copy = site.parent / f"{source.name}-source"
    shutil.copytree(source, copy)
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--no-build-isolation", "--target", str(site), str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def checks(site: Site, code: int, *options: str, **environment: str) -> dict[str, dict[str, str]]:
    """The checks of `zoo doctor --json` by name; the command must end with `code`."""
    done = site.zoo("doctor", "--json", *options, **environment)
    assert done.returncode == code, done.stdout + done.stderr
    return {each["name"]: each for each in json.loads(done.stdout)["checks"]}
