"""The data set of the benchmarks: JPEGs of the size of ordinary photographs, made from scikit-image's photographs.

Two classes of seven photographs each, surfaces and scenes. As in demo/surfaces.py every image is a grey crop with
random contrast and brightness. Training images come from a photograph's left half and held-out ones from its right
half, so that they share no pixel. Added grain gives the files the size of photographs.
"""

from pathlib import Path

import numpy as np
import skimage
from PIL import Image

CLASSES = {
    "scene": (
        *("astronaut.png", "chelsea.png", "coffee.png", "coins.png", "motorcycle_left.png", "page.png", "rocket.jpg"),
    ),
    "surface": (
        *("brick.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "retina.jpg"),
    ),
}
SIZE = (500, 375)
#: Widths of the crops in pixels of the photograph; the narrowest half is 192 wide and 191 high.
WIDTHS = (72, 160)
GRAIN = 3.0


def write(folder: Path, items: int) -> None:
    """Write `items` JPEGs as folder/{train,val}/CLASS/*.jpg, a third of them held out, the same every time."""
    photographs = Path(skimage.__file__).parent / "data"
    random = np.random.default_rng(0)
    counts = {"train": items - items // 3, "val": items // 3}
    names = [(kind, name) for pair in zip(*CLASSES.values(), strict=True) for kind, name in zip(CLASSES, pair)]  # noqa: B905 - as many as the classes
    grey = {name: np.asarray(Image.open(photographs / name).convert("L"), np.float32) for _, name in names}
    for part, count in counts.items():
        for index in range(count):
            kind, name = names[index % len(names)]
            middle = grey[name].shape[1] // 2
            half = grey[name][:, :middle] if part == "train" else grey[name][:, middle:]
            path = folder / part / kind / f"{Path(name).stem}-{index:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image(half, random).save(path, quality=85)


def image(half: np.ndarray, random: np.random.Generator) -> Image.Image:
    """An image of SIZE from a 3:4 crop of half a photograph [height, width], with random brightness and contrast."""
    width = int(random.integers(*WIDTHS))
    height = width * SIZE[1] // SIZE[0]
    top, left = (
        int(random.integers(0, have - want + 1)) for have, want in zip(half.shape, (height, width), strict=True)
    )
    piece = half[top : top + height, left : left + width]
    lit = (piece - piece.mean()) * random.uniform(0.5, 1.5) + piece.mean() + random.uniform(-40, 40)
    large = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    grainy = np.asarray(large, np.float32) + random.normal(0, GRAIN, (SIZE[1], SIZE[0])).astype(np.float32)
    return Image.fromarray(np.clip(grainy, 0, 255).astype(np.uint8)).convert("RGB")
