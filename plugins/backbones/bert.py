"""BERT encoders in plain torch: from token ids to one pooled vector for each text.

Architecture: Devlin et al., https://arxiv.org/abs/1810.04805. Variants: DistilBERT (Sanh et al.,
https://arxiv.org/abs/1910.01108) has no token types; RoBERTa and XLM-R (Liu et al., https://arxiv.org/abs/1907.11692)
count positions from the padding id; MPNet (Song et al., https://arxiv.org/abs/2004.09297) does the same, and adds to
the attention scores a bias for the distance of two tokens. Tensors of the published safetensors are renamed. Only known
keys of `config.json` are read, and none of them can name code. The torch modules are in bert_modules.py, the heads of
published checkpoints in bert_heads.py.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from zoo_plugins.backbones.bert_heads import (
    CLASSIFIERS,
    classifier,
    classifier_tensor,
    mask_head,
    mask_tensor,
)
from zoo_plugins.backbones.bert_modules import encoder, first_position, read_config, with_head

from zoo.backbone import Backbone
from zoo.errors import RegistryError
from zoo.hookspecs import hookimpl
from zoo.schema import Entry, TextPreprocess
from zoo.textkit import LEGACY, mask_id, text_pooling
from zoo.torchkit import TorchBackbone, as_stage, check_scores, checkpoint_paths, head_shape, load_state

if TYPE_CHECKING:
    import torch


#: Tensors of published checkpoints that the features do not need: the pooler and task heads.
UNUSED = (
    *("pooler.", "cls.", "vocab_", "lm_head.", "embeddings.position_ids"),
    *("classifier.", "pre_classifier.", "qa_outputs."),
)
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
        module = load_state(self._checkpoint, encoder(config, self.arch), partial(rename, arch=self.arch))
        module.pool = text_pooling(self.entry, self.weights)
        return module

    def with_head(self) -> "torch.nn.Module":
        """The encoder, its pooling, and the head that the checkpoint contains."""
        assert self.entry.head is not None
        head = self._mask_head() if self.entry.head.task == "fill-mask" else self._classifier()
        return with_head(self.module, head)

    def _classifier(self) -> "torch.nn.Module":
        shape = head_shape(self.entry)
        check_scores(self._checkpoint, CLASSIFIERS[self.arch].out, shape)
        return load_state(self._checkpoint, classifier(self.arch, *shape), partial(classifier_tensor, arch=self.arch))

    def _mask_head(self) -> "torch.nn.Module":
        preprocess, (_, outputs) = self.entry.preprocess, head_shape(self.entry)
        assert isinstance(preprocess, TextPreprocess)
        table: torch.Tensor = self.module.embed.words.weight  # type: ignore[union-attr, assignment]  # an Encoder
        if len(table) != outputs:
            raise RegistryError(f"{self.entry.name}: the head gives {len(table)} scores, the row says {outputs}")
        config = read_config(self.weights / "config.json", self.arch)
        module = mask_head(table.shape[1], outputs, config.layer_norm_eps)
        head = load_state(self._checkpoint, module, partial(mask_tensor, arch=self.arch))
        head.table = table
        head.mask = mask_id(preprocess, self.weights)  # type: ignore[assignment]  # a number
        return head

    @property
    def _checkpoint(self) -> list[Path]:
        return checkpoint_paths(self.entry, self.weights)

    def stages(self) -> "Sequence[torch.nn.Module]":
        """The embeddings, then each layer; the last stage includes the pooling."""
        parts: Sequence[torch.nn.Module] = self.module.parts()  # type: ignore[operator]  # an Encoder
        first, *layers, last = parts
        mask = "attention_mask"
        ids = [spec.name for spec in self.entry.inputs if spec.name != mask]
        return [
            as_stage(first, ids, output="hidden", keep=[mask]),
            *(as_stage(layer, ["hidden", mask], output="hidden", keep=[mask]) for layer in layers),
            as_stage(last, ["hidden", mask], output="features"),
        ]


@hookimpl
def zoo_register_backbones() -> Iterable[type[Backbone]]:
    """The family of this module."""
    return [Bert]
