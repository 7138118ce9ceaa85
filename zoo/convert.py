"""Pickled checkpoints become safetensors once, in a child process; nothing else in zoo ever opens a pickle.

Run as `python -m zoo.convert SOURCE TARGET`: the child reads SOURCE with `weights_only=True` and writes TARGET.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from zoo.errors import IntegrityError
from zoo.store import sha256_file, write_atomic

PICKLE_SUFFIXES = (".pth", ".pt", ".bin")


def as_safetensors(path: Path) -> Path:
    """The safetensors form of a checkpoint: `path` itself, or its converted twin beside it.

    The twin's digest is recorded with the digest of the file it was made from, and checked on every use.
    Raises IntegrityError when the checkpoint cannot be read as plain tensors.
    """
    if path.suffix not in PICKLE_SUFFIXES:
        return path
    twin, record = path.with_suffix(path.suffix + ".safetensors"), path.with_suffix(path.suffix + ".converted.json")
    source = sha256_file(path)
    if twin.is_file() and record.is_file():
        known = json.loads(record.read_bytes())
        if known == {"source": source, "sha256": sha256_file(twin)}:
            return twin
    partial = twin.with_suffix(f".{os.getpid()}.partial")
    try:
        child = subprocess.run(
            [sys.executable, "-m", "zoo.convert", str(path), str(partial)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if child.returncode != 0:
            reason = (child.stderr.strip().splitlines() or ["the child process died"])[-1]
            raise IntegrityError(
                f"{path.name} does not hold plain tensors: {reason}",
                hint="use the safetensors file of this model if there is one",
            )
        digest = sha256_file(partial)
        partial.replace(twin)
    finally:
        partial.unlink(missing_ok=True)
    write_atomic(record, json.dumps({"source": source, "sha256": digest}).encode())
    return twin


def _convert(source: Path, target: Path) -> None:
    import torch
    from safetensors.torch import save_file

    state = torch.load(source, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    # Shared or strided storage is legal in a checkpoint and refused by safetensors: write each tensor on its own.
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, target)


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
