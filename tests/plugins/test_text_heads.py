"""Sequence classifiers of the Hub against transformers' own pipeline, on texts of all kinds."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.hub import COMMIT, FakeHub, hub_on_loopback
from tests.kit.items import NASTY
from tests.kit.libraries import change_json, hub_repo, write_classifier, write_encoder
from zoo import IntegrityError, Zoo
from zoo.data.tokenizers import TextEncoder, place_tokenizer
from zoo.schema import PretrainedHead, TextPreprocess

#: The positions of the tiny models, without those for padding.
LENGTH = 64
KINDS = {
    "Bert": "bert", "DistilBert": "bert", "Roberta": "bert", "XLMRoberta": "bert", "MPNet": "bert",
    "Electra": "transformers", "Albert": "transformers", "DebertaV2": "transformers",
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with hub_on_loopback(monkeypatch) as server:
        yield server


def written(folder: Path, kind: str, **changes: Any) -> Any:
    """A tiny classifier, with the tokenizer of its kind."""
    own = {"vocabulary": "bytes", "vocab_size": 400} if "Roberta" in kind else {}
    return write_classifier(folder, kind, **own, **changes)


def piped(folder: Path, texts: Sequence[str], length: int) -> list[list[tuple[str, float]]]:
    """The answers of transformers' pipeline: for each text the labels with their scores, the best first."""
    from transformers import pipeline

    made = pipeline("text-classification", model=str(folder), tokenizer=str(folder), top_k=None)
    found = made(list(texts), truncation=True, max_length=length)
    return [[(each["label"], each["score"]) for each in row] for row in found]


def scores_of(zoo: Zoo, name: str, texts: list[str], folder: Path) -> np.ndarray:
    """The scores of the family's own arithmetic, for texts of one batch."""
    pulled, entry = zoo.pull(name, trust_first=True), zoo.entry(name)
    preprocess = entry.preprocess
    assert isinstance(preprocess, TextPreprocess)
    folder.mkdir()
    encoder = TextEncoder(place_tokenizer(preprocess, pulled, folder), folder)
    family = zoo.plugins.make(entry, pulled)
    return np.asarray(family.reference(encoder.batch(encoder.tokens(texts)))["scores"])


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_pipeline(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    written(tmp_path / "repo", kind)
    hub.add("acme/mood", COMMIT, hub_repo(tmp_path / "repo"))
    zoo = Zoo()
    entry = zoo.entry("hf/acme/mood")
    assert entry.family == KINDS[kind]
    assert entry.head == PretrainedHead(labels=("NEGATIVE", "NEUTRAL", "POSITIVE"))
    assert entry.no_head is None
    found = scores_of(zoo, "hf/acme/mood", NASTY, tmp_path / "bundle")
    assert np.ptp(found, axis=0).min() > 0.1
    for row, wanted in zip(found, piped(tmp_path / "repo", NASTY, LENGTH), strict=True):
        order = np.argsort(-row)
        assert [entry.head.labels[index] for index in order] == [label for label, _ in wanted]
        np.testing.assert_allclose(row[order], [score for _, score in wanted], atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "changes", "wanted"),
    [
        (["toxic", "insult", "threat"], {"problem_type": "multi_label_classification"}, ("multi-label", "sigmoid")),
        (["LABEL_0"], {"problem_type": "regression"}, ("regression", "identity")),
        (["LABEL_0"], {}, ("regression", "sigmoid")),
    ],
)
def test_other_problems_have_their_activation(
    hub: FakeHub, tmp_path: Path, labels: list[str], changes: dict[str, Any], wanted: tuple[str, str]
) -> None:
    written(tmp_path / "repo", "Bert", labels=labels, **changes)
    hub.add("acme/mood", COMMIT, hub_repo(tmp_path / "repo"))
    zoo = Zoo()
    head = zoo.entry("hf/acme/mood").head
    assert head is not None
    assert (head.task, head.activation) == wanted
    found = scores_of(zoo, "hf/acme/mood", NASTY, tmp_path / "bundle")
    theirs = [[dict(row)[label] for label in labels] for row in piped(tmp_path / "repo", NASTY, LENGTH)]
    np.testing.assert_allclose(found, theirs, atol=1e-4)


@pytest.mark.parametrize(
    "kind", ["Roberta", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "Roberta")]
)
def test_a_classifier_goes_the_whole_way(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    """From the Hub to labels: the scores of the built graph are those of the pipeline."""
    written(tmp_path / "repo", kind)
    hub.add("acme/mood", COMMIT, hub_repo(tmp_path / "repo"))
    zoo = Zoo()
    zoo.pull("hf/acme/mood", trust_first=True)
    answers = zoo.run("hf/acme/mood", NASTY, device="cpu", top=3).answers
    for answer, wanted in zip(answers, piped(tmp_path / "repo", NASTY, LENGTH), strict=True):
        assert [label for label, _ in answer.labels] == [label for label, _ in wanted]
        np.testing.assert_allclose([score for _, score in answer.labels], [score for _, score in wanted], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"architectures": ["BertForTokenClassification"]},
            "zoo does not export the head of BertForTokenClassification",
        ),
        ({"architectures": ["BertModel"]}, "the weights are an encoder without a classifier"),
        ({"architectures": None}, "the weights are an encoder without a classifier"),
        ({"problem_type": "regression"}, "BertForSequenceClassification answers with 3 numbers: zoo exports one"),
    ],
)
def test_a_model_without_a_head_says_why(hub: FakeHub, tmp_path: Path, change: dict[str, Any], why: str) -> None:
    written(tmp_path, "Bert")
    change_json(tmp_path / "config.json", **change)
    hub.add("acme/net", COMMIT, hub_repo(tmp_path))
    entry = Zoo().entry("hf/acme/net")
    assert (entry.head, entry.no_head) == (None, why)


def test_sentence_transformers_have_no_classifier(hub: FakeHub, tmp_path: Path) -> None:
    """Many of their repositories name the class that the encoder was trained from, without its head."""
    write_encoder(tmp_path, "MPNet")
    change_json(tmp_path / "config.json", architectures=["MPNetForSequenceClassification"])
    hub.add("acme/net", COMMIT, hub_repo(tmp_path))
    assert Zoo().entry("hf/acme/net").no_head == "the weights are an encoder without a classifier"


@pytest.mark.parametrize("kind", ["Bert", "Electra"])
def test_a_classifier_with_more_labels_than_scores(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    written(tmp_path / "repo", kind)
    labels = {str(index): f"label {index}" for index in range(5)}
    change_json(tmp_path / "repo" / "config.json", id2label=labels)
    hub.add("acme/net", COMMIT, hub_repo(tmp_path / "repo"))
    with pytest.raises(IntegrityError, match="gives 3 scores from 32 features, but the row has 5 labels") as caught:
        scores_of(Zoo(), "hf/acme/net", ["a text"], tmp_path / "bundle")
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_decoder_whose_scores_change_with_padding_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    written(tmp_path / "repo", "Llama", pad_token_id=None)
    hub.add("acme/net", COMMIT, hub_repo(tmp_path / "repo"))
    with pytest.raises(IntegrityError, match="padding") as caught:
        scores_of(Zoo(), "hf/acme/net", ["a text"], tmp_path / "bundle")
    assert caught.value.hint
