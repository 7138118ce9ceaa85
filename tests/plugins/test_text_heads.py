"""Sequence classifiers of the Hub against transformers' own pipeline, on texts of all kinds."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit import cli
from tests.kit.hub import COMMIT, FakeHub
from tests.kit.items import NASTY
from tests.kit.libraries import change_json, hub_repo, write_classifier, write_encoder
from zoo import DataError, DataOptions, IntegrityError, TextPair, UsageError, Variant, Zoo
from zoo.data.dataset import load
from zoo.data.tokenizers import TextEncoder, place_tokenizer
from zoo.schema import PretrainedHead, TextPreprocess

#: The positions of the tiny models, without those for padding.
LENGTH = 64
KINDS = {
    "Bert": "bert", "DistilBert": "bert", "Roberta": "bert", "XLMRoberta": "bert", "MPNet": "bert",
    "Electra": "transformers", "Albert": "transformers", "DebertaV2": "transformers",
}  # fmt: skip


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


def scores_of(zoo: Zoo, name: str, texts: Sequence[str | TextPair], folder: Path) -> np.ndarray:
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
    assert entry.description.endswith(" text classifier")
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
    with pytest.raises(IntegrityError, match="the classifier gives 3 scores, but id2label has 5 labels") as caught:
        Zoo().entry("hf/acme/net")
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_decoder_whose_scores_change_with_padding_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    written(tmp_path / "repo", "Llama", pad_token_id=None)
    hub.add("acme/net", COMMIT, hub_repo(tmp_path / "repo"))
    with pytest.raises(IntegrityError, match="padding") as caught:
        scores_of(Zoo(), "hf/acme/net", ["a text"], tmp_path / "bundle")
    assert caught.value.hint


def pairs_of(texts: Sequence[str]) -> list[TextPair]:
    """Pairs of short and long texts, in both orders."""
    return [TextPair(one, other) for one, other in zip(texts, texts[1:] + texts[:1], strict=True)]


def piped_pairs(folder: Path, pairs: Sequence[TextPair]) -> list[dict[str, float]]:
    """The answers of transformers' pipeline to pairs."""
    from transformers import pipeline

    made = pipeline("text-classification", model=str(folder), tokenizer=str(folder), top_k=None)
    given = [{"text": pair.text, "text_pair": pair.pair} for pair in pairs]
    found = made(given, truncation=True, max_length=LENGTH)
    return [{each["label"]: each["score"] for each in row} for row in found]


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_have_the_scores_of_the_pipeline(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    labels = ["entailment", "neutral", "contradiction"]
    written(tmp_path / "repo", kind, labels=labels, seed=71)
    hub.add("acme/nli", COMMIT, hub_repo(tmp_path / "repo"))
    zoo = Zoo()
    preprocess = zoo.entry("hf/acme/nli").preprocess
    assert isinstance(preprocess, TextPreprocess)
    assert preprocess.segments == (kind in ("Bert", "Electra", "Albert"))
    pairs = pairs_of(NASTY)
    found = scores_of(zoo, "hf/acme/nli", pairs, tmp_path / "bundle")
    wanted = [[row[label] for label in labels] for row in piped_pairs(tmp_path / "repo", pairs)]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "named", "wanted"),
    [
        ("sentence_transformers", {"activation_fn": "torch.nn.modules.linear.Identity"}, "identity"),
        ("sbert_ce_default_activation_function", "torch.nn.modules.linear.Identity", "identity"),
        ("sbert_ce_default_activation_function", "torch.nn.modules.activation.Sigmoid", "sigmoid"),
        ("sbert_ce_default_activation_function", "evil.Thing", "sigmoid"),
    ],
)
def test_the_activation_of_a_cross_encoder_is_the_one_its_files_name(
    hub: FakeHub, tmp_path: Path, key: str, named: object, wanted: str
) -> None:
    written(tmp_path / "repo", "Bert", labels=["LABEL_0"])
    change_json(tmp_path / "repo" / "config.json", **{key: named})
    hub.add("acme/rank", COMMIT, hub_repo(tmp_path / "repo"))
    head = Zoo().entry("hf/acme/rank").head
    assert head is not None
    assert (head.task, head.activation) == ("regression", wanted)


