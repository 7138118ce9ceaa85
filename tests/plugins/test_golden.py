"""The real weights against golden vectors that the reference libraries made (tests/golden/make.py)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo import Zoo
from zoo.data.samples import FOLDER
from zoo.runtime.ort import create_session

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
    assert images.shape == (7, 1280)
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
    got = features([doubled(FOLDER / name) for name in names[: len(wanted)]])
    np.testing.assert_allclose(got, wanted, atol=BOUND * float(np.abs(wanted).max()))


@pytest.mark.network
def test_the_real_lite0_on_whole_images(real: Path) -> None:
    """The golden vectors are those of torchvision on PIL images; a few pixels differ by one grey level.

    Without rounding between the two passes of resizing it would be 2e-4 in the median and 4e-3 at worst.
    """
    names, wanted = golden("efficientnet_lite0")
    turned = turned_by(features([FOLDER / name for name in names]), wanted)
    assert np.median(turned) < 1e-5
    assert turned.max() < 3e-5
    # The exported file itself, in plain onnxruntime, is nearer.
    plain = create_session(Zoo().graph("efficientnet_lite0").read_model(), "cpu")
    images = [np.asarray(Image.open(FOLDER / name).convert("RGB"))[None] for name in names]
    exported = np.concatenate([plain.run(["features"], {"image": image})[0] for image in images])
    assert turned_by(exported, wanted).max() < 5e-6


def turned_by(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """1 - cosine of each row."""
    one, other = got.astype(np.float64), wanted.astype(np.float64)
    return 1 - (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def features(items: list[Any]) -> np.ndarray:
    answers = Zoo().run("efficientnet_lite0", items, device="cpu", features=True).answers
    return np.array([answer.features for answer in answers], np.float32)


def doubled(path: Path, side: int = 256) -> np.ndarray:
    """The middle of an image whose pixels are repeated in both directions: uint8 [side, side, 3]."""
    image = np.asarray(Image.open(path).convert("RGB")).repeat(2, 0).repeat(2, 1)
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]
