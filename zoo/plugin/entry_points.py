"""Entry points of zoo's groups, read from the metadata of installed distributions: nothing of a plugin is imported.

`importlib.metadata` says the same, but importing it alone takes longer than reading a few hundred small files, and
`zoo list` waits for it: it is asked only about what is not a plain folder of the path.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct

from zoo.errors import brief
from zoo.schema import canonical

State: TypeAlias = Literal["not loaded", "ok", "quarantined"]
Read: TypeAlias = Callable[[str], str | None]

#: A plugin that takes longer to load is worth a word: every verb that needs it waits for it.
SLOW_SECONDS = 1.0
#: The distribution that zoo itself is installed by.
OURS = "backbone-zoo"
NAMELESS = "an unnamed distribution"
SUFFIXES = (".dist-info", ".egg-info")


class Point(NamedTuple):
    """One entry point of a group that begins with `zoo.`, and the distribution that has it."""

    group: str
    name: str
    value: str
    distribution: str = NAMELESS
    version: str = "?"

    @property
    def title(self) -> str:
        """The plugin as errors name it."""
        return f"'{self.name}' of {self.distribution}"


class PluginState(Struct, frozen=True, kw_only=True):
    """One line of `zoo plugins`; `error` says why it is quarantined, `seconds` how long it took to load."""

    group: str
    name: str
    module: str
    distribution: str
    version: str
    state: State
    error: str | None = None
    seconds: float | None = None

    @property
    def is_slow(self) -> bool:
        """Whether loading it took noticeably long."""
        return self.seconds is not None and self.seconds > SLOW_SECONDS

    @property
    def title(self) -> str:
        """The plugin as errors name it."""
        return f"'{self.name}' of {self.distribution}" if self.name else self.distribution


def state_of(point: Point, state: State, error: str | None = None, seconds: float | None = None) -> PluginState:
    """What `zoo plugins` says about one entry point."""
    return PluginState(
        group=point.group, name=point.name, module=point.value, distribution=point.distribution,
        version=point.version, state=state, error=error, seconds=seconds,
    )  # fmt: skip


def installed() -> tuple[list[Point], list[PluginState]]:
    """(the entry points of every installed distribution, a quarantined state for each whose metadata is broken).

    Of a distribution that the path shows twice the first one counts, as an import would take it.
    """
    points: list[Point] = []
    unreadable: list[PluginState] = []
    seen: set[str] = set()
    for key, read in _distributions():
        if key in seen:
            continue
        seen.add(key)
        try:
            text = read("entry_points.txt") or ""
            # Most distributions have none of ours: their metadata is not read further.
            if "[zoo." in text:
                name, version = _name_and_version(read)
                points += [Point(*found, name or key, version or "?") for found in _parse(text)]
        except Exception as error:
            # Metadata is a file that any distribution wrote as it liked.
            broken = Point("", "", "", key)
            reason = f"its entry_points.txt cannot be read: {type(error).__name__}: {brief(str(error))}"
            unreadable.append(state_of(broken, "quarantined", reason))
    return points, unreadable


def allowed(points: Iterable[Point], environ: Mapping[str, str]) -> list[Point]:
    """Those that ZOO_PLUGINS names by distribution or entry point: unset allows all, empty none."""
    chosen = environ.get("ZOO_PLUGINS")
    if chosen is None:
        return list(points)
    words = {canonical(word.strip()) for word in chosen.split(",") if word.strip()}
    return [point for point in points if words & {canonical(point.distribution), canonical(point.name)}]


def _distributions() -> Iterator[tuple[str, Read]]:
    """Every installed distribution: its comparable name, and how to read a file of its metadata."""
    for entry in sys.path:
        try:
            with os.scandir(entry or ".") as found:
                infos = [(each.name, each.path) for each in found if each.name.endswith(SUFFIXES)]
        except NotADirectoryError:
            yield from _foreign_distributions([entry])
        except OSError:
            continue
        else:
            for name, path in infos:
                yield canonical(name.rpartition(".")[0].partition("-")[0]), _reader(path)
    if any(hasattr(finder, "find_distributions") and not _is_path_finder(finder) for finder in sys.meta_path):
        yield from _foreign_distributions(None)


def _is_path_finder(finder: object) -> bool:
    return getattr(finder, "__name__", None) == "PathFinder"


def _foreign_distributions(path: list[str] | None) -> Iterator[tuple[str, Read]]:
    """What importlib.metadata finds where this module does not look: in archives and by finders of others."""
    from importlib.metadata import distributions

    for distribution in distributions() if path is None else distributions(path=path):
        try:
            yield canonical(distribution.metadata["Name"]), distribution.read_text
        except Exception:
            # What is missing or malformed differs between versions of importlib.metadata in what it raises.
            continue


def _reader(info: str) -> Read:
    def read(name: str) -> str | None:
        try:
            with open(f"{info}/{name}", encoding="utf-8") as file:  # noqa: PTH123 - one Path a file is half the time
                return file.read()
        except OSError:
            return None

    return read


def _name_and_version(read: Read) -> tuple[str | None, str | None]:
    head = (read("METADATA") or read("PKG-INFO") or "").partition("\n\n")[0]
    fields = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head.splitlines())}
    return fields.get("name"), fields.get("version")


def _parse(text: str) -> Iterator[tuple[str, str, str]]:
    """(group, name, value) of our groups. Raises ValueError for a line that is no entry point.

    Format: https://packaging.python.org/en/latest/specifications/entry-points/
    """
    group = ""
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif group.startswith("zoo."):
            name, equals, value = (part.strip() for part in line.partition("="))
            if not (name and equals and value):
                raise ValueError(f"line {number} is not 'name = module'")
            yield group, name, value
