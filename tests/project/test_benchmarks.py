"""The parts of benchmarks/run.py run on very small inputs; their figures are not checked."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from zoo import Zoo
from zoo.diagnostics.timing import Stopwatch
from zoo.system.cpu import cores

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_parts_of_run(kept_shelf: Path, tmp_path: Path) -> None:
    photos, texts = tmp_path / "photos.json", tmp_path / "texts.json"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "a.jpg")
    photos.write_text(json.dumps([str(tmp_path / "a.jpg")] * 2))
    texts.write_text(json.dumps(["late parcel", "card code and a late parcel"]))
    shared = {"photos": str(photos), "texts": str(texts), "out": str(tmp_path / "v.npy"), "count": 2}
    script = [sys.executable, str(BENCHMARKS / "run_once.py")]
    for model, kinds in (("tiny-lite", ("stages", "overhead")), ("tiny-bert", ("stages", "memory"))):
        bundle = str(Zoo().open(model).path)
        for kind in kinds:
            spec = json.dumps({"bundle": bundle, **shared})
            done = subprocess.run([*script, kind, spec], capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            assert min(found[name] for name in found if name not in ("over", "above")) > 0
    spec = {"kind": "zoo_embed", "bundle": bundle, **shared, "threads": cores(), "warm": 0}
    paths = {"facts": str(tmp_path / "facts.json"), "save": str(tmp_path / "saved.npy")}
    with Stopwatch({**spec, **paths}, [sys.executable, str(BENCHMARKS / "run_peer.py")]) as child:
        assert child.time(2, 0)[0] > 0
    assert np.load(tmp_path / "saved.npy").shape[0] == 2
