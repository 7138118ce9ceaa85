"""The HTML page of a training report: one file without scripts that loads no other file."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from zoo.data.images import decode_image
from zoo.data.items import Item, TextPair
from zoo.errors import DataError, counted
from zoo.evaluation.report_plots import CALIBRATION, CONFUSION, CURVES, MAP, MATRIX, NARROW, SCATTER
from zoo.schema import Task

if TYPE_CHECKING:
    from zoo.evaluation.report_data import Facts, Mistake
    from zoo.results import Suspect

TEMPLATE = Path(__file__).resolve().parents[1] / "templates" / "report.html.in"
#: With more classes than this, the table of classes is folded up.
OPEN_CLASSES = 40
#: The number of notes that are shown; the others are folded up.
OPEN_NOTES = 8


def render(facts: "Facts", images: Mapping[str, bytes], items: Sequence[Item], doubtful: Sequence[Item] = ()) -> str:
    """The page for these facts, with the plots `images` by file name.

    `items` are those of the mistakes, `doubtful` those of the suspects.
    """
    plots = {
        name: _section(title, _plot(facts, images, name, caption))
        for name, (title, caption) in _plot_texts(facts).items()
        if name in images
    }
    # A large matrix gets its own row.
    large = plots.pop(CONFUSION) if _is_large(facts) else ""
    sections = [
        _notes(facts),
        f'<div class="pair">{"".join(plots.values())}</div>',
        large,
        _section("Classes", _classes(facts)) if facts.metrics.per_class else "",
        _section("Would more data help?", _learning(facts)) if facts.learning else "",
        _section("Worst mistakes", _mistakes(facts, items)),
        _section("Likely mislabelled", _suspects(facts, doubtful)) if facts.suspects else "",
    ]
    is_text = any(isinstance(item, str) for item in (*items, *doubtful))
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
            f"<strong>{metrics.r2:.3f}</strong>R² on {counted(metrics.n, 'held-out item')}: 1 is perfect, 0 is "
            f"no better than always predicting the mean. Mean absolute error {metrics.mae:.4g}, root mean square error "
            f"{metrics.rmse:.4g}."
        )
    assert metrics.accuracy_interval is not None
    low, high = metrics.accuracy_interval
    interval = f"95 % confidence interval {low:.1%} to {high:.1%}"
    if metrics.micro_f1 is not None:
        return (
            f"<strong>{metrics.macro_f1:.3f}</strong>macro-F1, the mean F1 of the labels, on {metrics.n:,} held-out "
            f"items. Micro-F1, over all labels together, {metrics.micro_f1:.3f}. Items with every label right: "
            f"{metrics.accuracy:.1%} ({interval})."
        )
    top = f" The right class is among the best five for {metrics.top5:.1%}." if metrics.top5 is not None else ""
    return (
        f"<strong>{metrics.accuracy:.1%}</strong>accuracy on {metrics.n:,} held-out items ({interval}). "
        f"Macro-F1, the mean F1 of the classes, {metrics.macro_f1:.3f}.{top}"
    )


def _trained(facts: "Facts") -> dict[str, str]:
    terms = {"Backbone": facts.backbone, "Data": facts.data, "Trained on": f"{facts.trained_on:,} items"}
    if facts.task is not Task.REGRESSION:
        terms["Trained on"] += f", {len(facts.labels):,} {'labels' if facts.task is Task.MULTI_LABEL else 'classes'}"
    best = next((line for line in facts.curve if line.epoch == facts.best_epoch), None)
    if best and best.strength is not None:
        terms["Regularisation"] = f"{best.strength:.1e} for each item, the best of {len(facts.curve):,} strengths"
    elif facts.curve:
        terms["Epochs"] = f"{len(facts.curve):,}; the model is that of epoch {facts.best_epoch:,}, the best one"
    if facts.class_weights:
        terms["Class weights"] = "used in the training loss; their effect on the scores is removed before calibration"
    return terms


def _notes(facts: "Facts") -> str:
    if not facts.notes:
        return ""
    lines = [f"<li>{_safe(note)}</li>" for note in facts.notes]
    shown, more = "".join(lines[:OPEN_NOTES]), "".join(lines[OPEN_NOTES:])
    rest = f"<details><summary>{len(lines) - OPEN_NOTES} more</summary><ul>{more}</ul></details>" if more else ""
    return _section("About the data", f'<div class="card"><ul>{shown}</ul>{rest}</div>')


def _is_large(facts: "Facts") -> bool:
    return NARROW < len(facts.metrics.confusion) <= MATRIX


def _plot(facts: "Facts", images: Mapping[str, bytes], name: str, caption: str) -> str:
    # On a phone a large matrix scrolls sideways, because a smaller one would be unreadable.
    is_wide = name == CONFUSION and _is_large(facts)
    style = f' style="min-width: {1.4 * len(facts.labels):.0f}rem"' if is_wide else ""
    image = f'<img src="{_data(images[name], "png")}" alt="{caption}"{style}>'
    return f'<figure class="plot card"><div class="scroll">{image}</div><figcaption>{caption}</figcaption></figure>'


def _curve_texts(*, is_solved: bool) -> tuple[str, str]:
    """The title and the caption of the curves of a head that was solved for several strengths, or trained in epochs."""
    if is_solved:
        return (
            "Strength of regularisation",
            "Loss and score for each strength. The items left out are training items that the measured heads did not "
            "learn, in cross-validation; no held-out item is among them.",
        )
    return (
        "Learning curves",
        "Loss and score after each epoch. The validation items are a part of the training data that only serves to "
        "choose the best epoch; no held-out item is in either part.",
    )


def _plot_texts(facts: "Facts") -> dict[str, tuple[str, str]]:
    """The title and the caption of each plot, in the order of the page."""
    is_multi, is_number = facts.task is Task.MULTI_LABEL, facts.task is Task.REGRESSION
    error = facts.metrics.calibration_error or 0
    question = "how often does the item have the label" if is_multi else "how often is it right"
    colour = "the true value" if is_number else "the true label. Crosses are mistakes"
    confusion = (
        "Confusion matrix",
        "Number of items for each true class (row) and predicted class (column). "
        "Darker: a larger share of the items of the true class.",
    )
    if is_multi:
        confusion = (
            "Right, missed and wrong labels",
            "For each label: how often it is predicted and true (right), true and not predicted (missed), and "
            "predicted and not true (wrong).",
        )
    elif len(facts.labels) > MATRIX:
        confusion = (
            "Most confused pairs of classes",
            f"The {counted(len(facts.confused), 'pair')}, of {len(facts.labels):,} classes, confused most often.",
        )
    return {
        CURVES: _curve_texts(is_solved=bool(facts.curve) and facts.curve[0].strength is not None),
        SCATTER: (
            "True and predicted values",
            "One point for each held-out item. On the dashed line the prediction is exact.",
        ),
        CONFUSION: confusion,
        CALIBRATION: (
            "How far the scores can be trusted",
            f"When the model says 80 %, {question}? In 80 % of the cases if the point is on the dashed line. The score "
            f"and that share differ by {100 * error:.1f} points on average (expected calibration error {error:.3f}).",
        ),
        MAP: (
            "Map of the held-out items",
            "Held-out items in the two directions in which their features differ most (principal axes). "
            f"Colour: {colour}.",
        ),
    }


def _classes(facts: "Facts") -> str:
    per_class = facts.metrics.per_class
    heads = {"n": "items", "precision": "precision", "recall": "recall", "f1": "F1"}
    heads["average_precision"] = "average precision"
    kept = [name for name in heads if name in next(iter(per_class.values()))]
    head = "".join(f'<th scope="col">{heads[name]}</th>' for name in kept)
    rows = ""
    for label, values in per_class.items():
        cells = "".join(f"<td>{values[name]:.{0 if name == 'n' else 3}f}</td>" for name in kept)
        rows += f'<tr><th scope="row">{_safe(label)}</th>{cells}</tr>'
    table = f'<table class="wide"><thead><tr><th scope="col">class</th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    table = f'<div class="scroll">{table}</div>'
    if len(per_class) > OPEN_CLASSES:
        table = f"<details><summary>{len(per_class):,} classes</summary>{table}</details>"
    return f'<div class="card">{table}</div>'


def _mistakes(facts: "Facts", items: Sequence[Item]) -> str:
    if not facts.mistakes:
        return '<p class="card">None: the predictions for all held-out items are right.</p>'
    cases = "".join(
        f'<li class="card">{_item(item, mistake.name)}<p class="verdict">{_verdict(facts, mistake)}</p>'
        f'<p class="name">{_safe(mistake.name)}</p></li>'
        for mistake, item in zip(facts.mistakes, items, strict=True)
    )
    order = "Largest error" if facts.task is Task.REGRESSION else "Most confident wrong prediction"
    return f'<p class="soft">{order} first.</p><ol class="mistakes">{cases}</ol>'


def _learning(facts: "Facts") -> str:
    """The table of the learning curve, and its last doubling in words."""
    name = {Task.MULTI_LABEL: "macro-F1", Task.REGRESSION: "R²"}.get(facts.task, "accuracy")
    rows = "".join(
        f'<tr><th scope="row">{point.items:,}</th><td>{point.score:.3f}</td><td>{point.loss:.3f}</td></tr>'
        for point in facts.learning
    )
    half, full = facts.learning[1], facts.learning[-1]
    gain = f"From {half.items:,} to {full.items:,} items the {name} went from {half.score:.3f} to {full.score:.3f}. "
    more = "More items will probably help." if full.loss < 0.97 * half.loss else "More items alone will hardly help."
    head = f'<tr><th scope="col">items learned</th><th scope="col">{name}</th><th scope="col">loss</th></tr>'
    table = f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    where = "Measured on training items that were left out."
    return f'<div class="card"><p>{gain}{more} <span class="soft">{where}</span></p>{table}</div>'


def _suspects(facts: "Facts", items: Sequence[Item]) -> str:
    cases = "".join(
        f'<li class="card">{_item(item, suspect.name)}<p class="verdict">{_doubt(facts, suspect)}</p>'
        f'<p class="name">{_safe(suspect.name)}</p></li>'
        for suspect, item in zip(facts.suspects, items, strict=True)
    )
    found = counted(facts.doubtful, "training item")
    return (
        f'<p class="soft">{found} of {facts.trained_on:,}: heads that did not learn the item disagree with its label. '
        f'The most doubtful first; <code>--suspects FILE</code> writes all.</p><ol class="mistakes">{cases}</ol>'
    )


def _doubt(facts: "Facts", suspect: "Suspect") -> str:
    given = _safe(suspect.label)
    if facts.task is Task.REGRESSION:
        return f"given {float(suspect.label):.4g}, predicted {float(suspect.predicted):.4g}"
    score = f"score of its label {suspect.score:.2f}"
    if facts.task is Task.MULTI_LABEL:
        has = suspect.about in suspect.label.split("|")
        doubt = "is given" if has else "is missing"
        return f"{_safe(suspect.about)} {doubt}, {score}; given: {given or 'none'}"
    return f"given {given}, predicted {_safe(suspect.predicted)} ({score})"


def _verdict(facts: "Facts", mistake: "Mistake") -> str:
    wrong = '<span class="wrong">{}</span>'.format
    if facts.task is Task.REGRESSION:
        return f"true {float(mistake.label):.4g}, predicted {wrong(f'{float(mistake.predicted):.4g}')}"
    true, score = _safe(mistake.label), f"score {mistake.score:.2f}"
    if facts.task is Task.MULTI_LABEL:
        kind = "wrong" if mistake.about in mistake.predicted.split("|") else "missed"
        return f"{wrong(_safe(mistake.about))} is {kind} ({score}); true: {true or 'none'}"
    return f"true {true}, predicted {wrong(_safe(mistake.predicted))} ({score})"


def _item(item: Item, name: str) -> str:
    if isinstance(item, TextPair):
        item = " | ".join(item)
    if isinstance(item, str):
        letters = 500
        more = f" … ({len(item):,} characters)" if len(item) > letters else ""
        return f"<blockquote><bdi>{_safe(item[:letters])}</bdi>{more}</blockquote>"
    from PIL import Image

    # Twice as many pixels as the page shows, for displays with a high resolution.
    side = 320
    try:
        image = Image.fromarray(decode_image(item, side // 2))
    except DataError:
        return '<p class="soft">This image can no longer be read.</p>'
    image.thumbnail((side, side))
    data = BytesIO()
    image.save(data, "JPEG", quality=80)
    return f'<img src="{_data(data.getvalue(), "jpeg")}" alt="{_safe(name)}">'


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>"


def _terms(facts: Mapping[str, Any]) -> str:
    return "".join(f"<dt>{_safe(name)}</dt><dd>{_safe(value)}</dd>" for name, value in facts.items())


def _data(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _safe(value: object) -> str:
    """The text escaped for HTML, with a replacement for control characters, which HTML does not allow."""
    text = "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in str(value))
    return escape(text)
