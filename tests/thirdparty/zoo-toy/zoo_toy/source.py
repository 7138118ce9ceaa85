"""`toy://NAME`: the files that lie in this package."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from zoo.errors import NetworkError
from zoo.hookspecs import hookimpl
from zoo.progress import Progress
from zoo.source import Source, Want


class ToySource(Source):
    """Files beside this module."""

    scheme = "toy"
    is_remote = False

    def fetch(self, wants: Sequence[Want], progress: Progress) -> None:
        """Write every file whole. Raises NetworkError for one that is not there."""
        for want in wants:
            path = Path(__file__).with_name(want.url.removeprefix("toy://"))
            if not path.is_file():
                raise NetworkError(f"zoo-toy has no {path.name}", url=want.url, hint="zoo show toy-palette")
            want.partial.write_bytes(path.read_bytes())


@hookimpl
def zoo_register_sources() -> Iterable[type[Source]]:
    """The one scheme of this module."""
    return [ToySource]
