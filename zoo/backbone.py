"""The interface of a backbone family, which exports the original weights to ONNX and computes reference features."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from zoo.extras import TRAINING
from zoo.progress import SILENT, Progress
from zoo.schema import Entry, ExportOptions

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.generic[Any]]
    TensorMap: TypeAlias = Mapping[str, Array]


class Backbone(ABC):
    """One family of pretrained backbones. Its methods take and return paths and numpy arrays; only `stages` uses torch.

    `entry` is the registry row, `weights` the folder with the row's verified files under their `path` names. The
    constructor may run before the files are downloaded, so it must not read them. It raises RegistryError for a wrong
    `entry.config`.
    """

    family: ClassVar[str]

    def __init__(self, entry: Entry, weights: Path) -> None:
        self.entry = entry
        self.weights = weights

    @property
    def packages(self) -> tuple[str, ...]:
        """Import names that `prepare`, `export` and `reference` need, checked before any work starts."""
        return TRAINING

    def prepare(self, progress: Progress = SILENT) -> None:  # noqa: B027 - most families have nothing to prepare
        """Convert the row's files after they were pulled and verified. A repeated call must return at once.

        Write the result beside the row's files, completely or not at all.
        """

    @abstractmethod
    def export(self, path: Path, options: ExportOptions) -> None:
        """Write the features graph as one ONNX file at `path`; a large table may be external data in a file beside it.

        Inputs have the names, types and shapes of `entry.inputs`; the first output is `features` float32 [batch, dim].
        With `options.head`, which is only used if `entry.head` is set, the second is `scores` float32 [batch, outputs],
        after the activation; otherwise there is no second. The batch axis (and a text's sequence axis) must be dynamic.
        `options.cut` is only used for families with `stages`.
        """

    @abstractmethod
    def reference(self, feeds: "TensorMap") -> "TensorMap":
        """`features` [batch, dim] of the original model for the same inputs, for the parity check.

        If `entry.head` is set, also `scores` [batch, outputs] of the original model's head.
        """

    def load(self) -> bool:
        """Load the model for `reference`; returns whether `reference` may then run in another thread.

        It may if it changes no state that threads share, such as a random generator. Fine-tuning then runs `reference`
        while the head is trained.
        """
        return False

    def stages(self) -> "Sequence[torch.nn.Module]":
        """The network's consecutive parts, for training the last ones with the head: see `TorchBackbone.stages`.

        Empty by default. A family with fewer than two stages does not support `--unfreeze`.
        """
        return ()
