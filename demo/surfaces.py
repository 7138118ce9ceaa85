"""Cut the `surfaces` data set: grey, contrast-jittered crops of the 14 photographs that scikit-image's wheel ships.

    python demo/surfaces.py demo/out/surfaces

Each photograph is a class. Training crops come from its left half and held-out crops from its right half, so no pixel
is in both. Grey and jittered contrast make colour and brightness useless as features.
"""

import sys
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
SIDE = 96
COUNTS = {"train": 60, "heldout": 30}


def main(out: Path) -> None:
    """Write out/train/<class>/*.png and out/heldout/<class>/*.png, the same bytes every time."""
    photographs = Path(skimage.__file__).parent / "data"
    random = np.random.default_rng(0)
    for name in PHOTOGRAPHS:
        grey = np.asarray(Image.open(photographs / name).convert("L"), np.float32)
        middle = grey.shape[1] // 2
        for part, half in (("train", grey[:, :middle]), ("heldout", grey[:, middle:])):
            folder = out / part / Path(name).stem
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(COUNTS[part]):
                crop(half, random).save(folder / f"{index:02d}.png")
    print(f"{out}: {len(PHOTOGRAPHS)} classes, {COUNTS['train']} + {COUNTS['heldout']} crops each")


def crop(image: np.ndarray, random: np.random.Generator) -> Image.Image:
    """A SIDE x SIDE crop of a grey image [height, width], with random contrast and brightness."""
    side = min(SIDE, *image.shape)
    top, left = (int(random.integers(0, length - side + 1)) for length in image.shape)
    piece = image[top : top + side, left : left + side]
    jittered = (piece - piece.mean()) * random.uniform(0.5, 1.5) + piece.mean() + random.uniform(-40, 40)
    return Image.fromarray(np.clip(jittered, 0, 255).astype(np.uint8)).convert("RGB").resize((SIDE, SIDE))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
