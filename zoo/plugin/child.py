"""Plugins loaded in a child process (`python -m zoo.plugin.child`), each within a time limit.

A plugin that exits, crashes or hangs is reported by name. Everything that plugins print, also from C, goes to stderr.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from zoo.errors import ZooError
from zoo.plugin.entry_points import PluginState
from zoo.plugin.manager import Plugins
from zoo.system.process import Child, EndedError, Parent, python

#: Seconds that one plugin may take to load.
LOAD_LIMIT = 10.0
#: Seconds that starting an interpreter and importing zoo may take.
START_LIMIT = 60.0


def load_all(limit: float = LOAD_LIMIT) -> list[PluginState]:
    """The state of every installed plugin, after loading each in a child process within `limit` seconds."""
    known = Plugins().describe()
    # Two plugins that claim one name are quarantined already, and are not loaded.
    states = {(state.group, state.name): state for state in known if state.state == "not loaded"}
    waiting = list(states)
    while waiting:
        with isolated("zoo.plugin.child", waiting) as child:
            try:
                while waiting:
                    states[waiting[0]] = msgspec.convert(child.receive(limit).data, PluginState)
                    waiting.pop(0)
            except EndedError as ended:
                # The child loads the plugins in order, so the first one of `waiting` ended it.
                culprit = states[waiting.pop(0)]
                error = f"the plugin {culprit.title} cannot be used: loading it {ended}"
                states[culprit.group, culprit.name] = msgspec.structs.replace(culprit, state="quarantined", error=error)
    return [states.get((state.group, state.name), state) for state in known]


@contextmanager
def isolated(module: str, request: object) -> Iterator[Child]:
    """A child that runs a module of zoo on `request`, with its own folder for temporary files.

    The child must send a first message before any plugin runs. Raises ZooError when no such message comes.
    """
    # The child gets its own temporary folder, because a killed child does not remove its files.
    with tempfile.TemporaryDirectory(prefix="zoo-", ignore_cleanup_errors=True) as folder:
        environ = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder)}
        with Child(python("-m", module), env=environ) as child:
            try:
                child.ask(request, seconds=START_LIMIT)
            except EndedError as ended:
                hint = "zoo doctor checks the installation"
                raise ZooError(f"importing zoo in a child process {ended}", hint=hint) from ended
            yield child


def main() -> None:
    """Run the child: load the plugins that the parent names, and send the state of each."""
    parent = Parent()
    message = parent.receive()
    assert message is not None
    parent.send("ready")
    plugins = Plugins()
    for group, name in message.data:
        parent.send(plugins.load(group, name))
    # End at once, without threads and exit handlers of plugins.
    os._exit(0)


if __name__ == "__main__":
    main()
