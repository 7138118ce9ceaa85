"""Heads in the published checkpoints of BERT encoders: sequence classifiers.

A classifier reads the last layer's vector of the first token. Layouts are those of transformers' class
BertForSequenceClassification and its relatives (https://github.com/huggingface/transformers).
"""

from typing import TYPE_CHECKING, NamedTuple

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

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.out(function(self.dense(x[:, 0])))
            return logits

    return Classifier()


def classifier_tensor(name: str, arch: str) -> str | None:
    """The name that a tensor of a published checkpoint has in `classifier`; None for a tensor of the encoder."""
    name = name.removeprefix(f"{arch}.")
    dense, out, _ = CLASSIFIERS[arch]
    layer, _, last = name.rpartition(".")
    return {dense: f"dense.{last}", out: f"out.{last}"}.get(layer)
