"""The layers of the house, held by reading the source: no import upwards, in circles, or of another package's parts."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"zoo": "zoo", "zoo_cli": "cli", "zoo_plugins": "plugins"}
MAX_LINES = 400

#: A file of zoo/ imports its own layer, without circles, and lower ones. A new file takes its place here.
LAYERS: tuple[set[str], ...] = (
    {"errors", "schema", "options", "answers", "progress", "extras", "child"},
    {
        "document", "registry", "points", "shelves", "disk", "space", "records", "store", "lock", "download", "bundle",
        "backbone", "source", "bridge", "hub", "hookspecs",
    },
    {
        "manager", "bridged", "examples", "folders", "tables", "data", "split", "notes", "inputs", "encode", "samples",
        "cores", "device", "wire", "engine", "binding", "optimised", "lanes", "pipeline", "ordered", "runtime", "run",
        "graph", "parity", "expected", "fresh", "features", "views", "activations", "convert", "torchkit",
        "trunk", "head", "metrics", "external", "words", "wordfiles", "plainwords", "tokenizers", "prefix",
        "graph_head", "adamw", "checkpoint",
        "interrupt", "objective", "training", "precision", "rowwise", "fusion", "rewrite", "rounding", "narrow",
        "macs",
    },
    {
        "search", "fit", "deep", "tuned", "runs", "build", "finetune", "evaluate", "predictions", "report", "page",
        "plots", "report_data", "guard", "environment", "api", "export", "refit", "testing_child",
        "conformance", "testing", "probe",
        "survey", "scaffold", "doctor", "hardware", "trial", "reach", "paste", "prune", "stopwatch", "bench",
        "rowfile", "vectorfile", "vectorread", "answerfile", "intofile", "embed", "similar", "vectors", "answering",
    },
    {"__init__"},
)  # fmt: skip
#: Who imports onnxruntime: sessions, the bare process of the gate, and who calls its converters.
DOORS = {"zoo/device.py", "zoo/fresh.py", "zoo/precision.py"}
LAYER = {name: number for number, layer in enumerate(LAYERS) for name in layer}


class Import(NamedTuple):
    """One imported module; `name` is what is taken from it, `typing_only` that it is not imported at run time."""

    module: str
    name: str | None
    line: int
    typing_only: bool = False


def imports(path: Path, package: str) -> list[Import]:
    """Every import of a file, wherever it stands; relative ones are spelt out from `package`."""
    tree = ast.parse(path.read_bytes())
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    typing = {id(inner) for guard in guards for statement in guard.body for inner in ast.walk(statement)}
    found: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, None, node.lineno, id(node) in typing) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found += [Import(module, alias.name, node.lineno, id(node) in typing) for alias in node.names]
    return found


def sources(root: Path, package: str) -> Iterator[tuple[Path, list[Import]]]:
    """The files of an import package with what they import."""
    folder = root / PACKAGES[package]
    for path in sorted(folder.rglob("*.py")):
        inside = path.parent.relative_to(folder).parts
        yield path, imports(path, ".".join([package, *inside]))


def modules(root: Path) -> set[str]:
    """The modules of zoo/, __init__ among them."""
    return {path.stem for path in (root / "zoo").glob("*.py")}


def target(found: Import, known: set[str]) -> str | None:
    """The module of zoo/ that an import means (`__init__` for the package itself), or None for foreign ones."""
    parts = found.module.split(".")
    if parts[0] != "zoo":
        return None
    if len(parts) > 1:
        return parts[1]
    return found.name if found.name in known else "__init__"


def misplaced(root: Path) -> list[str]:
    """Files of zoo/ without a layer, and layers' files that are imported from below."""
    known = modules(root)
    problems = [f"zoo/{name}.py has no layer" for name in sorted(known - set(LAYER))]
    for path, found in sources(root, "zoo"):
        own = LAYER.get(path.stem, len(LAYERS))
        for each in found:
            wanted = target(each, known)
            if wanted is not None and LAYER.get(wanted, 0) > own:
                problems.append(f"{path.relative_to(root)}:{each.line} imports {wanted}, which is above it")
    return problems


def circles(root: Path) -> list[str]:
    """Files of zoo/ that import each other in a circle. Imports for type checkers alone do not run, and may."""
    known = modules(root)
    needs = {
        path.stem: {wanted for each in found if not each.typing_only and (wanted := target(each, known))} - {path.stem}
        for path, found in sources(root, "zoo")
    }
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def trespasses(root: Path) -> list[str]:
    """Imports across the packages that the house forbids, and onnxruntime outside its doors."""
    known, problems = modules(root), []
    for package in PACKAGES:
        for path, found in sources(root, package):
            for each in found:
                top = each.module.partition(".")[0]
                is_door = path.relative_to(root).as_posix() in DOORS
                forbidden = {
                    "zoo": top in ("zoo_cli", "zoo_plugins"),
                    "zoo_cli": top in ("zoo_plugins", "pluggy", "torch", "numpy") or each.module.startswith("zoo."),
                    "zoo_plugins": top in ("zoo_cli", "zoo_plugins"),
                }[package]
                is_inner = package == "zoo_cli" and top == "zoo" and each.name in known
                if forbidden or is_inner or top in ("cli", "plugins") or (top == "onnxruntime" and not is_door):
                    name = f"{each.module}.{each.name}" if each.name else each.module
                    problems.append(f"{path.relative_to(root)}:{each.line} imports {name}")
    return problems


