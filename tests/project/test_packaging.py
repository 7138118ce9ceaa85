"""The wheel as users get it: sdist -> wheel -> a fresh environment with base dependencies only."""

import configparser
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.kit.cost import cpu_seconds
from tests.kit.items import write_texts
from tests.kit.once import once

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
#: Files that a used checkout has and a clean one does not.
LITTER = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "out", ".venvs")
#: `zoo list` may take this many times the CPU time of importing typer alone.
LIST_BUDGET = 2.5
RUNS = 11


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns the sdist of a clean copy of the checkout, and the wheel that is built from this sdist."""

    def build(folder: Path) -> None:
        shutil.copytree(ROOT, folder / "checkout", ignore=LITTER)
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
        done = subprocess.run(
            command, cwd=folder / "checkout", capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr

    folder = once(tmp_path_factory, "build", build)
    (sdist,), (wheel,) = (list((folder / "dist").glob(pattern)) for pattern in ("*.tar.gz", "*.whl"))
    return sdist, wheel


@pytest.fixture(scope="session")
def environment(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with only the wheel and its base dependencies."""
    programs = "Scripts" if os.name == "nt" else "bin"

    def install(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
        python = str(folder / programs / "python")
        command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", str(built[1])]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr

    return once(tmp_path_factory, "environment", install) / programs


def zoo(programs: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the installed command outside of the checkout."""
    command = [str(programs / "zoo"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def packages_in_tree() -> set[str]:
    """Every folder with an __init__.py below the three package folders, by its import name."""
    found = set()
    for package, folder in PROJECT["tool"]["setuptools"]["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    return found


def test_every_package_of_the_tree_is_declared() -> None:
    declared = PROJECT["tool"]["setuptools"]["packages"]
    assert len(declared) == len(set(declared))
    assert set(declared) == packages_in_tree()
    # A folder of modules without an __init__.py would silently be missing from the wheel.
    for folder in PROJECT["tool"]["setuptools"]["package-dir"].values():
        homes = {path.parent for path in (ROOT / folder).rglob("*.py")}
        assert [str(home) for home in homes if not (home / "__init__.py").is_file()] == []


def test_the_wheel_holds_what_it_should_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
        registry = wheel.read("zoo/registry.yaml")
    assert registry == (ROOT / "registry.yaml").read_bytes()
    wanted = {"zoo/registry.yaml"}
    for package, folder in PROJECT["tool"]["setuptools"]["package-dir"].items():
        kept = [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).glob("assets/*"), ROOT / folder / "py.typed"]
        kept += (ROOT / folder).glob("templates/*")
        wanted |= {f"{package}/{path.relative_to(ROOT / folder).as_posix()}" for path in kept}
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert any(name.startswith("zoo/assets/") for name in wanted)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_is_described(built: tuple[Path, Path]) -> None:
    from email.parser import BytesParser

    with zipfile.ZipFile(built[1]) as wheel:
        info = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = BytesParser().parsebytes(wheel.read(info))
    assert (metadata["Name"], metadata["License-Expression"]) == ("backbone-zoo", "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"
    assert str(metadata.get_payload()).startswith("# zoo\n")
    base = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert len(base) == len(PROJECT["project"]["dependencies"])
    assert {"cpu", "gpu", "train", "demo", "dev"} <= set(metadata.get_all("Provides-Extra", []))


def test_the_sdist_holds_what_its_build_needs(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "registry.yaml", "pyproject.toml", "setup.py", "MANIFEST.in"} <= names
    assert {"zoo/py.typed", "zoo/assets/sentences.txt", "cli/app.py", "plugins/backbones/bert.py"} <= names
    assert [name for name in names if name.startswith(("demo/", ".", "build/"))] == []


@pytest.mark.network
def test_only_base_dependencies_are_there(environment: Path) -> None:
    listed = subprocess.run(
        [str(environment / "python"), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {row["name"].lower().replace("_", "-") for row in json.loads(listed.stdout)}
    assert {"backbone-zoo", "typer", "pluggy", "msgspec", "huggingface-hub"} <= names
    assert names & {"torch", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "pydantic", "transformers"} == set()


@pytest.mark.network
def test_every_entry_point_loads_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    wanted = {
        (group, name, module)
        for group, points in PROJECT["project"]["entry-points"].items()
        for name, module in points.items()
    }
    done = zoo(environment, "plugins", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    states = json.loads(done.stdout)["plugins"]
    assert {(state["group"], state["name"], state["module"]) for state in states} == wanted
    assert [state for state in states if state["state"] != "ok"] == []
    home = subprocess.run(
        [str(environment / "python"), "-c", "import zoo, zoo_cli, zoo_plugins as p; print(zoo.__file__, p.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(ROOT) not in home.stdout


@pytest.mark.network
def test_the_registry_is_found_in_the_wheel(environment: Path, tmp_path: Path) -> None:
    from zoo.registry.registry import load_registry

    listed = zoo(environment, "list", "-q", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert set(listed.stdout.split()) == set(load_registry([ROOT / "registry.yaml"]))
    shown = zoo(environment, "show", "all-minilm-l6-v2", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db" in shown.stdout


@pytest.mark.network
def test_without_extras_each_verb_says_which_one_it_lacks(shelf: Path, environment: Path, tmp_path: Path) -> None:
    table = write_texts(tmp_path / "tickets.csv")
    home = Path(os.environ["ZOO_HOME"])
    for name, item in (("tiny-bert", "x"), ("tiny-lite", str(ROOT / "zoo/assets/rocket.jpg"))):
        (bundle,) = (home / "graphs").glob(f"{name}-????????????????")
        shutil.copytree(bundle, tmp_path / name)
        says_what_is_missing(zoo(environment, "run", f"./{name}", item, cwd=tmp_path), "running a model")
    finetune = zoo(environment, "finetune", "tiny-bert", table, "-o", "out", cwd=tmp_path)
    says_what_is_missing(finetune, "fine-tuning")
    assert not (tmp_path / "out").exists()
    pulled = zoo(environment, "pull", "tiny-bert", cwd=tmp_path)
    assert pulled.returncode == 0, pulled.stderr


def says_what_is_missing(done: subprocess.CompletedProcess[str], purpose: str) -> None:
    """Exit code 3, one error line, one hint with an extra to install, and nothing else."""
    assert done.returncode == 3, done.stderr
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {purpose} needs the package ")
    assert hint.startswith("hint: pip install 'backbone-zoo[")
    extra = hint.partition("[")[2].partition("]")[0]
    assert set(extra.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


@pytest.mark.network
def test_list_is_quick(environment: Path, tmp_path: Path) -> None:
    """Medians of interleaved runs, so that other load on the machine affects both alike."""
    typer = [str(environment / "python"), "-c", "import typer"]
    listing = [str(environment / "zoo"), "list"]
    for command in (typer, listing):
        cpu_seconds(command, cwd=tmp_path)
    pairs = [tuple(cpu_seconds(command, cwd=tmp_path)[0] for command in (typer, listing)) for _ in range(RUNS)]
    alone, whole = (statistics.median(column) for column in zip(*pairs, strict=True))
    assert whole <= LIST_BUDGET * alone, f"zoo list {whole * 1000:.0f} ms, typer alone {alone * 1000:.0f} ms"


def test_entry_points_of_the_wheel_are_those_declared(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
        text = wheel.read(name).decode()
        modules = set(wheel.namelist())
    points = configparser.ConfigParser(delimiters=("=",))
    points.read_string(text)
    groups = {"console_scripts": PROJECT["project"]["scripts"], **PROJECT["project"]["entry-points"]}
    assert {group: dict(points[group]) for group in points.sections()} == groups
    targets = {value.partition(":")[0].replace(".", "/") for group in groups.values() for value in group.values()}
    assert {target for target in targets if not {f"{target}.py", f"{target}/__init__.py"} & modules} == set()
