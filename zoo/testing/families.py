"""The conformance check of the installed families, with rows of the registry."""

from collections.abc import Callable, Sequence
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

    The named `rows` are checked. Without names the pulled rows of `family` are checked, or if there are none, its
    smallest row that can be pulled. With `family` None all families are checked without downloads; a family without a
    local row is left out. Raises PluginError if `family` has no plugin or the plugin cannot be loaded, and the errors
    of `pull`.
    """

    def check(entry: Entry) -> Report:
        return check_family(entry, pull(entry.name), limit, progress)

    if rows:
        chosen = [registry.entry(row) for row in rows]
        if foreign := [entry for entry in chosen if family not in (None, entry.family)]:
            raise UsageError(
                f"{foreign[0].name} is a row of the family {foreign[0].family}, not of {family}",
                hint=f"zoo list --family {family}",
            )
        return [check(entry) for entry in chosen]
    if family is not None:
        Plugins().claim("zoo.backbones", family)
        pulled, others = _rows_of(family, registry, is_pulled)
        if pulled:
            return [check(entry) for entry in pulled]
        return [check_family(*_first_available(family, others, pull), limit, progress)]
    return [report for each in Plugins().families() for report in _local_reports(each, registry, is_pulled, check)]


def _local_reports(
    family: str, registry: Registry, is_pulled: Callable[[Entry], bool], check: Callable[[Entry], Report]
) -> list[Report]:
    """The reports on `family`, without downloads; if it cannot be checked, a report that says so."""
    pulled, others = _rows_of(family, registry, is_pulled)
    local = [
        entry for entry in others if entry.is_pinned and all(file.sources[0].startswith(LOCAL) for file in entry.files)
    ]
    try:
        Plugins().claim("zoo.backbones", family)
        if pulled or local:
            return [check(entry) for entry in pulled or local[:1]]
        return [Report(family=family, state="left out", note=f"no row is pulled: zoo plugins check {family}")]
    except NetworkError as error:
        return [Report(family=family, state="left out", note=error.message)]
    except PluginError as error:
        return [Report(family=family, state="broken", note=error.message)]


def _first_available(family: str, entries: Sequence[Entry], pull: Callable[[str], Path]) -> tuple[Entry, Path]:
    """The first of the rows that can be pulled, and its files. Raises the error of the first row if none can."""
    first: Exception | None = None
    for entry in entries:
        try:
            return entry, pull(entry.name)
        except (NetworkError, UnpinnedError) as error:
            first = first or error
    raise first or UsageError(
        f"no row of the registry is of the family {family}",
        hint="add one to the plugin's registry file, or to registry.yaml under ZOO_HOME",
    )


def _rows_of(family: str, registry: Registry, is_pulled: Callable[[Entry], bool]) -> tuple[list[Entry], list[Entry]]:
    """Returns the pulled rows of the family and its other rows, smallest first."""
    entries = sorted(
        (entry for entry in registry.values() if entry.family == family),
        key=lambda entry: (entry.size is None, entry.size or 0),
    )
    pulled = [entry for entry in entries if is_pulled(entry)]
    return pulled, [entry for entry in entries if entry not in pulled]
