"""Graphs as ONNX Runtime optimised them, kept for the next start: to load one costs a quarter of making it.

KEY/        body.onnx and body.bin, its numbers as the CPU's kernels want them, which are mapped and not copied;
            prefix.onnx of pictures, as it is; kept.json, written last
KEY.lock    as zoo.store.caches has it

What is kept is right only for one file, one device, one build of ONNX Runtime and one kind of processor: the key is of
all four. The files are hashed before they are used. So is the bundle's own, unless its size and time are those at
which it was: what runs is in any case what was made of the bytes that the manifest tells of.
"""

import atexit
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread

import msgspec

from zoo.bundle import MODEL, Bundle
from zoo.errors import IntegrityError, ZooError
from zoo.runtime.ort import BODY, Graphs
from zoo.schema import FileDigest
from zoo.store import caches
from zoo.system.files import remove_abandoned, sha256_file, sha256_json, signature, try_rename
from zoo.system.records import find_record, write_record

SCHEMA_VERSION = 1
RECORD, PREFIX = "kept.json", "prefix.onnx"
#: Bytes of a model below which there is nothing to save.
SMALLEST = 4_000_000
#: What is kept of a model may take so many times its bytes: kernels lay numbers out with gaps.
ROOM = 2.0
#: Seconds after which a graph is optimised again to be kept.
AFTER = 2.0
#: What of /proc/cpuinfo decides which kernels ONNX Runtime takes, and so how they lay out numbers.
PROCESSOR = ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part", "isa")


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """`kept.json`: the files, and the size and time (ns) of the bundle's model when it was last hashed."""

    schema_version: int = SCHEMA_VERSION
    model_size: int
    model_mtime_ns: int
    files: tuple[FileDigest, ...]


