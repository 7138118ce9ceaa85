"""The pixels of a session against those of the graph, which plain onnxruntime computes."""

import json
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image

from tests.kit.items import photographs
from zoo import Bundle, Zoo
from zoo.bundle import MODEL, describe_files, write_manifest
from zoo.data.images import decode_image
from zoo.data.samples import FOLDER
from zoo.export.reference import pillow_pixels
from zoo.graph import edit
from zoo.graph.prefix import ARITHMETIC, image_prefix
from zoo.runtime import pixels
from zoo.runtime.ort import create_session
from zoo.runtime.pixels import PixelReader
from zoo.runtime.session import Session
from zoo.schema import ImagePreprocess

MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)


def shapes() -> list[np.ndarray]:
    """Photographs from single pixels to four megapixels, tall and wide, and black and white noise."""
    random = np.random.default_rng(31)
    noise = random.choice(np.array([0, 255], np.uint8), (171, 260, 3))
    large = Image.open(FOLDER / "coffee.jpg").resize((2503, 1667), Image.Resampling.LANCZOS)
    return [*photographs(), noise, np.asarray(large), np.asarray(large.rotate(90, expand=True))]


@pytest.fixture(params=["cykooz-resizer", "Pillow"])
def resizer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The library that resizes."""
    if request.param == "Pillow":
        monkeypatch.setattr(pixels, "READABLE", ())
    else:
        pytest.importorskip("cykooz_resizer")
    assert pixels.resizer_version().startswith(request.param)
    return request.param


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(248, 224), (235, 235), (76, 64)])
def test_both_libraries_give_the_graphs_pixels(
    resizer: str, resize: int, crop: int, interpolation: str, squash: bool
) -> None:
    preprocess = ImagePreprocess(
        resize=resize, crop=crop, interpolation=interpolation, mean=MEAN, std=STD, squash=squash, floor=resize == 76
    )
    session = create_session(image_prefix(preprocess).SerializeToString(), "cpu")
    reader, grey, shares = PixelReader(preprocess), 255 * np.array(STD).reshape(3, 1, 1), []
    for image in shapes():
        [wanted] = session.run(None, {"image": image[None]})
        got = reader.pixels([reader.levels(Image.fromarray(image))])
        assert (got.dtype, got.shape, got.flags.c_contiguous) == (np.float32, (1, 3, crop, crop), True)
        if resizer == "Pillow":
            np.testing.assert_allclose(got[0], pillow_pixels(image, preprocess), atol=1e-5)
        levels = np.abs(got - wanted) * grey
        assert levels.max() <= 2.001, image.shape
        assert (levels > 1.5).mean() <= 5e-4, image.shape
        shares.append((levels > 0.5).mean())
        # Equal grey levels are equal numbers, to the last bit.
        assert (got == wanted)[levels < 0.5].all()
    assert np.median(shares) <= 0.004, shares
    assert max(shares) <= 0.08, shares


def test_a_session_gives_the_features_of_plain_onnxruntime(shelf: Path, resizer: str) -> None:
    """On whole photographs from files; ties move a few pixels by a grey level, and with them the features a little."""
    bundle = Zoo().graph("tiny-lite")
    session, plain = Session(bundle, "cpu"), create_session(bundle.read_model(), "cpu")
    paths = sorted(FOLDER.glob("*.jpg"))
    got = session.features(paths)
    short = bundle.manifest.preprocess.resize
    wanted = np.concatenate([plain.run(["features"], {"image": decode_image(path, short)[None]})[0] for path in paths])
    cosine = (got * wanted).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
    assert (1 - cosine).max() < 2e-4
    # Of one image and of many, the pixels are the same.
    np.testing.assert_allclose(got, np.concatenate([session.features([path]) for path in paths]), atol=1e-5)


def test_views_arrays_and_streams_are_read_alike(resizer: str) -> None:
    preprocess = ImagePreprocess(resize=60, crop=48, interpolation="bicubic", mean=MEAN, std=STD)
    image, data = Image.open(FOLDER / "rocket.jpg").convert("RGB"), BytesIO()
    image.save(data, "PNG")
    reader = PixelReader(preprocess)
    from zoo.data.images import load_image

    items = (image, np.asarray(image), data.getvalue(), np.asarray(image)[::-1][::-1])
    found = [reader.levels(load_image(item, 60)) for item in items]
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])


def earlier(bundle: Bundle, folder: Path) -> Bundle:
    """A copy of an image bundle as an earlier version wrote it: the levels are not rounded between the passes."""
    folder.mkdir()
    model = onnx.load_from_string(bundle.read_model())
    for node in model.graph.node:
        if node.name.endswith("columns_rounded"):
            node.op_type = "Sub"
            node.input.append("preprocess/half")
    edit.describe(model, {key: value for key, value in edit.metadata_of(model).items() if key != ARITHMETIC[0]})
    edit.save(model, folder / MODEL)
    write_manifest(folder, msgspec.structs.replace(bundle.manifest, files=describe_files(folder)))
    return Bundle.open(folder)


def test_an_earlier_bundle_keeps_its_own_arithmetic(shelf: Path, zoo_home: Path, tmp_path: Path) -> None:
    bundle = Zoo().graph("tiny-lite")
    assert json.loads(bundle.path.joinpath("zoo.json").read_text())["preprocess"].get("squash") is None
    old = earlier(bundle, tmp_path / "old")
    path, short = FOLDER / "chelsea.jpg", bundle.manifest.preprocess.resize
    image = decode_image(path, short)[None]
    results = []
    for each in (bundle, old):
        for optimised in (None, zoo_home / "optimised"):
            [(_, arrays)] = Session(each, "cpu", optimised=optimised).stream([path], ["pixels", "features"])
            results.append(arrays["pixels"])
        whole = onnx.load_from_string(each.read_model())
        prefix = create_session(edit.extract(whole, ["image"], ["pixels"]).SerializeToString(), "cpu")
        [pixels_of_graph] = prefix.run(None, {"image": image})
        differ = (np.abs(results[-1] - pixels_of_graph) > 1e-6).mean()
        # The earlier graph runs as it is; the session computes the new one's pixels, but for ties.
        assert differ == 0 if each is old else differ < 0.01
    new_pixels, _, old_pixels, _ = results
    assert (new_pixels != old_pixels).mean() > 0.05


@pytest.mark.slow
def test_an_earlier_bundle_can_be_exported(shelf: Path, tmp_path: Path) -> None:
    old = earlier(Zoo().graph("tiny-lite"), tmp_path / "old")
    Zoo().export(str(old.path), tmp_path / "out")
    parity = Bundle.open(tmp_path / "out").manifest.parity
    assert parity.passed
    # Only files of the new arithmetic are held to the fraction of values that differ from Pillow's.
    assert {check.name for check in parity.checks if check.name.startswith("preprocessing")} == {
        "preprocessing (grey levels)"
    }
    assert ARITHMETIC[0] not in edit.metadata_of(onnx.load(tmp_path / "out" / MODEL))
