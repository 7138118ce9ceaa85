"""The conformance check of a family in a child process (`python -m zoo.testing.child`), within a time limit."""

import os
import time
from pathlib import Path

import msgspec

from zoo.errors import PluginError, ZooError
from zoo.plugin.child import isolated
from zoo.plugin.manager import Plugins
from zoo.progress import SILENT, Progress
from zoo.schema import Entry
from zoo.system.process import EndedError, Parent
from zoo.testing import Check, Report, examine, skipped, summary

#: Default time limit in seconds for the check of one row.
CHECK_LIMIT = 600.0


def check_family(entry: Entry, weights: Path, limit: float = CHECK_LIMIT, progress: Progress = SILENT) -> Report:
    """The report of `zoo.testing.check_backbone` on the family of `entry`, run in a child within `limit` seconds.

    Raises PluginError when the import of the family's plugin fails, crashes or hangs.
    """
    found: list[Check | int] = []
    running = None
    with (
        progress.task(f"checking {entry.family} with {entry.name}", None),
        isolated("zoo.testing.child", (entry, str(weights))) as child,
    ):
        deadline = time.monotonic() + limit
        try:
            while (answer := child.receive(max(0.0, deadline - time.monotonic()), limit).data) is not None:
                if isinstance(answer, str):
                    running = answer
                else:
                    found.append(msgspec.convert(answer, Check | int))
        except EndedError as ended:
            if running is None:
                raise PluginError(
                    f"loading the family '{entry.family}' {ended}",
                    plugin=entry.family,
                    hint="zoo plugins names the distribution it comes from",
                ) from ended
            found.append(Check(name=running, state="failed", detail=f"it {ended}"))
            found += skipped(found, running)
    return summary(entry, found)


def main() -> None:
    """Run the child process: check the family of the row in the request; the last answer is None."""
    parent = Parent()
    message = parent.receive()
    assert message is not None
    parent.send("ready")
    try:
        entry, weights = msgspec.convert(message.data, tuple[Entry, str])
        plugins = Plugins()
        family = plugins.backbone(entry.family)
        module = plugins.claim("zoo.backbones", entry.family).value.partition(":")[0]
        for each in examine(family, entry, Path(weights), module):
            parent.send(each)
        parent.send(None)
    except ZooError as error:
        parent.fail(error)
    # The process ends at once: a plugin's threads and exit handlers might never end.
    os._exit(0)


if __name__ == "__main__":
    main()
