"""The real weights against golden vectors that the reference libraries made (tests/golden/make.py)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo import Zoo
from zoo.data.samples import FOLDER

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
#: The bound, relative to the largest value; another pooling, normalisation or preprocessing changes far more.
BOUND = 1e-4


def golden(name: str, key: str = "vectors") -> tuple[list[str], np.ndarray]:
    facts: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert facts["model"] == name
    return facts["inputs"], np.array(facts[key], np.float32)


def test_golden_vectors_are_whole() -> None:
    _, sentences = golden("all-minilm-l6-v2")
    assert sentences.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(sentences, axis=1), 1, atol=1e-4)
    names, images = golden("efficientnet_lite0")
    assert images.shape == (2, 1280)
    assert all((FOLDER / name).is_file() for name in names)
    for vectors in (sentences, images):
        assert np.abs(vectors[0] - vectors[1]).max() > 100 * BOUND


@pytest.mark.network
def test_the_real_minilm_gives_its_golden_vectors(real: Path) -> None:
    texts, wanted = golden("all-minilm-l6-v2")
    answers = Zoo().run("all-minilm-l6-v2", texts, device="cpu").answers
    np.testing.assert_allclose([answer.features for answer in answers], wanted, atol=BOUND)


@pytest.mark.network
def test_the_real_lite0_gives_its_golden_vectors(real: Path) -> None:
    """Pixels that need no resizing are the same in every library, so the features are, too."""
    names, wanted = golden("efficientnet_lite0", "doubled")
    got = features([doubled(FOLDER / name) for name in names])
    np.testing.assert_allclose(got, wanted, atol=BOUND * float(np.abs(wanted).max()))


@pytest.mark.network
def test_the_real_lite0_on_whole_images(real: Path) -> None:
    """The libraries' resized pixels differ by up to one grey level, which changes these features' direction by 3e-4.

    Bilinear resizing would change it by 7e-3, a missing antialiasing by 1e-3, and 255 pixels instead of 256 by 4e-3.
    """
    names, wanted = golden("efficientnet_lite0")
    got = features([FOLDER / name for name in names])
    cosine = (got * wanted).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
    assert (1 - cosine).max() < 6e-4


def features(items: list[Any]) -> np.ndarray:
    answers = Zoo().run("efficientnet_lite0", items, device="cpu").answers
    return np.array([answer.features for answer in answers], np.float32)


def doubled(path: Path, side: int = 256) -> np.ndarray:
    """The middle of an image whose pixels are repeated in both directions: uint8 [side, side, 3]."""
    image = np.asarray(Image.open(path).convert("RGB")).repeat(2, 0).repeat(2, 1)
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]
