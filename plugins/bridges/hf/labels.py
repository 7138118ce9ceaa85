"""Heads that `config.json` of transformers describes: labels, task and activation."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from zoo.errors import IntegrityError, counted, quote
from zoo.schema import PretrainedHead
from zoo.torchkit import imagenet

HINT = "choose another model, or tell its publisher"
#: `problem_type` -> the fields of a head. transformers/configuration_utils.py allows no other value.
PROBLEMS: Mapping[str, Mapping[str, Any]] = {
    "single_label_classification": {},
    "multi_label_classification": {"task": "multi-label", "activation": "sigmoid"},
    "regression": {"task": "regression", "activation": "identity"},
}


def head_of(config: Mapping[str, Any], origin: str, *, outputs: int | None = None) -> PretrainedHead:
    """The head that a `config.json` describes. `outputs` is the number of the classifier's scores, if it is known.

    The activation is that of transformers' pipelines: softmax, sigmoid for several labels and for a single score, none
    for a regression. A single score without a `problem_type` is a regression between 0 and 1. Labels are those of
    `id2label`, with WordNet ids if they are the classes of ImageNet-1k. Raises IntegrityError if the labels do not fit
    the number of scores or are not different, or for an unknown `problem_type`.
    """
    labels = _labels(config, origin)
    if outputs is not None and outputs != len(labels):
        scores, names = counted(outputs, "score"), counted(len(labels), "label")
        raise IntegrityError(f"{origin}: the classifier gives {scores}, but id2label has {names}", hint=HINT)
    problem = config.get("problem_type")
    if problem is not None and problem not in PROBLEMS:
        raise IntegrityError(
            f"{origin}: config.json has the problem_type {quote(problem)}", hint=f"known: {', '.join(PROBLEMS)}"
        )
    if problem == "regression" or (problem is None and len(labels) == 1):
        fields = PROBLEMS["regression"] if problem else {"task": "regression", "activation": "sigmoid"}
        # One number has no label worth printing: it is "LABEL_0" nearly everywhere.
        return PretrainedHead(**fields, outputs=len(labels))
    unique, ids = _named(labels)
    if twice := [label for label, times in Counter(unique).items() if times > 1]:
        raise IntegrityError(f"{origin}: id2label has the label {quote(twice[0])} twice", hint=HINT)
    return PretrainedHead(**PROBLEMS[problem or "single_label_classification"], labels=unique, ids=ids)


def _labels(config: Mapping[str, Any], origin: str) -> tuple[str, ...]:
    """The labels of `id2label` in the order of the scores; without it, the names that transformers would give."""
    given, number = config.get("id2label"), config.get("num_labels")
    if given is None:
        # transformers leaves out the labels of a classifier with two scores if they have no other names.
        return tuple(f"LABEL_{index}" for index in range(number if isinstance(number, int) else 2))
    is_plain = isinstance(given, dict) and all(isinstance(each, str | int | float) for each in given.values())
    if not is_plain or not given or {str(key) for key in given} != {str(index) for index in range(len(given))}:
        raise IntegrityError(f"{origin}: id2label does not number its labels 0, 1, 2, ...", hint=HINT)
    if isinstance(number, int) and number != len(given):
        raise IntegrityError(
            f"{origin}: num_labels is {number}, but id2label has {counted(len(given), 'label')}", hint=HINT
        )
    return tuple(str(label) for _, label in sorted(given.items(), key=lambda item: int(item[0])))


def _named(labels: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns unique labels and their WordNet ids: the classes of ImageNet-1k get ids, other labels have none.

    Two of these classes have the same name on the Hub, "crane": the second one is followed by its id. A class before
    them (MobileNet's "background") stays without an id of WordNet.
    """
    classes = imagenet()
    extra = len(labels) - len(classes.ids)
    if extra not in (0, 1) or labels[extra:] != classes.synonyms:
        return labels, ()
    ids = (*labels[:extra], *classes.ids)
    return tuple(
        f"{label} ({each})" if label in labels[:index] else label
        for index, (label, each) in enumerate(zip(labels, ids, strict=True))
    ), ids
