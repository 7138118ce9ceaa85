"""The page of a report: HTML that needs nothing but itself, no script and no other file."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from zoo.data.images import decode_image
from zoo.errors import DataError
from zoo.evaluation.report_plots import CALIBRATION, CONFUSION, CURVES, MAP, MATRIX, NARROW, SCATTER
from zoo.schema import Task

if TYPE_CHECKING:
    from zoo.evaluation.report_data import Facts, Mistake

TEMPLATE = Path(__file__).resolve().parents[1] / "templates" / "report.html.in"
#: Pixels of a thumbnail's long side, twice what the page shows; letters of a text.
THUMBNAIL, LETTERS = 320, 500
#: Rows of the table of classes that are shown without a click; notes likewise.
ROWS, NOTES = 40, 8
HEADS = {"n": "items", "precision": "precision", "recall": "recall", "f1": "F1", "average_precision": "avg. precision"}


def render(facts: "Facts", images: Mapping[str, bytes], items: Sequence[Path | str | bytes]) -> str:
    """The page of these facts, with the plots in `images` by their names and the `items` of the mistakes."""
    titles = {
        CURVES: "Learning curves",
        SCATTER: "Truth and prediction",
        CONFUSION: _confusion_title(facts),
        CALIBRATION: "Calibration",
        MAP: "Map of the features",
    }
    plots = {name: _section(title, _plot(facts, images, name)) for name, title in titles.items() if name in images}
    # A large matrix has a row of its own.
    large = plots.pop(CONFUSION) if NARROW < len(facts.metrics.confusion) <= MATRIX else ""
    sections = [
        _notes(facts),
        f'<div class="pair">{"".join(plots.values())}</div>',
        large,
        _section("Classes", _classes(facts)) if facts.metrics.per_class else "",
        _section("Worst mistakes", _mistakes(facts, items)),
    ]
    is_text = bool(items) and isinstance(items[0], str)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_safe(f"{facts.name}: {facts.task} on {facts.backbone}"),
        headline=_headline(facts),
        trained=_terms(_trained(facts)),
        body="\n".join(section for section in sections if section),
        options=_terms({**facts.options, **{f"version of {name}": text for name, text in facts.versions.items()}}),
        card="20rem" if is_text else "11rem",
    )


def _headline(facts: "Facts") -> str:
    metrics = facts.metrics
    if metrics.r2 is not None:
        return (
            f"<strong>{metrics.r2:.3f}</strong>R² on {metrics.n:,} held-out items. Mean absolute error "
            f"{metrics.mae:.4g}, root mean square error {metrics.rmse:.4g}."
        )
    assert metrics.accuracy is not None
    assert metrics.accuracy_interval is not None
    low, high = metrics.accuracy_interval
    interval = f"95 % interval {low:.1%} to {high:.1%}"
    if metrics.micro_f1 is not None:
        return (
            f"<strong>{metrics.macro_f1:.3f}</strong>macro-F1 on {metrics.n:,} held-out items. Micro-F1 "
            f"{metrics.micro_f1:.3f}; every label of an item right: {metrics.accuracy:.1%} ({interval})."
        )
    top = f", top-5 accuracy {metrics.top5:.1%}" if metrics.top5 is not None else ""
    return (
        f"<strong>{metrics.accuracy:.1%}</strong>accuracy on {metrics.n:,} held-out items ({interval}). "
        f"Macro-F1 {metrics.macro_f1:.3f}{top}."
    )


def _trained(facts: "Facts") -> dict[str, Any]:
    told: dict[str, Any] = {"Backbone": facts.backbone, "Data": facts.data}
    told["Trained on"] = f"{facts.trained_on:,} items"
    if facts.task is not Task.REGRESSION:
        told["Trained on"] += f", {len(facts.labels):,} {'labels' if facts.task is Task.MULTI_LABEL else 'classes'}"
    if facts.curve:
        told["Epochs"] = f"{len(facts.curve):,}, the best was {facts.best_epoch:,}"
    if facts.class_weights:
        told["Class weights"] = "used in the loss; calibration is measured with them taken out"
    return told


def _notes(facts: "Facts") -> str:
    if not facts.notes:
        return ""
    shown = "".join(f"<li>{_safe(note)}</li>" for note in facts.notes[:NOTES])
    more = "".join(f"<li>{_safe(note)}</li>" for note in facts.notes[NOTES:])
    rest = f"<details><summary>{len(facts.notes) - NOTES} more</summary><ul>{more}</ul></details>" if more else ""
    return _section("About the data", f'<div class="card"><ul>{shown}</ul>{rest}</div>')


def _confusion_title(facts: "Facts") -> str:
    if facts.task is Task.MULTI_LABEL:
        return "Right, missed and wrongly given labels"
    return "Confusion" if len(facts.labels) <= MATRIX else "Most confused pairs"


def _plot(facts: "Facts", images: Mapping[str, bytes], name: str) -> str:
    caption = _safe(_caption(facts, name))
    wide = name == CONFUSION and NARROW < len(facts.metrics.confusion) <= MATRIX
    # It scrolls sideways on a phone rather than shrink until nobody can read it.
    style = f' style="min-width: {1.4 * len(facts.labels):.0f}rem"' if wide else ""
    image = f'<img src="{_data(images[name], "png")}" alt="{caption}"{style}>'
    return f'<figure class="plot card"><div class="scroll">{image}</div><figcaption>{caption}</figcaption></figure>'


def _caption(facts: "Facts", name: str) -> str:
    several, is_number = facts.task is Task.MULTI_LABEL, facts.task is Task.REGRESSION
    if name == CURVES:
        return "Loss of the trained items and of an inner part that chooses the epoch; no held-out item is among them."
    if name == SCATTER:
        return "A point an item; on the dashed line the prediction is exact."
    if name == CALIBRATION:
        score = "a label's score" if several else "the score"
        error = f"{facts.metrics.calibration_error or 0:.3f} apart on average (expected calibration error)"
        return f"How often {score} is right, against what it promises: {error}."
    if name == MAP:
        colour = "Colour: what is true." if is_number else "Colour: what is true; cross: a mistake."
        return f"Held-out items on the first two principal axes of their features. {colour}"
    if several:
        return "Items that each label is rightly given to, those that miss it, and those wrongly given it."
    if len(facts.labels) > MATRIX:
        return f"Of {len(facts.labels):,} classes, the {len(facts.confused)} pairs that are most often confused."
    return "Items by true class (rows) and answer (columns); shaded by the share of the true class."


def _classes(facts: "Facts") -> str:
    per_class = facts.metrics.per_class
    kept = [name for name in HEADS if name in next(iter(per_class.values()))]
    head = "".join(f'<th scope="col">{HEADS[name]}</th>' for name in kept)
    rows = "".join(
        f'<tr><th scope="row">{_safe(label)}</th>'
        + "".join(f"<td>{values[name]:.0f}</td>" if name == "n" else f"<td>{values[name]:.3f}</td>" for name in kept)
        + "</tr>"
        for label, values in per_class.items()
    )
    table = f'<table class="wide"><thead><tr><th scope="col">class</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    table = f'<div class="scroll">{table}</div>'
    if len(per_class) > ROWS:
        table = f"<details><summary>{len(per_class):,} classes</summary>{table}</details>"
    return f'<div class="card">{table}</div>'


def _mistakes(facts: "Facts", items: Sequence[Path | str | bytes]) -> str:
    if not facts.mistakes:
        return '<p class="card">None: every held-out item is answered rightly.</p>'
    cases = "".join(
        f'<li class="card">{_item(item, mistake.name)}<p class="verdict">{_verdict(facts, mistake)}</p>'
        f'<p class="name">{_safe(mistake.name)}</p></li>'
        for mistake, item in zip(facts.mistakes, items, strict=True)
    )
    order = "largest error" if facts.task is Task.REGRESSION else "surest wrong answer"
    return f'<p class="soft">The {order} first.</p><ol class="mistakes">{cases}</ol>'


def _verdict(facts: "Facts", mistake: "Mistake") -> str:
    if facts.task is Task.REGRESSION:
        return f'{float(mistake.label):.4g} is taken for <span class="wrong">{float(mistake.predicted):.4g}</span>'
    if facts.task is Task.MULTI_LABEL:
        held = mistake.about not in mistake.predicted.split("|")
        what = "missed" if held else "wrongly given"
        return (
            f'<span class="wrong">{_safe(mistake.about)}</span> {what} ({mistake.score:.2f}); '
            f"true: {_safe(mistake.label) or 'none'}"
        )
    return (
        f'{_safe(mistake.label)} is taken for <span class="wrong">{_safe(mistake.predicted)}</span> '
        f"({mistake.score:.2f})"
    )


def _item(item: Path | str | bytes, name: str) -> str:
    if isinstance(item, str):
        more = f" … ({len(item):,} characters)" if len(item) > LETTERS else ""
        return f"<blockquote><bdi>{_safe(item[:LETTERS])}</bdi>{more}</blockquote>"
    from PIL import Image

    try:
        picture = Image.fromarray(decode_image(item, THUMBNAIL // 2))
    except DataError:
        return '<p class="soft">This picture cannot be read any more.</p>'
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    data = BytesIO()
    picture.save(data, "JPEG", quality=80)
    return f'<img src="{_data(data.getvalue(), "jpeg")}" alt="{_safe(name)}">'


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>"


def _terms(facts: Mapping[str, Any]) -> str:
    return "".join(f"<dt>{_safe(name)}</dt><dd>{_safe(value)}</dd>" for name, value in facts.items())


def _data(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _safe(value: object) -> str:
    """Text for HTML: escaped, and without the control characters that HTML has no place for."""
    text = "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in str(value))
    return escape(text)
