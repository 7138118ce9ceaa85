"""ResNet-50 and Inception v3 at full size: README's chain by the real commands, on a few surfaces of each class."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit.upstream import Upstream

ROOT = Path(__file__).resolve().parents[2]
#: The number of the demo's images that are used of each class.
COUNTS = {"train": 3, "heldout": 1}


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's surfaces with only the first images of each class."""
    folder = tmp_path_factory.mktemp("surfaces")
    command = [sys.executable, str(ROOT / "demo/surfaces.py"), str(folder / "all")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for part, count in COUNTS.items():
        for kind in sorted((folder / "all" / part).iterdir()):
            (folder / part / kind.name).mkdir(parents=True)
            for image in sorted(kind.iterdir())[:count]:
                shutil.copy(image, folder / part / kind.name)
    shutil.rmtree(folder / "all")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50.tv_in1k", "inception_v3.tv_in1k"])
def test_pull_finetune_export_run(upstream: Upstream, surfaces: Path, tmp_path: Path, name: str) -> None:
    upstream.pull(name)
    model, onnx = str(tmp_path / "model"), str(tmp_path / "onnx")
    heldout = sorted(str(path) for path in (surfaces / "heldout").rglob("*.png"))
    assert len(heldout) == 14

    def zoo(kind: str, *argv: str) -> Any:
        done = upstream.run(*argv, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)[kind]

    folders = "--val", str(surfaces / "heldout"), "-o", model
    zoo("finetune", "finetune", name, str(surfaces / "train"), *folders, "--epochs", "30")
    zoo("export", "export", model, "-o", onnx)
    results = zoo("run", "run", onnx, *heldout, "--top", "14")["results"]
    assert [result["input"] for result in results] == heldout
    for result in results:
        assert {label["name"] for label in result["labels"]} == {Path(path).parent.name for path in heldout}
        assert sum(label["score"] for label in result["labels"]) == pytest.approx(1, abs=1e-4)
    files = zoo("files", "verify", name, model, onnx)
    assert {file["model"] for file in files} == {name, model, onnx}
    assert all(file["ok"] for file in files)
    assert {path.name for path in Path(onnx).iterdir()} >= {"model.onnx", "zoo.json"}
    # verify finds a damaged file, and run refuses it.
    with (tmp_path / "onnx/model.onnx").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"spoiled")
    assert upstream.run("verify", onnx).returncode == 5
    assert upstream.run("run", onnx, heldout[0]).returncode == 5
