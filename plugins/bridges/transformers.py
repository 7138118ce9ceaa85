"""hf/ORG/NAME: any text encoder of the Hub that transformers knows, with the pooling of its repository.

Architectures of zoo's family `bert` use that family and need no other package. The library
(https://github.com/huggingface/transformers) builds all others from `config.json`. Code of a repository is never run:
no configuration that names code reaches the library, and `trust_remote_code` is never set. The pooling of a model's
vectors is read from the files that sentence-transformers puts beside the model (https://www.sbert.net).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import to_builtins
from msgspec.structs import replace
from zoo_plugins.bridges.hf.files import checkpoint_of, parse_json, read_json
from zoo_plugins.bridges.hf.images import image_entry, is_of_images
from zoo_plugins.bridges.hf.library import HINT, Config, check_architecture, require_library, without_code
from zoo_plugins.bridges.hf.sentence import Steps, dense_files, dim_after, read_prompts, read_steps
from zoo_plugins.bridges.hf.text_heads import TextHead, text_head

from zoo.backbone import Backbone
from zoo.bridge import Bridge
from zoo.errors import IntegrityError, NotFoundError, UsageError
from zoo.hookspecs import hookimpl
from zoo.schema import Entry, PretrainedHead, TextPreprocess, WordPiece
from zoo.textkit import LEGACY, text_pooling
from zoo.torchkit import TorchBackbone, check_scores, checkpoint_paths, described_by_config, head_shape, load_state

if TYPE_CHECKING:
    import torch

    from zoo.hub import Repository

#: model_type -> the architecture of zoo's own family `bert`.
OURS = {"bert": "bert", "distilbert": "distilbert", "mpnet": "mpnet", "roberta": "roberta", "xlm-roberta": "roberta"}
#: Model types whose tokenizer can be built from a vocab.txt.
WORDPIECE = frozenset({"bert", "distilbert", "electra"})
#: Model types whose tokenizers give token types, unless tokenizer_config.json says otherwise.
SEGMENTED = frozenset({"albert", "bert", "convbert", "deberta", "deberta-v2", "electra", "ernie", "mobilebert"})


class TransformersBridge(Bridge):
    """The bridge of `hf/ORG/NAME`, which is the Hub's repository ORG/NAME."""

    prefix = "hf"

    def entry(self, name: str, revision: str | None) -> Entry:
        """The entry of a Hub model. Raises UsageError for an unsupported one, MissingExtraError, and Hub errors."""
        from zoo.hub import open_repository

        if name.count("/") != 1:
            raise NotFoundError(f"hf/{name} is not a repository of the Hub", hint="hf/ORG/NAME")
        repository = open_repository(name, revision)
        steps = read_steps(repository)
        config = read_json(repository, f"{steps.folder}config.json")
        if is_of_images(config, repository):
            return image_entry(f"{self.prefix}/{name}".lower(), repository, config)
        model_type = str(config.get("model_type"))
        arch = OURS.get(model_type) if _is_plain(config) else None
        if arch is None:
            if config.get("is_encoder_decoder"):
                raise UsageError(f"{repository.origin} is an encoder with a decoder", hint="choose an encoder")
            check_architecture(model_type, config, repository, Transformers.family)
        preprocess, tokenizer = _preprocess(repository, config, model_type, steps)
        checkpoint = checkpoint_of(repository, steps.folder)
        width = config.get("hidden_size") or config.get("dim") or config.get("d_model")
        if not isinstance(width, int):
            raise UsageError(f"{repository.origin}: config.json has no hidden_size", hint=HINT)
        found = text_head({**config, **steps.settings}, repository, steps.folder, is_encoder=steps.is_encoder)
        if found.head is not None and found.head.task == "fill-mask":
            preprocess, found = _with_mask(preprocess, found, repository, steps.folder)
        elif found.head is not None:
            preprocess = replace(preprocess, segments=_has_segments(config, model_type, repository, steps.folder))
        per_number = 2 if config.get("torch_dtype", config.get("dtype")) in ("float16", "bfloat16") else 4
        return Entry(
            name=f"{self.prefix}/{name}".lower(),
            family="bert" if arch else "transformers",
            task="text-features",
            description=f"{model_type} {_kind(found.head, preprocess)}",
            license=repository.license,
            # Without a listed number, parameters are estimated from the file's size; its header is small.
            params=repository.parameters or max(1, sum(file.size or 0 for file in checkpoint) // per_number),
            dim=dim_after(steps, width, repository.origin),
            preprocess=preprocess,
            files=(
                *map(repository.file, (f"{steps.folder}config.json", tokenizer)),
                *checkpoint,
                *dense_files(repository, steps),
            ),
            config={"arch": arch or model_type, **({"dense": to_builtins(steps.dense)} if steps.dense else {})},
            head=found.head,
            no_head=found.why,
            origin=repository.origin,
        )


def _kind(head: PretrainedHead | None, preprocess: TextPreprocess) -> str:
    """The kind of a model in its one-line description: what it answers, or how an encoder pools."""
    if head is not None and head.task != "fill-mask":
        return "text regressor" if head.task == "regression" else "text classifier"
    return f"encoder, {preprocess.pooling} pooling{', L2' if preprocess.normalize else ''}"


class Transformers(TorchBackbone):
    """The family `transformers`: the encoder that the row's `config.json` describes, and the row's pooling."""

    family = "transformers"

    def build(self) -> "torch.nn.Module":
        """The encoder with its weights loaded. Raises MissingExtraError, IntegrityError for a wrong configuration."""
        return _pooled(self._loaded(create(self._config())), text_pooling(self.entry, self.weights))

    def with_head(self) -> "torch.nn.Module":
        """The encoder with its pooling, and the logits of transformers' own sequence classifier.

        Raises IntegrityError for another number of scores than labels, and if the logits of a text depend on its
        padding.
        """
        from torch import nn

        classifier, (_, outputs) = create(self._config(), with_head=True), head_shape(self.entry)
        for name, layer in classifier.named_modules():
            is_outside = not name.startswith(f"{classifier.base_model_prefix}.")
            if is_outside and isinstance(layer, nn.Linear) and layer.out_features == outputs:
                check_scores(self._checkpoint, name, (layer.in_features, outputs))
        whole = _classified(self._loaded(classifier), text_pooling(self.entry, self.weights))
        _check_padding(whole, len(self.entry.inputs))
        return whole

    @property
    def _checkpoint(self) -> list[Path]:
        return checkpoint_paths(self.entry, self.weights)

    def _config(self) -> Config:
        require_library(self.family)
        config = parse_json((self.weights / "config.json").read_bytes(), "config.json", dict[str, Any])
        if config.get("model_type") != self.entry.config.get("arch"):
            raise IntegrityError(f"config.json describes {config.get('model_type')}", hint="pull the model again")
        return config

    def _loaded(self, model: "torch.nn.Module") -> "torch.nn.Module":
        """A model of transformers with the row's weights."""
        prefix = f"{getattr(model, 'base_model_prefix', '')}."
        wanted = set(model.state_dict())

        def rename(name: str) -> str | None:
            stem, _, last = name.rpartition(".")
            name = f"{stem}.{LEGACY.get(last, last)}"
            # None drops the task heads of the checkpoint, unless the model has them.
            return next((each for each in (name, name.removeprefix(prefix)) if each in wanted), None)

        return load_state(self._checkpoint, model, rename)


def create(config: Config, *, with_head: bool = False) -> "torch.nn.Module":
    """The encoder of transformers, or its sequence classifier, with random weights.

    Keys of `config` that can name code are dropped.
    """
    from transformers import CONFIG_MAPPING, AutoModel, AutoModelForSequenceClassification

    plain = without_code(config)
    kind = AutoModelForSequenceClassification if with_head else AutoModel
    with described_by_config("transformers"):
        shape = CONFIG_MAPPING[plain["model_type"]].from_dict(plain)
        # Eager attention exports exactly. With windowed attention the fused kernel differs by 1e-3.
        model: torch.nn.Module = kind.from_config(shape, attn_implementation="eager")  # type: ignore[no-untyped-call]
    if not with_head and getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]  # not a part of the features, and often not in the file
    return model.float().eval()


