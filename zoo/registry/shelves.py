"""Shelves of plugins: registry files in installed packages, added to the registry without importing the packages.

A shelf that cannot be used (a broken file, a row whose name is taken) is left out whole and quarantined: the rows that
were there before it stay as they are.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from zoo.errors import ZooError
from zoo.extras import package_folder
from zoo.plugin.entry_points import PluginState, Point, allowed, installed, state_of
from zoo.registry.registry import Registry, load_registry
from zoo.schema import canonical

GROUP = "zoo.shelves"
FILE = "registry.yaml"


def add_shelves(
    registry: Registry, environ: Mapping[str, str], points: Iterable[Point] | None = None
) -> tuple[Registry, list[PluginState]]:
    """`registry` with the rows of every shelf that ZOO_PLUGINS allows, and the state of each shelf.

    `points` are the installed entry points unless given. A name that two shelves claim is nobody's: both are left out.
    """
    found = installed()[0] if points is None else points
    shelves = [point for point in dict.fromkeys(found) if point.group == GROUP]
    loaded: dict[Point, Registry] = {}
    errors: dict[Point, str] = {}
    for point in sorted(allowed(shelves, environ)):
        try:
            loaded[point] = load_registry([_file(point)])
        except ZooError as error:
            errors[point] = error.message
    taken = {canonical(name): name for name in registry}
    claims: dict[str, list[Point]] = {}
    for point, shelf in loaded.items():
        for name in shelf:
            claims.setdefault(canonical(name), []).append(point)
    for point, shelf in loaded.items():
        if clash := _clash(shelf, taken, claims):
            errors[point] = clash
    kept = [entry for point, shelf in loaded.items() if point not in errors for entry in shelf.values()]
    states = [
        state_of(point, "quarantined" if point in errors else "ok", errors.get(point))
        for point in sorted({*loaded, *errors})
    ]
    return Registry([*registry.values(), *kept]) if kept else registry, states


def _file(point: Point) -> Path:
    """The registry file beside the package's __init__. Raises ZooError where there is no such package."""
    folder = package_folder(point.value)
    if folder is None:
        raise ZooError(f"there is no package {point.value} with an __init__.py, as its entry point says")
    return folder / FILE


def _clash(shelf: Registry, taken: Mapping[str, str], claims: Mapping[str, list[Point]]) -> str | None:
    """Which of its rows a shelf may not have, and why."""
    for name in shelf:
        other = taken.get(canonical(name))
        if other is not None:
            confused = "" if other == name else f", which can be confused with '{name}'"
            return f"the registry has a row '{other}' already{confused}"
        claimants = sorted({point.distribution for point in claims[canonical(name)]})
        if len(claims[canonical(name)]) > 1:
            return f"the row '{name}' is claimed by the shelves of {' and '.join(claimants)}"
    return None
