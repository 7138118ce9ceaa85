"""Session reports its real device, runs in batches and in order, and equals the whole graph run item by item."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo import DataError, DeviceError, IntegrityError, UsageError, Zoo
from zoo.bundle import Bundle
from zoo.data.images import decode_image
from zoo.runtime.device import choose_device, cuda_problem
from zoo.runtime.ort import create_session
from zoo.runtime.pipeline import BATCH
from zoo.runtime.session import Session


def photographs(folder: Path, count: int) -> list[Path]:
    """Crops of real photographs; neighbours differ in size."""
    import skimage

    source = Path(skimage.__file__).parent / "data"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "brick.png")
    random = np.random.default_rng(0)
    paths = []
    for index in range(count):
        image = Image.open(source / names[index % len(names)]).convert("RGB")
        width, height = (int(random.integers(60, side)) for side in image.size)
        left, top = (
            int(random.integers(0, side - used + 1)) for side, used in zip(image.size, (width, height), strict=True)
        )
        path = folder / f"{index:03d}.{'png' if index % 2 else 'jpg'}"
        image.crop((left, top, left + width, top + height)).save(path)
        paths.append(path)
    return paths


def check_mixed_sizes(zoo: Zoo, name: str, folder: Path) -> None:
    """64 photos through Session equal the whole graph on each of them, and the body ran in batches."""
    bundle = zoo.graph(name)
    paths = photographs(folder, 64)
    images = [decode_image(path, bundle.manifest.preprocess.resize) for path in paths]
    assert len({image.shape for image in images}) > 50
    session = Session(bundle, "cpu")
    got = session.features(paths)
    assert Counter(session.batches_run) == {BATCH["cpu"]: 64 // BATCH["cpu"]}
    whole = create_session(bundle.read_model(), "cpu")
    alone = np.concatenate([whole.run(["features"], {"image": image[None]})[0] for image in images])
    # The graph rounds a few grey levels of the resized images the other way: see test_pixels.py.
    cosine = (got * alone).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(alone, axis=1)
    assert (1 - cosine).max() < 5e-4
    one_by_one = np.concatenate([session.features([path]) for path in paths[:8]])
    np.testing.assert_allclose(got[:8], one_by_one, atol=1e-5 * max(1.0, float(np.abs(got).max())))


def test_photos_of_mixed_sizes_run_in_batches_and_equal_one_by_one(shelf: Path, tmp_path: Path) -> None:
    check_mixed_sizes(Zoo(), "tiny-lite", tmp_path)


@pytest.mark.network
def test_real_lite0_on_mixed_sizes(real: Path, tmp_path: Path) -> None:
    check_mixed_sizes(Zoo(), "efficientnet_lite0", tmp_path)


def test_images_may_be_paths_bytes_arrays_or_pil(shelf: Path, tmp_path: Path) -> None:
    path = photographs(tmp_path, 2)[1]
    image = Image.open(path)
    forms: list[Any] = [path, str(path), path.read_bytes(), image, np.asarray(image.convert("RGB"))]
    features = Zoo().session("tiny-lite", "cpu").features(forms)
    for row in features[1:]:
        np.testing.assert_array_equal(row, features[0])


def test_texts_are_batched_by_length_and_come_back_in_order(shelf: Path) -> None:
    texts = [" ".join(["card", "late", "code"][: 1 + n % 3] * (1 + n * 7 % 11)) for n in range(300)]
    session = Zoo().session("tiny-bert", "cpu")
    together = session.features(texts)
    assert len(session.batches_run) < 30
    alone = np.concatenate([session.features([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_no_items_give_no_rows(shelf: Path) -> None:
    assert Zoo().session("tiny-bert", "cpu").features([]).shape == (0, 32)
    assert Zoo().session("tiny-lite", "cpu").features([]).shape == (0, 1280)


def test_an_unreadable_image_is_named(shelf: Path, tmp_path: Path) -> None:
    paths = photographs(tmp_path, 20)
    paths[13].write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"013\.png"):
        Zoo().session("tiny-lite", "cpu").features(paths)


def test_a_backbone_has_no_scores(shelf: Path) -> None:
    with pytest.raises(UsageError, match="tiny-bert has no labels: its row names no classifier") as caught:
        Zoo().session("tiny-bert", "cpu").scores(["card"])
    assert caught.value.hint == "zoo finetune tiny-bert DATA -o DIR"


def test_a_changed_model_file_is_never_loaded(shelf: Path) -> None:
    bundle = Zoo().graph("tiny-bert")
    data = bytearray(bundle.model.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.model.write_bytes(data)
    with pytest.raises(IntegrityError, match="not the file"):
        Session(Bundle.open(bundle.path), "cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:0", "auto:1", "", "CUDA"])
def test_unknown_devices(device: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        choose_device(device)


@pytest.mark.skipif(cuda_problem() is None, reason="this machine has a CUDA device")
def test_cuda_without_cuda_is_an_error_and_auto_says_cpu(shelf: Path) -> None:
    for device in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match=r"NVIDIA|CPU build") as caught:
            Zoo().session("tiny-bert", device)
        assert caught.value.exit_code == 7
    assert Zoo().session("tiny-bert", "auto").device == "cpu"


@pytest.mark.skipif(cuda_problem() is None, reason="this machine has a CUDA device")
def test_a_provider_that_was_dropped_is_an_error(shelf: Path) -> None:
    # Without choose_device onnxruntime falls back to the CPU silently, which zoo must not accept.
    with pytest.raises(DeviceError, match="fell back"):
        create_session(Zoo().graph("tiny-bert").read_model(), "cuda:0")


def test_a_session_prints_nothing(shelf: Path) -> None:
    code = "from zoo import Zoo; print(Zoo().session('tiny-bert').device)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout in ("cpu\n", "cuda:0\n")
    assert child.stderr == ""


def test_the_runtime_never_imports_torch(shelf: Path, tmp_path: Path) -> None:
    path = photographs(tmp_path, 1)[0]
    code = (
        f"import sys; from zoo import Zoo; Zoo().run('tiny-lite', [{str(path)!r}]); Zoo().run('tiny-bert', ['card']); "
        "print([name for name in ('torch', 'transformers', 'torchvision') if name in sys.modules])"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "[]\n"


@pytest.mark.gpu
def test_cuda_equals_the_cpu(shelf: Path, tmp_path: Path) -> None:
    paths = photographs(tmp_path, 40)
    for name, items in (("tiny-lite", paths), ("tiny-bert", ["card", "late parcel"])):
        on_gpu = Zoo().session(name, "cuda")
        assert on_gpu.device == "cuda:0"
        np.testing.assert_allclose(on_gpu.features(items), Zoo().session(name, "cpu").features(items), atol=1e-3)
