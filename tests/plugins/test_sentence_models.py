"""Dense layers and prompts of the Hub's encoders, against sentence-transformers itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.hub import COMMIT, FakeHub
from tests.kit.items import NASTY
from tests.kit.libraries import change_json, hub_repo, write_sentence_model
from zoo import IntegrityError, UsageError, Zoo
from zoo.data.tokenizers import TextEncoder
from zoo.schema import TextPreprocess

pytest.importorskip("sentence_transformers")
PROMPTS = {"query": "find the parcel: ", "document": "", "label": "card code\n"}


def served(hub: FakeHub, folder: Path, **arguments: Any) -> Any:
    """Serve a model of sentence-transformers as acme/net; returns it."""
    model = write_sentence_model(folder, **arguments)
    hub.add("acme/net", COMMIT, hub_repo(folder))
    return model


def cosine(one: Any, other: Any) -> float:
    """The smallest cosine of two rows."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min())


@pytest.mark.parametrize(
    ("kind", "layers", "default"),
    [
        ("Bert", [(24, "Tanh")], None),
        ("Bert", [(48, "GELU"), (16, "Identity")], "query"),
        ("MPNet", [], "label"),
        ("Electra", [(20, "ReLU")], "query"),
    ],
)
def test_vectors_are_those_of_sentence_transformers(
    hub: FakeHub, tmp_path: Path, kind: str, layers: list[tuple[int, str]], default: str | None
) -> None:
    model = served(hub, tmp_path / "repo", kind=kind, layers=layers, prompts=PROMPTS, default=default)
    zoo = Zoo()
    folder, entry = zoo.pull("hf/acme/net", trust_first=True), zoo.entry("hf/acme/net")
    assert entry.dim == (layers[-1][0] if layers else 32)
    assert isinstance(entry.preprocess, TextPreprocess)
    assert entry.preprocess.prompts == {"query": "find the parcel: ", "label": "card code\n"}
    encoder = TextEncoder(entry.preprocess, folder)
    family = zoo.plugins.make(entry, folder)
    found = family.reference(encoder.batch(encoder.tokens(NASTY)))["features"]
    assert cosine(found, model.encode(NASTY)) >= 0.99999
    plain = model.encode(NASTY, prompt="")
    assert default is None or cosine(found, plain) < 0.999


def test_a_model_with_dense_layer_and_prompts_goes_the_whole_way(hub: FakeHub, tmp_path: Path) -> None:
    model = served(hub, tmp_path / "repo", layers=[(24, "Tanh")], prompts=PROMPTS, default="label")
    zoo, name = Zoo(), "hf/acme/net"
    zoo.pull(name, trust_first=True)
    session = zoo.session(name, "cpu")
    assert cosine(session.features(NASTY), model.encode(NASTY)) >= 0.99999
    asked = model.encode(NASTY, prompt_name="query")
    assert cosine(session.prompted("query").features(NASTY), asked) >= 0.99999
    answers = zoo.run(name, NASTY[:3], device="cpu", features=True, prompt="query").answers
    assert cosine([answer.features for answer in answers], asked[:3]) >= 0.99999
    with pytest.raises(UsageError, match="has no prompt called 'passage'") as caught:
        session.prompted("passage")
    assert caught.value.hint == "--prompt label or query"

    out = tmp_path / "out.npy"
    zoo.embed(name, NASTY[:4], out, device="cpu", prompt="query")
    assert cosine(np.load(out), asked[:4]) >= 0.99999
    with pytest.raises(UsageError, match="started with another --prompt") as caught:
        zoo.embed(name, NASTY, out, device="cpu", resume=True)
    assert caught.value.hint == "resume with --prompt query"
    zoo.embed(name, NASTY, out, device="cpu", resume=True, prompt="query")
    assert cosine(np.load(out), asked) >= 0.99999

    ranking = zoo.similar(name, NASTY[0], NASTY[1:4], device="cpu", top=3, prompt="query")
    wanted = model.encode([NASTY[0]], prompt_name="query") @ model.encode(NASTY[1:4]).T
    assert sorted(value for _, value in ranking.matches) == pytest.approx(sorted(wanted[0]), abs=1e-4)


def module(path: str, **changes: Any) -> Any:
    return lambda folder: change_json(folder / path, **changes)


def extra_module(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"idx": 9, "name": "9", "path": "9_CNN", "type": "sentence_transformers.models.CNN"})
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            module("2_Dense/config.json", activation_function="evil.Thing"),
            UsageError,
            "layer is evil",
        ),
        (module("2_Dense/config.json", use_residual=True), UsageError, "2_Dense has use_residual"),
        (
            module("2_Dense/config.json", in_features=31),
            IntegrityError,
            "takes 31 numbers, but",
        ),
        (module("2_Dense/config.json", in_features=None), IntegrityError, "has no in_features"),
        (lambda folder: (folder / "2_Dense" / "model.safetensors").unlink(), UsageError, "no weights in 2_Dense"),
        (module("1_Pooling/config.json", include_prompt=False), UsageError, "leaves prompts out of the pooling"),
        (extra_module, UsageError, "has the modules Transformer, Pooling, CNN, Dense, Normalize: zoo supports"),
        (
            module("config_sentence_transformers.json", default_prompt_name="no"),
            IntegrityError,
            "no is not among",
        ),
    ],
)
def test_steps_that_zoo_does_not_have(
    hub: FakeHub, tmp_path: Path, change: Any, error: type[Exception], said: str
) -> None:
    write_sentence_model(tmp_path / "repo", layers=[(24, "Tanh")], prompts=PROMPTS)
    change(tmp_path / "repo")
    hub.add("acme/net", COMMIT, hub_repo(tmp_path / "repo"))
    with pytest.raises(error, match=said) as caught:
        Zoo().entry("hf/acme/net")
    assert caught.value.hint  # type: ignore[attr-defined]
    assert "\n" not in str(caught.value)
