"""What is wrong with this machine's zoo, and the command that mends it: `zoo doctor`."""

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
from zoo.errors import NotFoundError, ZooError
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
#: Folders that systems empty, beside the one that programs are told to use.
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
    """Every check; `registry` counts the rows or raises ZooError, `damaged` are the faults of kept models of bridges.

    `plugins` loads them all and tells their states; `digests` hashes what was pulled, where that was asked for.
    """
    # What waits (for a child, for the network) waits while the plugins are loaded.
    trial, hub = runtime_checks.begin_trial(), hub_check.begin(offline=offline)
    states = plugins()
    shelf = _registry(registry)
    found = [*_versions(), *runtime_checks.checks(trial()), *_home(home), hub(), shelf, *_kept(damaged)]
    if digests is not None and shelf.state == "ok":
        found += digests()
    elif digests is not None:
        unknown = "not looked at: only the registry says what they should be"
        found.append(Check(name="digests", state="warn", found=unknown, fix=shelf.fix))
    found += _plugins(states)
    return without_secrets(found, os.environ)


def digests(shelf: Registry, store: Store, lock: Lock, progress: Progress) -> Iterator[Check]:
    """Hash every file of what was pulled, and of the graphs made of it: a line for each that is not what it was."""
    bad, models, files = 0, 0, 0
    graphs = sorted(path.parent for path in store.graphs.glob("*/zoo.json"))
    with progress.task("hashing models", len(shelf) + len(graphs)) as bar:
        for entry in map(lock.effective, shelf.values()):
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
                yield _damaged(f"{entry.name}: {wrong}", f"zoo pull {entry.name}")
        for folder in graphs:
            bar.advance(1)
            try:
                seen = Bundle.open(folder).verify()
                files, wrong = files + len(seen), _wrong(seen)
            except ZooError as error:
                wrong = error.message
            if wrong:
                bad += 1
                yield _damaged(f"{folder.name}: {wrong}", f"rm -r {shlex.quote(str(folder))}")
    if not bad:
        found = f"{files} files of {models} models and {len(graphs)} graphs are what they were"
        yield Check(name="digests", state="ok", found=found)


def _wrong(seen: Sequence[tuple[FileDigest, bool]]) -> str | None:
    bad = [expected.path for expected, is_same in seen if not is_same]
    return f"not what was pulled or made: {', '.join(bad)}" if bad else None


def _damaged(found: str, fix: str) -> Check:
    return Check(name="digests", state="fail", found=found, fix=fix, exit_code=5)


def _versions() -> Iterator[Check]:
    zoo = importlib.metadata.version("backbone-zoo")
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Check(name="zoo", state="ok", found=zoo)
    yield Check(name="python", state="ok", found=python)


def _home(home: Path) -> Iterator[Check]:
    """ZOO_HOME can be written, by writing; it stays, and has room."""
    nearest = next(folder for folder in (home.absolute(), *home.absolute().parents) if os.path.lexists(folder))
    try:
        for folder in [nearest, *(path for path in _inside(home) if path.is_dir() and not path.is_symlink())]:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".zoo-doctor-"):
                pass
        free = shutil.disk_usage(nearest).free
    except OSError as error:
        found = f"{home} cannot be written: {error.strerror or error}"
        yield Check(name="ZOO_HOME", state="fail", found=found, fix=_writable(home, error), exit_code=8)
        return
    found = f"{home}, {free / 1e9:.1f} GB free"
    if temporary := _temporary(home):
        found = f"{home} lies in {temporary}, which is emptied now and then: models would be fetched again"
        yield Check(name="ZOO_HOME", state="warn", found=found, fix=_elsewhere(home))
    elif free < FEW_BYTES:
        fix = "zoo prune, or export ZOO_HOME=FOLDER with one on a larger disk"
        yield Check(name="ZOO_HOME", state="warn", found=found, fix=fix)
    else:
        yield Check(name="ZOO_HOME", state="ok", found=found)


def _inside(home: Path) -> list[Path]:
    """What lies in `home`: a part that another user made (sudo zoo) stops a pull as well."""
    return sorted(home.iterdir()) if home.is_dir() else []


def _writable(home: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "zoo prune"
    if error.errno == errno.EACCES and _exists(home) and hasattr(os, "getuid"):
        return f'sudo chown -R "$(id -u)" {shlex.quote(str(home))}'
    return _elsewhere(home, move=False)


def _elsewhere(home: Path, *, move: bool = True) -> str:
    """The command that makes another folder the home: the platform's own, or one in the home folder of the user."""
    folders = (user_cache_path("backbone-zoo"), Path.home() / ".zoo")
    # Where a whole user is temporary, as in a container, only somebody else knows a better place.
    better = next((folder for folder in folders if folder != home and not _temporary(folder)), Path("FOLDER"))
    new = shlex.quote(str(better))
    command = f"export ZOO_HOME={new}"
    if move and _exists(home) and not _exists(better):
        command = f"mkdir -p {shlex.quote(str(better.parent))} && mv {shlex.quote(str(home))} {new} && {command}"
    return command


def _exists(folder: Path) -> bool:
    """Whether it is there, as far as one may look."""
    try:
        return folder.exists()
    except OSError:
        return False


def _temporary(folder: Path) -> str | None:
    """The folder for temporary files that this one lies in, None where it does not."""
    places = {Path(place).resolve() for place in (tempfile.gettempdir(), *TEMPORARY)}
    return next((str(place) for place in sorted(places) if folder.resolve().is_relative_to(place)), None)


def _registry(count: Callable[[], int]) -> Check:
    try:
        return Check(name="registry", state="ok", found=f"{count()} models")
    except ZooError as error:
        return _fault("registry", error)


def _kept(damaged: Callable[[], Sequence[ZooError]]) -> Iterator[Check]:
    yield from (_fault("model", error) for error in damaged())


def _fault(name: str, error: ZooError) -> Check:
    return Check(name=name, state="fail", found=error.message, fix=error.hint, exit_code=error.exit_code)


def _plugins(states: Sequence[PluginState]) -> Iterator[Check]:
    left_out = os.environ.get("ZOO_PLUGINS")
    chosen = "" if left_out is None else f" (those of ZOO_PLUGINS={left_out})"
    good = [state for state in states if state.state != "quarantined"]
    yield Check(name="plugins", state="ok", found=f"{len(good)} work{chosen}")
    for state in states:
        if state.state == "quarantined":
            yield Check(
                name="plugin",
                state="fail",
                found=f"{state.group} {state.title}: {state.error}".strip(),
                fix=_without(state, states),
                exit_code=9,
            )
        elif state.is_slow:
            fix = f"leave it out where it is not needed: ZOO_PLUGINS; or tell who makes {state.distribution}"
            found = f"{state.title} takes {state.seconds:.1f} s to load"
            yield Check(name="plugin", state="warn", found=found, fix=fix)


def _without(state: PluginState, states: Sequence[PluginState]) -> str:
    """How to do without a quarantined plugin, or without those who claim what is zoo's own."""
    if canonical(state.distribution) != OURS:
        return f"pip uninstall {state.distribution}, or leave it out with ZOO_PLUGINS"
    others = {each.distribution for each in states if (each.group, each.name) == (state.group, state.name)}
    if foreign := sorted(other for other in others if canonical(other) != OURS):
        return f"pip uninstall {' '.join(foreign)}, or set ZOO_PLUGINS={OURS}"
    return f"pip install --force-reinstall {OURS}"