def test_every_file_imports_only_its_own_and_lower_layers() -> None:
    assert misplaced(ROOT) == []


def test_no_circles() -> None:
    assert circles(ROOT) == []


def test_packages_keep_to_themselves() -> None:
    assert trespasses(ROOT) == []


def test_the_command_line_uses_public_names() -> None:
    tree = ast.parse((ROOT / "zoo" / "__init__.py").read_bytes())
    lists = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    public = set(ast.literal_eval(lists[0]))
    used = {each.name for _, found in sources(ROOT, "zoo_cli") for each in found if each.module == "zoo"}
    assert used - {None} <= public


@pytest.mark.parametrize("folder", ["zoo", "cli", "plugins", "tests", "demo", "benchmarks"])
def test_no_file_is_too_long(folder: str) -> None:
    # What benchmarks leave in `out`, environments among it, is no part of the house.
    paths = [path for path in (ROOT / folder).rglob("*.py") if "out" not in path.relative_to(ROOT).parts]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {str(path): count for path, count in lines.items() if count > MAX_LINES} == {}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small house that breaks no rule."""
    files = {
        "zoo/__init__.py": "from zoo.api import Zoo\n",
        "zoo/errors.py": "import os\n",
        "zoo/store.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from zoo.lock import Lock\n",
        "zoo/lock.py": "from zoo.store import Store\nfrom zoo import errors\n",
        "zoo/device.py": "def load():\n    import onnxruntime\n",
        "zoo/api.py": "from . import lock\nfrom .errors import ZooError\n",
        "cli/app.py": "from zoo import Zoo\nfrom zoo_cli.output import say\n",
        "plugins/sources/file.py": "from zoo.source import Source\nfrom zoo.hookspecs import hookimpl\n",
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
        (
            "zoo/errors.py",
            "def late():\n    from zoo.api import Zoo\n",
            "zoo/errors.py:2 imports api, which is above it",
        ),
        ("zoo/errors.py", "from zoo import api\n", "zoo/errors.py:1 imports api, which is above it"),
        ("zoo/errors.py", "from .api import Zoo\n", "zoo/errors.py:1 imports api, which is above it"),
        ("zoo/errors.py", "import zoo\n", "zoo/errors.py:1 imports __init__, which is above it"),
        ("zoo/errors.py", "from zoo import Zoo\n", "zoo/errors.py:1 imports __init__, which is above it"),
        ("zoo/novel.py", "", "zoo/novel.py has no layer"),
        ("zoo/api.py", "from zoo_plugins.sources import file\n", "zoo/api.py:1 imports zoo_plugins.sources.file"),
        ("zoo/api.py", "import zoo_cli.app\n", "zoo/api.py:1 imports zoo_cli.app"),
        ("zoo/api.py", "from onnxruntime.quantization import q\n", "zoo/api.py:1 imports onnxruntime.quantization.q"),
        ("cli/app.py", "from zoo.errors import ZooError\n", "cli/app.py:1 imports zoo.errors.ZooError"),
        ("cli/app.py", "from zoo import errors\n", "cli/app.py:1 imports zoo.errors"),
        ("cli/app.py", "import pluggy\n", "cli/app.py:1 imports pluggy"),
        ("cli/app.py", "import plugins\n", "cli/app.py:1 imports plugins"),
        ("plugins/sources/file.py", "from zoo_cli import app\n", "plugins/sources/file.py:1 imports zoo_cli.app"),
        (
            "plugins/sources/file.py",
            "from . import http\n",
            "plugins/sources/file.py:1 imports zoo_plugins.sources.http",
        ),
        ("plugins/sources/file.py", "from ..backbones import b\n", "file.py:1 imports zoo_plugins.backbones.b"),
        ("plugins/sources/file.py", "import onnxruntime as ort\n", "plugins/sources/file.py:1 imports onnxruntime"),
    ],
)
def test_a_broken_rule_is_seen(house: Path, name: str, code: str, problem: str) -> None:
    (house / name).write_text(code)
    problems = misplaced(house) + circles(house) + trespasses(house)
    assert any(each.endswith(problem) for each in problems)


def test_a_circle_is_seen(house: Path) -> None:
    (house / "zoo/store.py").write_text("from zoo.lock import Lock\n")
    assert [set(circle.split(" -> ")) for circle in circles(house)] == [{"store", "lock"}]
