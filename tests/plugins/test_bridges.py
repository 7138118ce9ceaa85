"""Bridges with the real Hub client and the loopback Hub: supported and refused repositories of upstream."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.berts import tokens
from tests.kit.hub import COMMIT, FakeHub, HubRepo
from tests.kit.libraries import change_json, hub_repo, pooled, write_encoder, write_json
from zoo import IntegrityError, MissingExtraError, NotFoundError, UsageError, Zoo
from zoo.schema import TextPreprocess, WordPiece


def reference_of(zoo: Zoo, name: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The features of the family's reference on the pulled files."""
    folder = zoo.pull(name, trust_first=True)
    entry = zoo.entry(name)
    return zoo.plugins.backbone(entry.family)(entry, folder).reference(feeds)["features"]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("kind", "arch", "changes"),
    [
        ("Bert", "bert", {}),
        ("MPNet", "mpnet", {}),
        ("Roberta", "roberta", {}),
        ("XLMRoberta", "roberta", {}),
        ("Electra", None, {"embedding_size": 16}),
        ("Albert", None, {"embedding_size": 16}),
        ("Bert", None, {"hidden_act": "gelu_new"}),
    ],
)
@pytest.mark.parametrize(("pooling", "normalize"), [("cls", True), ("mean", False)])
def test_text_encoders_keep_their_features(
    hub: FakeHub, tmp_path: Path, kind: str, arch: str | None, changes: dict[str, Any], pooling: str, normalize: bool
) -> None:
    model = write_encoder(tmp_path, kind, pooling=pooling, normalize=normalize, **changes)
    hub.add("Acme/Net-v1.5", COMMIT, hub_repo(tmp_path))
    zoo = Zoo()
    entry = zoo.entry("hf/Acme/Net-v1.5")
    assert (entry.name, entry.origin) == ("hf/acme/net-v1.5", "https://huggingface.co/Acme/Net-v1.5")
    assert entry.family == ("bert" if arch else "transformers")
    assert arch is None or entry.config == {"arch": arch}
    assert entry.preprocess == TextPreprocess(
        tokenizer="tokenizer.json",
        max_length=40,
        pooling=pooling,
        normalize=normalize,  # type: ignore[arg-type]
    )
    feeds = tokens(3, 33)
    wanted = pooled(model, feeds, pooling=pooling, normalize=normalize)
    np.testing.assert_allclose(reference_of(zoo, entry.name, feeds), wanted, atol=1e-5)


