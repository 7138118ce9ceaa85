"""`zoo doctor`: the faults of this installation, each with a command that fixes it."""

import errno
import importlib.metadata
import os
import platform
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from platformdirs import user_cache_path

from zoo.bundle import Bundle
from zoo.diagnostics import hub_check, runtime_checks
from zoo.diagnostics.bug_report import without_secrets
from zoo.errors import NotFoundError, ZooError, counted
from zoo.plugin.entry_points import OURS, PluginState
from zoo.progress import Progress
from zoo.registry.registry import Registry
from zoo.results import Check
from zoo.schema import FileDigest, WordsPreprocess, canonical
from zoo.store.lock import Lock
from zoo.store.pull import verify
from zoo.store.store import Store

#: Bytes below which a pull of a large model would fill the disk.
FEW_BYTES = 2_000_000_000
#: Whether a folder exists and is accessible. Path.exists would raise an error for an inaccessible one.
_exists = os.path.exists
#: Folders that systems empty, besides the folder for temporary files.
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")


def examine(
    home: Path,
    registry: Callable[[], int],
    damaged: Callable[[], Sequence[ZooError]],
    plugins: Callable[[], Sequence[PluginState]],
    *,
    offline: bool,
    digests: Callable[[], Iterator[Check]] | None = None,
) -> list[Check]:
    """The results of all checks.

    Args:
        registry: counts the rows or raises ZooError.
        damaged: returns the faults of stored models of bridges.
        plugins: loads all plugins and returns their states.
        digests: hashes the pulled files and yields the results; with None they are not hashed.
    """
    # The child process and the network answer while the plugins are loaded.
    trial, hub = runtime_checks.begin_trial(), hub_check.begin(offline=offline)
    states = plugins()
    rows = _registry(registry)
    models = [_fault("model", error) for error in damaged()]
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    found = [Check("zoo", "ok", importlib.metadata.version("backbone-zoo")), Check("python", "ok", python)]
    found += [*runtime_checks.checks(trial()), _home(home), hub(), rows, *models]
    if digests is not None and rows.state == "ok":
        found += digests()
    elif digests is not None:
        found.append(Check("digests", "warn", "not checked, because the registry cannot be read", rows.fix))
    found += _plugins(states)
    return without_secrets(found, os.environ)


def digests(registry: Registry, store: Store, lock: Lock, progress: Progress) -> Iterator[Check]:
    """Hash every pulled file and every exported graph; yields a check for each model with a changed file."""
    bad, models, files = 0, 0, 0
    graphs = sorted(path.parent for path in store.graphs.glob("*/zoo.json"))
    with progress.task("hashing models", len(registry) + len(graphs)) as bar:
        for entry in map(lock.effective, registry.values()):
            bar.advance(1)
            try:
                seen = [(each.expected, each.ok) for each in verify(entry, store, lock)]
            except NotFoundError:
                continue
            if isinstance(entry.preprocess, WordsPreprocess):
                from zoo.words import table

                seen += table.verify(store.model_dir(entry, [expected for expected, _ in seen]))
            models, files = models + 1, files + len(seen)
            if wrong := _wrong(seen):
                bad += 1
                yield Check("digests", "fail", f"{entry.name}: {wrong}", f"zoo pull {entry.name}", exit_code=5)
        for folder in graphs:
            bar.advance(1)
            try:
                seen = Bundle.open(folder).verify()
                files, wrong = files + len(seen), _wrong(seen)
            except ZooError as error:
                wrong = error.message
            if wrong:
                bad += 1
                fix = f"rm -r {shlex.quote(str(folder))}"
                yield Check("digests", "fail", f"{folder.name}: {wrong}", fix, exit_code=5)
    if not bad:
        found = f"{counted(files, 'file')} of {counted(models, 'model')} and {counted(len(graphs), 'graph')}"
        yield Check("digests", "ok", f"unchanged: {found}")


def _wrong(seen: Sequence[tuple[FileDigest, bool]]) -> str | None:
    bad = [expected.path for expected, is_same in seen if not is_same]
    return f"changed since it was pulled or exported: {', '.join(bad)}" if bad else None


