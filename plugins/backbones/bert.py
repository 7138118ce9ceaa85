"""BERT encoders in plain torch: from token ids to one pooled vector for each text.

Architecture: Devlin et al., https://arxiv.org/abs/1810.04805. Variants: DistilBERT (Sanh et al.,
https://arxiv.org/abs/1910.01108) has no token types; RoBERTa and XLM-R (Liu et al., https://arxiv.org/abs/1907.11692)
count positions from the padding id; MPNet (Song et al., https://arxiv.org/abs/2004.09297) does the same, and adds to
the attention scores a bias for the distance of two tokens. Tensors of the published safetensors are renamed. Only known
keys of `config.json` are read, and none of them can name code.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import msgspec
from msgspec import Meta

from zoo.backbone import Backbone
from zoo.errors import IntegrityError, RegistryError
from zoo.hookspecs import hookimpl
from zoo.schema import Entry, TextPreprocess
from zoo.torchkit import TorchBackbone, as_stage, load_state

if TYPE_CHECKING:
    import torch


#: The largest accepted size. It is far above every published one; a larger number means a damaged file.
LARGEST = 1 << 24
Size: TypeAlias = Annotated[int, Meta(ge=1, le=LARGEST)]
Share: TypeAlias = Annotated[float, Meta(ge=0, lt=1)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=1024)]


class BertConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of config.json that shape the encoder; every other key is ignored."""

    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Count
    num_attention_heads: Count
    intermediate_size: Size
    max_position_embeddings: Size
    type_vocab_size: Annotated[int, Meta(ge=0, le=LARGEST)] = 2
    layer_norm_eps: Annotated[float, Meta(gt=0)] = 1e-12
    hidden_act: str = "gelu"
    hidden_dropout_prob: Share = 0.1
    position_embedding_type: str = "absolute"
    pad_token_id: Annotated[int, Meta(ge=0, le=LARGEST)] | None = None
    # Half of the buckets are for each direction, and half of these for single distances.
    relative_attention_num_buckets: Annotated[int, Meta(ge=4, lt=512)] = 32


class DistilBertConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The same settings under DistilBERT's names."""

    vocab_size: Size
    dim: Size
    n_layers: Count
    n_heads: Count
    hidden_dim: Size
    max_position_embeddings: Size
    activation: str = "gelu"
    dropout: Share = 0.1

    def as_bert(self) -> BertConfig:
        """The BERT configuration with this shape and without token types."""
        return BertConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.dim,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            intermediate_size=self.hidden_dim,
            max_position_embeddings=self.max_position_embeddings,
            type_vocab_size=0,
            hidden_act=self.activation,
            hidden_dropout_prob=self.dropout,
        )


class Bert(TorchBackbone):
    """The family `bert`. The row's preprocessing selects the pooling (mean or first token) and L2 normalisation.

    `config.arch` is `bert` (the default), `distilbert`, `roberta` or `mpnet`. Raises RegistryError for another value.
    """

    family = "bert"

    def __init__(self, entry: Entry, weights: Path) -> None:
        super().__init__(entry, weights)
        self.arch = entry.config.get("arch", "bert")
        if self.arch not in RENAMED:
            raise RegistryError(f"{entry.name}: config.arch is {self.arch!r}", hint=f"known: {', '.join(RENAMED)}")

    def build(self) -> "torch.nn.Module":
        """The encoder and its pooling, with the row's checkpoint loaded."""
        preprocess = self.entry.preprocess
        assert isinstance(preprocess, TextPreprocess)
        config = read_config(self.weights / "config.json", self.arch)
        longest = config.max_position_embeddings - first_position(config, self.arch)
        if preprocess.max_length > longest:
            raise RegistryError(f"{self.entry.name}: max_length {preprocess.max_length} exceeds the model's {longest}")
        encoder = _encoder(config, self.arch, preprocess)
        checkpoint = next(file.path for file in self.entry.files if file.path.endswith(CHECKPOINTS))
        return load_state(self.weights / checkpoint, encoder, partial(rename, arch=self.arch))

    def stages(self) -> "Sequence[torch.nn.Module]":
        """The embeddings, then each layer; the last stage includes the pooling, which has no parameters."""
        parts: Sequence[torch.nn.Module] = self.module.parts()  # type: ignore[operator]  # an Encoder
        first, *layers, last = parts
        mask = "attention_mask"
        return [
            as_stage(first, ["input_ids"], output="hidden", keep=[mask]),
            *(as_stage(layer, ["hidden", mask], output="hidden", keep=[mask]) for layer in layers),
            as_stage(last, ["hidden", mask], output="features"),
        ]


