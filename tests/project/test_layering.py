"""One table of allowed imports is compared with every import, also inside functions and for type checkers."""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"zoo": "zoo", "zoo_cli": "cli", "zoo_plugins": "plugins"}
#: Lines of a file, and lines and parameters (beside `self`) of a function.
MAX_LINES, MAX_FUNCTION, MAX_PARAMETERS = 400, 50, 8

#: Public files that every file of zoo/ may import; they import only each other.
BASICS = {"errors", "schema", "options", "results", "progress", "extras"}
#: The interfaces that plugins implement. They import basics, and everything except `system` may import them.
INTERFACES = {"backbone", "source", "bridge", "hookspecs"}
#: Folders and public files of zoo/ -> what each may import beside itself, the basics and the interfaces, in an order in
#: which nothing imports what stands below it. A new folder takes its place here and in CONTRIBUTING.md.
ALLOWED: dict[str, set[str]] = {
    "system": set(),
    "bundle": {"system"},
    "hub": set(),
    "plugin": {"system"},
    "registry": {"system", "plugin"},
    "store": {"system", "bundle"},
    "checkpoint": {"store"},
    "data": {"system", "hub"},
    "torchkit": {"system", "checkpoint", "data"},
    "textkit": {"system", "checkpoint", "data"},
    "words": {"system", "store", "data"},
    "graph": {"system"},
    "runtime": {"system", "bundle", "store", "data", "words", "graph"},
    "evaluation": {"system", "bundle", "data", "runtime"},
    "outputs": {"system", "bundle", "store", "data", "words", "runtime"},
    "export": {"system", "bundle", "plugin", "torchkit", "data", "words", "graph", "runtime", "evaluation"},
    "training": {"system", "bundle", "store", "torchkit", "data", "graph", "runtime", "evaluation", "export"},
    "diagnostics": {
        *("system", "bundle", "plugin", "registry", "store", "torchkit"),
        *("data", "words", "graph", "runtime", "export"),
    },
    "testing": {"system", "bundle", "plugin", "registry", "torchkit", "data", "words", "graph", "runtime", "export"},
    "workspace": {"system", "bundle", "plugin", "registry", "store", "data", "words", "runtime", "export"},
}
#: Modules that may import everything: the class with every verb, and the public names.
ROOF = {"api", "__init__"}
#: The parts of zoo that plugins may import: the public files, and the names in `__all__` of these packages.
FOR_PLUGINS = {*BASICS, *INTERFACES, "torchkit", "textkit", "hub", "bundle", "words", "testing", "__init__"}
#: Packages of which plugins and the command line import only names in `__all__`, never submodules.
LISTED = ("zoo", "zoo.words", "zoo.testing")
#: Folder of plugins/ -> the parts that several of its plugins share.
SHARED = {"backbones": "zoo_plugins.backbones.bert_", "bridges": "zoo_plugins.bridges.hf."}
#: The packages that the command line may import beside the standard library.
FOR_CLI = {"zoo", "zoo_cli", "typer", "rich", "msgspec"}
#: Some packages that the command line may not import.
THIRD_PARTY = ("pluggy", "numpy", "onnx", "scipy", "timm", "torch", "transformers")
#: The files that import onnxruntime: the one that switches its telemetry off, the process that opens a finished file
#: as a user would, and the one that calls its converters.
ONNXRUNTIME = {"zoo/runtime/device.py", "zoo/export/isolated_session.py", "zoo/export/precision.py"}


class Import(NamedTuple):
    """One imported module; `name` is the name imported from it."""

    module: str
    name: str | None
    line: int


def imports(path: Path, package: str) -> list[Import]:
    """Every import in a file; relative imports are resolved from `package`."""
    found: list[Import] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, None, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found += [Import(module, alias.name, node.lineno) for alias in node.names]
    return found


def sources(root: Path, package: str) -> Iterator[tuple[Path, list[Import]]]:
    """The files of an import package with their imports."""
    folder = root / PACKAGES[package]
    for path in sorted(folder.rglob("*.py")):
        inside = path.parent.relative_to(folder).parts
        yield path, imports(path, ".".join([package, *inside]))


def units(root: Path) -> set[str]:
    """The modules and folders directly in zoo/, including `__init__`."""
    paths = (path.relative_to(root / "zoo") for suffix in ("py", "pyi") for path in (root / "zoo").rglob(f"*.{suffix}"))
    return {path.parts[0].partition(".")[0] for path in paths}


def modules(root: Path) -> set[str]:
    """The dotted names of all modules of zoo/."""
    paths = [path.relative_to(root).with_suffix("") for path in (root / "zoo").rglob("*.py")]
    return {".".join(path.parts).removesuffix(".__init__") for path in paths}


