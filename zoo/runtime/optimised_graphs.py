"""Graphs optimised by ONNX Runtime, kept on disk for the next start: loading one takes a quarter of the time.

KEY/        body.onnx, and body.bin with the weights in the layout of the CPU's kernels, memory-mapped;
            prefix.onnx of image models, unchanged, if they need it; kept.json, written last
KEY.lock    the lock file: see zoo.store.caches

KEY is a hash of the model file, the device, the build of ONNX Runtime and the kind of processor, because an optimised
graph is valid only for the same four. The kept files are hashed before each use. The bundle's file is hashed again
unless its size and mtime are unchanged. A kept graph was always made from the bytes that the manifest lists.
"""

import atexit
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import msgspec

from zoo.bundle import MODEL, Bundle
from zoo.errors import IntegrityError, ZooError
from zoo.runtime.device import build_note
from zoo.runtime.ort import BODY, Graphs
from zoo.schema import FileDigest
from zoo.store import caches
from zoo.system.files import is_unchanged, remove_abandoned, sha256_file, sha256_json, signature, try_rename
from zoo.system.records import find_record, write_record

SCHEMA_VERSION = 2
RECORD, PREFIX = "kept.json", "prefix.onnx"
#: The smallest model, in bytes, for which keeping the optimised graph saves time.
SMALLEST = 4_000_000
#: Seconds after loading until the graph is optimised a second time, for the copy that is kept.
AFTER = 2.0


class KeptGraph(msgspec.Struct, frozen=True, kw_only=True):
    """`kept.json`: the files, and the size and mtime (ns) of the bundle's model when it was last hashed."""

    schema_version: int = SCHEMA_VERSION
    model_size: int
    model_mtime_ns: int
    files: tuple[FileDigest, ...]


class OptimisedGraphs(ExitStack):
    """The optimised graphs of one bundle on one device, in `folder`; with None as folder nothing is kept.

    A context manager: until the block ends, no other process removes the graph that `find` returned.
    """

    def __init__(self, folder: Path | None, bundle: Bundle, device: str) -> None:
        """Raise IntegrityError for a bundle whose manifest lists no model."""
        super().__init__()
        # TensorRT keeps its own engines, and cannot write optimised graphs.
        self.folder = None if folder is None or device.startswith("tensorrt") else folder
        self.bundle = bundle
        #: Whether a kept graph was used or one is being written. A failure may then be due to it.
        self.is_used = False
        self._status: os.stat_result | None = None
        manifest = bundle.manifest
        facts = (
            SCHEMA_VERSION, bundle.digest(MODEL), manifest.cut, manifest.preprocess, device.partition(":")[0],
            build_note(), _processor(),
        )  # fmt: skip
        self.key = sha256_json(facts)[:16]
        self.path = (self.folder or Path()) / self.key

    def find(self) -> Graphs | None:
        """The kept graphs, checked; None if there are none or their files have changed.

        Raises IntegrityError if the bundle's own model has changed.
        """
        with suppress(OSError):
            # The status is taken before the model is read, so that a later change shows in the mtime.
            self._status = self.bundle.model.stat()
        record = find_record(self.path / RECORD, KeptGraph, SCHEMA_VERSION)
        if record is None or self.folder is None:
            # A folder without a record cannot be used, and a new one cannot replace it.
            self.drop()
            return None
        with suppress(OSError):
            # A read-only home cannot be locked. That is safe: nothing can be removed from it.
            self.enter_context(caches.in_use(self.folder, self.key))
        self._check_model(record)
        if not all(is_unchanged(self.path / file.path, file) for file in record.files):
            self.drop()
            return None
        self.is_used = True
        prefix = self.path / PREFIX
        return Graphs(self.path / BODY, prefix.read_bytes() if prefix.is_file() else b"")

    @contextmanager
    def making(self, graphs: Graphs) -> Iterator[Path | None]:
        """The folder to write BODY and NUMBERS to; it is kept if the block succeeds. None if `graphs` are not kept."""
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

    def keep_later(self, graphs: Graphs, write: Callable[[Path], object]) -> None:
        """Keep the files that `write` writes to a folder; a thread calls it after AFTER seconds or at process exit."""
        if not self._is_worth_it(graphs):
            return
        is_over = Event()

        def keep() -> None:
            # Waits, because optimising would slow down the first answers.
            is_over.wait(AFTER)
            # A failure only means that nothing is kept.
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
        """Remove the kept graphs."""
        aside = self.path.with_name(f".{self.key}.{signature()}.old")
        if self.folder is not None and try_rename(self.path, aside):
            shutil.rmtree(aside, ignore_errors=True)

    def _begin(self, graphs: Graphs) -> Path | None:
        # The kernels' layout of the weights has gaps, so kept graphs may take twice the model's size.
        if self.folder is None or not self._is_worth_it(graphs) or 2 * _size(graphs) > caches.limit(self.folder):
            return None
        # Parents are not created: if the home was removed meanwhile, it stays removed.
        self.folder.mkdir(exist_ok=True)
        remove_abandoned(self.folder, prefix=f".{self.key}.")
        folder = self.folder / f".{self.key}.{signature()}.new"
        folder.mkdir()
        return folder

    def _is_worth_it(self, graphs: Graphs) -> bool:
        # Tables are always memory-mapped from the bundle, so a kept copy would save no time.
        return self.folder is not None and _size(graphs) >= max(1, SMALLEST) and not graphs.tables

    def _publish(self, folder: Path, prefix: bytes) -> None:
        home, status = folder.parent, self._status
        if status is None:
            return
        (folder / PREFIX).write_bytes(prefix)
        paths = sorted(folder.iterdir())
        files = tuple(FileDigest(path=path.name, sha256=sha256_file(path), size=path.stat().st_size) for path in paths)
        record = KeptGraph(model_size=status.st_size, model_mtime_ns=status.st_mtime_ns, files=files)
        write_record(folder / RECORD, record)
        with caches.in_use(home, self.key):
            # If the rename fails, another process has already kept the same graphs.
            try_rename(folder, self.path)
        caches.trim(home, caches.limit(home))

    def _check_model(self, record: KeptGraph) -> None:
        status = self._status
        if status is None:
            raise IntegrityError(f"{self.bundle.path} has no {MODEL}", hint="write the bundle again")
        if (status.st_size, status.st_mtime_ns) == (record.model_size, record.model_mtime_ns):
            return
        # The bundle was copied or touched, or its model has changed.
        self.bundle.check(MODEL)
        again = msgspec.structs.replace(record, model_size=status.st_size, model_mtime_ns=status.st_mtime_ns)
        with suppress(OSError):
            write_record(self.path / RECORD, again)


def _size(graphs: Graphs) -> int:
    """Bytes of the body; 0 if it was read from a kept file, which is not kept again."""
    return 0 if isinstance(graphs.body, Path) else len(graphs.body)


def _processor() -> str:
    """The processor and its instruction sets, as far as the system reports them."""
    # These lines determine the kernels that ONNX Runtime uses, and with them the layout of the weights.
    wanted = ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part", "isa")
    reported = os.environ.get("PROCESSOR_IDENTIFIER", "")
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a part
        # Only the first processor is read: with a hundred processors, reading the whole file takes long.
        for line in file:
            if not line.strip():
                break
            reported += line if line.partition(":")[0].strip() in wanted else ""
    return f"{platform.machine()} {reported}"
