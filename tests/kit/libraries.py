"""Repositories as timm, transformers and sentence-transformers publish them, with seeded random weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.kit.hub import HubRepo
from tests.kit.models import WORDS
from zoo.data.samples import FOLDER

SHAPE = {
    "vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 66,
}  # fmt: skip


def hub_repo(folder: Path, *, card: str = "license: apache-2.0") -> HubRepo:
    """Everything in `folder`, weights by LFS, and a README.md with that card."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    large = frozenset(path for path in files if path.endswith((".safetensors", ".bin")))
    return HubRepo(files={**files, "README.md": f"---\n{card}\n---\n# A model\n".encode()}, lfs=large)


def write_timm(folder: Path, arch: str, **arguments: Any) -> Any:
    """Write the files that timm's push_to_hf_hub uploads; returns the model with its classifier, in eval mode."""
    import timm
    import torch
    from timm.models._hub import save_for_hf

    torch.manual_seed(0)
    model = timm.create_model(arch, pretrained=False, **arguments)
    # Other than the initial batch-norm statistics, so that a test notices if they are not loaded.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    save_for_hf(model, folder, safe_serialization=True)
    return model.eval()


def write_encoder(
    folder: Path, kind: str = "Bert", *, pooling: str = "cls", normalize: bool = True, **changes: Any
) -> Any:
    """Write the files that sentence-transformers uploads: encoder, tokenizer and pooling; returns the encoder."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **changes})
    model = getattr(transformers, f"{kind}Model")(config)
    # Random encoders map every text to nearly the same vector: larger embeddings keep them apart.
    model.get_input_embeddings().weight.data.mul_(20)
    model.save_pretrained(folder)
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    write_json(folder / "modules.json", [
        {"idx": number, "name": name, "path": path, "type": f"sentence_transformers.models.{what}"}
        for number, (name, path, what) in enumerate(modules[: 3 if normalize else 2])
    ])  # fmt: skip
    modes = {f"pooling_mode_{mode}": mode.startswith(pooling) for mode in ("cls_token", "mean_tokens", "max_tokens")}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **modes})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 40, "do_lower_case": False})
    write_tokenizer(folder)
    return model.eval()


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json, vocab.txt and tokenizer_config.json of an uncased BERT, as `transformers` saves them."""
    from transformers import BertTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    BertTokenizerFast(vocab=vocabulary, model_max_length=512).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def change_json(path: Path, **changes: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})


def pooled(model: Any, feeds: dict[str, Any], *, pooling: str, normalize: bool) -> Any:
    """Features by the library's own encoder and sentence-transformers' definition of pooling."""
    import numpy as np
    import torch

    with torch.inference_mode():
        hidden = model(**{name: torch.from_numpy(array) for name, array in feeds.items()}).last_hidden_state.numpy()
    mask = feeds["attention_mask"][:, :, None]
    vectors = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else vectors


def write_classifier(
    folder: Path, kind: str = "Bert", *, labels: Sequence[str] = ("NEGATIVE", "NEUTRAL", "POSITIVE"), seed: int = 13,
    vocabulary: str = "wordpiece", **changes: Any,
) -> Any:  # fmt: skip
    """Write a sequence classifier of `transformers` with its tokenizer; returns it. `seed` makes its weights."""
    import torch
    import transformers

    torch.manual_seed(seed)
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    config = getattr(transformers, f"{kind}Config")(**{**shape_of(kind), **named, **changes})
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    spread(model)
    model.eval().save_pretrained(folder)
    (write_bytes_tokenizer if vocabulary == "bytes" else write_tokenizer)(folder)
    change_json(folder / "tokenizer_config.json", model_max_length=64)
    return model


def shape_of(kind: str) -> dict[str, Any]:
    """The configuration of a tiny model."""
    if kind == "DistilBert":
        return {"vocab_size": 200, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64,
                "max_position_embeddings": 66}  # fmt: skip
    return {**SHAPE, "embedding_size": 32} if kind in ("Albert", "Electra") else SHAPE


def spread(model: Any) -> None:
    """Weights large enough for different texts to have different scores; nearly the same with the initial ones."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
        model.get_input_embeddings().weight.mul_(6)


def write_bytes_tokenizer(folder: Path) -> None:
    """The files of a RoBERTa tokenizer: BPE over bytes, trained on the bundled sentences."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizerFast

    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    lines = (FOLDER / "sentences.txt").read_text(encoding="utf-8").splitlines()
    bpe.train_from_iterator(lines, vocab_size=399, special_tokens=special, show_progress=False)
    bpe.save_model(str(folder))
    tokenizer = RobertaTokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)


def write_sentence_model(
    folder: Path, kind: str = "Bert", *, layers: Sequence[tuple[int, str]] = (), prompts: dict[str, str] | None = None,
    default: str | None = None, pooling: str = "mean", seed: int = 29,
) -> Any:  # fmt: skip
    """Write what sentence-transformers saves: encoder, pooling, dense `layers` (size, activation), Normalize, prompts.

    Returns the model of that library.
    """
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(seed)
    encoder = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**shape_of(kind)))
    spread(encoder)
    plain = folder.with_name(f"{folder.name}-encoder")
    encoder.save_pretrained(plain)
    write_tokenizer(plain)
    change_json(plain / "tokenizer_config.json", model_max_length=60)
    steps: list[Any] = [modules.Transformer(str(plain)), modules.Pooling(32, pooling_mode=pooling)]
    width = 32
    for size, activation in layers:
        steps.append(modules.Dense(width, size, activation_function=getattr(torch.nn, activation)()))
        width = size
    model = SentenceTransformer(modules=[*steps, modules.Normalize()], prompts=prompts, default_prompt_name=default)
    model.save_pretrained(str(folder), create_model_card=False)
    return model.eval()


def write_filler(
    folder: Path, kind: str = "Bert", *, seed: int = 47, vocabulary: str = "wordpiece", **changes: Any
) -> Any:
    """Write a model of `transformers` that fills masks, with its tokenizer; returns it."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**shape_of(kind), **changes})
    model = getattr(transformers, f"{kind}ForMaskedLM")(config)
    spread(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
    model.eval().save_pretrained(folder)
    (write_bytes_tokenizer if vocabulary == "bytes" else write_tokenizer)(folder)
    change_json(folder / "tokenizer_config.json", model_max_length=64)
    return model
