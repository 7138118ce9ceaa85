"""zoo plugins new writes a complete plugin, which passes its own check before anything is edited."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.kit.installed import Site, pip_install
from zoo import UsageError, Zoo
from zoo.registry.registry import load_registry

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_what_it_writes_passes_its_own_check(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    site.folder.mkdir()
    done = site.zoo("plugins", "new", "squeeze-net2", "-o", tmp_path / "new", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)["plugin"]
    folder = tmp_path / "new"
    assert answer["folder"] == str(folder)
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(answer["files"]) == written
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["zoo.backbones"] == {"squeeze-net2": "zoo_squeeze_net2"}
    pip_install(folder, site.folder)
    checked = site.zoo("plugins", "check", "squeeze-net2", "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (report,) = json.loads(checked.stdout)["reports"]
    assert (report["entry"], report["state"]) == ("squeeze-net2-tiny", "passed")
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site.folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert tested.returncode == 0, tested.stdout
    assert "1 passed" in tested.stdout
    # The written test can fail: it notices another digest in the row.
    row = site.folder / "zoo_squeeze_net2" / "registry.yaml"
    row.write_text(row.read_text().replace("dim: 16", "dim: 17"))
    wrong = site.zoo("plugins", "check", "squeeze-net2")
    assert wrong.returncode == 6, wrong.stdout + wrong.stderr
    assert "zoo_squeeze_net2" not in site.zoo("list", "-q", ZOO_PLUGINS="").stdout


def test_what_it_writes_is_clean(tmp_path: Path) -> None:
    """The written files pass our ruff settings and load as a registry file."""
    folder, _ = Zoo().new_plugin("vgg", tmp_path / "vgg")
    command = ["ruff", "check", "--config", str(ROOT / "pyproject.toml"), str(folder)]
    for arguments in (command, ["ruff", "format", "--check", *command[2:]]):
        done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert list(load_registry([folder / "zoo_vgg" / "registry.yaml"])) == ["vgg-tiny"]
    assert "$" not in (folder / "pyproject.toml").read_text()


def test_the_same_name_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Zoo().new_plugin("vgg", tmp_path / name)
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Vgg", "cannot be the name of a new family"),
        ("9net", "cannot be"),
        ("-net", "cannot be"),
        ("a--b", "cannot be"),
        ("../up", "cannot be"),
        ("a.b", "cannot be"),
        ("", "cannot be"),
        ("x" * 41, "cannot be"),
        ("plugins", "cannot be"),
        ("net\n", "cannot be"),
        ("bert", "the family 'bert' already exists"),
    ],
)
def test_a_name_that_cannot_be(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        Zoo().new_plugin(name, tmp_path / "new")
    assert caught.value.hint
    assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(UsageError, match="already exists"):
            Zoo().new_plugin("vgg", tmp_path / name)
    assert (tmp_path / "full" / "mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert Zoo().new_plugin("vgg", tmp_path / "empty")[0] == tmp_path / "empty"


def test_the_folder_is_named_after_the_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Zoo().new_plugin("my_net")[0] == Path("zoo-my-net")
    assert (tmp_path / "zoo-my-net" / "zoo_my_net" / "__init__.py").is_file()


def test_names_that_clash_give_a_module_that_registers(tmp_path: Path) -> None:
    """Names that are words of Python or YAML, or that the written module imports."""
    site = Site(tmp_path / "site")
    site.folder.mkdir()
    names = ["none", "true", "null", "class", "iterable", "backbone", "torch", "torch-backbone", "type-checking"]
    for name in names:
        folder, _ = Zoo().new_plugin(name, tmp_path / name)
        package = f"zoo_{name.replace('-', '_')}"
        shutil.copytree(folder / package, site.folder / package)
        info = site.folder / f"{package}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: zoo-{name}\nVersion: 0.1.0\n")
        groups = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]
        lines = [
            f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in groups[group].items()) for group in groups
        ]
        (info / "entry_points.txt").write_text("".join(lines))
    done = site.zoo("plugins", "--json")
    assert done.returncode == 0, done.stderr
    states = [each for each in json.loads(done.stdout)["plugins"] if each["name"] in names]
    assert len(states) == 2 * len(names)
    assert [each["error"] for each in states if each["state"] != "ok"] == []
    rows = json.loads(site.zoo("list", "*-tiny", "--json").stdout)["models"]
    assert {row["family"] for row in rows} == set(names)
    # The imported class is not overwritten by the module's own class.
    checked = site.zoo("plugins", "check", "torch", "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
