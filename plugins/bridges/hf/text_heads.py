"""Which head a text model of the Hub has: the class that `config.json` names, and what zoo makes of it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace
from zoo_plugins.bridges.hf.files import count_scores
from zoo_plugins.bridges.hf.labels import head_of

from zoo.errors import counted
from zoo.schema import PretrainedHead

if TYPE_CHECKING:
    from zoo.hub import Repository

CLASSIFIER, FILLER = "ForSequenceClassification", "ForMaskedLM"
#: The classes whose heads fill masks in zoo's family `bert`.
FILLERS = {
    "BertForMaskedLM",
    "DistilBertForMaskedLM",
    "MPNetForMaskedLM",
    "RobertaForMaskedLM",
    "XLMRobertaForMaskedLM",
}


IDENTITY = "torch.nn.modules.linear.Identity"


class TextHead(NamedTuple):
    """The head of a repository, or the reason why a model of it has none."""

    head: PretrainedHead | None
    why: str | None = None


def text_head(
    config: Mapping[str, Any], repository: "Repository", folder: str = "", *, is_encoder: bool = False
) -> TextHead:
    """The head in a repository's weights, in `folder`. With `is_encoder` sentence-transformers pools its vectors.

    Raises IntegrityError for a classifier whose labels are damaged: see `head_of`. Raises Hub errors.
    """
    named = config.get("architectures")
    kind = str(named[0]) if isinstance(named, list) and named else ""
    if is_encoder or not kind or kind.endswith("Model"):
        return TextHead(None, "the weights are an encoder without a classifier")
    if kind.endswith(FILLER):
        return _mask_head(config, kind)
    if not kind.endswith(CLASSIFIER):
        return TextHead(None, f"zoo does not export the head of {kind}")
    head = head_of(config, repository.origin, outputs=count_scores(repository, folder))
    if head.activation == "sigmoid" and head.task == "regression" and _cross_encoder(config) == IDENTITY:
        head = replace(head, activation="identity")
    if head.task == "regression" and head.outputs != 1:
        return TextHead(None, f"{kind} answers with {counted(head.outputs or 0, 'number')}: zoo exports one")
    return TextHead(head)


def _cross_encoder(config: Mapping[str, Any]) -> object:
    """The activation that sentence-transformers' CrossEncoder uses by default, if the configuration names one."""
    settings = config.get("sentence_transformers")
    named = settings.get("activation_fn") if isinstance(settings, dict) else None
    return named or config.get("sbert_ce_default_activation_function") or config.get("activation_fn")


def _mask_head(config: Mapping[str, Any], kind: str) -> TextHead:
    outputs = config.get("vocab_size")
    if kind not in FILLERS or not isinstance(outputs, int):
        return TextHead(None, f"zoo does not export the head of {kind}")
    if config.get("tie_word_embeddings") is False:
        return TextHead(
            None, f"the decoder of {kind} is not the table of word embeddings (tie_word_embeddings is false)"
        )
    return TextHead(PretrainedHead(task="fill-mask", outputs=outputs))