def target(found: Import, known: set[str]) -> str | None:
    """The unit of zoo/ that an import means (`__init__` for the package itself), or None for foreign ones."""
    parts = found.module.split(".")
    if parts[0] != "zoo":
        return None
    if len(parts) > 1:
        return parts[1]
    return found.name if found.name in known else "__init__"


def may_import(own: str, wanted: str) -> bool:
    """Whether the unit `own` may import the unit `wanted`."""
    if own in ROOF:
        return wanted != "__init__"
    if wanted == own or wanted in BASICS:
        return own not in BASICS or wanted in BASICS
    if wanted in INTERFACES:
        return own not in BASICS and own != "system"
    return wanted in ALLOWED.get(own, set())


def misplaced(root: Path) -> list[str]:
    """Units of zoo/ that are not in the table, and imports that the table does not allow."""
    known = units(root)
    placed = {*BASICS, *INTERFACES, *ALLOWED, *ROOF}
    problems = [f"zoo/{name} has no place in the table" for name in sorted(known - placed)]
    for path, found in sources(root, "zoo"):
        own = path.relative_to(root / "zoo").parts[0].removesuffix(".py")
        for each in found:
            wanted = target(each, known)
            if wanted is not None and own in placed and not may_import(own, wanted):
                problems.append(f"{path.relative_to(root)}:{each.line} imports {wanted}")
    return problems


def circles(root: Path) -> list[str]:
    """Files of zoo/ that import each other in a circle."""
    known = modules(root)
    needs: dict[str, set[str]] = {}
    for path, found in sources(root, "zoo"):
        own = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        names = {
            f"{each.module}.{each.name}" if f"{each.module}.{each.name}" in known else each.module for each in found
        }
        needs[own] = (names & known) - {own}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def listed_names(root: Path, module: str) -> set[str]:
    """The names in `__all__` of a package; none if there is no such package."""
    path = root.joinpath(*module.split("."), "__init__.py")
    tree = ast.parse(path.read_bytes() if path.is_file() else b"")
    lists = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return set(ast.literal_eval(lists[0])) if lists else set()


def late_imports(root: Path) -> list[str]:
    """Calls of `import_module` and `__import__` with the name of a module of zoo, which hide an import."""
    problems = []
    for folder in PACKAGES.values():
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                called = ast.unparse(node.func).rpartition(".")[2]
                name = ast.unparse(node.args[0]).lstrip("f").strip("\"'")
                if called in ("import_module", "__import__") and re.match(r"zoo(\.|$)", name):
                    problems.append(f"{path.relative_to(root)}:{node.lineno} imports {name}")
    return problems


def trespasses(root: Path) -> list[str]:
    """Imports across the three packages that are forbidden, and of onnxruntime outside its three files."""
    known, problems = units(root), late_imports(root)
    public = {module: listed_names(root, module) for module in LISTED}
    for package in PACKAGES:
        for path, found in sources(root, package):
            for each in found:
                top = each.module.partition(".")[0]
                inner = target(each, known)
                kind = path.relative_to(root / PACKAGES[package]).parts[0]
                forbidden = {
                    "zoo": top in ("zoo_cli", "zoo_plugins"),
                    "zoo_cli": top not in FOR_CLI | sys.stdlib_module_names or inner not in (None, "__init__"),
                    "zoo_plugins": top == "zoo_cli"
                    or not (inner is None or inner in FOR_PLUGINS)
                    or (top == "zoo_plugins" and not each.module.startswith(SHARED.get(kind, "-"))),
                }[package]
                is_allowed = path.relative_to(root).as_posix() in ONNXRUNTIME
                if package != "zoo" and top == "zoo":
                    # `import zoo` and `import zoo.source` give access to everything inside.
                    forbidden |= each.name is None or each.module.startswith(("zoo.words.", "zoo.testing."))
                    forbidden |= each.module in public and each.name not in public[each.module]
                if forbidden or top in ("cli", "plugins") or (top == "onnxruntime" and not is_allowed):
                    name = f"{each.module}.{each.name}" if each.name else each.module
                    problems.append(f"{path.relative_to(root)}:{each.line} imports {name}")
    return problems


def test_every_file_imports_only_what_the_table_allows() -> None:
    assert misplaced(ROOT) == []


def test_the_table_has_no_circle_and_no_import_of_a_later_one() -> None:
    order = list(ALLOWED)
    for own, wanted in ALLOWED.items():
        assert all(order.index(each) < order.index(own) for each in wanted), own


def test_no_circles() -> None:
    assert circles(ROOT) == []


def test_packages_keep_to_themselves() -> None:
    assert trespasses(ROOT) == []


def test_every_folder_says_what_lives_there() -> None:
    for folder in (path for path in (ROOT / "zoo").iterdir() if (path / "__init__.py").is_file()):
        lines = (ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or "").splitlines()
        assert 2 <= len(lines) <= 8, folder
        # The docstring names the file to open first, and this file exists.
        assert any(f"`{path.name}`" in line for line in lines for path in folder.glob("*.py")), folder


