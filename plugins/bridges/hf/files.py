"""Files of a repository of transformers: JSON files, and the checkpoint in one file or in several."""

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from zoo.errors import IntegrityError, UsageError
from zoo.schema import WeightFile
from zoo.torchkit import SHARD_INDEX, parse_shards

if TYPE_CHECKING:
    from zoo.hub import Repository

T = TypeVar("T")
#: Checkpoints in one file, in order of preference; a pickle is converted in a child process.
CHECKPOINTS = ("model.safetensors", "pytorch_model.bin")

#: The last layers of the classifiers of transformers; a class has one of them.
CLASSIFIERS = tuple(
    f"{name}.weight"
    for name in ("classifier", "classifier.out_proj", "classifier.1", "cls_classifier", "score", "logits_proj")
)


def parse_json(data: bytes, path: str, kind: type[T], noun: str = "a JSON object") -> T:
    """The JSON value in the bytes of the file `path`. Raises IntegrityError if it is not of `kind`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{path} is not {noun}: {error}", hint="choose another model") from error


def read_json(repository: "Repository", path: str) -> dict[str, Any]:
    """The JSON object of a small file. Raises NotFoundError if there is none, IntegrityError, and Hub errors."""
    return parse_json(repository.read(path), path, dict[str, Any])


def count_scores(repository: "Repository", folder: str = "") -> int | None:
    """The number of scores that a classifier gives, from the header of its safetensors file; None if it is not known.

    Raises IntegrityError, and Hub errors.
    """
    path = folder + CHECKPOINTS[0]
    if path not in repository.sizes:
        if folder + SHARD_INDEX not in repository.sizes:
            return None
        shards = parse_shards(repository.read(folder + SHARD_INDEX), SHARD_INDEX)
        path = next((folder + shards[name] for name in CLASSIFIERS if name in shards), "")
    shapes = repository.shapes(path) if path in repository.sizes else {}
    return next((shapes[name][0] for name in CLASSIFIERS if len(shapes.get(name, ())) == 2), None)


def checkpoint_of(repository: "Repository", folder: str = "") -> tuple[WeightFile, ...]:
    """The files of the checkpoint in a folder ("" or "path/"): one file, or an index and the shards that it lists.

    Raises UsageError if there is none that zoo reads, IntegrityError for an index that lists other than files of its
    folder.
    """
    sizes = repository.sizes
    if folder + CHECKPOINTS[0] in sizes:
        return (repository.file(folder + CHECKPOINTS[0]),)
    if folder + SHARD_INDEX in sizes:
        shards = parse_shards(repository.read(folder + SHARD_INDEX), SHARD_INDEX)
        names = sorted(set(shards.values()))
        if missing := [name for name in names if folder + name not in sizes]:
            raise IntegrityError(
                f"{repository.origin} lacks {missing[0]}, which {SHARD_INDEX} lists",
                hint="choose another revision, or tell its publisher",
            )
        return tuple(repository.file(folder + name) for name in (SHARD_INDEX, *names))
    if folder + CHECKPOINTS[1] in sizes:
        return (repository.file(folder + CHECKPOINTS[1]),)
    is_split = any(path.endswith(".bin.index.json") for path in sizes)
    problem = "keeps its weights in several pickles" if is_split else f"has none of {', '.join(CHECKPOINTS)}"
    raise UsageError(
        f"{repository.origin} {problem}", hint=f"choose a repository that has {CHECKPOINTS[0]}, or {SHARD_INDEX}"
    )
