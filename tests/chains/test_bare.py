"""An exported bundle without zoo: under bare onnxruntime, and under onnxruntime-web in a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.kit.browser import answers
from tests.kit.docs import README, snippet
from tests.kit.items import write_images, write_texts
from tests.kit.once import once
from tests.kit.word_tables import WORDS, binary, row, vectors, write_registry
from zoo import FinetuneOptions, Variant, Zoo
from zoo.bundle import Bundle
from zoo.data.images import decode_image
from zoo.data.tokenizers import TextEncoder
from zoo.runtime.ort import create_session
from zoo.runtime.session import Session

TEXTS = ["my card was charged twice", "the parcel is late"]
#: (height, width) of images: one smaller than the crop, odd ones, a tall and a wide one.
SIZES = ((64, 48), (301, 227), (97, 640), (512, 33))
#: The allowed difference of a score between two builds of the runtime.
NEAR = 1e-4
#: The allowed difference of a score if two resizers round few grey levels the other way; the images here are noise.
RESIZED = 2e-2
ALONE = """
import importlib.metadata, importlib.util
assert not [name for name in ("zoo", "torch", "onnx") if importlib.util.find_spec(name)]
print(json.dumps({"scores": scores.tolist(), "labels": json.loads(
    session.get_modelmeta().custom_metadata_map["zoo.labels"])}))
