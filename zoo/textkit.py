"""For families of text encoders: from the vectors of the tokens to the features of a text.

The steps are those of sentence-transformers (https://www.sbert.net): pooling, dense layers, normalisation.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from msgspec import Struct, convert

from zoo.checkpoint import load_state
from zoo.schema import Entry, TextPreprocess

if TYPE_CHECKING:
    import torch

#: TensorFlow's names of LayerNorm parameters, in the oldest checkpoints.
LEGACY = {"gamma": "weight", "beta": "bias"}
#: The activations of dense layers -> their classes in torch.nn.
ACTIVATIONS = {
    "identity": "Identity",
    "tanh": "Tanh",
    "relu": "ReLU",
    "gelu": "GELU",
    "sigmoid": "Sigmoid",
    "silu": "SiLU",
}


class DenseLayer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A linear layer after the pooling, from `inputs` to `outputs` numbers, and its activation.

    `file` is the file of the row with the tensors `linear.weight` and `linear.bias`.
    """

    file: str
    inputs: int
    outputs: int
    bias: bool = True
    activation: str = "tanh"


def text_pooling(entry: Entry, weights: Path) -> "torch.nn.Module":
    """The module from the last layer [batch, sequence, width] and the mask [batch, sequence] to features [batch, dim].

    `entry.preprocess` selects the pooling and the normalisation. `entry.config["dense"]` lists the dense layers between
    them, if any, in the form of `DenseLayer`. Raises IntegrityError for a damaged file.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

    preprocess: TextPreprocess = entry.preprocess  # type: ignore[assignment]  # the families are for texts
    layers = convert(entry.config.get("dense", []), list[DenseLayer])

    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Sequential(*(_dense(layer, weights) for layer in layers))

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            pooled: torch.Tensor = self.dense(x[:, 0] if preprocess.pooling == "cls" else _mean(x, attention_mask))
            return F.normalize(pooled, dim=-1) if preprocess.normalize else pooled

    return Pooling().eval().requires_grad_(False)


def mask_id(preprocess: TextPreprocess, weights: Path) -> int:
    """The id of the mask in the row's tokenizer, whose file is in `weights`. Raises IntegrityError if it has none."""
    from zoo.data.tokenizers import TextEncoder, place_tokenizer

    with TemporaryDirectory(prefix="zoo-") as folder:
        return TextEncoder(place_tokenizer(preprocess, weights, Path(folder)), Path(folder)).mask_id


def _dense(layer: DenseLayer, weights: Path) -> "torch.nn.Module":
    from torch import nn

    linear = nn.Sequential()
    linear.add_module("linear", nn.Linear(layer.inputs, layer.outputs, bias=layer.bias))
    load_state(weights / layer.file, linear)
    linear.add_module("activation", getattr(nn, ACTIVATIONS[layer.activation])())
    return linear


def _mean(x: "torch.Tensor", attention_mask: "torch.Tensor") -> "torch.Tensor":
    """The mean over real tokens; zeros for a row that is only padding."""
    weight = attention_mask[:, :, None].to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
