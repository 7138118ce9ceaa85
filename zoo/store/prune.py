"""Removable files of ZOO_HOME: caches, unused graphs, leftovers of crashed or interrupted runs; on request, models.

All of them can be made or fetched again. Files that a running process is known to use stay.
"""

import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, structs

from zoo.bundle import MANIFEST, Bundle
from zoo.errors import ZooError
from zoo.schema import Entry
from zoo.store import caches
from zoo.store.store import MANIFEST as PULLED
from zoo.store.store import RUN, RUN_SCHEMA, Store
from zoo.system.files import is_abandoned, size_of, walk
from zoo.system.records import find_record

#: Seconds without a new checkpoint after which a training counts as ended.
RUNNING = 3600.0
#: A name that ends in the signature of the process that writes the file: see `zoo.system.files.signature`.
TEMPORARY = re.compile(r"(\.?.+\.)\w+-\d+-[0-9a-f]{8}(\.new|\.old)?")


class Prunable(Struct, frozen=True, kw_only=True):
    """A removable file, folder or cache, with its size in bytes; `state` is `found` until `remove` was called."""

    kind: Literal["features", "activations", "optimised", "training", "graph", "partial", "staged", "model"]
    name: str
    path: str
    size: int
    state: Literal["found", "removed", "in use", "kept"] = "found"


def find(store: Store, registry: Mapping[str, Entry], *, models: bool) -> list[Prunable]:
    """Everything under the store's home that can be removed; with `models` also every pulled row."""
    found = [*_caches(store), *_trainings(store), *_graphs(store, registry), *_partials(store), *_staged(store)]
    return [*found, *_models(store)] if models else found


def remove(store: Store, found: Sequence[Prunable]) -> list[Prunable]:
    """Remove the files and folders in `found`; returns each with its new state."""
    done = []
    folders = {"features": store.features, "activations": store.features, "optimised": store.optimised}
    for each in found:
        if folder := folders.get(each.kind):
            cache = next((cache for cache in caches.caches(folder) if cache.key == each.name), None)
            state = "removed" if cache is None or caches.remove(folder, cache) else "in use"
        else:
            state = "removed" if _remove(Path(each.path)) else "kept"
        done.append(structs.replace(each, state=state))
    return done


def _caches(store: Store) -> Iterator[Prunable]:
    for cache in caches.caches(store.features):
        path = max(cache.paths, key=Path.is_dir)
        kind: Literal["features", "activations"] = "activations" if path.suffix == ".activations" else "features"
        yield Prunable(kind=kind, name=cache.key, path=str(path), size=cache.size)
    for cache in caches.caches(store.optimised):
        yield Prunable(kind="optimised", name=cache.key, path=str(store.optimised / cache.key), size=cache.size)


def _trainings(store: Store) -> Iterator[Prunable]:
    """Checkpoints, named by the bundle of their training. A recent one may belong to a running training."""
    for folder in _listed(store.trainings):
        newest = max((status.st_mtime for _, status in walk(folder)), default=time.time())
        if time.time() - newest > RUNNING:
            yield Prunable(kind="training", name=run_of(folder), path=str(folder), size=size_of(folder))


def _graphs(store: Store, registry: Mapping[str, Entry]) -> Iterator[Prunable]:
    for manifest in _named(store.graphs, MANIFEST):
        folder = manifest.parent
        name = folder.relative_to(store.graphs).as_posix()
        if not TEMPORARY.fullmatch(folder.name) and not _is_current(store, folder, registry):
            yield Prunable(kind="graph", name=name, path=str(folder), size=size_of(folder))


def _is_current(store: Store, folder: Path, registry: Mapping[str, Entry]) -> bool:
    """Whether a row of the registry would use this graph."""
    try:
        lineage = Bundle.open(folder).manifest.lineage
    except ZooError:
        return False
    entry, cut = registry.get(lineage.entry.name), lineage.options.get("cut")
    return entry is not None and folder == store.graph_dir(entry, cut)


def _partials(store: Store) -> Iterator[Prunable]:
    for path in _listed(store.partials):
        if not TEMPORARY.fullmatch(path.name) or _is_left(path):
            yield Prunable(kind="partial", name=path.name, path=str(path), size=size_of(path))


def _staged(store: Store) -> Iterator[Prunable]:
    for folder in (store.home, store.graphs, store.models, store.bridged, store.optimised):
        for path in sorted(path for path, _ in walk(folder)) if folder != store.home else _listed(folder):
            if path.name.startswith(".") and _is_left(path):
                yield Prunable(kind="staged", name=path.name, path=str(path), size=size_of(path))


def _models(store: Store) -> Iterator[Prunable]:
    for manifest in _named(store.models, PULLED):
        folder = manifest.parent
        name = folder.parent.relative_to(store.models).as_posix()
        yield Prunable(kind="model", name=name, path=str(folder), size=size_of(folder))


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_left(path: Path) -> bool:
    """Whether `path` is a temporary file or folder whose writer has ended."""
    match = TEMPORARY.fullmatch(path.name)
    return match is not None and is_abandoned(path, match[1])


def _named(folder: Path, name: str) -> list[Path]:
    return sorted(path for path, _ in walk(folder) if path.name == name)


def _remove(path: Path) -> bool:
    try:
        if not path.is_dir() or path.is_symlink():
            path.unlink()
            return True
        # Rename it first, so that no process opens a folder that is already half empty.
        aside = path.with_name(f".{path.name}.pruned")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    with suppress(OSError):
        # Remove the parent folder if it is empty now.
        path.parent.rmdir()
    return True


def run_of(folder: Path) -> str:
    """The path of the bundle that a training writes; the folder's name if its record cannot be read."""
    run = find_record(folder / RUN, dict[str, Any], RUN_SCHEMA) or {}
    return str(run.get("out", folder.name))