def _home(home: Path) -> Check:
    """The check that ZOO_HOME can be written (by writing a file), is not temporary, and has free space."""
    nearest = next(folder for folder in (home.absolute(), *home.absolute().parents) if os.path.lexists(folder))
    try:
        # A folder inside ZOO_HOME that another user made (sudo zoo) also makes a pull fail.
        inside = sorted(home.iterdir()) if home.is_dir() else []
        for folder in [nearest, *(path for path in inside if path.is_dir() and not path.is_symlink())]:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".zoo-doctor-"):
                pass
        free = shutil.disk_usage(nearest).free
    except OSError as error:
        found = f"{home} cannot be written: {error.strerror or error}"
        return Check("ZOO_HOME", "fail", found, _writable(home, error), exit_code=8)
    found = f"{home}, {free / 1e9:.1f} GB free"
    if temporary := _temporary(home):
        found = f"{home} is in {temporary}, which is emptied from time to time: models would be downloaded again"
        return Check("ZOO_HOME", "warn", found, _elsewhere(home))
    if free < FEW_BYTES:
        fix = "zoo prune, or export ZOO_HOME=FOLDER with a folder on a larger disk"
        return Check("ZOO_HOME", "warn", found, fix)
    return Check("ZOO_HOME", "ok", found)


def _writable(home: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "zoo prune"
    if error.errno == errno.EACCES and _exists(home) and hasattr(os, "getuid"):
        return f'sudo chown -R "$(id -u)" {shlex.quote(str(home))}'
    return _elsewhere(home, move=False)


def _elsewhere(home: Path, *, move: bool = True) -> str:
    """The command that sets ZOO_HOME to the platform's cache folder, or to a folder in the user's home folder."""
    folders = (user_cache_path("backbone-zoo"), Path.home() / ".zoo")
    # If the user's home folder is temporary too, as in a container, the user must name a FOLDER.
    better = next((folder for folder in folders if folder != home and not _temporary(folder)), Path("FOLDER"))
    new = shlex.quote(str(better))
    command = f"export ZOO_HOME={new}"
    if move and _exists(home) and not _exists(better):
        command = f"mkdir -p {shlex.quote(str(better.parent))} && mv {shlex.quote(str(home))} {new} && {command}"
    return command


def _temporary(folder: Path) -> str | None:
    """The folder for temporary files that contains `folder`; None if there is none."""
    temporary = {Path(each).resolve() for each in (tempfile.gettempdir(), *TEMPORARY)}
    return next((str(each) for each in sorted(temporary) if folder.resolve().is_relative_to(each)), None)


def _registry(count: Callable[[], int]) -> Check:
    try:
        return Check("registry", "ok", counted(count(), "model"))
    except ZooError as error:
        return _fault("registry", error)


def _fault(name: str, error: ZooError) -> Check:
    return Check(name, "fail", error.message, error.hint, exit_code=error.exit_code)


def _plugins(states: Sequence[PluginState]) -> Iterator[Check]:
    only = os.environ.get("ZOO_PLUGINS")
    chosen = "" if only is None else f" (those of ZOO_PLUGINS={only})"
    yield Check("plugins", "ok", f"{sum(state.state != 'quarantined' for state in states)} work{chosen}")
    for state in states:
        if state.state == "quarantined":
            found = f"{state.group} {state.title}: {state.error}".strip()
            yield Check("plugin", "fail", found, _without(state, states), exit_code=9)
        elif state.is_slow:
            fix = f"leave it out with ZOO_PLUGINS if you do not need it, or report it to {state.distribution}"
            yield Check("plugin", "warn", f"{state.title} takes {state.seconds:.1f} s to load", fix)


def _without(state: PluginState, states: Sequence[PluginState]) -> str:
    """The command that removes a quarantined plugin, or the plugins that claim a name of zoo's own."""
    if canonical(state.distribution) != OURS:
        return f"pip uninstall {state.distribution}, or leave it out with ZOO_PLUGINS"
    others = {each.distribution for each in states if (each.group, each.name) == (state.group, state.name)}
    if foreign := sorted(other for other in others if canonical(other) != OURS):
        return f"pip uninstall {' '.join(foreign)}, or set ZOO_PLUGINS={OURS}"
    return f"pip install --force-reinstall {OURS}"
