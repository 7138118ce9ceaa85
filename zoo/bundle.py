"""Bundles: folders with `model.onnx` and `zoo.json`, enough to run a model without its plugin, torch or a registry."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zoo.errors import AccessError, IntegrityError, NotFoundError, UsageError
from zoo.schema import FileDigest, Manifest
from zoo.system.files import is_unchanged, map_file, sha256, sha256_file
from zoo.system.records import read_record, write_record

if TYPE_CHECKING:
    import mmap

MODEL, MANIFEST, HEAD = "model.onnx", "zoo.json", "head.safetensors"
#: The split of the training data: one JSON object for each item, with scores for the held-out ones.
SPLIT = "split.jsonl"
SCHEMA_VERSION = 1


class Held(msgspec.Struct, frozen=True):
    """One line of `split.jsonl`: the item's digest, its side of the split, and its scores if it was held out."""

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
        """The bundle in the folder `path`.

        Raises NotFoundError when it is not a bundle, IntegrityError when zoo.json is damaged or of a newer zoo.
        """
        if not path.is_dir():
            problem = " is not a folder" if path.exists() else ": no such folder"
            raise NotFoundError(f"{path}{problem}", hint="zoo finetune MODEL DATA -o DIR writes a bundle")
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
        """The ONNX file's bytes. Raises IntegrityError if their sha256 is not that of the manifest."""
        try:
            data = self.model.read_bytes()
        except FileNotFoundError as error:
            raise IntegrityError(f"{self.path} has no {MODEL}", hint="write the bundle again") from error
        actual, expected = sha256(data), self.digest(MODEL)
        if actual != expected:
            raise _changed(self.model, expected, actual)
        return data

    def map(self, name: str) -> "mmap.mmap | bytes":
        """A file's bytes, memory-mapped, such as external data of the ONNX file.

        Raises IntegrityError for a file that the manifest does not list, that is not a regular file, or that changed.
        """
        expected, path = self.digest(name), self.path / name
        try:
            data = map_file(path)
        except OSError as error:
            raise _changed(path, expected, error.strerror or "no file") from error
        # Hash the mapped bytes, which the model will use: by now another file may be at `path`.
        if (actual := sha256(data)) != expected:
            raise _changed(path, expected, actual)
        return data

    def digest(self, name: str) -> str:
        """The sha256 of a file by the manifest. Raises IntegrityError for a file that is not listed."""
        for file in self.manifest.files:
            if file.path == name:
                return file.sha256
        raise IntegrityError(f"{self.path / MANIFEST} does not list {name}", hint="write the bundle again")

    def check(self, *names: str) -> None:
        """Raise IntegrityError unless these files have the digests of the manifest."""
        for name in names:
            expected, path = self.digest(name), self.path / name
            actual = sha256_file(path) if path.is_file() else "no file"
            if actual != expected:
                raise _changed(path, expected, actual)

    def verify(self) -> list[tuple[FileDigest, bool]]:
        """Each file of the manifest, and whether the file on disk has the recorded size and digest."""
        # A link counts as changed: it points out of the bundle, and running the model does not follow it.
        return [(file, is_unchanged(self.path / file.path, file)) for file in self.manifest.files]


def read_split(bundle: Bundle) -> dict[str, Held]:
    """The lines of `split.jsonl` by item digest; empty for a bundle that was not fine-tuned.

    Raises IntegrityError for a file that was changed.
    """
    if SPLIT not in {file.path for file in bundle.manifest.files}:
        return {}
    bundle.check(SPLIT)
    lines = (bundle.path / SPLIT).read_bytes().splitlines()
    return {line.digest: line for line in (msgspec.json.decode(row, type=Held) for row in lines)}


def describe_files(folder: Path) -> tuple[FileDigest, ...]:
    """Name, size and sha256 of every file in `folder` except the manifest, sorted by name."""
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    return tuple(FileDigest(path=p.name, size=p.stat().st_size, sha256=sha256_file(p)) for p in paths)


def write_manifest(folder: Path, manifest: Manifest) -> Bundle:
    """Write `zoo.json`, which makes the folder a bundle. Call this after all other files are written."""
    write_record(folder / MANIFEST, manifest, indent=2)
    return Bundle(folder, manifest)


def check_target(path: Path, *, inside: Sequence[Path] = ()) -> None:
    """Raise UsageError if writing a bundle at `path` would replace anything but an empty folder or another bundle.

    `inside` are folders (the data, the source bundle) that must not be in `path`. Raises AccessError for a folder that
    may not be written.
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
