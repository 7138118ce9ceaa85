"""Pickled checkpoints, converted once to safetensors in a child process. Nothing else in zoo opens a pickle.

The child is `python -m zoo.store.unpickle SOURCE TARGET`: it reads SOURCE with `weights_only=True` and writes TARGET.
"""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

from msgspec import Struct

from zoo.errors import IntegrityError
from zoo.system.files import sha256_file
from zoo.system.process import Child, EndedError, Parent, python
from zoo.system.records import find_record, write_record

PICKLE_SUFFIXES = (".pth", ".pt", ".bin")


#: The schema version of the record beside a converted checkpoint.
SCHEMA = 1


class _Converted(Struct, frozen=True):
    """The record beside a converted checkpoint: the sha256 of the checkpoint and of the safetensors file."""

    source: str
    sha256: str
    schema_version: int = SCHEMA


def as_safetensors(path: Path) -> Path:
    """The safetensors form of a checkpoint: `path` itself, or the converted file beside it.

    The digests of both files are recorded, and checked on every use.
    Raises IntegrityError when the checkpoint does not hold plain tensors.
    """
    if path.suffix not in PICKLE_SUFFIXES:
        return path
    twin, record = path.with_suffix(path.suffix + ".safetensors"), path.with_suffix(path.suffix + ".converted.json")
    source = sha256_file(path)
    if twin.is_file() and find_record(record, _Converted, SCHEMA) == _Converted(source, sha256_file(twin)):
        return twin
    partial = twin.with_suffix(f".{os.getpid()}.partial")
    try:
        with Child(python("-m", "zoo.store.unpickle", str(path), str(partial)), stderr=subprocess.DEVNULL) as child:
            try:
                reason = child.receive().data
            except EndedError as ended:
                reason = f"the child process ended with exit code {ended.code}"
        if reason is not None:
            raise IntegrityError(
                f"{path.name} does not hold plain tensors: {reason}",
                hint="use the safetensors file of this model if there is one",
            )
        digest = sha256_file(partial)
        partial.replace(twin)
    finally:
        partial.unlink(missing_ok=True)
    write_record(record, _Converted(source, digest))
    return twin


def convert(source: Path, target: Path) -> str | None:
    """Write the tensors of `source` to `target`, in the child; returns None, or the reason for a failure in a line."""
    import torch
    from safetensors.torch import save_file

    try:
        # torch warns about old pickles and sparse tensors, which do not concern the user.
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or truncated file may raise anything
        code = re.search(r"GLOBAL (\S+)", str(error))
        return f"it needs the code {code[1]}" if code else f"it cannot be read ({type(error).__name__})"
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        return f"it is a {type(state).__name__}, not a dictionary of tensors"
    for name, value in state.items():
        if not isinstance(name, str):
            return f"the name {name!r} of a tensor is not text"
        if not isinstance(value, torch.Tensor):
            return f"{name} is not a tensor but {type(value).__name__}"
        if value.layout is not torch.strided or value.is_quantized:
            return f"{name} is not a dense tensor but {value.dtype if value.is_quantized else value.layout}"
    # Tensors of a checkpoint may share storage or have strides. safetensors refuses both, so copy each tensor.
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in state.items()}, target)
    return None


if __name__ == "__main__":
    parent = Parent()
    parent.send(convert(Path(sys.argv[1]), Path(sys.argv[2])))
