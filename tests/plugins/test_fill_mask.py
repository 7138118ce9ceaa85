"""Models of the Hub that fill masks, against transformers' own pipeline."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.hub import COMMIT, FakeHub
from tests.kit.items import NASTY
from tests.kit.libraries import change_json, hub_repo, write_filler
from tests.kit.upstream import Upstream
from zoo import DataError, UsageError, Zoo
from zoo.data.tokenizers import TextEncoder, place_tokenizer
from zoo.schema import PretrainedHead, TextPreprocess

#: The positions of the tiny models, without those for padding.
LENGTH = 64
KINDS = ["Bert", "DistilBert", "Roberta", "XLMRoberta", "MPNet"]


def written(folder: Path, kind: str, **changes: Any) -> str:
    """Write a tiny model with the tokenizer of its kind; returns its mask."""
    own = {"vocabulary": "bytes", "vocab_size": 400} if "Roberta" in kind else {}
    write_filler(folder, kind, **own, **changes)
    return "<mask>" if own else "[MASK]"


def masked(mask: str) -> list[str]:
    """Texts of all kinds with a mask: at the start, in the middle, at the end, glued to a word."""
    places = [f"{mask} {{}}", f"{{}} {mask}", f"a {mask}. {{}}", f"x{mask}y {{}}", f"{{}}, {mask}"]
    texts = [place.format(text) for text, place in zip(NASTY, places * 3, strict=False) if len(text) < 100]
    return [*texts, f"late {mask} " + "parcel " * 300, mask]


def piped(folder: Path, texts: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
    """The answers of transformers' pipeline: for each text the best tokens with their scores."""
    from transformers import pipeline

    made = pipeline("fill-mask", model=str(folder), tokenizer=str(folder), top_k=top)
    found = made(list(texts), tokenizer_kwargs={"truncation": True, "max_length": LENGTH})
    return [[(each["token_str"], each["score"]) for each in row] for row in found]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_pipeline(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    mask = written(tmp_path / "repo", kind)
    hub.add("acme/net", COMMIT, hub_repo(tmp_path / "repo"))
    zoo = Zoo()
    folder, entry = zoo.pull("hf/acme/net", trust_first=True), zoo.entry("hf/acme/net")
    vocabulary = 400 if "Roberta" in kind else 200
    assert entry.head == PretrainedHead(task="fill-mask", outputs=vocabulary)
    assert isinstance(entry.preprocess, TextPreprocess)
    assert entry.preprocess.mask_token == mask
    (tmp_path / "bundle").mkdir()
    encoder = TextEncoder(place_tokenizer(entry.preprocess, folder, tmp_path / "bundle"), tmp_path / "bundle")
    texts = masked(mask)
    scores = zoo.plugins.make(entry, folder).reference(encoder.batch(encoder.tokens(texts)))["scores"]
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    for row, wanted in zip(np.asarray(scores), piped(tmp_path / "repo", texts, 5), strict=True):
        best = np.argsort(-row)[:5]
        assert encoder.words(best.tolist()) == [token for token, _ in wanted]
        np.testing.assert_allclose(row[best], [score for _, score in wanted], atol=1e-4)


@pytest.mark.parametrize(
    "kind", ["Roberta", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "Roberta")]
)
def test_a_model_that_fills_masks_goes_the_whole_way(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    import onnx

    mask = written(tmp_path / "repo", kind)
    hub.add("acme/net", COMMIT, hub_repo(tmp_path / "repo"))
    zoo, name = Zoo(), "hf/acme/net"
    zoo.pull(name, trust_first=True)
    texts = masked(mask)
    wanted = piped(tmp_path / "repo", texts, 5)
    for answer, pairs in zip(zoo.run(name, texts, device="cpu").answers, wanted, strict=True):
        assert [token for token, _ in answer.labels] == [token for token, _ in pairs]
        np.testing.assert_allclose([score for _, score in answer.labels], [score for _, score in pairs], atol=1e-3)

    # The table of word embeddings is in the file once.
    bundle = zoo.open(name)
    sizes = [tuple(each.dims) for each in onnx.load_from_string(bundle.read_model()).graph.initializer]
    assert sum(sorted(size) == sorted((400 if "Roberta" in kind else 200, 32)) for size in sizes) == 1
    assert "mask" in bundle.manifest.parity.samples

    session = zoo.session(name, "cpu")
    for text, said, hint in (
        ("no word is hidden", f"has no {mask}", "--features prints the vector"),
        (f"{mask} or {mask}", "has 2 masks", f"in place of the other {mask}"),
        ("parcel " * 300 + mask, f"has no {mask} among its first", "in place of a word"),
    ):
        with pytest.raises(DataError, match=re.escape(said)) as caught:
            session.run(text)
        assert hint in (caught.value.hint or "")
        assert "\n" not in str(caught.value)
        assert len(session.run(text, features=True).answers[0].features) == 32
    kept = zoo.run(name, [texts[0], "no word is hidden"], device="cpu", keep_going=True).answers
    assert kept[0].labels
    assert kept[1].error is not None

    out = tmp_path / "out.csv"
    done = zoo.run_to_file(name, texts[:3], out, device="cpu", top=2)
    assert done.columns == ("input", "token1", "score1", "token2", "score2", "error", "message")
    assert done.rows == 3
    with pytest.raises(UsageError, match="started with another --top"):
        zoo.run_to_file(name, texts, out, device="cpu", resume=True)
    (tmp_path / "data.csv").write_text("text,label\na,b\n")
    with pytest.raises(UsageError, match="fills masks") as caught_usage:
        zoo.evaluate(name, tmp_path / "data.csv", device="cpu")
    assert caught_usage.value.hint


@pytest.mark.parametrize(
    ("path", "changes", "why"),
    [
        ("config.json", {"tie_word_embeddings": False}, "tie_word_embeddings is false"),
        ("config.json", {"architectures": ["ElectraForMaskedLM"]}, "does not export the head of ElectraForMaskedLM"),
        ("tokenizer_config.json", {"mask_token": None}, "names no mask_token"),
    ],
)
def test_a_head_that_zoo_does_not_export_says_why(
    hub: FakeHub, tmp_path: Path, path: str, changes: dict[str, Any], why: str
) -> None:
    written(tmp_path, "Bert")
    change_json(tmp_path / path, **changes)
    hub.add("acme/net", COMMIT, hub_repo(tmp_path))
    entry = Zoo().entry("hf/acme/net")
    assert entry.head is None
    assert why in (entry.no_head or "")


@pytest.mark.parametrize("name", ["distilbert-base-uncased", pytest.param("bert-base-cased", marks=pytest.mark.slow)])
def test_the_shipped_rows_fill_masks_by_the_command(upstream: Upstream, name: str) -> None:
    """The heads of the published layouts: `zoo run NAME TEXT --top 5` prints what the pipeline answers."""
    folder = upstream.provide(name)
    text = "Paris is the [MASK] of France."
    done = upstream.run("pull", name)
    assert done.returncode == 0, done.stderr
    done = upstream.run("run", name, text, "--top", "5")
    assert done.returncode == 0, done.stderr
    from transformers import AutoTokenizer, pipeline

    # The tokenizer of the cased row is made from its vocab.txt.
    tokenizer = AutoTokenizer.from_pretrained(folder, do_lower_case=name != "bert-base-cased")
    wanted = pipeline("fill-mask", model=str(folder), tokenizer=tokenizer, top_k=5)(text)
    shown = "  ".join(f"{each['token_str']} {each['score']:.3f}" for each in wanted)
    assert done.stdout == f"{text}\t{shown}\n"
    assert "next: zoo finetune" in done.stderr
    assert "fills masks" in upstream.run("show", name).stdout
    failed = upstream.run("run", name, "no word is hidden")
    assert failed.returncode == 1
    assert "hint: put [MASK] in place of a word" in failed.stderr or "has no [MASK]" in failed.stderr
    assert upstream.run("run", name, "no word is hidden", "--features").returncode == 0