def read_config(path: Path, arch: str = "bert") -> BertConfig:
    """The configuration in the file `path`.

    Raises IntegrityError when a key is missing, out of bounds, or has a value of another family.
    """
    try:
        if arch == "distilbert":
            config = msgspec.json.decode(path.read_bytes(), type=DistilBertConfig).as_bert()
        else:
            config = msgspec.json.decode(path.read_bytes(), type=BertConfig)
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{path.name} does not describe a {arch} encoder: {error}", hint=WRONG_FILE) from error
    for key, known in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        asked = getattr(config, key)
        if asked != known:
            raise IntegrityError(f"{path.name}: {key} is {asked!r}, this family supports {known}", hint=WRONG_FILE)
    width, heads = config.hidden_size, config.num_attention_heads
    if width % heads:
        raise IntegrityError(f"{path.name}: a width of {width} is not divisible by {heads} heads", hint=WRONG_FILE)
    return msgspec.structs.replace(config, type_vocab_size=0) if arch == "mpnet" else config


def first_position(config: BertConfig, arch: str) -> int:
    """The index of the first token in the position table."""
    # fairseq numbers positions from the padding id + 1. MPNet's code uses 1 and ignores the id in its config.json.
    padding = 1 if config.pad_token_id is None else config.pad_token_id
    return {"roberta": padding + 1, "mpnet": 2}.get(arch, 0)


CHECKPOINTS = (".safetensors", ".bin")
WRONG_FILE = "the file is not the one this row describes"
#: Tensors of published checkpoints that the features do not need: the pooler and task heads.
UNUSED = (
    *("pooler.", "cls.", "vocab_", "lm_head.", "embeddings.position_ids"),
    *("classifier.", "pre_classifier.", "qa_outputs."),
)
#: TensorFlow's names of LayerNorm parameters, in the oldest checkpoints.
LEGACY = {"gamma": "weight", "beta": "bias"}
EMBEDDINGS = (
    ("embeddings.word_embeddings.", "embed.words."),
    ("embeddings.position_embeddings.", "embed.positions."),
    ("embeddings.token_type_embeddings.", "embed.segments."),
    ("embeddings.LayerNorm.", "embed.norm."),
)
FEED_FORWARD = (
    ("intermediate.dense.", "widen."),
    ("output.dense.", "narrow."),
    ("output.LayerNorm.", "output_norm."),
)
BERT = (
    *EMBEDDINGS,
    ("encoder.layer.", "layers."),
    ("attention.self.", ""),
    ("attention.output.dense.", "attended."),
    ("attention.output.LayerNorm.", "attended_norm."),
    *FEED_FORWARD,
)
RENAMED = {
    "bert": BERT,
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
    "roberta": BERT,
    "mpnet": (
        *EMBEDDINGS,
        ("encoder.relative_attention_bias.", "scores.distances."),
        ("encoder.layer.", "layers."),
        ("attention.attn.q.", "query."),
        ("attention.attn.k.", "key."),
        ("attention.attn.v.", "value."),
        ("attention.attn.o.", "attended."),
        ("attention.LayerNorm.", "attended_norm."),
        *FEED_FORWARD,
    ),
}


def rename(name: str, arch: str = "bert") -> str | None:
    """The name that a tensor of a published checkpoint has in this module; None if features do not need the tensor."""
    name = name.removeprefix(f"{arch}.")
    if name.startswith(UNUSED):
        return None
    stem, _, last = name.rpartition(".")
    name = f"{stem}.{LEGACY.get(last, last)}"
    for theirs, ours in RENAMED[arch]:
        name = name.replace(theirs, ours)
    return name


