"""Entry points of zoo's groups, read from the metadata of installed distributions. No plugin is imported.

Importing `importlib.metadata` takes longer than reading a few hundred small files, and `zoo list` would wait for it, so
it is used only for distributions that are not in plain folders of sys.path.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct

from zoo.errors import brief
from zoo.schema import canonical

State: TypeAlias = Literal["not loaded", "ok", "quarantined"]
Read: TypeAlias = Callable[[str], str | None]

#: A plugin that takes longer to load is reported: every verb that needs the plugin waits for it.
SLOW_SECONDS = 1.0
#: The distribution that contains zoo itself.
OURS = "backbone-zoo"


class EntryPoint(NamedTuple):
    """One entry point of a group that begins with `zoo.`, and the distribution that has it."""

    group: str
    name: str
    value: str
    distribution: str = "an unnamed distribution"
    version: str = "?"

    @property
    def title(self) -> str:
        """The name of the plugin in error messages."""
        return f"'{self.name}' of {self.distribution}"


class PluginState(Struct, frozen=True, kw_only=True):
    """One line of `zoo plugins`; `error` is the reason for quarantine, `seconds` the time to load the plugin."""

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
        """Whether loading took longer than SLOW_SECONDS."""
        return self.seconds is not None and self.seconds > SLOW_SECONDS

    @property
    def title(self) -> str:
        """The name of the plugin in error messages."""
        return f"'{self.name}' of {self.distribution}" if self.name else self.distribution


def state_of(point: EntryPoint, state: State, error: str | None = None, seconds: float | None = None) -> PluginState:
    """The line of `zoo plugins` for one entry point."""
    return PluginState(
        group=point.group, name=point.name, module=point.value, distribution=point.distribution,
        version=point.version, state=state, error=error, seconds=seconds,
    )  # fmt: skip


def installed() -> tuple[list[EntryPoint], list[PluginState]]:
    """Returns zoo's entry points in all installed distributions, and a quarantined state for each with broken metadata.

    If a distribution is on sys.path twice, the first copy counts, as in an import.
    """
    points: list[EntryPoint] = []
    unreadable: list[PluginState] = []
    seen: set[str] = set()
    for key, read in _distributions():
        if key in seen:
            continue
        seen.add(key)
        try:
            text = read("entry_points.txt") or ""
            # Name and version are read only for the few distributions with such an entry point.
            if "[zoo." in text:
                name, version = _name_and_version(read)
                points += [EntryPoint(*found, name or key, version or "?") for found in _parse(text)]
        except Exception as error:
            # The file may have any content.
            broken = EntryPoint("", "", "", key)
            reason = f"its entry_points.txt cannot be read: {type(error).__name__}: {brief(str(error))}"
            unreadable.append(state_of(broken, "quarantined", reason))
    return points, unreadable


def allowed(points: Iterable[EntryPoint], environ: Mapping[str, str]) -> list[EntryPoint]:
    """The entry points that ZOO_PLUGINS lists, by distribution or name; all if it is unset, none if it is empty."""
    chosen = environ.get("ZOO_PLUGINS")
    if chosen is None:
        return list(points)
    words = {canonical(word.strip()) for word in chosen.split(",") if word.strip()}
    return [point for point in points if words & {canonical(point.distribution), canonical(point.name)}]


def _distributions() -> Iterator[tuple[str, Read]]:
    """Yields the canonical name of every installed distribution, with a function that reads its metadata files."""
    for entry in sys.path:
        try:
            with os.scandir(entry or ".") as found:
                infos = [(each.name, each.path) for each in found if each.name.endswith((".dist-info", ".egg-info"))]
        except NotADirectoryError:
            yield from _foreign_distributions([entry])
        except OSError:
            continue
        else:
            for name, path in infos:
                yield canonical(name.rpartition(".")[0].partition("-")[0]), partial(_read, path)
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_distributions")]
    if any(getattr(finder, "__name__", None) != "PathFinder" for finder in finders):
        yield from _foreign_distributions(None)


def _foreign_distributions(path: list[str] | None) -> Iterator[tuple[str, Read]]:
    """The distributions in archives (`path`), or those that finders of other packages find (None)."""
    from importlib.metadata import distributions

    for distribution in distributions() if path is None else distributions(path=path):
        try:
            yield canonical(distribution.metadata["Name"]), distribution.read_text
        except Exception:
            # Versions of importlib.metadata raise different errors for missing or malformed metadata.
            continue


def _read(info: str, name: str) -> str | None:
    try:
        with open(f"{info}/{name}", encoding="utf-8") as file:  # noqa: PTH123 - creating Paths would double the time
            return file.read()
    except OSError:
        return None


def _name_and_version(read: Read) -> tuple[str | None, str | None]:
    head = (read("METADATA") or read("PKG-INFO") or "").partition("\n\n")[0]
    fields = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head.splitlines())}
    return fields.get("name"), fields.get("version")


def _parse(text: str) -> Iterator[tuple[str, str, str]]:
    """Yields the group, name and value of entry points in zoo's groups. Raises ValueError for any other line.

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
