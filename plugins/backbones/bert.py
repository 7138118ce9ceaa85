"""BERT encoders in plain torch: token ids in, one pooled vector a text out.

Architecture: Devlin et al., https://arxiv.org/abs/1810.04805. Weights are read from the published safetensors by
renaming; `config.json` is parsed with an allow-list of keys, and nothing in it can name code.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zoo.backbone import Backbone
from zoo.errors import IntegrityError
from zoo.hookspecs import hookimpl
from zoo.schema import TextPreprocess
from zoo.torchkit import TorchBackbone, load_state

if TYPE_CHECKING:
    import torch


class BertConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of config.json that shape the encoder; every other key is ignored."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"


class Bert(TorchBackbone):
    """The family `bert`: pooling (mean over tokens, or the first one) and L2 as the row's preprocessing says."""

    family = "bert"

    def build(self) -> "torch.nn.Module":
        """The encoder and its pooling, with `model.safetensors` loaded."""
        preprocess = self.entry.preprocess
        assert isinstance(preprocess, TextPreprocess)
        config = read_config(self.weights / "config.json")
        return load_state(self.weights / "model.safetensors", _encoder(config, preprocess), rename)


def read_config(path: Path) -> BertConfig:
    """The shape of the encoder. Raises IntegrityError when a key is missing or means another architecture."""
    try:
        config = msgspec.json.decode(path.read_bytes(), type=BertConfig)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{path.name} does not describe a BERT encoder: {error}") from error
    if config.hidden_act != "gelu":
        raise IntegrityError(f"{path.name} asks for the activation {config.hidden_act!r}, this family knows gelu")
    return config


#: Parts of published checkpoints that the features do not need: the pooler and the pre-training heads.
UNUSED = ("pooler.", "cls.", "embeddings.position_ids")
#: TensorFlow's names of a LayerNorm's parameters, kept by the oldest checkpoints.
LEGACY = {"gamma": "weight", "beta": "bias"}
RENAMED = (
    ("embeddings.word_embeddings.", "words."),
    ("embeddings.position_embeddings.", "positions."),
    ("embeddings.token_type_embeddings.", "segments."),
    ("embeddings.LayerNorm.", "norm."),
    ("encoder.layer.", "layers."),
    ("attention.self.", ""),
    ("attention.output.dense.", "attended."),
    ("attention.output.LayerNorm.", "attended_norm."),
    ("intermediate.dense.", "widen."),
    ("output.dense.", "narrow."),
    ("output.LayerNorm.", "output_norm."),
)


def rename(name: str) -> str | None:
    """This module's name of a tensor in a published BERT checkpoint, None for one that features do not need."""
    name = name.removeprefix("bert.")
    if name.startswith(UNUSED):
        return None
    stem, _, last = name.rpartition(".")
    name = f"{stem}.{LEGACY.get(last, last)}"
    for theirs, ours in RENAMED:
        name = name.replace(theirs, ours)
    return name


def _encoder(config: BertConfig, preprocess: TextPreprocess) -> "torch.nn.Module":
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

    width, heads = config.hidden_size, config.num_attention_heads

    def norm() -> nn.LayerNorm:
        return nn.LayerNorm(width, eps=config.layer_norm_eps)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
            self.attended, self.attended_norm = nn.Linear(width, width), norm()
            self.widen = nn.Linear(width, config.intermediate_size)
            self.narrow, self.output_norm = nn.Linear(config.intermediate_size, width), norm()

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            query, key, value = (
                part(x).unflatten(-1, (heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
            )
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
            x = self.attended_norm(x + self.attended(context))
            y: torch.Tensor = self.output_norm(x + self.narrow(F.gelu(self.widen(x))))
            return y

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(config.vocab_size, width)
            self.positions = nn.Embedding(config.max_position_embeddings, width)
            self.segments = nn.Embedding(config.type_vocab_size, width)
            self.norm = norm()
            self.layers = nn.ModuleList(Layer() for _ in range(config.num_hidden_layers))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            length = input_ids.shape[1]
            embedded = self.words(input_ids) + self.positions.weight[:length] + self.segments.weight[0]
            x = self.norm(embedded)
            # Added to the attention scores: 0 where there is a token, the lowest float where there is padding.
            padding = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
            for layer in self.layers:
                x = layer(x, padding)
            pooled = x[:, 0] if preprocess.pooling == "cls" else _mean(x, attention_mask)
            return F.normalize(pooled, dim=-1) if preprocess.normalize else pooled

    return Encoder()


def _mean(x: "torch.Tensor", attention_mask: "torch.Tensor") -> "torch.Tensor":
    """Mean over real tokens; a row of padding alone gives zeros, not NaN."""
    weight = attention_mask[:, :, None].to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


@hookimpl
def zoo_register_backbones() -> Iterable[type[Backbone]]:
    """The one family of this module."""
    return [Bert]
