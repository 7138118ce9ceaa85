"""The configuration of BERT encoders, and their torch modules."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import msgspec
from msgspec import Meta

from zoo.errors import IntegrityError

if TYPE_CHECKING:
    import torch

WRONG_FILE = "the file is not the one this row describes"
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


def encoder(config: BertConfig, arch: str) -> "torch.nn.Module":
    """The encoder: takes token ids, mask and token types (if any), each [batch, sequence].

    It returns features [batch, dim] after its attribute `pool` is set to the result of `text_pooling`.
    """
    import torch
    from torch import nn

    class Part(nn.Module):
        """One layer as a stage; the last one includes the pooling."""

        def __init__(self, scores: nn.Module, layer: nn.Module, pool: nn.Module | None) -> None:
            super().__init__()
            self.scores, self.layer, self.pool = scores, layer, pool

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layer(x, self.scores(attention_mask))
            return y if self.pool is None else self.pool(y, attention_mask)

    class Encoder(nn.Module):
        pool: nn.Module

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.scores = _embeddings(config, arch), _scores(config, arch)
            self.layers = nn.ModuleList(_layer(config) for _ in range(config.num_hidden_layers))

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.pool(self.hidden(*inputs), inputs[1])
            return y

        def hidden(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *segments: torch.Tensor
        ) -> torch.Tensor:
            x: torch.Tensor = self.embed(input_ids, *segments)
            scores = self.scores(attention_mask)
            for layer in self.layers:
                x = layer(x, scores)
            return x

        def parts(self) -> list[nn.Module]:
            last = len(self.layers) - 1
            pools = [self.pool if index == last else None for index in range(last + 1)]
            layers = (Part(self.scores, layer, pool) for layer, pool in zip(self.layers, pools, strict=True))
            return [self.embed, *layers]

    return Encoder()


def with_head(body: "torch.nn.Module", head: "torch.nn.Module") -> "torch.nn.Module":
    """The module that returns the features of `body` (see `encoder`) and the logits of `head` from its last layer."""
    import torch
    from torch import nn

    class WithHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = body, head

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.body.hidden(*inputs)  # type: ignore[operator]  # an Encoder
            return self.body.pool(x, inputs[1]), self.head(x, inputs[0])  # type: ignore[operator]

    return WithHead()


def _embeddings(config: BertConfig, arch: str) -> "torch.nn.Module":
    import torch
    from torch import nn

    width, first = config.hidden_size, first_position(config, arch)

    class Embeddings(nn.Module):
        """`input_ids` and token types, each [batch, sequence] -> [batch, sequence, width].

        Without token types all tokens have the first one, as in a single text.
        """

        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(config.vocab_size, width)
            self.positions = nn.Embedding(config.max_position_embeddings, width)
            if config.type_vocab_size:
                self.segments = nn.Embedding(config.type_vocab_size, width)
            self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

        def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None = None) -> torch.Tensor:
            if first:
                # The position of padding is the padding id, also for a padding token inside a text.
                is_token = (input_ids != first - 1).long()
                positions = self.positions(is_token.cumsum(1) * is_token + first - 1)
            else:
                positions = self.positions.weight[: input_ids.shape[1]]
            embedded = self.words(input_ids) + positions
            if token_type_ids is not None:
                embedded = embedded + self.segments(token_type_ids)
            elif config.type_vocab_size:
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
