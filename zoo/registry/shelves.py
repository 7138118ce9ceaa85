"""Registry files of plugins (`zoo.shelves`), added to the registry without importing the packages that hold them.

A file that cannot be used (it is broken, or the name of a row is taken) is quarantined, and none of its rows is added.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from zoo.errors import ZooError
from zoo.extras import package_folder
from zoo.plugin.entry_points import EntryPoint, PluginState, allowed, installed, state_of
from zoo.registry.registry import Registry, load_registry
from zoo.schema import canonical


def add_shelves(
    registry: Registry, environ: Mapping[str, str], points: Iterable[EntryPoint] | None = None
) -> tuple[Registry, list[PluginState]]:
    """Returns `registry` with the rows of the plugins that ZOO_PLUGINS allows, and the state of each registry file.

    `points` replaces the installed entry points. If two files claim a name, both are left out.
    """
    found = installed()[0] if points is None else points
    shelves = [point for point in dict.fromkeys(found) if point.group == "zoo.shelves"]
    loaded: dict[EntryPoint, Registry] = {}
    errors: dict[EntryPoint, str] = {}
    for point in sorted(allowed(shelves, environ)):
        try:
            loaded[point] = load_registry([_file(point)])
        except ZooError as error:
            errors[point] = error.message
    taken = {canonical(name): name for name in registry}
    claims: dict[str, list[EntryPoint]] = {}
    for point, rows in loaded.items():
        for name in rows:
            claims.setdefault(canonical(name), []).append(point)
    for point, rows in loaded.items():
        if clash := _clash(rows, taken, claims):
            errors[point] = clash
    kept = [entry for point, rows in loaded.items() if point not in errors for entry in rows.values()]
    states = [
        state_of(point, "quarantined" if point in errors else "ok", errors.get(point))
        for point in sorted({*loaded, *errors})
    ]
    return Registry([*registry.values(), *kept]) if kept else registry, states


def _file(point: EntryPoint) -> Path:
    """The registry file in the package that the entry point names. Raises ZooError if there is no such package."""
    folder = package_folder(point.value)
    if folder is None:
        raise ZooError(f"there is no package {point.value} with an __init__.py, but the entry point names it")
    return folder / "registry.yaml"


def _clash(rows: Registry, taken: Mapping[str, str], claims: Mapping[str, list[EntryPoint]]) -> str | None:
    """A message about the first row whose name is taken; None if all names are free."""
    for name in rows:
        other = taken.get(canonical(name))
        if other is not None:
            confused = "" if other == name else f", which can be confused with '{name}'"
            return f"the registry has a row '{other}' already{confused}"
        claimants = sorted({point.distribution for point in claims[canonical(name)]})
        if len(claims[canonical(name)]) > 1:
            return f"the row '{name}' is claimed by the registry files of {' and '.join(claimants)}"
    return None
