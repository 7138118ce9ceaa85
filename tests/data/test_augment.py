"""Random views depend only on seed, digest and number, and are similar to their image."""

import numpy as np
import pytest
from PIL import Image

from zoo.data.augment import View, Viewed, key, transform
from zoo.data.images import decode_image

IMAGE = np.random.default_rng(0).integers(0, 255, (60, 100, 3), dtype=np.uint8)
DIGEST = "ab" * 32


def test_a_view_is_decided_by_seed_digest_and_number() -> None:
    views = [(DIGEST, View(seed, k)) for seed in range(3) for k in (1, 2)] + [("cd" * 32, View(0, 1))]
    made = [transform(IMAGE, *view) for view in views]
    assert len({image.tobytes() for image in made}) == 7
    assert len({key(*view) for view in views} | {key(DIGEST, None)}) == 8
    for view, image in zip(views, made, strict=True):
        np.testing.assert_array_equal(transform(IMAGE, *view), image)


def test_the_numbers_do_not_change_between_versions() -> None:
    # If these numbers change, cached features are wrong: increase augment.VERSION.
    assert transform(IMAGE, DIGEST, View(0, 1)).shape == (43, 78, 3)


@pytest.mark.parametrize("shape", [(60, 100), (1, 1), (3, 90), (200, 150)])
def test_views_are_crops_of_half_the_area_or_more(shape: tuple[int, int]) -> None:
    grey = np.full((*shape, 3), 128, np.uint8)
    for k in range(200):
        view = transform(grey, DIGEST, View(0, k))
        high, wide = view.shape[:2]
        assert high <= shape[0]
        assert wide <= shape[1]
        assert (high + 1) * (wide + 1) >= 0.5 * shape[0] * shape[1]
        assert 90 < view.mean() < 166


def test_a_view_of_a_photo_is_decoded_large_enough() -> None:
    photo = Image.fromarray(np.zeros((4000, 4000, 3), np.uint8))
    from io import BytesIO

    data = BytesIO()
    photo.save(data, "JPEG")
    for k in range(20):
        view = decode_image(Viewed(data.getvalue(), DIGEST, View(0, k)), 224)
        assert min(view.shape[:2]) >= 2 * 224
