"""Tiny text models of `transformers` with seeded random weights, and their registry rows."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.kit.once import once
from zoo.schema import Entry, ExportOptions, TextPreprocess, WeightFile

SHAPE = {
    "vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip


def reference(arch: str, **changes: Any) -> Any:
    """A model of `transformers` with seeded random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    if arch == "distilbert":
        config = transformers.DistilBertConfig(
            vocab_size=200, dim=32, n_layers=3, n_heads=4, hidden_dim=64, max_position_embeddings=160
        )
        model = transformers.DistilBertModel(config)
    else:
        name = {"bert": "Bert", "roberta": "Roberta", "mpnet": "MPNet"}[arch]
        config = getattr(transformers, f"{name}Config")(**{**SHAPE, "max_position_embeddings": 160, **changes})
        model = getattr(transformers, f"{name}Model")(config)
    if arch == "mpnet":
        # With biases near zero a wrong bucket would not be noticed.
        model.encoder.relative_attention_bias.weight.data.normal_(std=3)
    return model.eval()


def exported(factory: pytest.TempPathFactory, arch: str) -> Path:
    """A folder with `reference(arch)` as `transformers` saves it, and its graph, model.onnx; made once a run."""
    from zoo_plugins.backbones.bert import Bert

    def make(folder: Path) -> None:
        reference(arch).save_pretrained(folder)
        Bert(entry_of(arch), folder).export(folder / "model.onnx", ExportOptions())

    return once(factory, f"encoder-{arch}", make)


def entry_of(arch: str, max_length: int = 150, dim: int = 32, pooling: str = "mean") -> Entry:
    file = WeightFile(path="model.safetensors", sha256=None, size=None, sources=("file:///none",))
    return Entry(
        name="tiny", family="bert", task="text-features", description="", license="CC0-1.0", params=1, dim=dim,
        preprocess=msgspec.convert(
            {"kind": "text", "tokenizer": "tokenizer.json", "max_length": max_length, "pooling": pooling,
             "normalize": False}, TextPreprocess),
        files=(file,), config={"arch": arch},
    )  # fmt: skip


def tokens(batch: int, length: int, first: int = 4) -> dict[str, np.ndarray]:
    """Random token ids; each row has its own length and is padded with 0."""
    random = np.random.default_rng(length)
    mask = (np.arange(length) < random.integers(length // 2 + 1, length + 1, (batch, 1))).astype(np.int64)
    return {"input_ids": random.integers(first, 200, (batch, length)) * mask, "attention_mask": mask}