def _encoder(config: BertConfig, arch: str, preprocess: TextPreprocess) -> "torch.nn.Module":
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

    class Pool(nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            pooled = x[:, 0] if preprocess.pooling == "cls" else _mean(x, attention_mask)
            return F.normalize(pooled, dim=-1) if preprocess.normalize else pooled

    class Part(nn.Module):
        """One layer as a stage; the last one includes the pooling."""

        def __init__(self, scores: nn.Module, layer: nn.Module, pool: nn.Module | None) -> None:
            super().__init__()
            self.scores, self.layer, self.pool = scores, layer, pool

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layer(x, self.scores(attention_mask))
            return y if self.pool is None else self.pool(y, attention_mask)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.scores, self.pool = _embeddings(config, arch), _scores(config, arch), Pool()
            self.layers = nn.ModuleList(_layer(config) for _ in range(config.num_hidden_layers))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            x, scores = self.embed(input_ids), self.scores(attention_mask)
            for layer in self.layers:
                x = layer(x, scores)
            y: torch.Tensor = self.pool(x, attention_mask)
            return y

        def parts(self) -> list[nn.Module]:
            last = len(self.layers) - 1
            pools = [self.pool if index == last else None for index in range(last + 1)]
            layers = (Part(self.scores, layer, pool) for layer, pool in zip(self.layers, pools, strict=True))
            return [self.embed, *layers]

    return Encoder()


def _embeddings(config: BertConfig, arch: str) -> "torch.nn.Module":
    import torch
    from torch import nn

    width, first = config.hidden_size, first_position(config, arch)

    class Embeddings(nn.Module):
        """`input_ids` [batch, sequence] -> [batch, sequence, width]."""

        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(config.vocab_size, width)
            self.positions = nn.Embedding(config.max_position_embeddings, width)
            if config.type_vocab_size:
                self.segments = nn.Embedding(config.type_vocab_size, width)
            self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            if first:
                # The position of padding is the padding id, also for a padding token inside a text.
                is_token = (input_ids != first - 1).long()
                positions = self.positions(is_token.cumsum(1) * is_token + first - 1)
            else:
                positions = self.positions.weight[: input_ids.shape[1]]
            embedded = self.words(input_ids) + positions
            if config.type_vocab_size:
                # Inputs are single texts, whose tokens all have the first token type.
                embedded = embedded + self.segments.weight[0]
            x: torch.Tensor = self.norm(embedded)
            return x

    return Embeddings()


def _scores(config: BertConfig, arch: str) -> "torch.nn.Module":
    import torch
    from torch import nn

    longest = config.max_position_embeddings

    class Padding(nn.Module):
        """The bias of attention scores: 0 for a token, the lowest float for padding."""

        def forward(self, attention_mask: torch.Tensor) -> torch.Tensor:
            return (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min

    class Distances(Padding):
        """The same bias plus a learnt one for each head and each bucket of distances between two tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.distances = nn.Embedding(config.relative_attention_num_buckets, config.num_attention_heads)
            # The buckets are a table. A logarithm in the graph might round differently and change the bucket.
            self.register_buffer("buckets", _buckets(longest, config.relative_attention_num_buckets), persistent=False)

        def forward(self, attention_mask: torch.Tensor) -> torch.Tensor:
            index = torch.arange(attention_mask.shape[1], device=attention_mask.device)
            bucket = self.buckets[index[None, :] - index[:, None] + longest - 1]  # type: ignore[index]  # a tensor
            learnt: torch.Tensor = self.distances(bucket).permute(2, 0, 1)[None]
            return learnt + super().forward(attention_mask)

    return Distances() if arch == "mpnet" else Padding()


def _buckets(longest: int, buckets: int, furthest: int = 128) -> "torch.Tensor":
    """The bucket of each distance key - query from 1 - longest to longest - 1 (T5's, https://arxiv.org/abs/1910.10683).

    Half of the buckets are for keys after the query. Each near distance has its own bucket; far ones share buckets in
    logarithmic steps up to `furthest`.
    """
    import torch

    half, exact = buckets // 2, buckets // 4
    distance = torch.arange(1 - longest, longest)
    size = distance.abs()
    steps = torch.log(size.clamp(min=1).float() / exact) / math.log(furthest / exact) * (half - exact)
    far = (exact + steps.long()).clamp(max=half - 1)
    return torch.where(size < exact, size, far) + half * (distance > 0)


def _layer(config: BertConfig) -> "torch.nn.Module":
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812 - as above

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
            # Dropout is only active when the last layers are trained.
            self.dropout = nn.Dropout(config.hidden_dropout_prob)

        def forward(self, x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            query, key, value = (
                part(x).unflatten(-1, (heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
            )
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=scores).transpose(1, 2).flatten(2)
            x = self.attended_norm(x + self.dropout(self.attended(context)))
            y: torch.Tensor = self.output_norm(x + self.dropout(self.narrow(F.gelu(self.widen(x)))))
            return y

    return Layer()


def _mean(x: "torch.Tensor", attention_mask: "torch.Tensor") -> "torch.Tensor":
    """The mean over real tokens; zeros for a row that is only padding."""
    weight = attention_mask[:, :, None].to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


@hookimpl
def zoo_register_backbones() -> Iterable[type[Backbone]]:
    """The family of this module."""
    return [Bert]
