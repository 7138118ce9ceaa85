"""Heads in the published checkpoints of BERT encoders: sequence classifiers, and the heads that fill masks.

A classifier reads the last layer's vector of the first token. Layouts are those of transformers' class
BertForSequenceClassification and its relatives (https://github.com/huggingface/transformers).
"""

from typing import TYPE_CHECKING, NamedTuple

from zoo.textkit import LEGACY

if TYPE_CHECKING:
    import torch


class Layers(NamedTuple):
    """The names of a classifier's two layers in a checkpoint, and the function of torch between them."""

    dense: str
    out: str
    function: str


CLASSIFIERS = {
    "bert": Layers("pooler.dense", "classifier", "tanh"),
    "distilbert": Layers("pre_classifier", "classifier", "relu"),
    "roberta": Layers("classifier.dense", "classifier.out_proj", "tanh"),
    "mpnet": Layers("classifier.dense", "classifier.out_proj", "tanh"),
}


def classifier(arch: str, width: int, outputs: int) -> "torch.nn.Module":
    """The classifier with random weights: takes the last layer [batch, sequence, width], returns [batch, outputs]."""
    import torch
    from torch import nn

    function = getattr(torch, CLASSIFIERS[arch].function)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.out = nn.Linear(width, width), nn.Linear(width, outputs)

        def forward(self, x: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.out(function(self.dense(x[:, 0])))
            return logits

    return Classifier()


def classifier_tensor(name: str, arch: str) -> str | None:
    """The name that a tensor of a published checkpoint has in `classifier`; None for a tensor of the encoder."""
    name = name.removeprefix(f"{arch}.")
    dense, out, _ = CLASSIFIERS[arch]
    layer, _, last = name.rpartition(".")
    return {dense: f"dense.{last}", out: f"out.{last}"}.get(layer)


class MaskLayers(NamedTuple):
    """The names of a mask head's tensors in a checkpoint. The decoder's weight is the table of word embeddings."""

    dense: str
    norm: str
    bias: str


MASK_HEADS = {
    "bert": MaskLayers(
        "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"
    ),
    "distilbert": MaskLayers("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
    "roberta": MaskLayers("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    "mpnet": MaskLayers("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
}


def mask_head(width: int, outputs: int, eps: float) -> "torch.nn.Module":
    """The head that fills masks, with random weights.

    Its attributes `table`, the weight [outputs, width] of the word embeddings, and `mask`, the id of the mask, must be
    set. It takes the last layer [batch, sequence, width] and the token ids, and returns logits [batch, outputs] for the
    first mask of each text.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

    class MaskHead(nn.Module):
        table: torch.Tensor
        mask: int

        def __init__(self) -> None:
            super().__init__()
            self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=eps)
            self.bias = nn.Parameter(torch.zeros(outputs))

        def forward(self, x: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
            length = x.shape[1]
            places = torch.arange(length, device=x.device)
            first = torch.where(input_ids == self.mask, places, length - 1).amin(1)
            at = x.gather(1, first[:, None, None].expand(-1, 1, width))[:, 0]
            # The decoder's weight is the table of word embeddings: the graph stores it once.
            return F.linear(self.norm(F.gelu(self.dense(at))), self.table, self.bias)

    return MaskHead()


def mask_tensor(name: str, arch: str) -> str | None:
    """The name that a tensor of a published checkpoint has in `mask_head`; None for any other tensor."""
    name = name.removeprefix(f"{arch}.")
    dense, norm, bias = MASK_HEADS[arch]
    if name == bias:
        return "bias"
    layer, _, last = name.rpartition(".")
    return {dense: f"dense.{last}", norm: f"norm.{LEGACY.get(last, last)}"}.get(layer)
