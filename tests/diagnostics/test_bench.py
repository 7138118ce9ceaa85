"""zoo bench: the timed systems, its output and its refusals. No test depends on a measured time."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from zoo_cli.bench import _next as next_of

from tests.kit.cli import fails, parsed, zoo
from tests.kit.items import write_images, write_texts
from tests.kit.models import SIDE
from tests.kit.word_tables import WORDS, binary, row, vectors, write_registry
from zoo import Benchmark, BenchOptions, Bundle, Timing, UsageError, Variant, Zoo, ZooError
from zoo.diagnostics.bench import CHANNELS_LAST, GRAPH, TORCH, WHOLE, inputs, verdicts
from zoo.diagnostics.timing import Stopwatch, System, torch_module
from zoo.runtime.ort import create_session

#: One thread, because several threads of two processes at once wait for each other.
SHORT = ("--rounds", "2", "--seconds", "0.001", "--threads", "1")
#: The area of a published model's images over that of tiny-lite's, which is the ratio of the convolutions' work.
AREAS = (224 / SIDE) ** 2


def systems(found: dict[str, list[dict[str, object]]]) -> set[tuple[object, object]]:
    return {(each["system"], each["batch"]) for each in found["timings"]}


def test_images_beside_torch(shelf: Path) -> None:
    done = zoo("bench", "tiny-lite", *SHORT, "--rounds", 1, "--against", "torch", "--json")
    found = parsed(done)["bench"]
    both = {(name, batch) for name in (GRAPH, TORCH, CHANNELS_LAST) for batch in (1, 8, 32)}
    assert systems(found) == {*both, (WHOLE, 1)}
    assert (found["model"], found["entry"], found["precision"]) == ("tiny-lite", "tiny-lite", "fp32")
    assert found["size"] == Zoo().graph("tiny-lite").model.stat().st_size
    # EfficientNet-B0 has 0.386 thousand million at 224 pixels. Lite0 has no squeezing, and here no classifier.
    assert 380e6 < found["macs"] * AREAS < 390e6
    assert found["peak"] > 0
    assert "2048 x 2048" in found["peak_is"]
    assert found["length"] is None
    assert found["rival"] == "torch"
    assert [each["system"] for each in found["cold"]] == ["onnxruntime", "torch"]
    for each in found["timings"]:
        assert 0 < each["low"] <= each["ms"] <= each["high"]
        assert each["per_second"] == pytest.approx(1000 * each["batch"] / each["ms"])
        share = 2 * found["macs"] * each["batch"] / (each["ms"] / 1000) / (found["peak"] * 1e9)
        assert each["of_peak"] == (None if each["system"] == WHOLE else pytest.approx(share))
    assert [verdict["batch"] for verdict in found["verdicts"]] == [1, 8, 32]


def test_texts_of_a_length(shelf: Path) -> None:
    done = zoo("bench", "tiny-bert", *SHORT, "--length", 16)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("tiny-bert: fp32, ")
    assert lines[0].endswith("on cpu with 1 thread, texts of 16 tokens")
    rows = [line.split()[:2] for line in lines if line.startswith("zoo ")]
    assert rows == [["zoo", "1"], ["zoo", "8"], ["zoo", "32"]]
    assert any(line.startswith("cold start with onnxruntime: ") for line in lines)
    assert "next: zoo bench tiny-bert --against torch" in done.stderr
    found = parsed(zoo("bench", "tiny-bert", *SHORT, "--json"))["bench"]
    assert found["length"] == 32
    assert (found["rival"], found["verdicts"]) == (None, [])
    hidden, inner, layers, tokens = 32, 64, 2, 32
    of_a_token = 4 * hidden * hidden + 2 * hidden * inner + 2 * tokens * hidden
    # Pooling may be a matrix product, too, but a small one compared with the layers.
    assert found["macs"] == pytest.approx(layers * tokens * of_a_token, rel=0.01)


def test_a_fine_tuned_bundle_beside_torch(shelf: Path, tuned: Path) -> None:
    found = parsed(zoo("bench", tuned / "out", *SHORT, "--against", "torch", "--json"))["bench"]
    assert (found["model"], found["entry"]) == (str(tuned / "out"), "tiny-bert")
    assert systems(found) == {(name, batch) for name in (GRAPH, TORCH) for batch in (1, 8, 32)}
    done = zoo("bench", tuned / "out", *SHORT, "--against", "torch")
    assert "-o DIR --precision int8 --calibrate DATA\n" in done.stderr
    said = [line for line in done.stdout.splitlines() if "at batch" in line]
    assert len(said) == 3
    assert all("times faster than" in line or line.startswith("no clear difference") for line in said)


@pytest.mark.parametrize("unfreeze", [0, 1])
def test_torch_computes_what_the_bundle_does(deep_shelf: Path, tmp_path: Path, unfreeze: int) -> None:
    import torch

    data = write_texts(tmp_path / "tickets.csv")
    options = ("--epochs", 2, "--lr", 0.001, "--head", "mlp:8", "--unfreeze", unfreeze)
    done = zoo("finetune", "tiny-bert", data, "-o", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    house, bundle = Zoo(), Bundle.open(tmp_path / "out")
    backbone = house.plugins.backbone("bert")(house.entry("tiny-bert"), house.pull("tiny-bert"))
    module = torch_module(bundle, backbone)
    feeds = inputs(bundle, 12).body
    session = create_session(bundle.read_model(), "cpu")
    with torch.inference_mode():
        found = module(*(torch.from_numpy(feeds[name]) for name in ("input_ids", "attention_mask"))).numpy()
    np.testing.assert_allclose(found, session.run(["scores"], dict(feeds))[0], atol=1e-5)


def test_what_is_timed_is_real(shelf: Path) -> None:
    house = Zoo()
    pixels = inputs(house.graph("tiny-lite"), None)
    assert pixels.body["pixels"].shape == (32, 3, SIDE, SIDE)
    assert pixels.body["pixels"].std() > 0.1
    assert pixels.raw["image"].dtype == np.uint8
    tokens = inputs(house.graph("tiny-bert"), 24)
    assert tokens.body["input_ids"].shape == (32, 24)
    assert tokens.body["attention_mask"].all()
    assert len(np.unique(tokens.body["input_ids"], axis=0)) > 8
    assert tokens.raw["input_ids"].shape == (1, 24)


@pytest.mark.parametrize(
    ("wanted", "has_whole"),
    [
        ({"raw": True}, False),
        pytest.param({"precision": "fp16"}, True, marks=pytest.mark.slow),
        pytest.param({"precision": "int8"}, True, marks=pytest.mark.slow),
    ],
    ids=["raw", "fp16", "int8"],
)
def test_every_form_of_an_image_model(shelf: Path, tmp_path: Path, wanted: dict[str, object], has_whole: bool) -> None:
    calibrate = str(write_images(tmp_path / "images", 6)) if wanted.get("precision") == "int8" else None
    bundle = Zoo().export("tiny-lite", tmp_path / "out", Variant(calibrate=calibrate, **wanted))  # type: ignore[arg-type]
    found = parsed(zoo("bench", bundle.path, *SHORT, "--rounds", 1, "--json"))["bench"]
    whole = {(WHOLE, 1)} if has_whole else set()
    assert systems(found) == {(GRAPH, 1), (GRAPH, 8), (GRAPH, 32)} | whole
    assert 380e6 < found["macs"] * AREAS < 390e6
    given, plain = inputs(bundle, None), inputs(Zoo().graph("tiny-lite"), None)
    np.testing.assert_allclose(given.body["pixels"], plain.body["pixels"], atol=1e-5)
    assert {name: len(array) for name, array in given.raw.items()} == {"image" if has_whole else "pixels": 1}
    # A comparison with torch is suggested; bundles that are converted or bare are not converted further.
    model = str(bundle.path)
    assert next_of(model, bundle.manifest, False) == ("bench", model, "--against", "torch")
    assert next_of(model, bundle.manifest, True) == ("run", model, "INPUT")


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param({"fuse": True}, marks=pytest.mark.slow),
        pytest.param({"precision": "fp16"}, marks=pytest.mark.slow),
        {"precision": "int8"},
    ],
    ids=["fuse", "fp16", "int8"],
)
def test_every_form_of_a_text_model(shelf: Path, tmp_path: Path, wanted: dict[str, object]) -> None:
    bundle = Zoo().export("tiny-bert", tmp_path / "out", Variant(**wanted))  # type: ignore[arg-type]
    done = zoo("bench", bundle.path, *SHORT, "--against", "torch")
    assert done.returncode == 0, done.stderr
    assert f"next: zoo run {bundle.path} INPUT" in done.stderr
    assert "--precision" not in done.stderr
    found = parsed(zoo("bench", bundle.path, *SHORT, "--json"))["bench"]
    assert found["precision"] == bundle.manifest.precision
    assert systems(found) == {(GRAPH, batch) for batch in (1, 8, 32)}


def timing(system: str, batch: int, low: float, ms: float, high: float) -> Timing:
    return Timing(system=system, batch=batch, ms=ms, low=low, high=high, per_second=1000 * batch / ms)


def test_the_verdict_is_torchs_where_torch_wins() -> None:
    found = list(
        verdicts(
            [
                timing(GRAPH, 1, 9, 10, 11),
                timing(TORCH, 1, 30, 32, 34),
                timing(CHANNELS_LAST, 1, 19, 20, 21),
                timing(GRAPH, 8, 90, 96, 99),
                timing(TORCH, 8, 79, 80, 81),
                timing(CHANNELS_LAST, 8, 85, 88, 95),
                timing(GRAPH, 32, 90, 100, 120),
                timing(TORCH, 32, 110, 115, 118),
                timing(CHANNELS_LAST, 32, 150, 160, 170),
            ]
        )
    )
    assert [(each.winner, each.loser) for each in found] == [(GRAPH, CHANNELS_LAST), (TORCH, GRAPH), (None, None)]
    assert [round(each.times, 2) for each in found] == [2.0, 1.2, 1.15]


def test_wishes_that_make_no_sense(shelf: Path, tuned: Path) -> None:
    for option, value in (("--rounds", 0), ("--threads", 0), ("--length", 0), ("--rounds", "x")):
        assert zoo("bench", "tiny-bert", option, value).returncode == 2
    fails(2, "--seconds must be positive, got", "bench", "tiny-bert", "--seconds", "0")
    fails(2, "--against must be torch, got jax", "bench", "tiny-bert", "--against", "jax")
    hint = fails(2, "--length must be at most 32 tokens for tiny-bert, got 33", "bench", "tiny-bert", "--length", 33)
    assert "--length 32" in hint
    fails(2, "no length in tokens", "bench", "tiny-lite", "--length", 8)
    fails(2, "unknown device 'tpu'", "bench", "tiny-bert", "--device", "tpu")
    assert "did you mean tiny-bert" in fails(3, "no model named", "bench", "tiny-bart")
    fails(3, "nowhere: no such folder", "bench", "./nowhere")
    with pytest.raises(UsageError, match="--seconds must be positive, got"):
        BenchOptions(seconds=float("nan"))


@pytest.mark.slow
def test_a_family_without_torch_has_no_rival(zoo_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words.bin").write_bytes(binary(WORDS, vectors(len(WORDS), 8)))
    rows = {"tiny-words": row(tmp_path / "words.bin", None, 8, config={"format": "word2vec-binary"})}
    monkeypatch.setenv("ZOO_REGISTRY", str(write_registry(tmp_path / "registry.yaml", rows)))
    found = parsed(zoo("bench", "tiny-words", *SHORT, "--json"))["bench"]
    # The only matrix product is the mean, of the mask with the vectors; the size includes the table's file.
    assert found["macs"] == 32 * 8
    assert found["size"] > len(WORDS) * 8 * 4
    # It suggests neither torch, which would be refused, nor data for a table without labels.
    done = zoo("bench", "tiny-words", *SHORT)
    assert "next: zoo export tiny-words -o DIR --precision int8\n" in done.stderr
    fails(2, "the family word2vec has no torch module", "bench", "tiny-words", *SHORT, "--against", "torch")


def test_a_bundle_that_was_changed(shelf: Path, tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned / "out", tmp_path / "out")
    with (tmp_path / "out" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    fails(5, "model.onnx", "bench", tmp_path / "out", *SHORT)


def test_a_process_that_fails_says_why(shelf: Path, tmp_path: Path) -> None:
    bundle = Zoo().graph("tiny-bert")
    np.savez(tmp_path / "feeds.npz", wrong=np.zeros((32, 4), np.int64))
    with pytest.raises(ZooError, match="the timed system fails"):
        Stopwatch(System(kind="graph", bundle=str(bundle.path), feeds=str(tmp_path / "feeds.npz")))


def test_the_answer_of_the_api(shelf: Path, tuned: Path) -> None:
    found = Zoo().bench(str(tuned / "out"), BenchOptions(device="cpu", rounds=1, seconds=0.001))
    assert isinstance(found, Benchmark)
    assert found.device == "cpu"
    assert found.rounds == 1
    assert json.dumps(found.versions)
