"""Each family against its reference implementation: same weights, same inputs, same features."""

import json
from pathlib import Path

import numpy as np
import pytest
from zoo_plugins.backbones.bert import Bert, rename
from zoo_plugins.backbones.efficientnet import EfficientNet

from tests.kit.models import TINY, write_bert
from zoo import IntegrityError, RegistryError, Zoo
from zoo.runtime.ort import create_session
from zoo.schema import Entry, ImagePreprocess


def tokens(batch: int, length: int) -> dict[str, np.ndarray]:
    """Random token ids; each row has its own length, and the rest is padding."""
    random = np.random.default_rng(0)
    mask = (np.arange(length) < random.integers(2, length + 1, (batch, 1))).astype(np.int64)
    return {"input_ids": random.integers(4, 100, (batch, length)) * mask, "attention_mask": mask}


def transformers_features(folder: Path, feeds: dict[str, np.ndarray], *, pooling: str, normalize: bool) -> np.ndarray:
    """The features of `transformers`' BertModel and a few lines of numpy for the tokens."""
    import torch
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.inference_mode():
        hidden = model(**{name: torch.from_numpy(array) for name, array in feeds.items()}).last_hidden_state.numpy()
    mask = feeds["attention_mask"][:, :, None]
    pooled = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True) if normalize else pooled


@pytest.mark.parametrize(
    ("name", "pooling", "normalize"), [("tiny-bert", "mean", True), ("tiny-bert-cls", "cls", False)]
)
def test_bert_onnx_equals_transformers(shelf: Path, tmp_path: Path, name: str, pooling: str, normalize: bool) -> None:
    reference = tmp_path / "reference"
    write_bert(reference)
    session = create_session(Zoo().graph(name).read_model(), "cpu")
    for batch, length in ((1, 3), (2, 17), (7, 64)):
        feeds = tokens(batch, length)
        wanted = transformers_features(reference, feeds, pooling=pooling, normalize=normalize)
        np.testing.assert_allclose(session.run(None, feeds)[0], wanted, atol=1e-5)


def test_bert_reads_both_published_layouts(shelf: Path, tmp_path: Path) -> None:
    entry = Zoo().entry("tiny-bert")
    feeds = tokens(3, 9)
    answers = []
    for number, (prefix, legacy) in enumerate((("", False), ("bert.", True))):
        folder = tmp_path / str(number)
        write_bert(folder, prefix=prefix, legacy=legacy)
        answers.append(Bert(entry, folder).reference(feeds)["features"])
    np.testing.assert_array_equal(*answers)


def test_distilbert_equals_transformers(shelf: Path, tmp_path: Path) -> None:
    import msgspec
    import torch
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=200, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64)
    model = DistilBertModel(config).eval()
    model.save_pretrained(tmp_path)
    entry = msgspec.structs.replace(Zoo().entry("tiny-bert-cls"), config={"arch": "distilbert"})
    feeds = tokens(5, 21)
    with torch.inference_mode():
        hidden = model(**{name: torch.from_numpy(array) for name, array in feeds.items()}).last_hidden_state
    np.testing.assert_allclose(Bert(entry, tmp_path).reference(feeds)["features"], hidden[:, 0].numpy(), atol=1e-5)


def test_bert_knows_its_architectures(shelf: Path, tmp_path: Path) -> None:
    import msgspec

    entry = msgspec.structs.replace(Zoo().entry("tiny-bert"), config={"arch": "gpt2"})
    with pytest.raises(RegistryError, match="gpt2"):
        Bert(entry, tmp_path)


def test_a_row_of_padding_alone_gives_numbers(shelf: Path) -> None:
    session = create_session(Zoo().graph("tiny-bert").read_model(), "cpu")
    feeds = {"input_ids": np.zeros((2, 5), np.int64), "attention_mask": np.zeros((2, 5), np.int64)}
    assert np.isfinite(session.run(None, feeds)[0]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_size": "wide"}, "does not describe a bert"),
        ({"num_hidden_layers": 3}, "lacks layers.2"),
        ({"num_hidden_layers": 1}, "has unexpected layers.1"),
        ({"intermediate_size": 65}, "has wrong shapes for"),
    ],
)
def test_bert_config_that_is_not_the_checkpoints(
    shelf: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = tmp_path / "bert"
    write_bert(folder)
    (folder / "config.json").write_text(json.dumps({**TINY, **change}))
    with pytest.raises(IntegrityError, match=message):
        Bert(Zoo().entry("tiny-bert"), folder).build()


def test_bert_refuses_numbers_that_are_not_finite(shelf: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "bert"
    write_bert(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.LayerNorm.weight"][3] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"non-finite numbers in embed\.norm\.weight"):
        Bert(Zoo().entry("tiny-bert"), folder).build()


def test_rename_drops_what_features_do_not_need() -> None:
    for name in ("pooler.dense.weight", "bert.pooler.dense.bias", "cls.predictions.bias", "embeddings.position_ids"):
        assert rename(name) is None
    assert rename("bert.encoder.layer.3.attention.output.LayerNorm.gamma") == "layers.3.attended_norm.weight"


def lite_reference(checkpoint: Path, pixels: np.ndarray) -> np.ndarray:
    """Pooled features of the package efficientnet-lite-pytorch."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet as Reference

    model = Reference.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    with torch.inference_mode():
        return model.eval().extract_features(torch.from_numpy(pixels)).mean((2, 3)).numpy()


def check_lite(zoo: Zoo, name: str) -> None:
    """The row's ONNX body equals the reference package on the same checkpoint."""
    import onnx

    from zoo.graph import edit

    model = onnx.load_from_string(zoo.graph(name).read_model())
    body = create_session(edit.extract(model, ["pixels"], ["features"]).SerializeToString(), "cpu")
    preprocess = zoo.entry(name).preprocess
    assert isinstance(preprocess, ImagePreprocess)
    side = preprocess.crop
    pixels = np.random.default_rng(0).normal(size=(3, 3, side, side)).astype(np.float32)
    wanted = lite_reference(next(zoo.pull(name).glob("*.pth")), pixels)
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(body.run(None, {"pixels": pixels})[0], wanted, atol=1e-4)


def test_efficientnet_onnx_equals_the_reference_package(shelf: Path) -> None:
    check_lite(Zoo(), "tiny-lite")


def test_efficientnet_knows_its_variants(shelf: Path, tmp_path: Path) -> None:
    import msgspec

    entry: Entry = msgspec.structs.replace(Zoo().entry("tiny-lite"), config={"variant": "lite9"})
    with pytest.raises(RegistryError, match="lite9"):
        EfficientNet(entry, tmp_path).build()


@pytest.mark.network
def test_the_real_minilm_equals_transformers(real: Path) -> None:
    from zoo.data.samples import bundled
    from zoo.data.tokenizers import TextEncoder

    zoo = Zoo()
    bundle = zoo.graph("all-minilm-l6-v2")
    preprocess = bundle.manifest.preprocess
    encoder = TextEncoder(preprocess, bundle.path)
    feeds = encoder.batch(encoder.tokens(bundled(preprocess)[0]))
    wanted = transformers_features(zoo.pull("all-minilm-l6-v2"), feeds, pooling="mean", normalize=True)
    got = create_session(bundle.read_model(), "cpu").run(None, feeds)[0]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.network
def test_the_real_lite0_equals_the_reference_package(real: Path) -> None:
    check_lite(Zoo(), "efficientnet_lite0")
