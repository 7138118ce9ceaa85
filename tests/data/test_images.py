"""Images of many kinds, bytes that are no image, and tokens by the rules of the row."""

import json
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from zoo import DataError, IntegrityError, Zoo
from zoo.data.images import decode_image
from zoo.data.tokenizers import TextEncoder, check_text
from zoo.schema import TextPreprocess


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of an image file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(mode: str = "RGB") -> Image.Image:
    """A 40 x 30 image with no two corners alike."""
    columns, rows = np.meshgrid(np.arange(40), np.arange(30))
    return Image.fromarray(np.stack([columns * 6, rows * 8, (columns + rows) * 3], 2).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_lossless_images_are_their_rgb_values(kind: str, mode: str) -> None:
    image = gradient(mode)
    np.testing.assert_array_equal(decode_image(saved(image, kind), 20), np.asarray(image.convert("RGB")))


def test_other_modes() -> None:
    assert decode_image(saved(gradient("RGBA"), "PNG"), 20).shape == (30, 40, 3)
    assert decode_image(saved(gradient("CMYK"), "JPEG"), 20).shape == (30, 40, 3)
    lossless = decode_image(saved(gradient(), "WEBP", lossless=True), 20)
    np.testing.assert_array_equal(lossless, np.asarray(gradient()))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    got = decode_image(saved(Image.fromarray(deep), "PNG"), 20)
    np.testing.assert_array_equal(got[:, :, 0], deep >> 8)


def oriented(orientation: int) -> Image.Exif:
    """An EXIF block with the orientation of the camera."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [*range(10), 65535])
def test_exif_orientation(kind: str, orientation: int) -> None:
    data = saved(gradient(), kind, exif=oriented(orientation))
    np.testing.assert_array_equal(
        decode_image(data, 20), np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    )


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode_image(data, 20)[0, 0].tolist() == [255, 0, 0]


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header announces side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image"),
        (b"hello, I am text", "not an image"),
        (saved(gradient("P"), "GIF"), "not an image of an accepted format"),
        (saved(gradient(), "PNG")[:-40], "cannot be decoded"),
        (saved(gradient(), "JPEG")[:400], "cannot be decoded"),
        (bomb(12_000), "above the cap"),
        (bomb(65_535), "bomb"),
        (saved(Image.new("L", (2000, 3)), "PNG"), "too long and thin"),
        (saved(gradient(), "WEBP")[:-1], "cannot be decoded"),
        (saved(gradient(), "BMP")[:-1], "cannot be decoded"),
        (saved(gradient(), "TIFF"), "not an image of an accepted format"),
    ],
)
def test_what_is_no_image(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "odd.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        decode_image(path, 20)
    assert "odd.jpg" in caught.value.message
    with pytest.raises(DataError):
        decode_image(data, 20)


def test_arrays_are_checked() -> None:
    good = np.zeros((4, 5, 3), np.uint8)
    assert decode_image(good, 20) is good
    for bad in (
        good.astype(np.float32),
        good[..., :1],
        good[0],
        np.zeros((0, 5, 3), np.uint8),
        np.full((4, 5, 3), np.nan),
    ):
        with pytest.raises(DataError, match="uint8"):
            decode_image(bad, 20)
    with pytest.raises(DataError, match="too long and thin"):
        decode_image(np.zeros((20_000, 1, 3), np.uint8), 20)


@pytest.mark.parametrize("item", [None, 5, [1], bytearray(b"x"), BytesIO(b"x")])
def test_what_is_not_even_an_item(item: object) -> None:
    with pytest.raises(DataError, match="an image is a path, bytes, a PIL image or an array"):
        decode_image(item, 20)  # type: ignore[arg-type]


def test_pil_images_are_checked_like_files() -> None:
    data = saved(gradient(), "PNG")
    np.testing.assert_array_equal(decode_image(gradient(), 20), np.asarray(gradient()))
    closed = Image.open(BytesIO(data))
    closed.close()
    for bad in (
        closed,
        Image.open(BytesIO(saved(gradient(), "BMP")[:-100])),
        Image.new("RGB", (1000, 1)),
        Image.new("RGB", (0, 0)),
        Image.new("RGB", (0, 5)),
        Image.new("I", (5, 5), 40_000),
        Image.new("F", (5, 5), 0.5),
    ):
        with pytest.raises(DataError):
            decode_image(bad, 20)
    turned = Image.open(BytesIO(saved(gradient(), "PNG", exif=oriented(6))))
    np.testing.assert_array_equal(decode_image(turned, 20), np.asarray(ImageOps.exif_transpose(turned)))


def test_transparent_palettes_raise_no_warning() -> None:
    data = saved(gradient("P"), "PNG", transparency=bytes(range(256)))
    np.testing.assert_array_equal(decode_image(data, 20), np.asarray(gradient("P").convert("RGB")))


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere.jpg", tmp_path / ("x" * 300), "a\0b.jpg"):
        with pytest.raises(DataError):
            decode_image(path, 20)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_damaged_bytes_are_an_answer_or_an_error_of_ours(kind: str) -> None:
    random = np.random.default_rng(0)
    whole = saved(gradient(), kind, **({} if kind == "BMP" else {"exif": oriented(6)}))
    refused = 0
    for round_number in range(800):
        data = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            data[random.integers(0, min(200, len(data)) if round_number % 2 else len(data))] = random.integers(256)
        try:
            assert decode_image(bytes(data), 20).shape[2] == 3
        except DataError:
            refused += 1
    assert refused > 50


def test_damaged_exif_blocks_raise_nothing_of_pillows(recwarn: pytest.WarningsRecorder) -> None:
    random = np.random.default_rng(0)
    exif = oriented(6)
    exif[0x010F] = "a camera's maker"
    exif[0x8769] = {0x9003: "2020:01:01 00:00:00", 0xA002: 40}
    whole = exif.tobytes()
    answers = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("JPEG", "PNG", "WEBP"):
            for _ in range(300):
                block = bytearray(whole)
                for _ in range(random.integers(1, 5)):
                    block[random.integers(6, len(block))] = random.integers(256)
                data = saved(gradient(), kind, exif=bytes(block))
                try:
                    answers += decode_image(data, 20).size == 30 * 40 * 3
                except DataError:
                    continue
    assert answers > 500
    assert not recwarn.list


def test_the_row_overrules_the_tokenizers_own_limits(shelf: Path) -> None:
    bundle = Zoo().graph("tiny-bert")
    preprocess = bundle.manifest.preprocess
    encoder = TextEncoder(preprocess, bundle.path)
    short, long = encoder.tokens(["card", "card " * 100])
    assert (len(short), len(long)) == (3, preprocess.max_length)
    feeds = encoder.batch([short, long])
    assert feeds["input_ids"].shape == feeds["attention_mask"].shape == (2, 32)
    assert feeds["attention_mask"].sum(1).tolist() == [3, 32]


@pytest.mark.parametrize("item", ["", "  \n", None, 3, b"bytes"])
def test_what_is_no_text(item: object) -> None:
    with pytest.raises(DataError):
        check_text(item)


def test_the_files_own_limits_would_be_shorter(shelf: Path) -> None:
    """The file has limits that the row must overrule; a batch's padding is masked and changes no other row."""
    bundle = Zoo().graph("tiny-bert")
    own = json.loads((bundle.path / "tokenizer.json").read_text())
    assert own["truncation"]["max_length"] == own["padding"]["strategy"]["Fixed"] == 8
    encoder = TextEncoder(bundle.manifest.preprocess, bundle.path)
    texts = ["card", "my late parcel", "card " * 40]
    rows = encoder.tokens(texts)
    assert rows == [encoder.tokens([text])[0] for text in texts]
    feeds = encoder.batch(rows)
    for row, ids, mask in zip(rows, feeds["input_ids"], feeds["attention_mask"], strict=True):
        assert ids[mask == 1].tolist() == row
        assert not ids[mask == 0].any()
    assert feeds["input_ids"].dtype == feeds["attention_mask"].dtype == np.int64


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"version": "1.0"}', None])
def test_a_tokenizer_that_cannot_be_read(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "tokenizer.json").write_bytes(data)
    preprocess = TextPreprocess(tokenizer="tokenizer.json", max_length=8, pooling="mean", normalize=True)
    with pytest.raises(IntegrityError, match=r"^tokenizer.json is not a readable tokenizer: [^\n]+$"):
        TextEncoder(preprocess, tmp_path).tokens(["a text"])
