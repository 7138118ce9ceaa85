"""The conformance check of the installed families, with rows of the registry."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from zoo.errors import NetworkError, PluginError, UnpinnedError, UsageError
from zoo.plugin.manager import Plugins
from zoo.progress import Progress
from zoo.registry.registry import Registry
from zoo.schema import Entry
from zoo.testing import Report
from zoo.testing.child import check_family

#: Schemes of files that are on this machine and need no download.
LOCAL = ("file://", "package://")


def check_families(
    registry: Registry,
    is_pulled: Callable[[Entry], bool],
    pull: Callable[[str], Path],
    *,
    family: str | None,
    rows: Sequence[str],
    limit: float,
    progress: Progress,
) -> list[Report]:
    """A report for every checked row, each checked in its own child within `limit` seconds.

    Checked are the named `rows`; without them the pulled rows of `family`, or else its smallest row that can be pulled.
    With `family` None all families are checked without downloads, and a family without a local row is left out.
    Raises PluginError if `family` has no plugin or the plugin cannot be loaded, and the errors of `pull`.
    """
    if rows:
        chosen = [registry.entry(row) for row in rows]
        if foreign := [entry for entry in chosen if family not in (None, entry.family)]:
            raise UsageError(
                f"{foreign[0].name} is a row of the family {foreign[0].family}, not of {family}",
                hint=f"zoo list --family {family}",
            )
        return [check_family(entry, pull(entry.name), limit, progress) for entry in chosen]
    if family is not None:
        Plugins().claim("zoo.backbones", family)
        available = _available(family, registry, is_pulled, pull)
        return [check_family(entry, folder, limit, progress) for entry, folder in available]
    reports = []
    for each in Plugins().families():
        reports += _reports_without_download(each, registry, is_pulled, pull, limit, progress)
    return reports


def _reports_without_download(
    family: str,
    registry: Registry,
    is_pulled: Callable[[Entry], bool],
    pull: Callable[[str], Path],
    limit: float,
    progress: Progress,
) -> list[Report]:
    """The reports on one of all families: a family that cannot be checked gets a report instead of an error."""
    entries = [
        entry
        for entry in _rows_of(family, registry)
        if is_pulled(entry) or (entry.is_pinned and all(file.sources[0].startswith(LOCAL) for file in entry.files))
    ]
    try:
        Plugins().claim("zoo.backbones", family)
        if not entries:
            return [Report(family=family, state="left out", note=f"no row is pulled: zoo plugins check {family}")]
        pulled = [entry for entry in entries if is_pulled(entry)] or entries[:1]
        return [check_family(entry, pull(entry.name), limit, progress) for entry in pulled]
    except NetworkError as error:
        return [Report(family=family, state="left out", note=error.message)]
    except PluginError as error:
        return [Report(family=family, state="broken", note=error.message)]


def _available(
    family: str, registry: Registry, is_pulled: Callable[[Entry], bool], pull: Callable[[str], Path]
) -> Iterable[tuple[Entry, Path]]:
    entries = _rows_of(family, registry)
    if not entries:
        raise UsageError(
            f"no row of the registry is of the family {family}",
            hint="add one to the plugin's registry file, or to registry.yaml under ZOO_HOME",
        )
    if pulled := [entry for entry in entries if is_pulled(entry)]:
        return [(entry, pull(entry.name)) for entry in pulled]
    first: Exception | None = None
    for entry in entries:
        try:
            return [(entry, pull(entry.name))]
        except (NetworkError, UnpinnedError) as error:
            first = first or error
    assert first is not None
    raise first


def _rows_of(family: str, registry: Registry) -> list[Entry]:
    """The rows of the family, smallest first."""
    entries = [entry for entry in registry.values() if entry.family == family]
    return sorted(entries, key=lambda entry: (entry.size is None, entry.size or 0))
