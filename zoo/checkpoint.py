"""Loads checkpoints into torch modules, and checks every tensor."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zoo.errors import IntegrityError, quote
from zoo.schema import Entry, FilePath
from zoo.store.unpickle import PICKLE_SUFFIXES, as_safetensors

if TYPE_CHECKING:
    import torch

WRONG_FILE = "the file is not the one this row describes"
WRONG_INDEX = "choose another revision of the model, or tell its publisher"
#: The file that lists the tensors of a checkpoint in several safetensors files.
SHARD_INDEX = "model.safetensors.index.json"


class _Index(msgspec.Struct, frozen=True):
    """The format of SHARD_INDEX, by huggingface_hub: the shard of each tensor."""

    weight_map: dict[str, FilePath]


def parse_shards(data: bytes, name: str) -> dict[str, str]:
    """The shard of each tensor, from the bytes of the index file `name`.

    Raises IntegrityError for anything but names of safetensors files, without folders.
    """
    try:
        shards = msgspec.json.decode(data, type=_Index).weight_map
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{name} does not list the shards of a checkpoint: {error}", hint=WRONG_INDEX) from error
    wrong = [shard for shard in shards.values() if not shard.endswith(".safetensors")]
    if wrong or not shards:
        raise IntegrityError(f"{name} lists {quote(wrong[0]) if wrong else 'nothing'} as a shard", hint=WRONG_INDEX)
    return shards


def checkpoint_paths(entry: Entry, folder: Path) -> list[Path]:
    """The files in `folder` that hold the tensors of a row: one file, or all shards.

    Raises IntegrityError if the row has no such file, or if the shards hold other tensors than their index lists.
    """
    names = [file.path for file in entry.files]
    if SHARD_INDEX not in names:
        # Dense layers after the pooling have files of their own.
        others = {layer["file"] for layer in entry.config.get("dense", ())}
        paths = [
            folder / name for name in names if name.endswith((".safetensors", *PICKLE_SUFFIXES)) and name not in others
        ]
        if len(paths) != 1:
            raise IntegrityError(f"{entry.name} has {len(paths)} checkpoints, not one", hint=WRONG_FILE)
        return paths
    listed = parse_shards((folder / SHARD_INDEX).read_bytes(), SHARD_INDEX)
    paths = [folder / name for name in sorted(set(listed.values()))]
    if absent := [path.name for path in paths if path.name not in names]:
        raise IntegrityError(f"{SHARD_INDEX} lists {absent[0]}, which is no file of the row", hint=WRONG_INDEX)
    held = {(name, path.name) for path in paths for name in tensor_names([path])}
    for name, shard in sorted(held ^ set(listed.items())):
        problem = f"has {name}, which {SHARD_INDEX} does not list there"
        if (name, shard) not in held:
            problem = f"lacks {name}, which {SHARD_INDEX} lists"
        raise IntegrityError(f"{shard} {problem}", hint=WRONG_INDEX)
    return paths


def tensor_names(paths: Sequence[Path]) -> set[str]:
    """The names of the tensors in a checkpoint. Raises IntegrityError."""
    from safetensors import safe_open

    names: set[str] = set()
    for path in paths:
        with _readable(path), safe_open(as_safetensors(path), "pt") as file:
            names |= set(file.keys())
    return names


def load_state(
    path: Path | Sequence[Path], module: "torch.nn.Module", rename: Callable[[str], str | None] = lambda name: name
) -> "torch.nn.Module":
    """Load the checkpoint at `path` into `module`, check every tensor, and return the module in eval mode.

    A checkpoint may be split into several files, which no tensor is in twice.

    `rename` maps a name in the file to the module's name, or to None for a tensor that the features do not need. Half
    precision is converted to float32, other types are not. Raises IntegrityError naming missing, unexpected, wrongly
    typed or shaped, or non-finite tensors, and negative variances.
    """
    import torch

    paths = [path] if isinstance(path, Path) else path
    given: dict[str, torch.Tensor] = {}
    twice = []
    for name, tensor in _tensors(paths):
        if new := rename(name):
            twice += [new] if new in given else []
            given[new] = tensor
    for problem, names in _problems(given, module.state_dict(), twice):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise IntegrityError(f"{paths[0].name} {problem} {shown}", hint=WRONG_FILE)
    module.load_state_dict(given, strict=False)
    return module.eval().requires_grad_(False)


def _problems(
    given: "Mapping[str, torch.Tensor]", wanted: "Mapping[str, torch.Tensor]", twice: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yields each possible problem with the tensors at fault; each check relies on the checks before."""
    import torch

    def fits(name: str) -> bool:
        if wanted[name].is_floating_point():
            return given[name].dtype in (torch.float32, torch.float16, torch.bfloat16)
        return given[name].dtype == wanted[name].dtype or _is_counter(name)

    yield "lacks", [name for name in wanted if name not in given and not _is_counter(name)]
    yield "has unexpected", [name for name in given if name not in wanted]
    yield "has twice", twice
    kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in given.items()}
    yield "has wrong types for", [f"{name} ({kinds[name]})" for name in given if not fits(name)]
    yield "has wrong shapes for", [name for name in given if given[name].shape != wanted[name].shape]
    yield "has non-finite numbers in", [name for name in given if not torch.isfinite(given[name]).all()]
    # BatchNorm takes the square root: features would be NaN, or wrong if epsilon makes the sum positive.
    variances = [name for name in given if name.rpartition(".")[2] == "running_var"]
    yield "has negative variances in", [name for name in variances if (given[name] < 0).any()]


def _is_counter(name: str) -> bool:
    """Whether this is BatchNorm's batch counter, which checkpoints before torch 0.4.1 lack and inference ignores."""
    return name.endswith("num_batches_tracked")


def load_linear(path: Path, name: str, shape: tuple[int, int]) -> "torch.nn.Linear":
    """The linear layer `name` of the checkpoint at `path`; `shape` is (inputs, outputs), outputs one for each label.

    Raises IntegrityError if the file has no such layer, or a layer of another shape.
    """
    from torch import nn

    check_scores([path], name, shape)
    prefix = f"{name}."
    layer = nn.Linear(*shape)
    load_state(path, layer, lambda each: each.removeprefix(prefix) if each.startswith(prefix) else None)
    return layer


def check_scores(paths: Sequence[Path], name: str, shape: tuple[int, int]) -> None:
    """Raise IntegrityError if the linear layer `name` of a checkpoint has another shape than (inputs, outputs).

    The message counts scores and labels. A checkpoint without that layer is no error here: `load_state` finds it.
    """
    from safetensors import safe_open

    inputs, outputs = shape
    weight = f"{name}.weight"
    for path in paths:
        with _readable(path), safe_open(as_safetensors(path), "pt") as file:
            if weight not in file.keys():  # noqa: SIM118 - the file is no mapping
                continue
            rows, columns, *_ = file.get_slice(weight).get_shape()
        if (columns, rows) != shape:
            raise IntegrityError(
                f"{paths[0].name}: the head {name} gives {rows} scores from {columns} features, but the row has "
                f"{outputs} labels and {inputs} features",
                hint=WRONG_FILE,
            )


def _tensors(paths: Sequence[Path]) -> "Iterator[tuple[str, torch.Tensor]]":
    from safetensors.torch import load_file

    for path in paths:
        with _readable(path):
            tensors = load_file(as_safetensors(path))
        yield from tensors.items()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A context that raises IntegrityError for a broken safetensors file."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise IntegrityError(
            f"{path.name} is not a valid safetensors file: {error}", hint="zoo pull it again"
        ) from error
