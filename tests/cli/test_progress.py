"""The progress lines of long work without a terminal."""

import pytest
from zoo_cli import progress


def test_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    bars = progress.Bars()
    with bars.task("features", 1000) as bar:
        for _ in range(10):
            now[0] += 2.6
            bar.advance(50)
    with bars.task("pull", 5_000_000_000, "B") as bar:
        now[0] += 20
        bar.advance(20_000_000)
    with bars.task("unknown", None) as bar:
        now[0] += 11
        bar.advance(3)
    with bars.task("training", 2, "epoch") as bar:
        for _ in range(2):
            now[0] += 11
            bar.advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "features: 200 it of 1,000, 19 it/s, 42 s left",
        "features: 400 it of 1,000, 19 it/s, 31 s left",
        "features: 500 it in 26.0 s, 19 it/s",
        "pull: 20.0 MB of 5.0 GB, 1.0 MB/s, 1:23:00 left",
        "pull: 20.0 MB in 20.0 s, 1.0 MB/s",
        "unknown: 3 it, 3.7 s/it",
        "unknown: 3 it in 11.0 s, 3.7 s/it",
        "training: 1 epoch of 2, 11.0 s/epoch, 11 s left",
        "training: 2 epochs of 2, 11.0 s/epoch, 0 s left",
        "training: 2 epochs in 22.0 s, 11.0 s/epoch",
    ]