"""


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with onnxruntime, numpy, Pillow and tokenizers."""

    def install(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
        packages = ["onnxruntime", "numpy", "Pillow", "tokenizers"]
        command = [
            str(python(folder)),
            "-m",
            "pip",
            "install",
            "-q",
            "--no-compile",
            "--disable-pip-version-check",
            *packages,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr

    return python(once(tmp_path_factory, "bare-environment", install))


def python(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@pytest.fixture(scope="session")
def web_runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the npm package onnxruntime-web."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm, and it is not installed: apt-get install npm")

    def install(folder: Path) -> None:
        folder.mkdir()
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "onnxruntime-web@1.30"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr

    return once(tmp_path_factory, "onnxruntime-web", install) / "node_modules/onnxruntime-web/dist"


@pytest.fixture(scope="session")
def exported(shelf_file: Path, built_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported bundles with README's names, and images of several sizes beside them."""

    def make(folder: Path) -> None:
        shutil.copytree(built_home, folder / "home")
        house = Zoo(home=folder / "home", registry=shelf_file)
        options = FinetuneOptions(epochs=20, lr=1e-2)
        # Small head weights, because fp16 changes the features of this small network more than a real one's.
        small = FinetuneOptions(epochs=20, lr=1e-3)
        house.finetune("tiny-lite", write_images(folder / "train", 6), folder / "tuned-images", small)
        texts = write_texts(folder / "tickets.csv")
        house.finetune("tiny-bert", texts, folder / "tuned-texts", options)
        for name, source in (("surfaces-model", "tuned-images"), ("tickets-model", "tuned-texts")):
            house.export(str(folder / source), folder / name)
            house.export(str(folder / source), folder / f"{name}-fp16", Variant(precision="fp16"))
        int8 = Variant(precision="int8", calibrate=str(folder / "train"), max_drop=0.5)
        house.export(str(folder / "tuned-images"), folder / "surfaces-model-int8", int8)
        (folder / "v.bin").write_bytes(binary(WORDS, vectors(len(WORDS), 16)))
        rows = {"words": row(folder / "v.bin", None, 16)}
        house = Zoo(home=folder / "home", registry=write_registry(folder / "words.json", rows))
        house.finetune("words", texts, folder / "tuned-words", options)
        for precision in ("fp32", "fp16", "int8"):
            house.export(str(folder / "tuned-words"), folder / f"words-{precision}", Variant(precision=precision))
        random = np.random.default_rng(3)
        for number, (height, width) in enumerate(SIZES):
            image = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
            image[:, :, number % 3] //= 3
            Image.fromarray(image).save(folder / f"{number}.png")

    return once(tmp_path_factory, "exported", make)


def alone(interpreter: Path, script: str, folder: Path) -> tuple[np.ndarray, list[str]]:
    """Returns the scores and labels of README's snippet in an environment without zoo."""
    done = subprocess.run(
        # Isolated: no PYTHONPATH, no user packages, no modules of this checkout.
        [interpreter, "-I", "-c", script + ALONE], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    return np.array(said["scores"]), said["labels"]


def same(got: np.ndarray, wanted: np.ndarray, bound: float = NEAR) -> None:
    assert got.shape == wanted.shape
    assert got.argmax(1).tolist() == wanted.argmax(1).tolist()
    np.testing.assert_allclose(got, wanted, atol=bound)


def same_images(got: np.ndarray, session: Session, images: list[np.ndarray]) -> None:
    """The scores are those of the file in this process, and near those of a session, which resizes outside of it."""
    graph = create_session(session.bundle.read_model(), "cpu")
    same(got, np.concatenate([graph.run(["scores"], {"image": image[None]})[0] for image in images]))
    if session.manifest.precision != "int8":
        # Ranges of int8 were read from other images; in this noise one level more or less changes scores at random.
        same(got, session.scores(images), RESIZED)


@pytest.mark.network
@pytest.mark.parametrize("bundle", ["surfaces-model", "surfaces-model-fp16", "surfaces-model-int8"])
def test_images_under_bare_onnxruntime(bare_python: Path, exported: Path, bundle: str) -> None:
    session = Zoo().session(str(exported / bundle), "cpu")
    for number in range(len(SIZES)):
        script, found = re.subn(r'Image\.open\("[^"]+"\)', f'Image.open("{number}.png")', snippet(README, "images"))
        assert found == 1
        script = script.replace("surfaces-model", bundle)
        scores, labels = alone(bare_python, script, exported)
        assert labels == list(session.labels)
        same_images(scores, session, [decode_image(exported / f"{number}.png", 1)])


@pytest.mark.network
@pytest.mark.parametrize("bundle", ["tickets-model", "tickets-model-fp16", "words-fp32", "words-fp16", "words-int8"])
def test_texts_under_bare_onnxruntime(bare_python: Path, exported: Path, bundle: str) -> None:
    script = snippet(README, "texts").replace("tickets-model", bundle)
    assert all(f'"{text}"' in script for text in TEXTS)
    session = Zoo().session(str(exported / bundle), "cpu")
    scores, labels = alone(bare_python, script, exported)
    assert labels == list(session.labels)
    same(scores, session.scores(TEXTS))


@pytest.mark.network
@pytest.mark.parametrize("name", ["surfaces-model", "surfaces-model-int8"])
def test_images_in_a_browser(web_runtime: Path, exported: Path, name: str) -> None:
    bundle = exported / name
    images = [decode_image(exported / f"{number}.png", 1) for number in range(len(SIZES))]
    batches = [{"image": image[None]} for image in images]
    # A batch of several images of one size.
    batches.append({"image": np.stack([images[1], images[1][::-1], images[1][:, ::-1]])})
    session = Zoo().session(str(bundle), "cpu")
    for batch, found in zip(batches, answers(web_runtime, bundle, batches), strict=True):
        same_images(found["scores"], session, list(batch["image"]))
        assert found["features"].shape == (len(batch["image"]), 1280)


@pytest.mark.network
@pytest.mark.parametrize("name", ["tickets-model", "words-fp32", "words-fp16", "words-int8"])
def test_texts_in_a_browser(web_runtime: Path, exported: Path, name: str) -> None:
    bundle = Bundle.open(exported / name)
    encoder = TextEncoder(bundle.manifest.preprocess, bundle.path)
    batches = [encoder.batch(encoder.tokens(texts)) for texts in (TEXTS, TEXTS[:1])]
    session = Zoo().session(str(bundle.path), "cpu")
    for texts, found in zip((TEXTS, TEXTS[:1]), answers(web_runtime, bundle.path, batches), strict=True):
        same(found["scores"], session.scores(texts))
