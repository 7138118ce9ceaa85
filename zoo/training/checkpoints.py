"""Checkpoints of a training: tensors as safetensors, everything else as JSON. A completeness marker is written last.

ZOO_HOME/training/<run>/<phase>/000042/   state.safetensors   tensors by name
                                          state.json          epoch, step, curve, ...
                                          complete            the sha256 of the two; without it a folder is ignored
No file of a checkpoint can name code, so loading a checkpoint from elsewhere runs no code.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from zoo.system.files import sha256, sha256_file, write_atomic

if TYPE_CHECKING:
    import torch

TENSORS, FACTS, MARKER = "state.safetensors", "state.json", "complete"
#: Complete checkpoints that are kept: the newest, and one more in case the newest gets damaged.
KEPT_CHECKPOINTS = 2


class State(Struct, frozen=True):
    """The contents of a checkpoint: tensors by name, and plain data."""

    tensors: "dict[str, torch.Tensor]"
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of one phase of a training, in `folder`, numbered in the order in which they were saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, tensors: "Mapping[str, torch.Tensor]", facts: Mapping[str, Any]) -> None:
        """Write the next checkpoint, then remove all but the newest complete ones.

        Raises OSError when the checkpoint cannot be written; earlier checkpoints are then unchanged.
        """
        from safetensors.torch import save

        last = max((int(path.name) for path in self._numbered()), default=0)
        path = self.folder / f"{last + 1:06d}"
        state = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        parts = {TENSORS: state, FACTS: json.dumps(facts).encode()}
        try:
            for name, data in parts.items():
                write_atomic(path / name, data)
            write_atomic(path / MARKER, _digests([sha256(data) for data in parts.values()]))
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        complete = [path for path in self._numbered() if (path / MARKER).is_file()]
        for path in set(self._numbered()) - set(complete[-KEPT_CHECKPOINTS:]):
            shutil.rmtree(path, ignore_errors=True)

    def newest(self) -> State | None:
        """The newest complete and undamaged checkpoint; None if there is none."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        for path in reversed(self._numbered()):
            with suppress(OSError, ValueError, RecursionError, SafetensorError):
                if (path / MARKER).read_bytes() == _digests([sha256_file(path / name) for name in (TENSORS, FACTS)]):
                    return State(load((path / TENSORS).read_bytes()), json.loads((path / FACTS).read_bytes()))
        return None

    def _numbered(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("[0-9]*") if path.name.isdecimal())


def _digests(digests: list[str]) -> bytes:
    return "".join(f"{digest}\n" for digest in digests).encode()
