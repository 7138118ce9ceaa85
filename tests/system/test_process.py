"""Python files of the folder that zoo is called in are nobody's packages: no child of zoo's runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.store.unpickle import as_safetensors


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that modules of the current folder would write."""
    path, here = tmp_path / "marker", tmp_path / "here"
    here.mkdir()
    code = f"import pathlib; pathlib.Path({str(path)!r}).touch(); raise SystemExit('not a package')\n"
    for name in ("torch", "json", "importlib", "numpy", "re", "zoo"):
        (here / f"{name}.py").write_text(code)
    monkeypatch.chdir(here)
    return path


def test_the_commands_children(marker: Path, shelf_file: Path) -> None:
    """Those that build, that check a family, and that import its module; the marker can be written."""
    # The installed command: `python -m zoo_cli` would itself import from the current folder.
    command = str(Path(sys.executable).with_name("zoo"))
    environment = {**os.environ, "ZOO_REGISTRY": str(shelf_file)}
    for arguments in (
        ["run", "tiny-bert", "a text", "--device", "cpu"],
        ["plugins", "check", "bert", "--row", "tiny-bert"],
    ):
        done = subprocess.run(
            [command, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert not marker.exists(), done.stderr
        assert done.returncode == 0, done.stdout + done.stderr
    subprocess.run([sys.executable, "-m", "json"], capture_output=True, check=False)
    assert marker.exists()


def test_the_child_that_opens_pickles(marker: Path, tmp_path: Path) -> None:
    import torch

    torch.save({"weight": torch.ones(2)}, tmp_path / "net.pth")
    assert as_safetensors(tmp_path / "net.pth").is_file()
    assert not marker.exists()
