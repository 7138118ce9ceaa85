"""The plot of a comparison: PNG and SVG, with every model at its time and score."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo import Compared, Comparison, Metrics, Task, UsageError, check_plot, write_plot


def comparison(*models: tuple[str, float, float, int], choice: str = "a") -> Comparison:
    """A comparison of (name, accuracy, ms, size)."""
    rows = tuple(
        Compared(
            model=name, entry=name, metrics=Metrics(n=50, accuracy=score), interval=(score - 0.05, score + 0.05),
            behind=0.0, p_value=1.0, is_within_noise=True, size=size, dim=8, computed=50, feature_seconds=1.0,
            head_seconds=1.0, ms=ms,
        )
        for name, score, ms, size in models
    )  # fmt: skip
    return Comparison(
        data="d.csv", task=Task.SINGLE_LABEL, device="cpu", items=50, models=rows, choice=choice, why="because"
    )


def test_a_png_has_both_colours_and_equal_bytes_each_time(tmp_path: Path) -> None:
    found = comparison(("a", 0.9, 30.0, 90_000_000), ("b", 0.7, 0.05, 2_000_000))
    write_plot(found, tmp_path / "p.png")
    pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "p.png").read_bytes())).convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) > 500
    for colour in ((0x2F, 0x6D, 0xB3), (0xD9, 0x76, 0x1A)):
        assert (np.abs(pixels - colour).sum(2) == 0).sum() > 100
    write_plot(found, tmp_path / "q.png")
    assert (tmp_path / "p.png").read_bytes() == (tmp_path / "q.png").read_bytes()


def test_an_svg_has_the_names_and_places_the_faster_model_left_and_the_better_above(tmp_path: Path) -> None:
    found = comparison(("timm/slow", 0.9, 30.0, 90_000_000), ("fast$1", 0.7, 0.05, 2_000_000), choice="timm/slow")
    write_plot(found, tmp_path / "p.svg")
    drawn = (tmp_path / "p.svg").read_text()
    write_plot(found, tmp_path / "q.svg")
    assert drawn == (tmp_path / "q.svg").read_text()
    places = {
        name: tuple(map(float, re.findall(rf"translate\(([\d.]+) ([\d.]+)\)[^<]*>{re.escape(name)}<", drawn)[0]))
        for name in ("timm/slow", "fast$1")
    }
    assert places["fast$1"][0] < places["timm/slow"][0]
    assert places["timm/slow"][1] < places["fast$1"][1]
    assert "90 MB" in drawn
    assert "accuracy of items left out" in drawn


@pytest.mark.parametrize("name", ["p.pdf", "p", "p.png.txt"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"must be \.png or \.svg"):
        check_plot(tmp_path / name)


def test_a_plot_inside_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is being read"):
        check_plot(tmp_path / "data" / "p.png", inside=tmp_path / "data")
    check_plot(tmp_path / "p.png", inside=tmp_path / "data")
