"""zoo prune: the real command on a real ZOO_HOME."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.kit.cli import fails, parsed, zoo
from tests.kit.items import TEXTS, examples
from tests.kit.pulls import HOLDER
from zoo import Zoo
from zoo.training.feature_cache import FeatureCache


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def fill(home: Path) -> FeatureCache:
    """Fill the home with a feature cache and with the remains of interrupted work."""
    cache = FeatureCache(home / "features", Zoo().session("tiny-bert", "cpu"))
    cache.features(examples(TEXTS))
    for path in (home / "partials/left/data", home / "graphs/.tiny-bert-x.gone-999999999-0123abcd.new/model.onnx"):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(5000))
    return cache


def test_prune(shelf: Path, zoo_home: Path) -> None:
    cache = fill(zoo_home)
    mine = zoo_home / f"graphs/.tiny-lite-x.{os.uname().nodename.replace('-', '')}-{os.getpid()}-0123abcd.new"
    mine.mkdir()
    shutil.copytree(Zoo().graph("tiny-lite").path, zoo_home / "graphs/tiny-lite-0123456789abcdef")
    # A writer on another machine counts as ended after a day without a write.
    left = zoo_home / "graphs/.tiny-bert-x.gone-999999999-0123abcd.new"
    for path in (left / "model.onnx", left):
        os.utime(path, (1, 1))
    before = total(zoo_home)
    asked = fails(2, "would remove 4 items", "prune")
    assert "--dry-run" in asked
    plan = parsed(zoo("prune", "--dry-run", "--json"))["pruned"]
    assert {row["kind"] for row in plan["items"]} == {"features", "graph", "partial", "staged"}
    assert total(zoo_home) == before
    done = zoo("prune", "-y")
    assert done.returncode == 0, done.stderr
    assert "freed" in done.stdout
    assert before - total(zoo_home) == plan["freed"]
    assert not cache.path.exists()
    assert mine.is_dir()
    assert parsed(zoo("prune", "-y", "--json"))["pruned"] == {"dry_run": False, "freed": 0, "items": []}
    # No needed file was removed: everything works offline and without another export.
    graphs = sorted(path.name for path in (zoo_home / "graphs").iterdir())
    assert zoo("run", "tiny-bert", "my card", ZOO_OFFLINE="1").returncode == 0
    assert sorted(path.name for path in (zoo_home / "graphs").iterdir()) == graphs
    models = parsed(zoo("prune", "--models", "--dry-run", "--json"))["pruned"]["items"]
    assert {row["name"] for row in models} == {"tiny-bert", "tiny-lite"}
    assert zoo("prune", "--models", "-y").returncode == 0
    assert parsed(zoo("list", "--pulled", "--json"))["models"] == []


def test_what_is_in_use_stays(shelf: Path, zoo_home: Path) -> None:
    cache = fill(zoo_home)
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(cache.folder), cache.key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    rows = {row["kind"]: row for row in parsed(zoo("prune", "-y", "--json"))["pruned"]["items"]}
    assert rows["features"]["state"] == "in use"
    assert cache.path.exists()
    child.communicate("\n")
    cache.features(examples(TEXTS))
    assert cache.computed == 0
