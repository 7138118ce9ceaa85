"""Small models for tests, in upstream's layouts, with seeded random weights, and their registry file."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORDS = """
the a my your is was not and to of it on in for with card money bill invoice charged refund price tax parcel box courier
late lost street door van login password code locked profile account name crash freeze screen battery update error slow
""".split()  # noqa: SIM905 - a list of sixty quoted words would hide them
#: Height and width of the images of `tiny-lite`, whose layers are those of EfficientNet-Lite0 for 224 pixels. With 64
#: pixels the last feature maps have four values, too few for the rounding errors of fp16 to cancel out.
SIDE = 128
TINY = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}


def write_registry(folder: Path) -> Path:
    """Write the models `tiny-bert`, `tiny-bert-cls` and `tiny-lite` under `folder`; returns their registry file."""
    bert = write_bert(folder / "bert", prefix="bert.", legacy=True)
    lite = write_lite(folder / "lite")
    text = {"kind": "text", "tokenizer": "tokenizer.json", "max_length": 32}
    grey = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
    rows = {
        "tiny-bert": _row("bert", "text-features", 32, {**text, "pooling": "mean", "normalize": True}, bert),
        "tiny-bert-cls": _row("bert", "text-features", 32, {**text, "pooling": "cls", "normalize": False}, bert),
        "tiny-lite": {
            **_row(
                "efficientnet",
                "image-features",
                1280,
                {"kind": "image", "resize": 144, "crop": SIDE, "interpolation": "bicubic", **grey},
                lite,
            ),
            "config": {"variant": "lite0"},
        },
    }
    path = folder / "registry.yaml"
    path.write_text(json.dumps({"schema_version": 1, "models": rows}, indent=1))
    return path


def write_bert(folder: Path, *, prefix: str = "", legacy: bool = False, config: Mapping[str, Any] = TINY) -> list[Path]:
    """model.safetensors, config.json and tokenizer.json of a tiny BERT, as `transformers` would save it.

    `prefix` and `legacy` (LayerNorm's gamma and beta) give the layout of the oldest published checkpoints.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = BertModel(BertConfig(**config))
    # Random BERTs map every text to nearly the same vector; larger embeddings make the vectors differ.
    model.embeddings.word_embeddings.weight.data.mul_(20)
    state = {prefix + name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if legacy:
        state = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in state.items()
        }
        state["cls.predictions.bias"] = torch.zeros(config["vocab_size"])
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "bert", "auto_map": {"AutoModel": "evil.py"}})
    )
    write_tokenizer(folder / "tokenizer.json")
    return [folder / name for name in ("model.safetensors", "config.json", "tokenizer.json")]


def write_lite(folder: Path) -> list[Path]:
    """lite0.pth: EfficientNet-Lite0 with random weights, saved by the reference package."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = EfficientNet.from_name("efficientnet-lite0")
    # With initial batch-norm statistics random activations vanish layer by layer: use those of a few random images.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train().extract_features(torch.randn(32, 3, SIDE, SIDE))
    torch.save(model.state_dict(), folder / "lite0.pth")
    return [folder / "lite0.pth"]


def write_bundles(folder: Path, registry: Path, home: Path) -> None:
    """Fine-tune the bundles of the fixture `tuned_bundles`, in a copy of `home`."""
    from tests.kit.items import write_images, write_several, write_texts
    from zoo import FinetuneOptions, Task, Zoo

    house = Zoo(home=shutil.copytree(home, folder / "home"), registry=registry)
    images, table = write_images(folder / "images", 6), write_texts(folder / "t.csv")
    house.finetune("tiny-lite", images, folder / "pets", FinetuneOptions(epochs=5))
    house.finetune("tiny-bert", table, folder / "tickets", FinetuneOptions(lr=0.01))
    house.finetune("tiny-bert", table, folder / "other", FinetuneOptions(lr=0.02, epochs=3))
    several, options = write_several(folder / "several.csv", 60), FinetuneOptions(task=Task.MULTI_LABEL, epochs=20)
    house.finetune("tiny-bert", several, folder / "several", options)
    lines = table.read_text().splitlines()
    numbers = [f"{line.rpartition(',')[0]},{number}" for number, line in enumerate(lines[1:])]
    (folder / "n.csv").write_text("\n".join([lines[0], *numbers]) + "\n")
    house.finetune("tiny-bert", folder / "n.csv", folder / "number", FinetuneOptions(task=Task.REGRESSION, epochs=5))


def write_hostile_registry(folder: Path, factor: float, layer: str = "project") -> Path:
    """The registry file of `hostile`: `tiny-lite` on small images, with a layer that int8 represents badly.

    Weights of `layer` whose inputs are always zero are `factor` times as large as the largest other one: they only
    widen the range that 256 levels have to cover. In `project` and `expand` a channel is always zero; in `depthwise`
    a position of the kernel always meets padding.
    """
    import torch

    [path] = write_lite(folder / "lite")
    state = torch.load(path, weights_only=True)
    channel, side = 3, 64
    if layer == "project":
        state["_blocks.0._bn1.weight"][channel], state["_blocks.0._bn1.bias"][channel] = 0, -1
        weight = state["_blocks.0._project_conv.weight"]
        weight[:, channel] = factor * weight.abs().max()
    elif layer == "expand":
        state["_blocks.0._bn2.weight"][channel] = state["_blocks.0._bn2.bias"][channel] = 0
        weight = state["_blocks.1._expand_conv.weight"]
        weight[:, channel] = factor * weight.abs().max()
    else:
        # 32 pixels have become 2 x 2 here; with stride 2 the kernel's first row and column see only padding.
        side = 32
        weight = state["_blocks.11._depthwise_conv.weight"]
        weight[:, :, 0, 0] = factor * weight.abs().max()
    torch.save(state, path)
    grey = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
    preprocess = {"kind": "image", "resize": side, "crop": side, "interpolation": "bilinear", **grey}
    row = {**_row("efficientnet", "image-features", 1280, preprocess, [path]), "config": {"variant": "lite0"}}
    registry = folder / "registry.yaml"
    registry.write_text(json.dumps({"schema_version": 1, "models": {"hostile": row}}, indent=1))
    return registry


def write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(
        models.WordPiece({token: i for i, token in enumerate(dict.fromkeys(tokens))}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    # Like all-MiniLM-L6-v2's file: a limit and a padding that the row must overrule.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(path))


def _row(family: str, task: str, dim: int, preprocess: dict[str, Any], files: list[Path]) -> dict[str, Any]:
    return {
        "family": family,
        "task": task,
        "description": "random weights for tests",
        "license": "CC0-1.0",
        "params": 1000,
        "dim": dim,
        "preprocess": preprocess,
        "files": [
            {
                "path": path.name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "size": path.stat().st_size,
                "sources": [path.as_uri()],
            }
            for path in files
        ],
    }
