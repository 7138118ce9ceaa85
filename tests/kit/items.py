"""Data sets of a few items, their files and the rows of a loaded data set."""

import csv
import hashlib
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.data.items import Example
from zoo.schema import ImagePreprocess, TextPreprocess

TOPICS = {
    "billing": "card money bill invoice charged refund price tax",
    "delivery": "parcel box courier late lost street door van",
    "account": "login password code locked profile account name",
}
TEXT = TextPreprocess(tokenizer="t.json", max_length=8, pooling="mean", normalize=True)
IMAGE = ImagePreprocess(resize=8, crop=8, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
#: The metadata that the library `datasets` adds to the schema of a Parquet file with two classes.
CLASSES = {
    "info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}}
}
TEXTS = [f"card number {n}" for n in range(40)]
MANY = [f"late parcel {n}" for n in range(1000)]
#: Texts of all kinds: emoji, nearly empty, far too long, other scripts, accents, line breaks, spelt special tokens.
NASTY = [
    "card code 12",
    ".",
    "parcel " * 300,
    "中文字符 と カタカナ",
    "naïve café Ångström",
    "line\nbreak\r\n\ttab",

    "🙂👍🏽 ok",     "\u200b x",
    "[CLS] spelt [SEP]",
    "ﬁne ﬀ Ⅻ",
    "LATE Parcel!!!",
    "a\u00a0b\u3000c",
    "x\x00y\ufffdz",
    "don't stop-me...",
]  # fmt: skip
#: Heights and widths of images: single pixels, long ones, and sizes around those of the models.
SIZES = ((1, 1), (3, 50), (50, 3), (99, 128), (223, 224), (255, 257), (257, 255), (300, 451), (481, 640), (1031, 777))


def write_texts(path: Path, rows: int = 40) -> Path:
    """A CSV of texts in which each class has its own words."""
    random = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for label, words in TOPICS.items():
            for number in range(rows):
                chosen = random.choice(words.split(), 4)
                table.writerow([f"my {' '.join(chosen)} is {number}", label])
    return path


def write_images(folder: Path, count: int = 12) -> Path:
    """Noisy images in three colours, each of another size."""
    random = np.random.default_rng(0)
    for channel, label in enumerate(("red", "green", "blue")):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            height, width = (int(side) for side in random.integers(40, 200, 2))
            image = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
            image[:, :, channel] += np.uint8(random.integers(100, 190))
            Image.fromarray(image).save(folder / label / f"{number:02d}.png")
    return folder


def write_several(path: Path, rows: int = 150) -> Path:
    """A CSV of texts made of the words of none, one, two or three topics, which are its labels."""
    random, names = np.random.default_rng(0), list(TOPICS)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for number in range(rows):
            chosen = [name for name, holds in zip(names, random.random(3) < 0.5, strict=True) if holds]
            words = [word for name in chosen for word in random.choice(TOPICS[name].split(), 3)]
            table.writerow([f"my {' '.join(words)} is {number}", "|".join(chosen)])
    return path


def write(folder: Path, name: str, content: str | bytes) -> Path:
    """A file of that name in the folder."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_parquet(path: Path, columns: dict[str, Any], features: object = None, **options: Any) -> Path:
    """A Parquet file; `features` is the metadata that the library `datasets` adds to the schema."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, path, **options)
    return path


def image_bytes(colour: int, suffix: str = "PNG") -> bytes:
    """The bytes of a small image."""
    stream = io.BytesIO()
    Image.new("RGB", (12, 9), (colour, 0, 0)).save(stream, suffix)
    return stream.getvalue()


def bomb() -> bytes:
    """A valid PNG of 65,535 x 65,535 pixels of one bit: 67 kB that would be 13 GB as RGB."""
    row = b"\0" * (1 + 65535 // 8 + 1)
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(row * 255) for _ in range(257)) + packer.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 65535, 65535, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def examples(texts: list[str], label: str = "a") -> list[Example]:
    """Examples as the data module makes them."""
    return [Example(text, text, label, hashlib.sha256(text.encode()).hexdigest()) for text in texts]


def write_photos(folder: Path, count: int, side: int) -> list[Example]:
    """JPEGs of side x side pixels, each of another colour."""
    folder.mkdir()
    found = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        Image.new("RGB", (side, side), (number % 256, number // 256, 90)).save(path)
        found.append(Example(path.name, path, "a", hashlib.sha256(path.read_bytes()).hexdigest()))
    return found


def photographs() -> list[np.ndarray]:
    """Two photographs, uint8 [height, width, 3], in every size of SIZES."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    found = []
    for name in ("astronaut.png", "coffee.png"):
        image = Image.open(folder / name).convert("RGB")
        found += [np.asarray(image.resize((width, height))) for height, width in SIZES]
    return found
