"""Folders of images: `DATA/<class>/*.jpg`, or the same below `train/`, `val/` and `test/`."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from zoo.data.images import IMAGE_SUFFIXES
from zoo.data.items import Example, Skipped, attempt
from zoo.errors import DataError, quote
from zoo.system.files import sha256_file

#: Files that operating systems leave in folders by themselves.
LITTER = frozenset({"thumbs.db", "desktop.ini"})
#: The parts of a data set, and the folders that may hold them.
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LAYOUT = "lay the images out as DATA/<class>/*.jpg"


class Content(NamedTuple):
    """The items of a folder or table, and the items that are left out."""

    examples: list[Example]
    skipped: list[Skipped]


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the parts `train`, `val` and `test`; empty if the folders in `root` are classes.

    The folders are parts if all of them have names of parts and `train` contains folders. Raises DataError for two
    folders of one part.
    """
    found = {folder.name: folder for folder in _visible(root) if folder.is_dir()}
    names = {name: part for part, folders in SPLITS.items() for name in folders}
    are_parts = "train" in found and found.keys() <= names.keys()
    if not are_parts or not any(path.is_dir() for path in _visible(found["train"])):
        return {}
    parts: dict[str, Path] = {}
    for name, folder in sorted(found.items()):
        if names[name] in parts:
            raise DataError(
                f"{root} has {parts[names[name]].name}/ and {name}/, which mean the same",
                path=root,
                hint="merge them, or move one away",
            )
        _stay_inside(folder, root.resolve())
        parts[names[name]] = folder
    return {part: parts[part] for part in SPLITS if part in parts}


def read_classes(root: Path, top: Path) -> Content:
    """The images of `root`/<class>/*, named by their paths relative to `top`.

    Links out of `top`, other kinds of files and unreadable files are skipped. Raises DataError for a layout that would
    lose a whole folder: no class folders, a class without images, a folder in a class, a class that links out of `top`.
    """
    visible = _visible(root)
    folders = [path for path in visible if path.is_dir()]
    if not folders:
        raise DataError(f"{root} has no class folders", path=root, hint=LAYOUT)
    for path in visible:
        if path not in folders and path.suffix.lower() in IMAGE_SUFFIXES:
            raise DataError(f"{path} is in no class folder", path=path, hint=LAYOUT)
    content = Content([], [])
    inside = top.resolve()
    for folder in folders:
        _stay_inside(folder, inside)
        before = len(content.examples)
        for path in _visible(folder):
            if path.is_dir():
                raise DataError(f"{path} is a folder in a class folder", path=path, hint=LAYOUT)
            name = str(path.relative_to(top))
            result = read_image(path, inside, name, is_below=True)
            if isinstance(result, Skipped):
                content.skipped.append(result)
            else:
                content.examples.append(Example(name, path, folder.name, result))
        if len(content.examples) == before:
            raise DataError(
                f"the class {quote(folder.name)} is empty: {folder}", path=folder, hint="fill or remove the folder"
            )
    return content


def read_image(path: Path, inside: Path, name: str, *, is_below: bool = False) -> str | Skipped:
    """The sha256 of an image's bytes, or the reason why the item `name` is left out; nothing is decoded.

    `inside` is the resolved folder that must contain the image. With `is_below` the image's own folder is known to be
    inside, and only the file itself may be a link.
    """
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return Skipped(name, "not an image")
    try:
        # Any folder of the path may be a link, not only the file.
        may_leave = not is_below or path.is_symlink()
        if may_leave and not path.resolve(strict=True).is_relative_to(inside):
            return Skipped(name, "a link out of the folder")
        # Do not open a pipe: reading it would wait for ever.
        return sha256_file(path) if path.is_file() else Skipped(name, "not a file")
    except FileNotFoundError:
        return Skipped(name, "a link to nothing" if path.is_symlink() else "no such file")
    except (OSError, RuntimeError, ValueError) as error:
        # RuntimeError: links in a circle, before Python 3.13; ValueError: a name with a zero byte.
        return Skipped(name, f"cannot be read: {getattr(error, 'strerror', None) or error}")


def image_files(folder: Path) -> Iterator[str | DataError]:
    """The sorted paths of the images in a folder; an error for a file of another kind or a link out of the folder.

    Only names are held in memory. Raises DataError for a folder that cannot be read.
    """
    inside = folder.resolve()
    for name in _names(folder):
        error = attempt(_check_image, folder / name, inside)
        yield str(folder / name) if error is None else error


def _check_image(path: Path, inside: Path) -> None:
    """Raise DataError unless `path` is a file with the suffix of an image, and not a link out of `inside`."""
    _stay_inside(path, inside)
    # Reading a pipe would wait for ever, and a link may lead to nothing.
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        return
    hint = f"move it away; accepted: {', '.join(sorted(IMAGE_SUFFIXES))}"
    if path.is_dir():
        hint = f"images in folders: a pattern such as '{path.parent}/*/*'"
    raise DataError(f"{path} is not an image", path=path, hint=hint)


def _visible(folder: Path) -> list[Path]:
    return [folder / name for name in _names(folder)]


def _names(folder: Path) -> list[str]:
    """The sorted names in a folder, without hidden files and LITTER. Raises DataError."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        hint = f"chmod u+rx {folder}"
        raise DataError(f"{folder} cannot be read: {error.strerror}", path=folder, hint=hint) from error
    return [name for name in names if not name.startswith(".") and name.lower() not in LITTER]


def _stay_inside(path: Path, inside: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(inside):
        raise DataError(f"{path} is a link out of the folder", path=path, hint="copy what it points to instead")
