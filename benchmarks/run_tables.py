"""The goals of `run.py`, and its sections of RESULTS.md."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import photos
import record

TEXTS = ("bare", "zoo", "fastembed", "sentence-transformers")
TITLES = {
    "resnet50": "zoo run: resnet50",
    "lite0": "zoo run: efficientnet_lite0",
    "minilm": "zoo embed: minilm",
    "costs": "zoo run: a call and a cold start",
    "memory": "zoo embed: memory",
}
WORDS = {"bare": "bare ONNX Runtime loop", "zoo": "zoo"}
#: The goal of each part, as a fraction of the bare loop's rate.
SHARES = {"resnet50": 0.95, "lite0": 0.88, "minilm": 0.95}
#: The peers from files, and the goal of each, as times of its rate.
PEERS = {"torchvision": 1.2, "timm": 1.2, "openvino": 1.0}
OVERHEAD_MS, COLD_TIMES, MEMORY_MB = 0.3, 2.0, 300


class Goal(NamedTuple):
    """A goal: its title, its limit in words, the measured value, and whether it is met."""

    what: str
    limit: str
    found: str
    is_reached: bool


def share(rates: Mapping[str, Sequence[float]], ours: str, theirs: str) -> float:
    """The speed-up: the median over the rounds, each of which timed both one after the other."""
    return median(one / other for one, other in zip(rates[ours], rates[theirs], strict=True))


def goals(part: str, found: Mapping[str, Any]) -> Iterator[Goal]:
    """The goals of a part."""
    if part in SHARES:
        rates, least = found["rates"], SHARES[part]
        times = share(rates, "zoo", "bare")
        yield Goal("zoo against the bare loop", f">= {least}", f"{times:.3f}", times >= least)
        for peer in (name for name in rates if name not in WORDS):
            times = share(rates, "zoo", peer)
            least = PEERS.get(peer, 1.0)
            yield Goal(f"zoo against {peer}", f"> {least:g}", f"{times:.2f}", times > least)
    elif part == "costs":
        for model, each in found["overhead"].items():
            over = each["over"]
            yield Goal(f"a call: {model}, ms over the sessions'", f"< {OVERHEAD_MS}", f"{over:.3f}", over < OVERHEAD_MS)
        for model, each in found["cold"].items():
            times = each["ratio"]
            yield Goal(
                f"cold start: {model}, times the bare one", f"<= {COLD_TIMES:g}", f"{times:.2f}", times <= COLD_TIMES
            )
        is_clean = not any(found["torch"].values())
        yield Goal("a cold `zoo run` imports torch", "never", "never" if is_clean else "it does", is_clean)
    else:
        for name, each in found.items():
            if name != "load":
                above = each["above"]
                yield Goal(
                    f"{each['inputs']:,} {name}, MB above the model",
                    f"< {MEMORY_MB}",
                    f"{above:.0f}",
                    above < MEMORY_MB,
                )


def markdown(result: Mapping[str, Any], part: str) -> str:
    """The section of RESULTS.md on a part."""
    found = result["parts"][part]
    machine = {**result["machine"], **found.get("versions", {})}
    parts = [f"{record.facts(machine)} The machine's load before it was {found['load']}."]
    if part in SHARES:
        parts += _throughput(result, part, found)
    elif part == "costs":
        parts += _costs(found, result["rounds"])
    else:
        parts.append(_memory(found))
    rows = [[goal.what, goal.limit, goal.found, "yes" if goal.is_reached else "**no**"] for goal in goals(part, found)]
    parts.append(record.table(("goal", "limit", "found", "reached"), rows))
    return "\n\n".join(parts)


def _throughput(result: Mapping[str, Any], part: str, found: Mapping[str, Any]) -> Iterator[str]:
    items, command, width_height = result["items"], found["command"], "x".join(map(str, photos.SIZE))
    is_text = part == "minilm"
    what = f"{items:,} sentences" if is_text else f"turns of {found['turn']} JPEGs of {width_height}"
    weights = " The weights are random." if part == "resnet50" else ""
    yield (
        f"Medians of {result['rounds']} rounds, {what}, a process for each system, by turns; in brackets the lowest "
        f"and the highest round.{weights}"
    )
    header = ["", "items/s"] + (["start, s", "smallest cosine with zoo's"] if is_text else [])
    rows = []
    for name, rates in found["rates"].items():
        chose = found["bare"] if name == "bare" else found.get(name, {})
        words = WORDS.get(name, name) + "".join(f", {key} {value}" for key, value in chose.items() if name != "zoo")
        row = [words, f"{median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"]
        if is_text:
            near = found["cosines"].get(name)
            row += [f"{found['started'][name]:.1f}", "" if near is None else f"{near:.5f}"]
        rows.append(row)
    rows.append(
        [f"the whole command, {items:,} items in {command['wall']:.1f} s", f"{command['rate']:.1f}"]
        + ([""] * 2 if is_text else [])
    )
    yield record.table(header, rows)
    stages = found["stages"]
    yield record.table(("ms an item, each stage alone", *stages), [["", *(f"{ms:.2f}" for ms in stages.values())]])
    if is_text:
        yield "A start is the imports, the model, the choice of a batch and the first answers."
    else:
        yield (
            "Decoding, resizing and normalising are those of one core, the body that of all. The last column is what "
            "they would take together if the cores shared the work without loss."
        )


def _costs(found: Mapping[str, Any], rounds: int) -> Iterator[str]:
    rows = [
        [model, *(f"{each[key]:.2f}" for key in ("ours", "bare", "over"))] for model, each in found["overhead"].items()
    ]
    yield record.table(("one item, ms", "`Session.run`", "the sessions' own calls", "more"), rows)
    starts = found["cold"].items()
    rows = [[model, *(f"{each[key]:.2f}" for key in ("ours", "bare", "ratio"))] for model, each in starts]
    yield record.table(("cold, s", "`zoo run`, start to end", "both packages and a session", "times"), rows)
    yield f"Medians, by turns: calls of one process, and {rounds} cold starts each."


def _memory(found: Mapping[str, Any]) -> str:
    rows = [
        [f"{each['inputs']:,} {name}", *(f"{each[key]:.0f}" for key in ("before", "peak", "above"))]
        for name, each in found.items() if name != "load"
    ]  # fmt: skip
    header = ("`embed` into a .npy file, MB", "model loaded, a batch run", "highest from then on", "more")
    return (
        record.table(header, rows)
        + "\n\nThe texts are those of MiniLM's section, made as they are read. The images are JPEGs from files, "
        "through Lite0 on 32x32 pixels, so that a hundred thousand are done in minutes."
    )
