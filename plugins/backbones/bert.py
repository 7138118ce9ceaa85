"""BERT encoders in plain torch: token ids in, one pooled vector a text out.

Architecture: Devlin et al., https://arxiv.org/abs/1810.04805; DistilBERT (Sanh et al.,
https://arxiv.org/abs/1910.01108) is the same without token types. Weights are read from the published safetensors by
renaming; `config.json` is parsed with an allow-list of keys, and nothing in it can name code.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zoo.backbone import Backbone
from zoo.errors import IntegrityError, RegistryError
from zoo.hookspecs import hookimpl
from zoo.schema import Entry, TextPreprocess
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


class DistilBertConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The same shape under DistilBERT's own names."""

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    hidden_dim: int
    max_position_embeddings: int
    activation: str = "gelu"

    def as_bert(self) -> BertConfig:
        """What a BERT of this shape, without token types, would say."""
        return BertConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.dim,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            intermediate_size=self.hidden_dim,
            max_position_embeddings=self.max_position_embeddings,
            type_vocab_size=0,
            hidden_act=self.activation,
        )


class Bert(TorchBackbone):
    """The family `bert`: pooling (mean over tokens, or the first one) and L2 as the row's preprocessing says.

    `config.arch` is `bert` (the default) or `distilbert`. Raises RegistryError for another one.
    """

    family = "bert"

    def __init__(self, entry: Entry, weights: Path) -> None:
        super().__init__(entry, weights)
        self.arch = entry.config.get("arch", "bert")
        if self.arch not in RENAMED:
            raise RegistryError(f"{entry.name}: config.arch is {self.arch!r}", hint=f"known: {', '.join(RENAMED)}")

    def build(self) -> "torch.nn.Module":
        """The encoder and its pooling, with `model.safetensors` loaded."""
        preprocess = self.entry.preprocess
        assert isinstance(preprocess, TextPreprocess)
        config = read_config(self.weights / "config.json", self.arch)
        longest = config.max_position_embeddings
        if preprocess.max_length > longest:
            raise RegistryError(f"{self.entry.name}: max_length {preprocess.max_length} exceeds the model's {longest}")
        encoder = _encoder(config, preprocess)
        return load_state(self.weights / "model.safetensors", encoder, partial(rename, arch=self.arch))


def read_config(path: Path, arch: str = "bert") -> BertConfig:
    """The shape of the encoder. Raises IntegrityError when a key is missing or means another architecture."""
    try:
        if arch == "distilbert":
            config = msgspec.json.decode(path.read_bytes(), type=DistilBertConfig).as_bert()
        else:
            config = msgspec.json.decode(path.read_bytes(), type=BertConfig)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{path.name} does not describe a {arch} encoder: {error}", hint=WRONG_FILE) from error
    if config.hidden_act != "gelu":
        asked = f"{path.name} asks for the activation {config.hidden_act!r}"
        raise IntegrityError(f"{asked}, this family knows gelu", hint=WRONG_FILE)
    return config


WRONG_FILE = "the file is not the one this row describes"
#: Parts of published checkpoints that the features do not need: the pooler and the pre-training heads.
UNUSED = ("pooler.", "cls.", "vocab_", "embeddings.position_ids")
#: TensorFlow's names of a LayerNorm's parameters, kept by the oldest checkpoints.
LEGACY = {"gamma": "weight", "beta": "bias"}
EMBEDDINGS = (
    ("embeddings.word_embeddings.", "words."),
    ("embeddings.position_embeddings.", "positions."),
    ("embeddings.token_type_embeddings.", "segments."),
    ("embeddings.LayerNorm.", "norm."),
)
RENAMED = {
    "bert": (
        *EMBEDDINGS,
        ("encoder.layer.", "layers."),
        ("attention.self.", ""),
        ("attention.output.dense.", "attended."),
        ("attention.output.LayerNorm.", "attended_norm."),
        ("intermediate.dense.", "widen."),
        ("output.dense.", "narrow."),
        ("output.LayerNorm.", "output_norm."),
    ),
    "distilbert": (
        *EMBEDDINGS,
        ("transformer.layer.", "layers."),
        ("attention.q_lin.", "query."),
        ("attention.k_lin.", "key."),
        ("attention.v_lin.", "value."),
        ("attention.out_lin.", "attended."),
        ("sa_layer_norm.", "attended_norm."),
        ("ffn.lin1.", "widen."),
        ("ffn.lin2.", "narrow."),
        ("output_layer_norm.", "output_norm."),
    ),
}


def rename(name: str, arch: str = "bert") -> str | None:
    """This module's name of a tensor in a published checkpoint, None for one that features do not need."""
    name = name.removeprefix(f"{arch}.")
    if name.startswith(UNUSED):
        return None
    stem, _, last = name.rpartition(".")
    name = f"{stem}.{LEGACY.get(last, last)}"
    for theirs, ours in RENAMED[arch]:
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
            if config.type_vocab_size:
                self.segments = nn.Embedding(config.type_vocab_size, width)
            self.norm = norm()
            self.layers = nn.ModuleList(Layer() for _ in range(config.num_hidden_layers))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            length = input_ids.shape[1]
            embedded = self.words(input_ids) + self.positions.weight[:length]
            if config.type_vocab_size:
                # One text is all of the first type.
                embedded = embedded + self.segments.weight[0]
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
