"""The report: its content, escaped texts, no requests to other hosts, and its look in a real browser."""

import base64
import json
import re
import signal
import sys
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from tests.kit.browser import chromium
from zoo.data.items import Example
from zoo.evaluation.metrics import Bin, expected_error, measure
from zoo.evaluation.report import Drawing, write_report
from zoo.evaluation.report_data import Facts, ReportInputs, confused, project
from zoo.evaluation.report_page import render
from zoo.results import Epoch
from zoo.schema import Task

CURVE = tuple(
    Epoch(epoch=n, train_loss=1.4 * 0.8**n, val_loss=1.3 * 0.85**n, val_score=1 - 0.8**n) for n in range(1, 31)
)
EVIL = """<script>alert("1")</script><img src=x onerror=alert(1)> $x$ ${body} & \x00\x1b[31m\u202e 汉字 """
VOID = {"meta", "img", "br", "link"}


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def write_image(path: Path, random: np.random.Generator) -> Path:
    height, width = (int(side) for side in random.integers(40, 300, 2))
    Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def facts(
    task: Task, items: list[Path | str | bytes], labels: list[str], curve: tuple[Epoch, ...] = CURVE
) -> ReportInputs:
    """The report on items around one centre for each label, whose scores come from the centres."""
    random = np.random.default_rng(0)
    count = len(items)
    centres = random.normal(0, 1.5, (len(labels), 40))
    noise = random.normal(0, 3, (count, 40))
    if task is Task.SINGLE_LABEL:
        targets = random.integers(0, len(labels), count)
        features = centres[targets] + noise
        scores = softmax((features @ centres.T) / 8)
        words = [labels[target] for target in targets]
    elif task is Task.MULTI_LABEL:
        targets = (random.random((count, len(labels))) < 0.4).astype(np.float32)
        features = targets @ centres + noise / 3
        scores = (1 / (1 + np.exp(-(features @ centres.T - 40) / 25))).astype(np.float32)
        words = ["|".join(label for label, holds in zip(labels, row, strict=True) if holds) for row in targets]
    else:
        features = noise
        targets = (features[:, :1] * 2).astype(np.float32)
        scores = (targets + random.normal(0, 1, targets.shape)).astype(np.float32)
        words = [f"{value:.6g}" for value in targets[:, 0]]
    examples = [
        Example(f"{i:03d}", item, word, str(i)) for i, (item, word) in enumerate(zip(items, words, strict=True))
    ]
    return ReportInputs(
        name="a <b>model</b>", backbone="tiny-lite", data="data/train", task=task, labels=tuple(labels),
        metrics=measure(task, scores, targets, labels), trained_on=400, curve=curve, best_epoch=min(23, len(curve)),
        examples=tuple(examples), scores=scores, targets=targets, features=features.astype(np.float32),
        options={"epochs": 30, "text": "<i>"}, versions={"torch": "2"}, notes=("2 files were skipped: <a>, b",),
    )  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path | str | bytes]:
    """Sixty-one images: the last one as bytes, the others as files."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(1)
    files = [write_image(folder / f"{number}.png", random) for number in range(61)]
    return [files[0].read_bytes(), *files[1:]]


def three(images: list[Path | str | bytes]) -> dict[str, ReportInputs]:
    """A report for each task: images with one class, images with several labels, texts with a number."""
    texts: list[Path | str | bytes] = [EVIL * (2000 if number % 3 == 0 else 1) for number in range(80)]
    return {
        "single": facts(
            Task.SINGLE_LABEL, images, ["cat", "<dog> & $x$", "a very long name of a class, number 3", "b"]
        ),
        "several": facts(Task.MULTI_LABEL, images, ["sea", "snow", "<i>"]),
        "number": facts(Task.REGRESSION, texts, ["stars"]),
    }


@pytest.fixture(scope="module")
def written(images: list[Path | str | bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each report."""
    folders = {}
    for name, report in three(images).items():
        folders[name] = tmp_path_factory.mktemp(name)
        write_report(folders[name], report)
    return folders


