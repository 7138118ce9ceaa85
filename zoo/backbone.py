"""What a backbone family is: weights in, a features graph out, and its own arithmetic to check that graph by."""

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
    """One family of pretrained backbones. Paths and numpy cross this line, torch only in `stages`.

    `entry` is the registry row, `weights` the folder with the row's files under their `path` names, all verified.
    """

    family: ClassVar[str]

    def __init__(self, entry: Entry, weights: Path) -> None:
        self.entry = entry
        self.weights = weights

    @property
    def packages(self) -> tuple[str, ...]:
        """What `prepare`, `export` and `reference` import beside the runtime, asked for before any work starts."""
        return TRAINING

    def prepare(self, progress: Progress = SILENT) -> None:  # noqa: B027 - most families have nothing to prepare
        """Make of the row's files, once, what later use wants: called when they were pulled and verified.

        It may be called again and must then return at once. Files are written beside the row's, whole or not at all.
        """

    @abstractmethod
    def export(self, path: Path, options: ExportOptions) -> None:
        """Write the features graph as one ONNX file at `path`; a table of gigabytes may lie beside it as external data.

        Inputs are named, typed and shaped as `entry.inputs`; the one output is `features` float32 [batch, dim].
        The batch axis (and a text's sequence axis) must be dynamic.
        A family without `stages` need not know `options.cut`.
        """

    @abstractmethod
    def reference(self, feeds: "TensorMap") -> "TensorMap":
        """The family's own arithmetic from the original files: `features` for the same inputs, for the parity gate."""

    def load(self) -> bool:
        """Do once what `reference` needs; whether it may then be called on another thread than this one.

        It may when it changes nothing that all threads share, such as the state of a random generator. Fine-tuning
        then calls it beside the head's training.
        """
        return False

    def stages(self) -> "Sequence[torch.nn.Module]":
        """The consecutive parts that training deeper than the head cuts between: see `TorchBackbone.stages`.

        None by default, and a family with fewer than two cannot be unfrozen: only heads are trained on it.
        """
        return ()