@pytest.mark.parametrize(
    "kind", ["Bert", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("MPNet", "Electra", "DebertaV2"))]
)
def test_a_reranker_goes_the_whole_way(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    """Sessions, tables and the parity check read pairs; scores are those of sentence-transformers' CrossEncoder."""
    cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder
    written(tmp_path / "repo", kind, labels=["LABEL_0"])
    theirs = cross_encoder(str(tmp_path / "repo"), max_length=LENGTH)
    theirs.save_pretrained(str(tmp_path / "saved"))
    hub.add("acme/rank", COMMIT, hub_repo(tmp_path / "saved"))
    zoo, name = Zoo(), "hf/acme/rank"
    zoo.pull(name, trust_first=True)
    pairs = pairs_of(NASTY)
    wanted = theirs.predict([tuple(pair) for pair in pairs])
    answers = zoo.run(name, pairs, device="cpu").answers
    np.testing.assert_allclose([answer.value for answer in answers], wanted, atol=1e-4)
    assert answers[0].input == NASTY[0]
    assert zoo.run(name, pairs[0], device="cpu").answers[0].value == pytest.approx(float(wanted[0]), abs=1e-4)
    assert "in pairs" in zoo.open(name).manifest.parity.samples

    rows = [
        {"text": pair.text, "text_pair": pair.pair, "label": float(score)}
        for pair, score in zip(pairs, wanted, strict=True)
    ]
    table = tmp_path / "data.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = list(zoo.answers(name, zoo.each_input(name, [str(table)]), device="cpu"))
    np.testing.assert_allclose([answer.value for answer in found], wanted, atol=1e-4)
    assert zoo.evaluate(name, table, device="cpu").metrics.mae < 1e-4
    [answer] = zoo.answers(name, zoo.each_input(name, [NASTY[0]], pair=NASTY[1]), device="cpu")
    assert answer.value == pytest.approx(float(wanted[0]), abs=1e-4)
    # The command answers as the library does.
    run = cli.parsed(cli.zoo("run", name, NASTY[0], "--pair", NASTY[1], "--json", "--device", "cpu"))["run"]
    assert run["results"][0]["value"] == pytest.approx(float(wanted[0]), abs=1e-4)
    # The texts alone are other inputs.
    alone = zoo.run(name, NASTY, device="cpu").answers
    assert max(abs(one.value - float(score)) for one, score in zip(alone, wanted, strict=True)) > 0.01


def test_a_pair_for_a_model_of_single_texts_is_an_error(shelf: Path) -> None:
    zoo = Zoo()
    with pytest.raises(DataError, match="reads single texts, not pairs") as caught:
        zoo.run("tiny-bert", TextPair("a", "b"), device="cpu")
    assert "--pair" in (caught.value.hint or "")
    for model in ("tiny-bert", "tiny-lite"):
        with pytest.raises(UsageError, match=f"{model} does not read pairs of texts") as refused:
            zoo.each_input(model, ["a text"], pair="b")
        assert "--pair" in (refused.value.hint or "")
        words = f"{model} does not read pairs of texts"
        assert "--pair" in cli.fails(2, words, "run", model, "a text", "--pair", "b")
    with pytest.raises(DataError):
        zoo.run("tiny-lite", TextPair("a", "b"), device="cpu")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_column_of_pairs_that_is_not_read_is_an_error(shelf: Path, tmp_path: Path, suffix: str) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": f"my card {n}", "text_pair": f"a parcel {n}", "label": "ab"[n % 2]} for n in range(8)]
    table = tmp_path / f"pairs{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    elif suffix == ".jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table.write_text("text,text_pair,label\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    zoo, problem = Zoo(), f"{table} has the column 'text_pair', which would not be read"
    with pytest.raises(DataError, match=re.escape(problem)) as caught:
        list(zoo.each_input("tiny-bert", [str(table)]))
    assert "--text text" in str(caught.value.hint)
    with pytest.raises(DataError, match=re.escape(problem)):
        zoo.inputs("tiny-bert", [str(table)])
    with pytest.raises(DataError, match=re.escape(problem)):
        zoo.finetune("tiny-bert", table, tmp_path / "out")
    named = [each.item for each in zoo.each_input("tiny-bert", [str(table)], text="text")]
    assert named == zoo.inputs("tiny-bert", [str(table)], text="text")[0] == [row["text"] for row in rows]
    pairs = [each.item for each in zoo.each_input("tiny-bert", [str(table)], text="text_pair")]
    assert pairs == [row["text_pair"] for row in rows]
    assert (
        load(
            table,
            TextPreprocess(tokenizer="t.json", max_length=8, pooling="cls", normalize=False),
            DataOptions(text="text"),
        ).items
        == named
    )
    cli.fails(2, problem, "run", "tiny-bert", table)


def test_options_that_would_be_ignored(hub: FakeHub, tmp_path: Path) -> None:
    written(tmp_path / "repo", "Bert")
    hub.add("acme/mood", COMMIT, hub_repo(tmp_path / "repo"))
    zoo, name = Zoo(), "hf/acme/mood"
    table = tmp_path / "pairs.csv"
    table.write_text("text,text_pair\nmy card,a parcel\n")
    with pytest.raises(UsageError, match="'text_pair', which would not be read"):
        list(zoo.each_input(name, [str(table)], pair="a login"))
    assert [each.item for each in zoo.each_input(name, [str(table)])] == [TextPair("my card", "a parcel")]
    for blank in ("", " "):
        with pytest.raises(UsageError, match="--pair is empty"):
            zoo.each_input(name, ["a text"], pair=blank)
    for prompt in ("x", ""):
        for call in (
            lambda prompt: zoo.run(name, "a text", prompt=prompt),
            lambda prompt: zoo.answers(name, ["a text"], prompt=prompt),
            lambda prompt: zoo.embed(name, ["a text"], tmp_path / "x.npy", prompt=prompt),
            lambda prompt: zoo.similar(name, "a text", ["b"], prompt=prompt),
        ):
            with pytest.raises(UsageError, match=f"has no prompt called '{prompt}'"):
                call(prompt)
    # Nothing was pulled.
    assert not [row for row in zoo.list() if row.is_pulled]


@pytest.mark.parametrize(
    "variant",
    [
        Variant(precision="int8"),
        pytest.param(Variant(precision="fp16"), marks=pytest.mark.slow),
        pytest.param(Variant(fuse=True), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_an_export_in_another_precision_keeps_labels_and_pairs(hub: FakeHub, tmp_path: Path, variant: Variant) -> None:
    written(tmp_path / "repo", "Bert", hidden_size=64, intermediate_size=128)
    hub.add("acme/nli", COMMIT, hub_repo(tmp_path / "repo"))
    zoo, name = Zoo(), "hf/acme/nli"
    zoo.pull(name, trust_first=True)
    bundle = zoo.export(name, tmp_path / "out", variant)
    assert bundle.manifest.labels == ("NEGATIVE", "NEUTRAL", "POSITIVE")
    assert [spec.name for spec in bundle.manifest.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    wanted = [
        [row[label] for label in bundle.manifest.labels] for row in piped_pairs(tmp_path / "repo", pairs_of(NASTY))
    ]
    found = zoo.session(str(bundle.path), "cpu").scores(pairs_of(NASTY))
    np.testing.assert_allclose(found, wanted, atol=0.05)