# Forked children draw smaller plots (tests/kit/plots.py).
@pytest.mark.usefixtures("real_processes")
def test_a_child_draws_the_same(
    images: list[Path | str | bytes], written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.evaluation.report_plots.draw", lambda *_: pytest.fail("it was drawn here"))
    for name, report in three(images).items():
        with Drawing() as drawing:
            drawing.begin(report)
            write_report(tmp_path / name, report, drawing.result())
        assert {path.name for path in (tmp_path / name).iterdir()} == {path.name for path in written[name].iterdir()}
        for path in written[name].iterdir():
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("way", ["cannot start", "ends at once", "is killed", "talks nonsense"])
def test_without_the_child_the_plots_are_drawn_here(
    written: dict[str, Path], images: list[Path | str | bytes], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    command = {
        "cannot start": ["/nowhere/python"],
        "ends at once": [sys.executable, "-c", "raise SystemExit(3)"],
        "is killed": [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"],
        "talks nonsense": [sys.executable, "-c", "import sys; sys.stdin.buffer.readline(); print('nonsense')"],
    }[way]
    monkeypatch.setattr("zoo.evaluation.report.python", lambda *_: command)
    with Drawing() as drawing:
        drawing.begin(three(images)["number"])
        _, drawn = drawing.result()
    assert drawn == {path.name: path.read_bytes() for path in written["number"].glob("*.png")}


def test_after_an_error_nothing_is_drawn(images: list[Path | str | bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.evaluation.report_plots.draw", lambda *_: pytest.fail("it was drawn here"))
    monkeypatch.setattr(
        "zoo.evaluation.report.python", lambda *_: [sys.executable, "-c", "import time; time.sleep(60)"]
    )
    with Drawing() as drawing:
        drawing.begin(three(images)["number"])
    assert drawing.result()[1] == {}


def test_a_child_ends_with_its_context() -> None:
    with Drawing() as drawing:
        child = drawing._child
    assert child is not None
    assert child.process.returncode == -signal.SIGKILL


class Page(HTMLParser):
    """The tags and texts of a page; the tags must nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", ["single", "several", "number"])
def test_the_page_is_whole_and_needs_nothing_else(written: dict[str, Path], name: str) -> None:
    text = (written[name] / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert {"main", "header", "section", "figure", "figcaption", "h1", "h2", "dl"} <= {tag for tag, _ in page.tags}
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "i", "b"} == set()
    for tag, attributes in page.tags:
        assert [key for key in attributes if key.startswith("on") or key == "href"] == [], tag
        if "src" in attributes:
            source = attributes["src"] or ""
            assert source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
            assert attributes["alt"]
            Image.open(BytesIO(base64.b64decode(source.partition(",")[2]))).load()
    assert not re.search(r"https?://|file://|url\(|@import", text)
    assert "a <b>model</b>" in page.text
    assert "2 files were skipped: <a>, b" in page.text
    assert "400 items" in page.text


def test_texts_are_shown_as_they_are_and_cut(written: dict[str, Path]) -> None:
    raw = (written["number"] / "report.html").read_text(encoding="utf-8")
    page = Page(raw)
    assert '<script>alert("1")</script><img src=x onerror=alert(1)> $x$ ${body} &' in page.text
    assert "汉字" in page.text
    assert f"({len(EVIL) * 2000:,} characters)" in page.text
    assert not set(raw) & {"\x00", "\x1b", "\u202e"}
    assert len(raw) < 1_000_000


@pytest.mark.parametrize("name", ["single", "several", "number"])
def test_the_images_and_the_page_hold_the_same_plots(written: dict[str, Path], name: str) -> None:
    names = {path.name for path in written[name].iterdir()}
    plots = {"report-curves.png", "report-map.png"}
    plots |= {"report-scatter.png"} if name == "number" else {"report-confusion.png", "report-calibration.png"}
    assert names == {"report.html", "report.json", *plots}
    page = (written[name] / "report.html").read_text()
    for plot in plots:
        data = (written[name] / plot).read_bytes()
        assert base64.b64encode(data).decode() in page
        with Image.open(BytesIO(data)) as image:
            image.load()
            assert image.info.keys() == {"dpi"}
            # The plot has many colours, so it is not empty.
            assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 20


def test_the_numbers_give_the_metrics_again(written: dict[str, Path], images: list[Path | str | bytes]) -> None:
    reports = three(images)
    for name, folder in written.items():
        data = json.loads((folder / "report.json").read_bytes())
        assert data["schema_version"] == 1
        found = msgspec.convert(data, Facts)
        assert found.metrics == reports[name].metrics
        assert found.curve == CURVE
        spots = found.map
        assert len(spots.x) == len(spots.y) == len(spots.label) == len(reports[name].examples)
        if name == "number":
            truth, said = ([float(value) for value in values] for values in (spots.label, spots.predicted))
            again = measure(Task.REGRESSION, np.array(said)[:, None], truth, [])
            assert (again.mae, again.r2) == pytest.approx((found.metrics.mae, found.metrics.r2), rel=1e-4)
            continue
        assert np.mean(spots.right) == pytest.approx(found.metrics.accuracy)
        bins = [Bin(**each) for each in data["calibration"]]
        assert expected_error(bins) == pytest.approx(found.metrics.calibration_error)
        if name == "single":
            wrong = [label != said for label, said in zip(spots.label, spots.predicted, strict=True)]
            assert sum(pair.n for pair in found.confused) == sum(wrong) == sum(found.wrongly_given.values())
        else:
            pairs = zip(spots.label, spots.predicted, strict=True)
            given = [set(said.split("|")) - set(label.split("|")) - {""} for label, said in pairs]
            assert sum(map(len, given)) == sum(found.wrongly_given.values())


def test_the_worst_mistakes_come_first(images: list[Path | str | bytes], tmp_path: Path) -> None:
    report = three(images)["single"]
    found = write_report(tmp_path, report).mistakes
    wrong = [i for i, row in enumerate(report.scores) if row.argmax() != report.targets[i]]
    worst = sorted(wrong, key=lambda i: -report.scores[i].max())[:12]
    assert [mistake.place for mistake in found] == worst
    for mistake in found:
        assert mistake.label == report.labels[report.targets[mistake.place]] != mistake.predicted == mistake.about
        assert mistake.score == pytest.approx(report.scores[mistake.place].max())


def test_the_worst_decision_of_several_labels() -> None:
    from zoo.evaluation.report_data import gather

    scores = np.array([[0.95, 0.1], [0.2, 0.55], [0.9, 0.9]], np.float32)
    targets = np.array([[0, 0], [1, 0], [1, 1]], np.float32)
    report = facts(Task.MULTI_LABEL, ["x", "y", "z"], ["a", "b"])
    labels = ["", "a", "a|b"]
    examples = tuple(msgspec.structs.replace(e, label=label) for e, label in zip(report.examples, labels, strict=True))
    report = msgspec.structs.replace(report, scores=scores, targets=targets, examples=examples, thresholds=(0.3, 0.5))
    found = gather(report).mistakes
    # From the threshold 0.3, 0.95 is 93 % of the way to 1, and 0.2 a third of the way to 0.
    assert [(m.place, m.about, m.predicted) for m in found] == [(0, "a", "a"), (1, "a", "b")]
    page = render(gather(report), {}, ["x", "y"])
    assert "</span> is wrong (score 0.95); true: none" in page
    assert "</span> is missed (score 0.20); true: a" in page


def test_the_same_facts_give_the_same_bytes(
    images: list[Path | str | bytes], written: dict[str, Path], tmp_path: Path
) -> None:
    import matplotlib

    for name, report in three(images).items():
        # A user's matplotlib settings have no effect.
        with matplotlib.rc_context({"font.size": 20, "savefig.dpi": 30, "axes.facecolor": "red"}):
            write_report(tmp_path, report)
            assert matplotlib.rcParams["font.size"] == 20
        for path in written[name].iterdir():
            assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.MULTI_LABEL, Task.REGRESSION])
def test_hardly_any_items(tmp_path: Path, task: Task, count: int) -> None:
    write_report(tmp_path, facts(task, ["text"] * count, ["a", "b"], CURVE[:1]))
    Page((tmp_path / "report.html").read_text())


def test_no_mistake_no_curve_and_an_image_that_went(tmp_path: Path) -> None:
    report = facts(Task.SINGLE_LABEL, ["x"] * 20, ["a", "b"], ())
    scores = np.eye(2, dtype=np.float32)[report.targets]
    perfect = msgspec.structs.replace(
        report, scores=scores, features=report.features * 0, metrics=measure(report.task, scores, report.targets, "ab")
    )
    write_report(tmp_path, perfect)
    assert "None: the predictions for all held-out items are right" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "report-curves.png").exists()
    gone = facts(Task.SINGLE_LABEL, [tmp_path / "gone.jpg"] * 20, ["a", "b"])
    write_report(tmp_path, gone)
    assert "This image can no longer be read" in (tmp_path / "report.html").read_text()


def test_many_classes_are_shown_by_their_pairs(tmp_path: Path) -> None:
    labels = [f"class {number}" for number in range(60)]
    found = write_report(tmp_path, facts(Task.SINGLE_LABEL, ["x"] * 400, labels))
    page = Page((tmp_path / "report.html").read_text())
    assert "Most confused pairs" in page.text
    assert "60 classes" in page.text
    assert len(found.confused) == 20
    assert [pair.n for pair in found.confused] == sorted((pair.n for pair in found.confused), reverse=True)
    assert confused([[5, 2, 0], [3, 9, 1], [0, 0, 0]], "abc")[0].label == "b"


def test_the_map_is_principal_components() -> None:
    random = np.random.default_rng(7)
    features = (random.normal(size=(300, 5)) @ random.normal(size=(5, 90)) + 3).astype(np.float32)
    spots, variance = project(features)
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(spots), np.abs(centred @ rows[:2].T), atol=1e-6 * values[0])
    assert variance == pytest.approx(tuple(values[:2] ** 2 / (values**2).sum()))
    # Items on a line have one axis, equal items have none.
    line, shares = project(np.outer(np.arange(9), np.ones(4)).astype(np.float32))
    assert shares == (pytest.approx(1), 0)
    assert not line[:, 1].any()
    assert project(np.ones((1, 4), np.float32))[1] == (0, 0)


@pytest.mark.parametrize("name", ["single", "several", "number"])
def test_a_browser_shows_it(written: dict[str, Path], tmp_path: Path, name: str) -> None:
    with chromium() as browser:
        for width, scheme in ((1400, "light"), (400, "dark")):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page = context.new_page()
            said: list[str] = []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto((written[name] / "report.html").as_uri())
            assert said == []
            assert [url[:60] for url in asked if not url.startswith("data:")] == [page.url[:60]]
            images = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
            assert len(images) >= 3
            assert all(images)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            # Elements without their own scroll bar do not stick out, either.
            wide = """[...document.querySelectorAll('body *')].filter(each => !each.closest('.scroll')
                && each.getBoundingClientRect().right > innerWidth + 1).map(each => each.outerHTML.slice(0, 80))"""
            assert page.evaluate(wide) == []
            shot = page.screenshot(full_page=True, path=tmp_path / f"{name}-{width}.png")
            assert Image.open(BytesIO(shot)).size[0] == width
            context.close()
