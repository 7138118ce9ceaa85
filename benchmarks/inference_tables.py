"""The names of the timed systems, the goals of `inference.py`, and its section of RESULTS.md."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import record

TORCH, TORCH_LAST = "torch eager", "torch channels_last"
ZOO_FP32, ZOO_FUSED, ZOO_INT8 = "zoo fp32", "zoo fp32, fused", "zoo int8"
OV_FP32, OV_INT8, OV_NNCF = "OpenVINO fp32", "OpenVINO on zoo's int8", "OpenVINO int8 (NNCF)"
SENTENCE = "sentence-transformers"
SENTENCES = "256 sentences"

#: By model, system and shape: milliseconds of an item.
Rows = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]


class Goal(NamedTuple):
    """The fastest of `ours` is at least this many times as fast as the fastest of `theirs` on each of `shapes`."""

    model: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    shapes: tuple[str, ...]
    at_least: float


BOTH = ("batch 1", "batch 8")
TOKENS = ("1x32", "8x64", "16x128")
FP32, INT8, OV_EIGHT = (ZOO_FP32, ZOO_FUSED), (ZOO_INT8,), (OV_INT8, OV_NNCF)
GOALS = (
    Goal("resnet50", FP32, (TORCH,), BOTH, 1.6),
    Goal("resnet50", FP32, (OV_FP32,), BOTH, 1.0),
    Goal("resnet50", INT8, (TORCH,), BOTH, 4.0),
    Goal("resnet50", INT8, OV_EIGHT, BOTH, 0.9),
    Goal("inception", FP32, (TORCH,), BOTH, 1.3),
    Goal("inception", FP32, (OV_FP32,), BOTH, 0.95),
    Goal("inception", INT8, (TORCH,), BOTH, 3.5),
    Goal("inception", INT8, OV_EIGHT, ("batch 1",), 1.0),
    Goal("inception", INT8, OV_EIGHT, ("batch 8",), 0.8),
    Goal("minilm", FP32, (SENTENCE,), (SENTENCES,), 1.3),
    Goal("minilm", FP32, (TORCH,), TOKENS, 1.0),
    Goal("minilm", INT8, (SENTENCE,), (SENTENCES,), 2.5),
    Goal("minilm", INT8, OV_EIGHT, (SENTENCES,), 1.0),
)
#: The smallest allowed cosine between the int8 and the float32 features of a sentence.
COSINE = 0.98


def judged(rows: Rows, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """For each goal and shape the comparison, the speed-up, and whether the goal is met; None if not timed."""
    for goal in GOALS:
        model = rows.get(goal.model, {})
        for shape in goal.shapes:
            ours, theirs = (
                min(((model[name][shape]["ms"], name) for name in names if shape in model.get(name, {})), default=None)
                for names in (goal.ours, goal.theirs)
            )
            times = theirs[0] / ours[0] if ours and theirs else None
            yield {
                "model": goal.model,
                "shape": shape,
                "ours": ours[1] if ours else goal.ours[0],
                "theirs": theirs[1] if theirs else goal.theirs[0],
                "goal": goal.at_least,
                "found": times,
                "reached": None if times is None else times >= goal.at_least,
            }
    cosine = facts.get("cosines", {}).get(ZOO_INT8)
    yield {
        "model": "minilm",
        "shape": "smallest cosine",
        "ours": ZOO_INT8,
        "theirs": ZOO_FP32,
        "goal": COSINE,
        "found": cosine,
        "reached": None if cosine is None else cosine >= COSINE,
    }


def markdown(found: Mapping[str, Any], model: str) -> str:
    """The section of RESULTS.md on a model."""
    low, high = found["load"]
    count = found["rounds"]
    weights = "" if model == "minilm" else " The weights are random."
    parts = [
        f"{record.facts(found['machine'])} Medians of {count} round{'s' if count > 1 else ''}, a process for each "
        f"system, by turns of {found['seconds']:g} s; in brackets the lowest and the highest round. The machine's load "
        f"before each round was {low} to {high}.{weights}",
    ]
    systems = found["rows"][model]
    timed = {shape: None for shapes in systems.values() for shape in shapes}
    shapes = [shape for shape in timed if shape != SENTENCES]
    head = f"{model}, ms an item"
    table = [[name, *(_cell(times.get(shape)) for shape in shapes)] for name, times in systems.items()]
    if shapes:
        parts.append(record.table((head, *shapes), [row for row in table if any(row[1:])]))
    if SENTENCES in timed:
        parts.append(_texts(systems, found["facts"]))
    marks = {True: "yes", False: "**no**", None: "not timed"}
    goals = [
        [
            f"{each['shape']}: {each['ours']} against {each['theirs']}",
            f"{each['goal']:g}",
            ""
            if each["found"] is None
            else f"{each['found']:.3f}"
            if "cosine" in each["shape"]
            else f"{each['found']:.2f}",
            marks[each["reached"]],
        ]
        for each in found["goals"]
        if each["model"] == model
    ]
    parts.append(record.table(("goal, times as fast", "at least", "found", "reached"), goals))
    left = ((row, reason) for row, reason in found["skipped"].items() if row.startswith(f"{model}, "))
    parts += [f"Left out: {row}: {reason}." for row, reason in left]
    return "\n\n".join(parts)


def _texts(systems: Mapping[str, Mapping[str, Mapping[str, float]]], facts: Mapping[str, Any]) -> str:
    """Sentences per second, and the cosine to zoo's features."""
    shortest, middle, longest = facts["tokens"]
    header = (f"{SENTENCES} of {shortest} to {longest} tokens, median {middle}", "sentences/s", "smallest cosine")
    rows = []
    for name, times in systems.items():
        if SENTENCES in times:
            rate = {key: 1000 / ms for key, ms in times[SENTENCES].items()}
            near = facts.get("cosines", {}).get(name)
            shown = f"{rate['ms']:.0f} ({rate['high']:.0f} to {rate['low']:.0f})"
            rows.append([name, shown, "" if near is None else f"{near:.4f}"])
    return record.table(header, rows)


def _cell(times: Mapping[str, float] | None) -> str:
    return f"{times['ms']:.1f} ({times['low']:.1f} to {times['high']:.1f})" if times else ""