@pytest.mark.parametrize("folder", ["zoo", "cli", "plugins", "tests", "demo", "benchmarks"])
def test_no_file_is_too_long(folder: str) -> None:
    # The folder `out` of the benchmarks, which may have environments, is no source code.
    paths = [path for path in (ROOT / folder).rglob("*.py") if "out" not in path.relative_to(ROOT).parts]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {str(path): count for path, count in lines.items() if count > MAX_LINES} == {}


@pytest.mark.parametrize("folder", ["zoo", "cli", "plugins"])
def test_no_function_is_too_long(folder: str) -> None:
    """Except the `command` of a verb, whose parameters are its options."""
    large = []
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (folder, node.name) == (
                "cli",
                "command",
            ):
                continue
            given = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            parameters = len(given) - (given[:1] in (["self"], ["cls"]))
            if parameters > MAX_PARAMETERS or (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION:
                large.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert large == []


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small source tree that breaks no rule."""
    files = {
        "zoo/__init__.py": "from zoo.api import Zoo\n__all__ = ['Zoo']\n",
        "zoo/errors.py": "import os\n",
        "zoo/source.py": "from zoo.errors import ZooError\n",
        "zoo/system/__init__.py": "",
        "zoo/system/files.py": "from zoo import errors\n",
        "zoo/store/__init__.py": "",
        "zoo/store/store.py": "import typing\nif typing.TYPE_CHECKING:\n    from zoo.store.lock import Lock\n",
        "zoo/store/lock.py": "from zoo.system import files\nfrom zoo.source import Source\n",
        "zoo/runtime/__init__.py": "",
        "zoo/runtime/device.py": "def load():\n    import onnxruntime\n",
        "zoo/api.py": "from .store import lock\nfrom .errors import ZooError\n",
        "zoo/words/__init__.py": "__all__ = ['WordTable']\n",
        "zoo/testing/__init__.py": "__all__ = ['check_backbone']\n",
        "cli/app.py": "import os.path\nimport rich\nfrom zoo import Zoo\nfrom zoo_cli.output import say\n",
        "plugins/sources/file.py": "import numpy\nfrom zoo.source import Source\nfrom zoo import Zoo\n",
        "plugins/backbones/b.py": "from zoo.words import WordTable\nfrom zoo.testing import check_backbone\n",
        "plugins/bridges/hf/labels.py": "from zoo.schema import Entry\n",
        "plugins/bridges/b.py": "from zoo_plugins.bridges.hf.labels import head_of\n",
    }
    for name, code in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    assert misplaced(tmp_path) + circles(tmp_path) + trespasses(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize(
    ("name", "code", "problem"),
    [
        ("zoo/errors.py", "def late():\n    from zoo.api import Zoo\n", "zoo/errors.py:2 imports api"),
        ("zoo/errors.py", "from zoo import api\n", "zoo/errors.py:1 imports api"),
        ("zoo/errors.py", "from .api import Zoo\n", "zoo/errors.py:1 imports api"),
        ("zoo/errors.py", "import zoo\n", "zoo/errors.py:1 imports __init__"),
        ("zoo/errors.py", "from zoo import Zoo\n", "zoo/errors.py:1 imports __init__"),
        ("zoo/errors.py", "from zoo.source import Source\n", "zoo/errors.py:1 imports source"),
        ("zoo/system/files.py", "from zoo.store.lock import Lock\n", "zoo/system/files.py:1 imports store"),
        ("zoo/system/files.py", "from ..store import lock\n", "zoo/system/files.py:1 imports store"),
        ("zoo/system/files.py", "from zoo.source import Source\n", "zoo/system/files.py:1 imports source"),
        (
            "zoo/system/files.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from zoo.store.lock import Lock\n",
            "zoo/system/files.py:3 imports store",
        ),
        ("zoo/novel.py", "", "zoo/novel has no place in the table"),
        ("zoo/novel/__init__.py", "", "zoo/novel has no place in the table"),
        ("zoo/novel/x.py", "", "zoo/novel has no place in the table"),
        ("zoo/novel.pyi", "", "zoo/novel has no place in the table"),
        ("zoo/errors.py", "import importlib\nimportlib.import_module('zoo.api')\n", "zoo/errors.py:2 imports zoo.api"),
        ("zoo/errors.py", "__import__('zoo')\n", "zoo/errors.py:1 imports zoo"),
        ("zoo/errors.py", "f = import_module(f'zoo.{x}')\n", "zoo/errors.py:1 imports zoo.{x}"),
        ("cli/app.py", "import_module('zoo.store.store')\n", "cli/app.py:1 imports zoo.store.store"),
        ("cli/app.py", "import zoo\nzoo.store.store.Store\n", "cli/app.py:1 imports zoo"),
        ("cli/app.py", "from zoo import *\n", "cli/app.py:1 imports zoo.*"),
        *(("cli/app.py", f"import {name}\n", f"cli/app.py:1 imports {name}") for name in THIRD_PARTY),
        ("zoo/api.py", "from zoo_plugins.sources import file\n", "zoo/api.py:1 imports zoo_plugins.sources.file"),
        ("zoo/api.py", "import zoo_cli.app\n", "zoo/api.py:1 imports zoo_cli.app"),
        ("zoo/api.py", "from onnxruntime.quantization import q\n", "zoo/api.py:1 imports onnxruntime.quantization.q"),
        ("cli/app.py", "from zoo.errors import ZooError\n", "cli/app.py:1 imports zoo.errors.ZooError"),
        ("cli/app.py", "from zoo import errors\n", "cli/app.py:1 imports zoo.errors"),
        ("cli/app.py", "import plugins\n", "cli/app.py:1 imports plugins"),
        ("plugins/sources/file.py", "from zoo_cli import app\n", "plugins/sources/file.py:1 imports zoo_cli.app"),
        ("plugins/sources/file.py", "from . import http\n", "file.py:1 imports zoo_plugins.sources.http"),
        ("plugins/sources/file.py", "from ..backbones import b\n", "file.py:1 imports zoo_plugins.backbones.b"),
        ("plugins/sources/file.py", "import onnxruntime as ort\n", "plugins/sources/file.py:1 imports onnxruntime"),
        ("plugins/sources/file.py", "from zoo_plugins.bridges.hf.x import y\n", "imports zoo_plugins.bridges.hf.x.y"),
        ("plugins/bridges/b.py", "from zoo_plugins.bridges.c import y\n", "imports zoo_plugins.bridges.c.y"),
        ("plugins/sources/file.py", "from zoo.store import lock\n", "sources/file.py:1 imports zoo.store.lock"),
        ("plugins/sources/file.py", "from zoo.words.table import w\n", "sources/file.py:1 imports zoo.words.table.w"),
        ("plugins/sources/file.py", "from zoo.words import table\n", "sources/file.py:1 imports zoo.words.table"),
        ("plugins/sources/file.py", "from zoo.testing import steps\n", "sources/file.py:1 imports zoo.testing.steps"),
        ("plugins/sources/file.py", "import zoo\nzoo.store.store.Store\n", "sources/file.py:1 imports zoo"),
        ("plugins/sources/file.py", "import zoo.source\nzoo.store\n", "sources/file.py:1 imports zoo.source"),
        ("plugins/sources/file.py", "from zoo import *\n", "sources/file.py:1 imports zoo.*"),
        ("plugins/sources/file.py", "from zoo import words\n", "sources/file.py:1 imports zoo.words"),
        ("plugins/sources/file.py", "import_module('zoo.store')\n", "sources/file.py:1 imports zoo.store"),
    ],
)
def test_a_broken_rule_is_seen(house: Path, name: str, code: str, problem: str) -> None:
    (house / name).parent.mkdir(exist_ok=True)
    (house / name).write_text(code)
    problems = misplaced(house) + circles(house) + trespasses(house)
    assert any(each.endswith(problem) for each in problems)


@pytest.mark.parametrize("code", ["from zoo.store.lock import Lock\n", "def late():\n    from zoo.store import lock\n"])
def test_a_circle_is_seen(house: Path, code: str) -> None:
    (house / "zoo/store/store.py").write_text(code)
    (house / "zoo/store/lock.py").write_text("from zoo.store.store import Store\n")
    assert [set(circle.split(" -> ")) for circle in circles(house)] == [{"zoo.store.store", "zoo.store.lock"}]


def test_contributing_has_the_table_of_imports_and_the_tree() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = dict(re.findall(r"^\| `(\w+)(?:/|\.py)` \| (.*) \|$", text, re.MULTILINE))
    assert {name: set(re.findall(r"`(\w+)`", row)) for name, row in table.items() if name in units(ROOT)} == ALLOWED
    tree = text.split("```text\nzoo/\n")[1].split("\nplugins/")[0]
    listed = set(re.findall(r"(\w+)(?:/|\.py)(?=\s)", tree))
    assert listed == units(ROOT)


def test_a_test_imports_no_other_test() -> None:
    """Shared helpers lie in tests/kit."""
    for path in (ROOT / "tests").rglob("*.py"):
        for match in re.finditer(r"from (tests\.(?!kit\b)[\w.]+) import", path.read_text()):
            # A child process may import the test that starts it.
            assert match[1] == ".".join(path.relative_to(ROOT).with_suffix("").parts), f"{path}: {match[0]}"