def test_our_own_family_needs_no_transformers(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_encoder(tmp_path / "bert")
    write_encoder(tmp_path / "electra", "Electra")
    hub.add("acme/bert", COMMIT, hub_repo(tmp_path / "bert"))
    hub.add("acme/electra", COMMIT, hub_repo(tmp_path / "electra"))
    without(monkeypatch, "transformers", "timm")
    zoo = Zoo()
    zoo.pull("hf/acme/bert", trust_first=True)
    for name, extra in (("hf/acme/electra", "transformers"), ("timm/resnet18.a1_in1k", "timm")):
        with pytest.raises(MissingExtraError) as caught:
            zoo.entry(name)
        assert caught.value.exit_code == 3
        assert (caught.value.hint or "").startswith(f"pip install 'backbone-zoo[{extra}]'")


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Hide these packages, as if they were not installed."""
    import sys

    from zoo import extras

    find = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in packages else find(name))
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


def limits(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return changes


@pytest.mark.parametrize(
    ("kind", "changes", "wanted"),
    [
        ("Bert", {}, 40),
        ("Bert", limits(sentence_bert_config={"max_seq_length": 512}), 66),
        ("Bert", limits(sentence_bert_config={"max_seq_length": None}, tokenizer_config={"model_max_length": 50}), 50),
        ("MPNet", limits(sentence_bert_config={"max_seq_length": 512}), 64),
        (
            "Bert",
            limits(sentence_bert_config={"max_seq_length": None}, tokenizer_config={"model_max_length": 10**30}),
            66,
        ),
    ],
)
def test_the_token_limit_is_what_is_stated_and_never_more_than_the_positions(
    hub: FakeHub, tmp_path: Path, kind: str, changes: dict[str, dict[str, Any]], wanted: int
) -> None:
    write_encoder(tmp_path, kind)
    for name, change in changes.items():
        change_json(tmp_path / f"{name}.json", **change)
    hub.add("acme/net", COMMIT, hub_repo(tmp_path))
    preprocess = Zoo().entry("hf/acme/net").preprocess
    assert isinstance(preprocess, TextPreprocess)
    assert preprocess.max_length == wanted


def test_a_plain_repository_is_averaged_and_its_vocabulary_used(hub: FakeHub, tmp_path: Path) -> None:
    """A model saved by transformers as a pickle, without sentence-transformers' files and tokenizer.json."""
    import torch
    from safetensors.torch import load_file

    write_encoder(tmp_path)
    for name in ("modules.json", "tokenizer.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        (tmp_path / name).unlink()
    change_json(tmp_path / "tokenizer_config.json", do_lower_case=False, strip_accents=None)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    hub.add("acme/net", COMMIT, hub_repo(tmp_path, card="tags: [x]"))
    zoo = Zoo()
    entry = zoo.entry("hf/acme/net")
    assert entry.license == "unknown"
    assert entry.preprocess == TextPreprocess(
        tokenizer="vocab.txt", max_length=66, pooling="mean", normalize=False, wordpiece=WordPiece(lowercase=False)
    )
    assert [file.path for file in entry.files] == ["config.json", "vocab.txt", "pytorch_model.bin"]
    assert np.isfinite(reference_of(zoo, "hf/acme/net", tokens(2, 9))).all()


def drop(path: str) -> Any:
    return lambda folder: (folder / path).unlink()


def settings(path: str, **changes: Any) -> Any:
    return lambda folder: change_json(folder / path, **changes)


def convolution(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    write_json(folder / "modules.json", [*modules[:2], {**modules[2], "type": "sentence_transformers.models.CNN"}])


def sharded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    write_json(folder / "model.safetensors.index.json", {})


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (convolution, UsageError, "has the modules Transformer, Pooling, CNN"),
        (
            settings("1_Pooling/config.json", pooling_mode_max_tokens=True),
            UsageError,
            "pools by cls_token and max_tokens",
        ),
        (settings("1_Pooling/config.json", pooling_mode_cls_token=False), UsageError, "pools by nothing"),
        (sharded, IntegrityError, "does not list the shards"),
        (drop("model.safetensors"), UsageError, "has none of model.safetensors"),
        (drop("config.json"), NotFoundError, "no file config.json"),
        (settings("config.json", model_type="vit", image_size=224), UsageError, "has no preprocessor_config.json"),
        (settings("config.json", model_type="t5", is_encoder_decoder=True), UsageError, "encoder with a decoder"),
        (settings("config.json", model_type="electrra"), NotFoundError, "no architecture 'electrra'"),
        (
            settings("config.json", model_type="novel_bert", auto_map={"AutoModel": "x.Y"}),
            UsageError,
            r"needs its own code \(trust_remote_code\), which is never run",
        ),
        (settings("config.json", model_type="novel_bert"), NotFoundError, "no architecture 'novel_bert'"),
        (settings("config.json", model_type="clap_text_model"), UsageError, "clap_text_model has no encoder"),
        (settings("sentence_bert_config.json", do_lower_case=True), UsageError, "lower-cases texts"),
    ],
)
def test_what_cannot_be_said_is_an_error_with_a_hint(
    hub: FakeHub, tmp_path: Path, change: Any, error: type[Exception], said: str
) -> None:
    write_encoder(tmp_path)
    change_json(tmp_path / "tokenizer_config.json", do_lower_case=False)
    change(tmp_path)
    hub.add("acme/net", COMMIT, hub_repo(tmp_path))
    with pytest.raises(error, match=said) as caught:
        Zoo().entry("hf/acme/net")
    assert caught.value.hint  # type: ignore[attr-defined]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"num_attention_heads": 0}, {"hidden_act": "none"}, {"hidden_size": -1}], ids=str)
def test_a_configuration_that_transformers_cannot_build(tmp_path: Path, changes: dict[str, Any]) -> None:
    from zoo_plugins.bridges.transformers import create

    write_encoder(tmp_path, "Electra", embedding_size=32)
    change_json(tmp_path / "config.json", **changes)
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(IntegrityError, match=r"a network that transformers can build: \w+: [^\n]+$") as caught:
        create(config)
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["Bert", "Electra"])
def test_code_of_a_repository_is_never_run(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    repo, canary = tmp_path / "repo", tmp_path / "canary"
    write_encoder(repo, kind)
    (repo / "evil.py").write_text(f"from pathlib import Path\nPath({str(canary)!r}).touch()\n")
    code = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}
    for name in ("config.json", "tokenizer_config.json"):
        change_json(repo / name, auto_map=code, trust_remote_code=True)
    hub.add("acme/net", COMMIT, hub_repo(repo))
    zoo = Zoo()
    assert np.isfinite(reference_of(zoo, "hf/acme/net", tokens(2, 9))).all()
    assert not canary.exists()
    assert not any("evil" in seen.path for seen in hub.requests)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(hub: FakeHub, tmp_path: Path) -> None:
    repo, canary = tmp_path / "repo", tmp_path / "canary"
    write_encoder(repo)
    (repo / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (canary,))

    (repo / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    hub.add("acme/net", COMMIT, hub_repo(repo))
    with pytest.raises(IntegrityError, match="does not hold plain tensors"):
        reference_of(Zoo(), "hf/acme/net", tokens(2, 9))
    assert not canary.exists()


def test_a_repository_that_is_another_ones_renamed_keeps_the_name_that_was_typed(hub: FakeHub) -> None:
    hub.add("acme/empty", COMMIT, HubRepo(files={}))
    with pytest.raises(NotFoundError, match=r"no file (modules|config)\.json"):
        Zoo().entry("hf/acme/empty")
    with pytest.raises(NotFoundError, match="not a repository"):
        Zoo().entry("hf/gpt2")