def _pooled(encoder: "torch.nn.Module", pooling: "torch.nn.Module") -> "torch.nn.Module":
    import torch
    from torch import nn

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.pool = encoder, pooling

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *segments: torch.Tensor
        ) -> torch.Tensor:
            types = {"token_type_ids": segments[0]} if segments else {}
            hidden: torch.Tensor = self.model(
                input_ids=input_ids, attention_mask=attention_mask, **types
            ).last_hidden_state
            features: torch.Tensor = self.pool(hidden, attention_mask)
            return features

    return Pooled().eval()


def _classified(classifier: "torch.nn.Module", pooling: "torch.nn.Module") -> "torch.nn.Module":
    """The module that returns features and the logits of a sequence classifier of transformers."""
    import torch
    from torch import nn

    class Classified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.pool = classifier, pooling

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *segments: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            # The classifier does not return the encoder's last layer: a hook reads it.
            seen: list[torch.Tensor] = []
            encoder: torch.nn.Module = self.model.base_model  # type: ignore[assignment]
            hook = encoder.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state))
            types = {"token_type_ids": segments[0]} if segments else {}
            logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits
            hook.remove()
            return self.pool(seen[0], attention_mask), logits

    return Classified().eval()


def _check_padding(module: "torch.nn.Module", inputs: int) -> None:
    """Raise IntegrityError if padding changes the logits, as in decoders, which read the last token."""
    import torch

    alone = [torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long)]
    padded = [torch.nn.functional.pad(each, (0, 2)) for each in alone]
    with torch.inference_mode():
        one, other = (module(*given[:inputs])[1] for given in (alone, padded))
    if not torch.allclose(one, other, atol=1e-3 * max(1.0, float(one.abs().max()))):
        raise IntegrityError(
            "the scores of a text change with its padding: zoo does not export such a classifier",
            hint="choose an encoder, such as a BERT",
        )


