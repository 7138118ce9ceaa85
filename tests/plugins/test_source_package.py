"""package:// copies files of installed packages without importing them."""

from pathlib import Path

import pytest

from zoo.errors import NetworkError
from zoo.plugin.manager import Plugins
from zoo.progress import SILENT
from zoo.source import Want


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that must not be imported, with a file in the package and one outside of it."""
    folder = tmp_path / "site" / "toy_files"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    (folder / "inner" / "words.txt").write_bytes(b"one two")
    (tmp_path / "site" / "secret").write_text("secret")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def fetch(url: str, partial: Path) -> bytes:
    Plugins().source("package").fetch([Want(url=url, partial=partial)], SILENT)
    return partial.read_bytes()


def test_a_file_of_a_package(package: Path, tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    partial.write_bytes(b"of an earlier pull, and longer")
    assert fetch("package://toy_files/inner/words.txt", partial) == b"one two"
    assert Plugins().source("package").is_remote is False


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("package://toy_files/nothing", "toy_files has no file nothing"),
        ("package://toy_files/inner", "toy_files has no file inner"),
        ("package://toy_files/../secret", "has no file"),
        ("package://toy_files//etc/passwd", "has no file"),
        ("package://toy_files", "has no file"),
        ("package://toy_nobody/words.txt", "the package toy_nobody is not installed"),
        ("package://toy-files/words.txt", "the package toy-files is not installed"),
        ("package://../words.txt", "the package .. is not installed"),
    ],
)
def test_what_is_not_there(package: Path, tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(NetworkError, match=said):
        fetch(url, tmp_path / "partial")
    assert not (tmp_path / "partial").exists()
