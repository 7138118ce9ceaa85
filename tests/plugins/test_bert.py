"""BERT-like models against transformers, their stages and limits, and the tokenizer made from a vocab.txt."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zoo_plugins.backbones.bert import Bert, read_config

from tests.kit.berts import entry_of, exported, reference, tokens
from tests.kit.models import TINY, write_bert
from zoo import IntegrityError, RegistryError, Zoo
from zoo.data.tokenizers import TextEncoder, place_tokenizer, read_vocabulary, tokenizer_json
from zoo.runtime.ort import create_session
from zoo.schema import TextPreprocess, WordPiece


def hidden_of(model: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return model(**{name: torch.from_numpy(array) for name, array in feeds.items()}).last_hidden_state.numpy()


def mean_of(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)


@pytest.mark.parametrize("arch", ["bert", "distilbert", "roberta", "mpnet"])
def test_each_architecture_equals_transformers_in_torch_and_in_onnx(
    tmp_path_factory: pytest.TempPathFactory, arch: str
) -> None:
    model, folder = reference(arch), exported(tmp_path_factory, arch)
    ours = Bert(entry_of(arch), folder)
    session = create_session((folder / "model.onnx").read_bytes(), "cpu")
    for batch, length in ((1, 3), (2, 40), (7, 150)):
        feeds = tokens(batch, length)
        wanted = mean_of(hidden_of(model, feeds), feeds["attention_mask"])
        np.testing.assert_allclose(ours.reference(feeds)["features"], wanted, atol=1e-5)
        np.testing.assert_allclose(session.run(None, feeds)[0], wanted, atol=1e-5)


@pytest.mark.parametrize("arch", ["roberta", "mpnet"])
def test_a_padding_token_inside_a_text_takes_no_position(tmp_path: Path, arch: str) -> None:
    model = reference(arch)
    model.save_pretrained(tmp_path)
    feeds = tokens(3, 12)
    feeds["input_ids"][:, 2] = 1
    wanted = mean_of(hidden_of(model, feeds), feeds["attention_mask"])
    np.testing.assert_allclose(Bert(entry_of(arch), tmp_path).reference(feeds)["features"], wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["distilbert", "mpnet"])
def test_full_size_equals_transformers(tmp_path: Path, arch: str) -> None:
    """The published sizes DistilBERT-base and MPNet-base equal transformers, too."""
    import torch
    import transformers

    torch.manual_seed(0)
    if arch == "distilbert":
        model = transformers.DistilBertModel(transformers.DistilBertConfig())
    else:
        model = transformers.MPNetModel(transformers.MPNetConfig(max_position_embeddings=514))
    model.eval().save_pretrained(tmp_path)
    feeds = tokens(2, 200)
    ours = Bert(entry_of(arch, 512, 768), tmp_path).reference(feeds)["features"]
    np.testing.assert_allclose(ours, mean_of(hidden_of(model, feeds), feeds["attention_mask"]), atol=1e-5)


@pytest.mark.parametrize("arch", ["bert", "distilbert", "roberta", "mpnet"])
def test_stages_one_after_another_are_the_module(tmp_path: Path, arch: str) -> None:
    import torch

    reference(arch).save_pretrained(tmp_path)
    ours = Bert(entry_of(arch), tmp_path)
    feeds = {name: torch.from_numpy(array) for name, array in tokens(3, 21).items()}
    stages = ours.stages()
    assert len(stages) == 4
    state = dict(feeds)
    with torch.inference_mode():
        for stage in stages[:-1]:
            state = stage(state)
            # The next stages get only the cached outputs of a stage, without the token ids.
            assert set(state) == {"hidden", "attention_mask"}
        last = stages[-1](state)
        assert set(last) == {"features"}
        np.testing.assert_allclose(last["features"], ours.module(*feeds.values()), atol=1e-6)
    # The stages share the module's parameters, and every stage has some to train.
    shared = {id(parameter) for parameter in ours.module.parameters()}
    assert {id(parameter) for stage in stages for parameter in stage.parameters()} == shared
    assert all(any(True for _ in stage.parameters()) for stage in stages)


@pytest.mark.parametrize(("arch", "longest"), [("bert", 160), ("roberta", 158), ("mpnet", 158)])
def test_a_limit_above_the_models_positions_is_refused(tmp_path: Path, arch: str, longest: int) -> None:
    reference(arch).save_pretrained(tmp_path)
    Bert(entry_of(arch, longest), tmp_path).build()
    with pytest.raises(RegistryError, match=f"exceeds the model's {longest}"):
        Bert(entry_of(arch, longest + 1), tmp_path).build()


def test_positions_relative_to_each_other_are_not_taken_for_absolute_ones(tmp_path: Path) -> None:
    reference("bert").save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("{", '{"position_embedding_type": "relative_key",', 1))
    with pytest.raises(IntegrityError, match="position_embedding_type is 'relative_key'"):
        Bert(entry_of("bert"), tmp_path).build()


NASTY = [
    "Hello, world!", "HeLLo", "naïve café Ångström Łódź", "ﬁne ﬀ Ⅻ", "中文字符混合English和日本語カタカナ",
    "한국어 텍스트", "x\x00y\ufffdz",
    "a" * 101, "a" * 100, "unaffable running", "\u200b", "\u200d\ufe0f", "e\u0301 \u00e9", "İstanbul ẞ ß",
    "tab\tnew\nline\r\n", "don't stop-me...now", "$1,000.50 (50%)", "[CLS] spelt out [SEP]", "[MASK] [UNK] [PAD]",
    "٣٤ १२", "🙂👍🏽", "a\u00a0b\u3000c", "", "  ", "zürich ZÜRICH", "##ing ##", "co\u00adoperate", "\u0130\u0307",
]  # fmt: skip


def write_vocabulary(folder: Path) -> Path:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEHIÅŁéèñüßáóźİ中文字符混合日本語カ한0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "Hello", "world", "naive", "naïve", "cafe", "café",
              "un", "##aff", "##able", "run", "##ning", "don", "stop", "zurich", "\u2028", *"!,.'-$%()[]#", *letters,
              *(f"##{letter}" for letter in letters)]  # fmt: skip
    path = folder / "vocab.txt"
    path.write_text("\n".join(dict.fromkeys(pieces)) + "\n", encoding="utf-8", newline="\n")
    return path


@pytest.mark.parametrize("strip_accents", [None, True, False])
@pytest.mark.parametrize("lowercase", [True, False])
def test_a_vocabulary_gives_the_tokens_that_transformers_gives(
    tmp_path: Path, lowercase: bool, strip_accents: bool | None
) -> None:
    from transformers import BertTokenizerFast

    path = write_vocabulary(tmp_path)
    theirs = BertTokenizerFast.from_pretrained(
        tmp_path, do_lower_case=lowercase, strip_accents=strip_accents, local_files_only=True
    )
    preprocess = TextPreprocess(
        tokenizer="vocab.txt", max_length=16, pooling="mean", normalize=True,
        wordpiece=WordPiece(lowercase=lowercase, strip_accents=strip_accents),
    )  # fmt: skip
    out = tmp_path / "bundle"
    out.mkdir()
    placed = place_tokenizer(preprocess, tmp_path, out)
    assert (placed.tokenizer, placed.wordpiece) == ("tokenizer.json", None)
    ours = TextEncoder(placed, out)
    assert path.name == "vocab.txt"
    wanted = [theirs(text, truncation=True, max_length=16)["input_ids"] for text in NASTY]
    assert ours.tokens(NASTY) == wanted
    assert len({tuple(row) for row in wanted}) > 15
    assert max(map(len, wanted)) == 16


def test_chinese_characters_may_stay_together(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    path = write_vocabulary(tmp_path)
    apart, together = (
        Tokenizer.from_str(tokenizer_json(path, WordPiece(lowercase=True, chinese_chars=flag))).encode("中文").tokens
        for flag in (True, False)
    )
    assert apart == ["[CLS]", "中", "文", "[SEP]"]
    assert together == ["[CLS]", "中", "##文", "[SEP]"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\nfoo\n", r"lacks \[CLS\], \[SEP\]"),
        (b"[UNK]\n[CLS]\n[SEP]\nfoo\nbar\nfoo\n", "lists 'foo' in line 4 and 6"),
        (b"[UNK]\n[CLS]\n[SEP]\n\xff\n", "not UTF-8"),
        (b"", r"lacks \[UNK\]"),
    ],
)
def test_a_vocabulary_that_is_not_whole(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=message) as caught:
        read_vocabulary(path)
    assert "\n" not in caught.value.message


def test_a_row_with_a_vocabulary_becomes_a_bundle_with_a_tokenizer(shelf: Path, tmp_path: Path) -> None:
    """The whole chain: the bundle has a tokenizer.json and names it; its answers are those of the same tokens."""
    import hashlib
    import json

    folder = tmp_path / "cased"
    files = [*write_bert(folder)[:2], write_vocabulary(folder)]
    (folder / "tokenizer.json").unlink()
    registry = json.loads(shelf.read_text())
    row = registry["models"]["tiny-bert"]
    row["preprocess"] |= {"tokenizer": "vocab.txt", "wordpiece": {"lowercase": False}}
    row["files"] = [
        {"path": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size,
         "sources": [path.as_uri()]} for path in files
    ]  # fmt: skip
    (tmp_path / "registry.yaml").write_text(json.dumps({"schema_version": 1, "models": {"cased": row}}))
    zoo = Zoo(registry=tmp_path / "registry.yaml")
    bundle = zoo.graph("cased")
    assert bundle.manifest.preprocess.tokenizer == "tokenizer.json"  # type: ignore[union-attr]
    assert sorted(path.name for path in bundle.path.iterdir()) == ["model.onnx", "tokenizer.json", "zoo.json"]
    upper, lower = zoo.run("cased", ["Hello", "hello"], device="cpu").answers
    assert upper.features != lower.features
    row["preprocess"]["wordpiece"] = None
    (tmp_path / "registry.yaml").write_text(json.dumps({"schema_version": 1, "models": {"cased": row}}))
    with pytest.raises(RegistryError, match="wordpiece is"):
        Zoo(registry=tmp_path / "registry.yaml").list()


@pytest.mark.parametrize(
    ("arch", "changes", "said"),
    [
        ("bert", {"hidden_size": 0}, "hidden_size"),
        ("bert", {"vocab_size": -3}, "vocab_size"),
        ("bert", {"intermediate_size": 1 << 40}, "intermediate_size"),
        ("bert", {"num_hidden_layers": 0}, "num_hidden_layers"),
        ("bert", {"num_attention_heads": 0}, "num_attention_heads"),
        ("bert", {"num_attention_heads": 5}, "a width of 32 is not divisible by 5 heads"),
        ("bert", {"layer_norm_eps": 0}, "layer_norm_eps"),
        ("bert", {"type_vocab_size": -1}, "type_vocab_size"),
        ("roberta", {"pad_token_id": -9}, "pad_token_id"),
        ("mpnet", {"relative_attention_num_buckets": 0}, "relative_attention_num_buckets"),
        ("distilbert", {"n_heads": 0}, "n_heads"),
        ("distilbert", {"n_layers": -1}, "n_layers"),
    ],
)
def test_a_shape_that_cannot_be(tmp_path: Path, arch: str, changes: dict[str, float], said: str) -> None:
    own = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64} if arch == "distilbert" else {}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**TINY, **own}))
    read_config(path, arch)
    path.write_text(json.dumps({**TINY, **own, **changes}))
    with pytest.raises(IntegrityError, match=said) as caught:
        read_config(path, arch)
    assert "\n" not in caught.value.message
