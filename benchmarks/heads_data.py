"""The data sets of heads.py: features of texts and images that packages and Debian's package lists ship.

Features are computed once and kept under `--work`. The lists are those of `apt-cache dumpavail`; without them their
data sets are left out.
"""

import csv
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from record import ROOT

from zoo import Zoo

MINILM, GLOVE, LITE0 = "all-minilm-l6-v2", "glove-6b-50d", "efficientnet_lite0"
#: Sections of Debian that make the two classes, and those that hide the rare class.
TWO, CROWD = ("games", "science"), ("utils", "net", "libs", "python", "doc")


class Case(NamedTuple):
    """A data set: features [items, dim], targets, and how many items are trained on.

    `each` takes the same number of items of every class. `noise` is the fraction of wrong labels in the training part.
    """

    name: str
    features: np.ndarray
    targets: np.ndarray
    train: int
    each: bool = False
    noise: float = 0.0
    class_weights: bool = False


class Packages:
    """Debian's packages: description, section, tags and size, in a fixed random order; no description twice."""

    def __init__(self) -> None:
        found = shutil.which("apt-cache")
        text = subprocess.run([found, "dumpavail"], capture_output=True, text=True, check=True).stdout if found else ""
        rows = {row["Description"]: row for row in map(_fields, text.split("\n\n")) if "Description" in row}
        self.rows = [row for row in rows.values() if "Section" in row]
        random.Random(7).shuffle(self.rows)
        self.sections: dict[str, list[str]] = {}
        for row in self.rows:
            self.sections.setdefault(row["Section"].rpartition("/")[2], []).append(row["Description"])

    def tags(self, count: int, items: int) -> tuple[list[str], np.ndarray]:
        """Descriptions with at least one of the most frequent tags (roles left out), and which they have."""
        tagged = [
            (row["Description"], set(row["Tag"].replace(" ", "").split(","))) for row in self.rows if "Tag" in row
        ]
        often = Counter(tag for _, tags in tagged for tag in tags if not tag.startswith("role::"))
        names = [tag for tag, _ in often.most_common(count)]
        kept = [(text, tags) for text, tags in tagged if tags & set(names)][:items]
        wanted = np.array([[name in tags for name in names] for _, tags in kept], np.float32)
        return [text for text, _ in kept], wanted


def cases(zoo: Zoo, work: Path) -> list[Case]:
    """Every data set that this machine has the material for."""
    features = _Kept(zoo, work)
    return [*_images(features, work), *_tickets(features), *_debian(features)]


class _Kept:
    """Features of a model, computed once and kept as `work/NAME.npy`."""

    def __init__(self, zoo: Zoo, work: Path) -> None:
        self.zoo, self.work = zoo, work

    def __call__(self, name: str, model: str, items: Callable[[], Sequence[str]]) -> np.ndarray:
        path = self.work / f"{name}-{model}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, self.zoo.session(model, "cpu").infer(list(items()), ["features"])["features"])
        found: np.ndarray = np.load(path)
        return found


def _images(features: _Kept, work: Path) -> list[Case]:
    from sklearn.datasets import load_digits

    digits = load_digits()

    def drawn() -> list[str]:
        folder = work / "digits"
        folder.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(digits.images):
            small = Image.fromarray((image / 16 * 255).astype(np.uint8))
            small.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
        return [str(folder / f"{index}.png") for index in range(len(digits.images))]

    surfaces = work / "surfaces"
    if not surfaces.exists():
        subprocess.run([sys.executable, str(ROOT / "demo/surfaces.py"), str(surfaces)], check=True, capture_output=True)
    paths = sorted(map(str, surfaces.glob("*/*/*.png")))
    names = sorted({Path(path).parent.name for path in paths})
    kinds = np.array([names.index(Path(path).parent.name) for path in paths])
    x, s = features("digits", LITE0, drawn), features("surfaces", LITE0, lambda: paths)
    ink = (digits.images.sum((1, 2)) / 16).astype(np.float32)
    return [
        Case("digits: 10 classes, 1,257 images", x, digits.target, 1257),
        Case("digits: 10 classes x 5", x, digits.target, 50, each=True),
        Case("surfaces: 14 classes x 5", s, kinds, 70, each=True),
        Case("surfaces: 14 classes, 20 % noise", s, kinds, 840, noise=0.2),
        Case("ink of 350 digits: a number", x, ink[:, None], 350),
    ]


def _tickets(features: _Kept) -> list[Case]:
    with (ROOT / "demo/tickets.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts, names = [row["text"] for row in rows], sorted({row["label"] for row in rows})
    kinds = np.array([names.index(row["label"]) for row in rows])
    return [
        Case(f"tickets by {model}", features("tickets", model, lambda: texts), kinds, 475) for model in (MINILM, GLOVE)
    ]


def _debian(features: _Kept) -> list[Case]:
    packages = Packages()
    if not packages.rows:
        return []
    many = sorted(name for name, texts in packages.sections.items() if len(texts) >= 40)
    sections = [text for name in many for text in packages.sections[name][:40]]
    kinds = np.repeat(np.arange(len(many)), 40)
    two = [text for name in TWO for text in packages.sections[name][:600]]
    halves = np.repeat([0, 1], 600)
    crowd = [text for name in CROWD for text in packages.sections[name][:380]]
    rare = np.repeat([0, 1], [len(crowd), 100])
    many_net, few_web = packages.sections["net"][:1120], packages.sections["web"][:480]
    thirty = np.repeat([0, 1], [len(many_net), len(few_web)])
    tagged, tags = packages.tags(25, 2600)
    sized = [row for row in packages.rows if int(row.get("Installed-Size", "0")) > 0][:2500]
    sizes = np.log10([int(row["Installed-Size"]) for row in sized]).astype(np.float32)[:, None]
    x = features("sections", MINILM, lambda: sections)
    t = features("two", MINILM, lambda: two)
    r = features("rare", MINILM, lambda: crowd + packages.sections["games"][:100])
    z = features("sizes", MINILM, lambda: [row["Description"] for row in sized])
    return [
        Case(f"sections: {len(many)} classes x 5", x, kinds, 5 * len(many), each=True),
        Case(f"sections: {len(many)} classes x 20", x, kinds, 20 * len(many), each=True),
        Case("two sections x 5", t, halves, 10, each=True),
        Case("two sections x 300, 20 % noise", t, halves, 600, noise=0.2),
        Case("two sections, 70 : 30", features("seventy", MINILM, lambda: many_net + few_web), thirty, 1000),
        Case("two classes, 95 : 5", r, rare, 1000),
        Case("two classes, 95 : 5, class weights", r, rare, 1000, class_weights=True),
        Case("tags: 25 labels", features("tags", MINILM, lambda: tagged), tags, 1816),
        Case("size of 350 packages: a number", z, sizes, 350),
        Case("size of 1,500 packages: a number", z, sizes, 1500),
    ]


def _fields(block: str) -> dict[str, str]:
    """The fields of one package; continued lines are joined."""
    found: dict[str, str] = {}
    name = ""
    for line in block.split("\n"):
        if line[:1] == " ":
            found[name] = found.get(name, "") + line
        else:
            name, _, value = line.partition(":")
            found[name] = value.strip()
    return found
