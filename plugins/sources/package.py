"""`package://package.name/path`: a file in an installed package, which is not imported."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from zoo.errors import NetworkError
from zoo.extras import package_folder
from zoo.hookspecs import hookimpl
from zoo.progress import Progress
from zoo.source import Source, Want


class PackageSource(Source):
    """The source that copies files of a distribution, such as small weights beside its registry file."""

    scheme = "package"
    is_remote = False

    def fetch(self, wants: Sequence[Want], progress: Progress) -> None:
        """Copy every file. Raises NetworkError when the package or a file in it does not exist."""
        for want in wants:
            path = _path(want.url)
            with progress.task(path.name, want.size, "B") as bar:
                shutil.copyfile(path, want.partial)
                bar.advance(path.stat().st_size)


def _path(url: str) -> Path:
    package, _, inside = url.removeprefix("package://").partition("/")
    folder = package_folder(package) if all(map(str.isidentifier, package.split("."))) else None
    if folder is None:
        raise NetworkError(
            f"the package {package} is not installed", url=url, hint="install the distribution of this row"
        )
    parts = PurePosixPath(inside)
    if parts.is_absolute() or ".." in parts.parts or not (path := folder / inside).is_file():
        raise NetworkError(f"{package} has no file {inside}", url=url, hint="install the row's distribution again")
    return path


@hookimpl
def zoo_register_sources() -> Iterable[type[Source]]:
    """The scheme of this module."""
    return [PackageSource]
