"""Unreadable inputs of `run` and `embed` are named and counted, never dropped; the API names them by index."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image

from tests.kit.items import bomb, encoded
from zoo import DataError, Zoo, ZooError
from zoo.bundle import Bundle, describe_files, write_manifest

#: The verb, its output file, and a part of its line with the number of errors.
VERBS = [("run", "a.jsonl", "no answer"), ("embed", "v.jsonl", "no vector")]
Command = Callable[..., tuple[int, str, str]]


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture(scope="module")
def odd_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of unusual images, whose names begin with `good`, and of unreadable files, which begin with `bad`."""
    folder, random = tmp_path_factory.mktemp("odd") / "odd", np.random.default_rng(5)
    folder.mkdir()
    noise = [Image.fromarray(random.integers(0, 255, (60, 90, 3), dtype=np.uint8)) for _ in range(3)]
    jpeg, png = encoded(noise[0], "JPEG"), encoded(noise[1], "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = {
        "bad-bomb.png": bomb(),
        "bad-cut.jpg": jpeg[: len(jpeg) // 2],
        "bad-cut.png": png[: len(png) // 2],
        "bad-empty.png": b"",
        "bad-text.jpg": b"this was a .txt\n",
        "good-animated.webp": encoded(noise[0], "WEBP", save_all=True, append_images=noise[1:], lossless=True),
        "good-cmyk.jpg": encoded(noise[1].convert("CMYK"), "JPEG"),
        "good-plain.png": encoded(noise[0], "PNG"),
        "good-turned.jpg": encoded(noise[2], "JPEG", exif=exif, quality=100),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    noise[0].save(folder / "bad-animated.gif", save_all=True, append_images=noise[1:])
    return folder


@pytest.mark.parametrize(("verb", "name", "words"), VERBS)
def test_images(
    kept_shelf: Path, tuned_bundles: Path, odd_images: Path, tmp_path: Path, command: Command, verb: str,
    name: str, words: str,
) -> None:  # fmt: skip
    model, out = tuned_bundles / "pets", tmp_path / name
    code, _, said = command(verb, model, odd_images, "-o", out)
    assert code == 1
    assert f"error: {words} for 6 of 10 inputs" in said
    found = lines(out)
    names = [Path(line["input"]).name for line in found]
    assert names == sorted(path.name for path in odd_images.iterdir())
    assert [Path(line["input"]).name.startswith("bad") for line in found] == ["error" in line for line in found]
    for each in names:
        assert (each in said) == each.startswith("bad")
    assert "4294836225 pixels" in said
    code, _, said = command(verb, model, odd_images, "-o", tmp_path / f"strict-{name}", "--strict")
    assert (code, "bad-animated.gif" in said) == (2, True)


def test_unusual_images_are_what_a_person_sees(kept_shelf: Path, tuned_bundles: Path, odd_images: Path) -> None:
    """Images are read as their first frame, in RGB, upright."""
    session = Zoo().session(str(tuned_bundles / "pets"), "cpu")
    first = session.features([odd_images / "good-plain.png", odd_images / "good-animated.webp"])
    np.testing.assert_allclose(first[1], first[0], atol=1e-5)
    with Image.open(odd_images / "good-turned.jpg") as turned:
        upright = np.asarray(turned.transpose(Image.Transpose.ROTATE_270).convert("RGB"))
    with Image.open(odd_images / "good-cmyk.jpg") as cmyk:
        arrays = [upright, np.asarray(cmyk.convert("RGB"))]
    paths = [odd_images / "good-turned.jpg", odd_images / "good-cmyk.jpg"]
    np.testing.assert_allclose(session.features(paths), session.features(arrays), atol=1e-5)


@pytest.mark.parametrize(("verb", "name", "words"), VERBS)
def test_texts(
    kept_shelf: Path, tuned_bundles: Path, tmp_path: Path, command: Command, verb: str, name: str, words: str
) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = ["my card", "", "🚚👨‍👩‍👧 late", " \t", "late parcel " * 90_000, None, "naïve"]
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "t.parquet")
    model, out = tuned_bundles / "tickets", tmp_path / name
    code, _, said = command(verb, model, tmp_path / "t.parquet", "-o", out)
    assert code == 1
    assert f"error: {words} for 3 of 7 inputs" in said
    found = lines(out)
    assert [line["input"] for line in found] == [f"t.parquet:{number}" for number in range(1, 8)]
    assert [number for number, line in enumerate(found) if "error" in line] == [1, 3, 5]
    assert all(f"t.parquet:{number} " in said or f"t.parquet:{number}:" in said for number in (2, 4, 6))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_megabyte_in_a_cell(
    kept_shelf: Path, tuned_bundles: Path, tmp_path: Path, command: Command, suffix: str
) -> None:
    """The cell is longer than the limit of Python's CSV reader."""
    table, texts = tmp_path / f"t{suffix}", ["my card", "late parcel " * 90_000, "refund"]
    if suffix == ".csv":
        table.write_text("text\n" + "".join(f"{text}\n" for text in texts))
    else:
        table.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    code, printed, said = command("run", tuned_bundles / "tickets", table)
    assert code == 0, said
    assert len(printed.splitlines()) == 3


def test_an_error_for_each_on_stdout(kept_shelf: Path, tuned_bundles: Path, odd_images: Path, command: Command) -> None:
    code, printed, said = command("run", tuned_bundles / "pets", odd_images)
    assert code == 1
    assert [Path(line.split("\t")[0]).name for line in printed.splitlines()] == [
        "good-animated.webp", "good-cmyk.jpg", "good-plain.png", "good-turned.jpg"
    ]  # fmt: skip
    reported = [line for line in said.splitlines() if line.startswith("failed: ")]
    assert len(reported) == 6
    assert "error: no answer for 6 of 10 inputs" in said
    code, printed, _ = command("run", tuned_bundles / "pets", odd_images, "--json")
    assert code == 1
    results = json.loads(printed)["run"]["results"]
    assert [Path(row["input"]).name.startswith("bad") for row in results] == ["error" in row for row in results]
    code, printed, _ = command("run", tuned_bundles / "pets", odd_images, "--json", "--strict")
    assert (code, json.loads(printed)["error"]["code"]) == (2, "data")


NAN = np.full((30, 40, 3), np.nan, np.float32)
IMAGES = [
    (NAN, "must be uint8 [height, width, 3], not float32 [30, 40, 3]"),
    (np.zeros((30, 40, 3), np.uint16), "not uint16"),
    (np.zeros((30, 40, 4), np.uint8), "not uint8 [30, 40, 4]"),
    (np.zeros((3, 30, 40), np.uint8), "not uint8 [3, 30, 40]"),
    (np.zeros((30, 40), np.uint8), "not uint8 [30, 40]"),
    (np.zeros((0, 40, 3), np.uint8), "not uint8 [0, 40, 3]"),
    (np.array(3.5), "not float64 []"),
    (np.zeros((1, 90, 3), np.uint8), "90x1 is too long and thin"),
    (b"", "cannot be decoded"),
    (b"no image", "cannot be decoded"),
    (bytearray(b"no image"), "not bytearray"),
    (None, "not NoneType"),
    (7, "not int"),
    ("nowhere.png", "nowhere.png: no such file"),
]
TEXTS = [
    ("", "the text is empty"),
    (" \n", "the text is empty"),
    (3, "reads str, not int"),
    (float("nan"), "reads str, not float"),
    (None, "reads str, not NoneType"),
    (b"late", "reads str, not bytes"),
    (NAN, "reads str, not ndarray"),
    ("\udcff", "is not UTF-8"),
]


@pytest.mark.parametrize(
    ("model", "good", "cases"), [("pets", np.zeros((30, 40, 3), np.uint8), IMAGES), ("tickets", "🚚 late", TEXTS)]
)
def test_a_named_error_an_item(
    kept_shelf: Path, tuned_bundles: Path, model: str, good: object, cases: list[tuple[object, str]]
) -> None:
    session = Zoo().session(str(tuned_bundles / model), "cpu")
    items = [each for item, _ in cases for each in (good, item)]
    answers = session.run(items, keep_going=True).answers
    assert [answer.error is not None for answer in answers] == [False, True] * len(cases)
    for index, (item, words) in enumerate(cases):
        error = answers[2 * index + 1].error
        assert error is not None
        assert words in error.message
        # The name of a text or a path is the input itself.
        assert error.message.startswith(f"#{2 * index + 1}: ") != isinstance(item, str)
        with pytest.raises(DataError) as caught:
            session.run([good, item])
        assert caught.value.index == 1
        assert words in caught.value.message
        with pytest.raises(DataError):
            session.run(item)
        with pytest.raises(DataError) as caught:
            session.features([good, item])
        assert caught.value.index == 1
    assert session.run([]).answers == ()


@pytest.mark.parametrize("verb", ["run", "embed"])
def test_numbers_that_are_not_finite(
    kept_shelf: Path, tuned_bundles: Path, tmp_path: Path, command: Command, verb: str
) -> None:
    """A bundle with a valid file whose head (or, for features, whose body) gives NaN."""
    broken = shutil.copytree(tuned_bundles / "tickets", tmp_path / "broken")
    model = onnx.load(broken / "model.onnx")
    manifest = Bundle.open(broken).manifest
    size = len(manifest.labels) if verb == "run" else manifest.dim
    for tensor in model.graph.initializer:
        if list(tensor.dims) == [size]:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(size, np.nan, np.float32), tensor.name))
    onnx.save(model, broken / "model.onnx")
    write_manifest(broken, msgspec.structs.replace(manifest, files=describe_files(broken)))
    out = tmp_path / "out.jsonl"
    code, _, said = command(verb, broken, "my card", "late parcel", "-o", out)
    assert code == 1, said
    assert "2 of 2 inputs" in said
    output = "scores" if verb == "run" else "features"
    assert said.count(f"its {output} are not finite") == 2
    session = Zoo().session(str(broken), "cpu")
    call = session.scores if verb == "run" else session.features
    with pytest.raises(ZooError, match="not finite"):
        call(["my card"])
    if verb == "run":
        with pytest.raises(ZooError, match="not finite"):
            session.run("my card")
