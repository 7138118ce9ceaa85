"""Bundles: a folder with `model.onnx` and `zoo.json`, enough to run a model without plugin, torch or registry."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zoo.errors import AccessError, IntegrityError, NotFoundError, UsageError
from zoo.schema import FileDigest, Manifest
from zoo.system.files import map_file, sha256, sha256_file
from zoo.system.records import read_record, write_record

if TYPE_CHECKING:
    import mmap

MODEL, MANIFEST, HEAD = "model.onnx", "zoo.json", "head.safetensors"
#: The split of the data the head was trained on: one JSON object an item, held-out ones with their scores.
SPLIT = "split.jsonl"
SCHEMA_VERSION = 1


class Held(msgspec.Struct, frozen=True):
    """One line of `split.jsonl`: which item, on which side of the split, and fine-tuning's scores if held out."""

    digest: str
    label: str
    held_out: bool
    scores: tuple[float, ...] = ()


class Bundle:
    """An opened bundle: `path` is the folder, `manifest` its checked `zoo.json`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """Read `path`/zoo.json. Raises NotFoundError when it is not a bundle, IntegrityError when it is damaged."""
        if not path.is_dir():
            raise NotFoundError(f"{path} is not a folder", hint="zoo finetune MODEL DATA -o DIR writes a bundle")
        manifest = read_record(path / MANIFEST, Manifest, SCHEMA_VERSION, hint="write the bundle again")
        if manifest is None:
            hint = "zoo finetune MODEL DATA -o DIR writes one"
            raise NotFoundError(f"{path} is not a bundle: it has no {MANIFEST}", hint=hint)
        return cls(path, manifest)

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.path / MODEL

    def read_model(self) -> bytes:
        """The ONNX file's bytes, checked against the manifest. Raises IntegrityError when they differ."""
        try:
            data = self.model.read_bytes()
        except FileNotFoundError as error:
            raise IntegrityError(f"{self.path} has no {MODEL}", hint="write the bundle again") from error
        actual, expected = sha256(data), self.digest(MODEL)
        if actual != expected:
            raise _changed(self.model, expected, actual)
        return data

    def map(self, name: str) -> "mmap.mmap | bytes":
        """A file's bytes, memory-mapped and checked against the manifest: what external data is read from.

        Raises IntegrityError for a file that the manifest does not list, that is no plain file, or that was changed.
        """
        expected, path = self.digest(name), self.path / name
        try:
            data = map_file(path)
        except OSError as error:
            raise _changed(path, expected, error.strerror or "no file") from error
        # The very mapping that is used is hashed.
        actual = sha256(data)
        if actual != expected:
            raise _changed(path, expected, actual)
        return data

    def digest(self, name: str) -> str:
        """The sha256 that the manifest records for one of the bundle's files. Raises IntegrityError without one."""
        for file in self.manifest.files:
            if file.path == name:
                return file.sha256
        raise IntegrityError(f"{self.path / MANIFEST} does not list {name}", hint="write the bundle again")

    def check(self, *names: str) -> None:
        """Raise IntegrityError unless each of these files has the bytes that the manifest records."""
        for name in names:
            expected, path = self.digest(name), self.path / name
            actual = sha256_file(path) if path.is_file() else "no file"
            if actual != expected:
                raise _changed(path, expected, actual)

    def verify(self) -> list[tuple[FileDigest, bool]]:
        """Each file the manifest lists, and whether the bytes on disk are those."""
        return [(file, _is_same(self.path / file.path, file)) for file in self.manifest.files]


def read_split(bundle: Bundle) -> dict[str, Held]:
    """Digest -> the side of the split an item was on. Empty for a bundle that was not fine-tuned.

    Raises IntegrityError for a file that was changed.
    """
    path = bundle.path / SPLIT
    if SPLIT not in {file.path for file in bundle.manifest.files}:
        return {}
    bundle.check(SPLIT)
    lines = path.read_bytes().splitlines()
    return {line.digest: line for line in (msgspec.json.decode(row, type=Held) for row in lines)}


def describe_files(folder: Path) -> tuple[FileDigest, ...]:
    """Name, size and sha256 of every file in `folder` but the manifest, sorted by name."""
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    return tuple(FileDigest(path=p.name, size=p.stat().st_size, sha256=sha256_file(p)) for p in paths)


def write_manifest(folder: Path, manifest: Manifest) -> Bundle:
    """Write `zoo.json`, the file that makes the folder a bundle: the last one to be written."""
    write_record(folder / MANIFEST, manifest, indent=2)
    return Bundle(folder, manifest)


def check_target(path: Path, *, inside: Sequence[Path] = ()) -> None:
    """Refuse to write a bundle where something else lies: only an empty folder or another bundle is replaced.

    Raises UsageError, or AccessError where nothing can be written; `inside` are folders (the data, the source bundle)
    that must not lie in `path`.
    """
    resolved = path.resolve()
    for other in inside:
        if other.resolve().is_relative_to(resolved):
            raise UsageError(f"{path} would replace {other}, which is being read", hint="choose another folder for -o")
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file", hint="choose a folder for -o")
    parent = next(folder for folder in resolved.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise AccessError(
            f"{path} cannot be written: {parent} is not a folder you may write to", hint="choose another -o"
        )
    if not path.is_dir() or not (present := {file.name for file in path.iterdir()}):
        return
    if MANIFEST not in present:
        raise UsageError(f"{path} holds other files and is not a bundle", hint="choose an empty or a new folder for -o")
    foreign = present - {MANIFEST, *(file.path for file in Bundle.open(path).manifest.files)}
    if foreign:
        raise UsageError(
            f"{path} holds files that are not the bundle's: {', '.join(sorted(foreign)[:3])}",
            hint="move them away, or choose another folder for -o",
        )


def _changed(path: Path, expected: str, actual: str) -> IntegrityError:
    return IntegrityError(
        f"{path} is not the file that {MANIFEST} describes",
        expected=expected,
        actual=actual,
        hint="restore it, or write the bundle again",
    )


def _is_same(path: Path, file: FileDigest) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    # A link leads out of the bundle, and is not followed when a model is run.
    return stat.S_ISREG(found.st_mode) and found.st_size == file.size and sha256_file(path) == file.sha256