class Keeper:
    """The optimised graphs of one bundle on one device, in a folder of the store; nowhere, where that is None.

    As a context it holds what it found, for as long as a session is made of it.
    """

    def __init__(self, folder: Path | None, bundle: Bundle, device: str) -> None:
        """Raises IntegrityError for a bundle whose manifest lists no model."""
        # TensorRT keeps its own engines, and cannot write its graphs.
        self.folder = None if folder is None or device.startswith("tensorrt") else folder
        self.bundle = bundle
        #: Whether anything was kept, or was to be: what is made without it may yet work.
        self.is_used = False
        self._status: os.stat_result | None = None
        self._stack = ExitStack()
        manifest = bundle.manifest
        facts = (
            SCHEMA_VERSION, bundle.digest(MODEL), manifest.cut, manifest.preprocess, device.partition(":")[0],
            _runtime(), _processor(),
        )  # fmt: skip
        self.key = sha256_json(facts)[:16]
        self.path = (self.folder or Path()) / self.key

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def find(self) -> Graphs | None:
        """What is kept, checked; None where there is nothing, or not what was kept.

        Raises IntegrityError when the bundle's own model was changed.
        """
        with suppress(OSError):
            # Before anything is read: a file that is changed meanwhile has another time.
            self._status = self.bundle.model.stat()
        record = self._record()
        if record is None or self.folder is None:
            # Without a record nothing of it can be used, and it would be in the way of what is kept anew.
            self.drop()
            return None
        with suppress(OSError):
            # Not where the home is read-only: there nothing is removed either.
            self._stack.enter_context(caches.in_use(self.folder, self.key))
        self._check_model(record)
        if not all(_has(self.path / file.path, file) for file in record.files):
            self.drop()
            return None
        self.is_used = True
        prefix = self.path / PREFIX
        return Graphs(self.path / BODY, prefix.read_bytes() if prefix.is_file() else b"")

    @contextmanager
    def making(self, graphs: Graphs) -> Iterator[Path | None]:
        """A folder for BODY and NUMBERS, whose content is kept when the block succeeds; None where nothing is kept."""
        folder = None
        with suppress(OSError):
            folder = self._begin(graphs)
        if folder is None:
            yield None
            return
        self.is_used = True
        try:
            yield folder
            with suppress(OSError):
                self._publish(folder, graphs.prefix)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep_beside(self, graphs: Graphs, write: Callable[[Path], object]) -> None:
        """As `making`, by a thread, with what `write` writes there: AFTER seconds later, or when the process ends."""
        if not self._is_worth_it(graphs):
            return
        is_over = Event()

        def keep() -> None:
            # The first answers are not slowed down by it.
            is_over.wait(AFTER)
            # Nothing is lost by what does not work here.
            with suppress(ZooError), self.making(graphs) as folder:
                if folder is not None:
                    write(folder)

        def end() -> None:
            is_over.set()
            keeping.join()

        keeping = Thread(target=keep, name="zoo-keep", daemon=True)
        keeping.start()
        atexit.register(end)

    def drop(self) -> None:
        """Remove what is kept: it is made again."""
        aside = self.path.with_name(f".{self.key}.{signature()}.old")
        if self.folder is not None and try_rename(self.path, aside):
            shutil.rmtree(aside, ignore_errors=True)

    def _begin(self, graphs: Graphs) -> Path | None:
        if self.folder is None or isinstance(graphs.body, Path) or not self._is_worth_it(graphs):
            return None
        if ROOM * len(graphs.body) > caches.limit(self.folder):
            return None
        # Without its parents: a home that was removed meanwhile is not made again.
        self.folder.mkdir(exist_ok=True)
        remove_abandoned(self.folder, prefix=f".{self.key}.")
        folder = self.folder / f".{self.key}.{signature()}.new"
        folder.mkdir()
        return folder

    def _is_worth_it(self, graphs: Graphs) -> bool:
        is_large = isinstance(graphs.body, bytes) and len(graphs.body) >= SMALLEST
        # Tables are mapped as they are: there is nothing to save.
        return self.folder is not None and is_large and not graphs.tables

    def _publish(self, folder: Path, prefix: bytes) -> None:
        home, status = folder.parent, self._status
        if status is None:
            return
        (folder / PREFIX).write_bytes(prefix)
        paths = sorted(path for path in folder.iterdir())
        files = tuple(FileDigest(path=path.name, sha256=sha256_file(path), size=path.stat().st_size) for path in paths)
        record = Kept(model_size=status.st_size, model_mtime_ns=status.st_mtime_ns, files=files)
        write_record(folder / RECORD, record)
        with caches.in_use(home, self.key):
            # Another process that was quicker has made the same.
            try_rename(folder, self.path)
        caches.trim(home, caches.limit(home))

    def _record(self) -> Kept | None:
        return find_record(self.path / RECORD, Kept, SCHEMA_VERSION)

    def _check_model(self, record: Kept) -> None:
        status = self._status
        if status is None:
            raise IntegrityError(f"{self.bundle.path} has no {MODEL}", hint="write the bundle again")
        if (status.st_size, status.st_mtime_ns) == (record.model_size, record.model_mtime_ns):
            return
        # A copy of the bundle, or one that was touched.
        self.bundle.check(MODEL)
        again = msgspec.structs.replace(record, model_size=status.st_size, model_mtime_ns=status.st_mtime_ns)
        with suppress(OSError):
            write_record(self.path / RECORD, again)


def _has(path: Path, file: FileDigest) -> bool:
    try:
        return path.stat().st_size == file.size and sha256_file(path) == file.sha256
    except OSError:
        return False


def _runtime() -> str:
    """The build of onnxruntime that an import gets, by its own note: nothing is imported for it."""
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return ""
    with suppress(OSError):
        return (Path(spec.origin).parent / "capi/build_and_package_info.py").read_text(encoding="utf-8")
    return ""


def _processor() -> str:
    """The processor and what it can, as far as the system tells."""
    told = os.environ.get("PROCESSOR_IDENTIFIER", "")
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a part
        # The first processor stands for all: a machine with a hundred takes long to tell of each.
        for line in file:
            if not line.strip():
                break
            name = line.partition(":")[0].strip()
            told += line if name in PROCESSOR else ""
    return f"{platform.machine()} {told}"
