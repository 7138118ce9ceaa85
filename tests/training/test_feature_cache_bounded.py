"""The feature cache: unreadable items, views, the limits of disk and memory, and the reported notes."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.kit.items import TEXTS, examples
from zoo import Zoo, ZooError
from zoo.data.augment import View
from zoo.data.items import Example
from zoo.runtime.pipeline import WINDOW
from zoo.training.feature_cache import FeatureCache

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(shelf: Path, tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "features", Zoo().session("tiny-bert", "cpu"))


def size_of(cache: FeatureCache) -> int:
    return sum(path.stat().st_size for path in cache.path.iterdir())


def test_unreadable_items_are_left_out_and_reported(cache: FeatureCache) -> None:
    reported: dict[int, ZooError] = {}
    some = examples([TEXTS[0], " ", TEXTS[1], " "])
    vectors = cache.features(some, skip=reported.__setitem__)
    assert sorted(reported) == [1, 3]
    assert cache.computed == 2
    assert np.isnan(vectors[[1, 3]]).all()
    np.testing.assert_allclose(vectors[[0, 2]], cache.session.features(TEXTS[:2]), atol=1e-6)
    reported.clear()
    cache.features(some, skip=reported.__setitem__)
    assert (cache.computed, sorted(reported)) == (0, [1, 3])


def test_views_have_features_of_their_own(shelf: Path, tmp_path: Path) -> None:
    session = Zoo().session("tiny-lite", "cpu")
    random = np.random.default_rng(0)
    images = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(path)
        images.append(Example(path.name, path, "a", hashlib.sha256(path.read_bytes()).hexdigest()))
    cache = FeatureCache(tmp_path / "features", session)
    plain, one, two = (cache.features(images, view=view) for view in (None, View(0, 1), View(0, 2)))
    assert cache.computed == 3
    assert np.abs(plain - one).max() > 1e-3 < np.abs(one - two).max()
    np.testing.assert_array_equal(cache.features(images[::-1], view=View(0, 1)), one[::-1])
    assert cache.computed == 0


def test_texts_of_several_windows_keep_their_order(cache: FeatureCache) -> None:
    texts = [f"card {'late ' * (n % 5)}{n}" for n in range(2 * WINDOW + 10)]
    texts[WINDOW + 3] = " "
    reported: dict[int, ZooError] = {}
    vectors = cache.features(examples(texts), skip=reported.__setitem__)
    assert list(reported) == [WINDOW + 3]
    for index in (0, WINDOW - 1, WINDOW, 2 * WINDOW + 9):
        np.testing.assert_allclose(vectors[index], cache.session.features([texts[index]])[0], atol=1e-5)


def test_the_oldest_cache_makes_room(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    other = FeatureCache(cache.folder, Zoo().session("tiny-bert-cls", "cpu"))
    cache.features(examples(TEXTS))
    other.features(examples(TEXTS))
    assert cache.path.exists()
    monkeypatch.setenv("ZOO_CACHE_LIMIT", str(size_of(other) + 100))
    other.features(examples(TEXTS))
    assert not cache.path.exists()
    assert other.computed == 0
    # A cache that is larger than the limit is not kept, and its features are right.
    monkeypatch.setenv("ZOO_CACHE_LIMIT", "1KB")
    vectors = other.features(examples(TEXTS))
    assert not other.path.exists()
    np.testing.assert_allclose(vectors, other.session.features(TEXTS), atol=1e-6)


FULL = """
import resource, sys
from pathlib import Path
from tests.kit.items import MANY, examples
from zoo import AccessError, Zoo
from zoo.training.feature_cache import FeatureCache
cache = FeatureCache(Path(sys.argv[1]), Zoo().session("tiny-bert", "cpu"))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    cache.features(examples(MANY))
except AccessError as error:
    print(error.message)
    sys.exit(error.exit_code)
"""


def test_a_full_disk_keeps_what_was_there(cache: FeatureCache) -> None:
    first = cache.features(examples(TEXTS))
    limit = str((cache.path / "data").stat().st_size + 40_000)
    child = subprocess.run(
        [sys.executable, "-c", FULL, str(cache.folder), limit], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert child.returncode == 8, child.stderr
    assert child.stdout.count("\n") == 1
    assert "cannot be used" in child.stdout
    np.testing.assert_array_equal(cache.features(examples(TEXTS)), first)
    assert cache.computed == 0


PEAK = """
import sys
from pathlib import Path
from tests.kit.items import write_photos
from zoo.bundle import Bundle
from zoo.training.feature_cache import FeatureCache
from zoo.runtime.session import Session
photos = write_photos(Path(sys.argv[2]), int(sys.argv[3]), 2000)
FeatureCache(Path(sys.argv[2]) / "features", Session(Bundle.open(Path(sys.argv[1])), "cpu")).features(photos)
# Not getrusage: its peak begins with what the parent had when it forked.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_images(shelf: Path, tmp_path: Path) -> None:
    peaks = []
    # From the 65th image on there is one session for each core, which takes its memory once.
    for count in (240, 480):
        arguments = [str(Zoo().graph("tiny-lite").path), str(tmp_path / str(count)), str(count)]
        child = subprocess.run([sys.executable, "-c", PEAK, *arguments], cwd=ROOT, capture_output=True, check=True)
        peaks.append(int(child.stdout) * 1024)
    assert peaks[1] < 1e9
    # The memory that may grow with each image, times 20,000, and the memory of the work itself.
    assert peaks[1] + (peaks[1] - peaks[0]) / 240 * 20_000 < 2e9, peaks