def _preprocess(repository: "Repository", config: Config, model_type: str, steps: Steps) -> tuple[TextPreprocess, str]:
    """Returns the preprocessing of texts, and the path of the tokenizer in the repository."""
    folder, sizes, prompts = steps.folder, repository.sizes, read_prompts(repository)
    optional = {
        name: read_json(repository, folder + name) if folder + name in sizes else {}
        for name in ("tokenizer_config.json", "sentence_bert_config.json")
    }
    settings, sentence = optional.values()
    lowercase = settings.get("do_lower_case", True) is not False
    if sentence.get("do_lower_case") is True and not lowercase:
        raise UsageError(f"{repository.origin} lower-cases texts before a tokenizer that keeps case", hint=HINT)
    tokenizer, wordpiece = f"{folder}tokenizer.json", None
    if tokenizer not in sizes:
        tokenizer = f"{folder}vocab.txt"
        if tokenizer not in sizes or model_type not in WORDPIECE:
            raise UsageError(
                f"{repository.origin} has no tokenizer.json", hint="ask its publisher for one, or choose another model"
            )
        wordpiece = WordPiece(
            lowercase=lowercase,
            strip_accents=settings.get("strip_accents"),
            chinese_chars=settings.get("tokenize_chinese_chars", True),
        )
    preprocess = TextPreprocess(
        tokenizer=tokenizer.removeprefix(folder),
        max_length=_max_length(config, model_type, sentence.get("max_seq_length"), settings.get("model_max_length")),
        pooling=steps.pooling,
        normalize=steps.normalize,
        wordpiece=wordpiece,
        prompts=dict(prompts.texts),
        prompt=prompts.default,
    )
    return preprocess, tokenizer


def _has_segments(config: Config, model_type: str, repository: "Repository", folder: str) -> bool:
    """Whether a model and its tokenizer tell the texts of a pair apart by token types."""
    types, path = config.get("type_vocab_size"), f"{folder}tokenizer_config.json"
    if model_type == "bert":
        types = 2 if types is None else types
    named = read_json(repository, path).get("model_input_names") if path in repository.sizes else None
    is_named = "token_type_ids" in named if isinstance(named, list) else model_type in SEGMENTED
    return is_named and isinstance(types, int) and types > 1


def _with_mask(
    preprocess: TextPreprocess, found: TextHead, repository: "Repository", folder: str
) -> tuple[TextPreprocess, TextHead]:
    """The preprocessing with the mask of the tokenizer; a head that fills masks is only exported if there is one."""
    path = f"{folder}tokenizer_config.json"
    mask = read_json(repository, path).get("mask_token") if path in repository.sizes else None
    mask = mask.get("content") if isinstance(mask, dict) else mask
    if mask is None and preprocess.wordpiece is not None:
        mask = "[MASK]"
    if not isinstance(mask, str):
        return preprocess, TextHead(None, "tokenizer_config.json names no mask_token")
    return replace(preprocess, mask_token=mask), found


def _max_length(config: Config, model_type: str, *stated: object) -> int:
    """The first of the stated limits, but at most the number of the model's positions."""
    positions = config.get("max_position_embeddings")
    positions = positions if isinstance(positions, int) and positions > 0 else 512
    if OURS.get(model_type) in ("mpnet", "roberta") or model_type == "camembert":
        # The first rows of the position table are for padding.
        padding = config.get("pad_token_id")
        positions -= 1 + (padding if isinstance(padding, int) else 1)
    limits = [limit for limit in stated if isinstance(limit, int) and limit > 0]
    return min(limits[0], positions) if limits else positions


def _is_plain(config: Config) -> bool:
    """Whether zoo's family `bert` supports a BERT-like configuration."""
    activation = config.get("hidden_act", config.get("activation", "gelu"))
    position = config.get("position_embedding_type") or "absolute"
    return activation == "gelu" and position == "absolute" and not config.get("is_decoder")


@hookimpl
def zoo_register_bridges() -> Iterable[type[Bridge]]:
    """The prefix of this module."""
    return [TransformersBridge]


@hookimpl
def zoo_register_backbones() -> Iterable[type[Backbone]]:
    """The family of this module."""
    return [Transformers]
