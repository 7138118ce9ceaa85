"""Heads from the config.json of transformers, compared with transformers' own reading of it."""

from typing import Any

import pytest
from zoo_plugins.bridges.hf.labels import head_of

from zoo import IntegrityError
from zoo.data.labels import imagenet
from zoo.schema import PretrainedHead

ORIGIN = "https://huggingface.co/acme/net"


def numbered(*labels: str) -> dict[str, str]:
    return {str(index): label for index, label in enumerate(labels)}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"id2label": numbered("cat", "dog")}, PretrainedHead(labels=("cat", "dog"))),
        ({"id2label": dict(reversed(numbered(*"abcdefghijkl").items()))}, PretrainedHead(labels=tuple("abcdefghijkl"))),
        ({}, PretrainedHead(labels=("LABEL_0", "LABEL_1"))),
        ({"num_labels": 3}, PretrainedHead(labels=("LABEL_0", "LABEL_1", "LABEL_2"))),
        (
            {"id2label": numbered("x", "y"), "problem_type": "multi_label_classification"},
            PretrainedHead(task="multi-label", activation="sigmoid", labels=("x", "y")),
        ),
        (
            {"id2label": numbered("stars"), "problem_type": "regression"},
            PretrainedHead(task="regression", activation="identity", outputs=1),
        ),
        ({"id2label": numbered("LABEL_0")}, PretrainedHead(task="regression", activation="sigmoid", outputs=1)),
        ({"id2label": numbered("1", "2"), "problem_type": None}, PretrainedHead(labels=("1", "2"))),
    ],
)
def test_heads(config: dict[str, Any], wanted: PretrainedHead) -> None:
    from transformers import PreTrainedConfig

    assert head_of(config, ORIGIN, outputs=wanted.outputs or len(wanted.labels)) == wanted
    theirs = PreTrainedConfig.from_dict(dict(config))
    assert wanted.outputs or tuple(theirs.id2label[index] for index in range(theirs.num_labels)) == wanted.labels


@pytest.mark.parametrize("before", [(), ("background",)])
def test_the_classes_of_imagenet_have_their_wordnet_ids(before: tuple[str, ...]) -> None:
    head = head_of({"id2label": numbered(*before, *imagenet().synonyms)}, ORIGIN)
    first = len(before)
    assert head.ids == (*before, *imagenet().ids)
    assert (head.labels[134 + first], head.labels[517 + first]) == ("crane", "crane (n03126707)")
    assert (head.labels[first], head.ids[281 + first]) == ("tench, Tinca tinca", "n02123045")
    # Another order of the same names is another list, which has its label twice.
    with pytest.raises(IntegrityError, match="the label 'crane' twice"):
        head_of({"id2label": numbered(*reversed(imagenet().synonyms))}, ORIGIN)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"id2label": numbered("cat", "dog", "cat")}, "id2label has the label 'cat' twice"),
        ({"id2label": {"0": "cat", "2": "dog"}}, "does not number its labels"),
        ({"id2label": {}}, "does not number its labels"),
        ({"id2label": ["cat", "dog"]}, "does not number its labels"),
        ({"id2label": {"0": ["cat"]}}, "does not number its labels"),
        ({"id2label": numbered("cat", "dog"), "num_labels": 3}, "num_labels is 3, but id2label has 2 labels"),
        ({"id2label": numbered("cat")}, "the classifier gives 2 scores, but id2label has 1 label"),
        ({"problem_type": "ranking\nx"}, r"problem_type 'ranking\\nx'|problem_type ''ranking"),
    ],
)
def test_labels_that_do_not_fit_are_an_error(config: dict[str, Any], said: str) -> None:
    with pytest.raises(IntegrityError, match=said) as caught:
        head_of(config, ORIGIN, outputs=2 if said.startswith("the classifier") else None)
    assert str(caught.value).startswith(ORIGIN)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 5
