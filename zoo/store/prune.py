"""What of ZOO_HOME can go: caches, graphs that no row asks for any more, what interrupted work left; models if asked.

All of it can be made or fetched again. What a running process is known to use stays.
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
from zoo.store.store import RUN, Store
from zoo.system.files import is_abandoned
from zoo.system.records import find_record

#: Seconds without a checkpoint after which a training is taken to be over.
RUNNING = 3600.0
#: A name with the signature of the process that writes it: see `zoo.store.store`.
TEMPORARY = re.compile(r"(\.?.+\.)\w+-\d+-[0-9a-f]{8}(\.new|\.old)?")


class Prunable(Struct, frozen=True, kw_only=True):
    """Something that can go, with its bytes; `state` says what became of it."""

    kind: Literal["features", "activations", "optimised", "training", "graph", "partial", "staged", "model"]
    name: str
    path: str
    size: int
    state: Literal["found", "removed", "in use", "kept"] = "found"


def find(store: Store, shelf: Mapping[str, Entry], *, models: bool) -> list[Prunable]:
    """Everything under the store's home that can go: with `models` also every pulled row."""
    found = [*_caches(store), *_trainings(store), *_graphs(store, shelf), *_partials(store), *_staged(store)]
    return [*found, *_models(store)] if models else found


def remove(store: Store, found: Sequence[Prunable]) -> list[Prunable]:
    """Remove what was found; each with what became of it."""
    done = []
    folders = {"features": store.features, "activations": store.features, "optimised": store.optimised}
    for each in found:
        if each.kind in folders:
            folder = folders[each.kind]
            cache = next((cache for cache in caches.caches(folder) if cache.key == each.name), None)
            is_gone = cache is None or caches.remove(folder, cache)
            result = structs.replace(each, state="removed" if is_gone else "in use")
        else:
            result = structs.replace(each, state="removed" if _remove(Path(each.path)) else "kept")
        done.append(result)
    return done


def _caches(store: Store) -> Iterator[Prunable]:
    for cache in caches.caches(store.features):
        path = max(cache.paths, key=Path.is_dir)
        kind: Literal["features", "activations"] = "activations" if path.suffix == ".activations" else "features"
        yield Prunable(kind=kind, name=cache.key, path=str(path), size=cache.size)
    for cache in caches.caches(store.optimised):
        yield Prunable(kind="optimised", name=cache.key, path=str(store.optimised / cache.key), size=cache.size)


def _trainings(store: Store) -> Iterator[Prunable]:
    """Checkpoints, by the bundle that they were to become. One that was written lately may go on yet."""
    for folder in _listed(store.trainings):
        if time.time() - max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))) > RUNNING:
            yield Prunable(kind="training", name=run_of(folder), path=str(folder), size=_size(folder))


def _graphs(store: Store, shelf: Mapping[str, Entry]) -> Iterator[Prunable]:
    for manifest in sorted(store.graphs.rglob(MANIFEST)):
        folder = manifest.parent
        name = folder.relative_to(store.graphs).as_posix()
        if not _is_temporary(folder) and not _is_current(store, folder, shelf):
            yield Prunable(kind="graph", name=name, path=str(folder), size=_size(folder))


def _is_current(store: Store, folder: Path, shelf: Mapping[str, Entry]) -> bool:
    """Whether a row of the shelf would use this graph as it is."""
    try:
        lineage = Bundle.open(folder).manifest.lineage
    except ZooError:
        return False
    entry, cut = shelf.get(lineage.entry.name), lineage.options.get("cut")
    return entry is not None and folder == store.graph_dir(entry, cut)


def _partials(store: Store) -> Iterator[Prunable]:
    for path in _listed(store.partials):
        if not _is_temporary(path) or _is_left(path):
            yield Prunable(kind="partial", name=path.name, path=str(path), size=_size(path))


def _staged(store: Store) -> Iterator[Prunable]:
    for folder in (store.home, store.graphs, store.models, store.bridged, store.optimised):
        paths = folder.rglob(".*") if folder != store.home else iter(_listed(folder))
        for path in sorted(paths):
            if path.name.startswith(".") and _is_left(path):
                yield Prunable(kind="staged", name=path.name, path=str(path), size=_size(path))


def _models(store: Store) -> Iterator[Prunable]:
    for manifest in sorted(store.models.rglob(PULLED)):
        folder = manifest.parent
        name = folder.parent.relative_to(store.models).as_posix()
        yield Prunable(kind="model", name=name, path=str(folder), size=_size(folder))


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_temporary(path: Path) -> bool:
    return TEMPORARY.fullmatch(path.name) is not None


def _is_left(path: Path) -> bool:
    """Whether a temporary's writer is gone."""
    match = TEMPORARY.fullmatch(path.name)
    return match is not None and is_abandoned(path, match[1])


def _size(path: Path) -> int:
    total = 0
    for each in (path, *path.rglob("*")):
        with suppress(OSError):
            total += 0 if each.is_dir() else each.lstat().st_size
    return total


def _remove(path: Path) -> bool:
    try:
        if not path.is_dir() or path.is_symlink():
            path.unlink()
            return True
        # Renamed first, so that nobody opens a folder of which a part is gone.
        aside = path.with_name(f".{path.name}.pruned")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    with suppress(OSError):
        # A folder that is empty now says nothing.
        path.parent.rmdir()
    return True


def run_of(folder: Path) -> str:
    """The bundle that a training writes; the folder's own name where that is not known any more."""
    run = find_record(folder / RUN, dict[str, Any], None) or {}
    return str(run.get("out", folder.name))
