"""A third-party distribution, installed by pip and used through the real command line."""

import json
import os
from pathlib import Path

import pytest

from tests.kit.installed import Site, pip_install

HERE = Path(__file__).resolve().parents[1]
TOY = HERE / "thirdparty" / "zoo-toy"
IMAGE = HERE.parent / "zoo" / "assets" / "coffee.jpg"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A folder in which zoo-toy is installed."""
    folder = tmp_path_factory.mktemp("toy") / "site"
    pip_install(TOY, folder)
    return Site(folder)


def test_its_row_is_listed_and_shown(toy: Site) -> None:
    listed = toy.zoo("list", "toy", "--json")
    assert listed.returncode == 0, listed.stderr
    (row,) = json.loads(listed.stdout)["models"]
    assert (row["name"], row["family"], row["pinned"], row["pulled"]) == ("toy-palette", "toy", True, False)
    shown = toy.zoo("show", "toy-palette")
    assert shown.returncode == 0, shown.stderr
    assert "toy://palette.json" in shown.stdout
    assert toy.zoo("list", "-q").stdout.count("toy-palette") == 1


def test_its_plugins_are_named(toy: Site) -> None:
    done = toy.zoo("plugins", "--json")
    assert done.returncode == 0, done.stderr
    ours = [state for state in json.loads(done.stdout)["plugins"] if state["distribution"] == "zoo-toy"]
    assert [(s["group"], s["name"], s["module"], s["version"], s["state"]) for s in ours] == [
        ("zoo.backbones", "toy", "zoo_toy.family", "1.2.0", "ok"),
        ("zoo.sources", "toy", "zoo_toy.source", "1.2.0", "ok"),
        ("zoo.shelves", "toy", "zoo_toy", "1.2.0", "ok"),
    ]


def test_it_is_pulled_by_its_source_and_runs(toy: Site) -> None:
    """After pull, export and ONNX Runtime the features equal those of a few lines of numpy."""
    import numpy as np
    from PIL import Image

    pulled = toy.zoo("pull", "toy-palette")
    assert pulled.returncode == 0, pulled.stderr
    folder = Path(pulled.stdout.strip().splitlines()[-1])
    assert (folder / "palette.json").read_bytes() == (TOY / "zoo_toy" / "palette.json").read_bytes()
    ran = toy.zoo("run", "toy-palette", IMAGE, "--json", "--device", "cpu")
    assert ran.returncode == 0, ran.stderr
    (answer,) = json.loads(ran.stdout)["run"]["results"]
    image = Image.open(IMAGE)
    short = min(image.size)
    small = image.resize([40 * side // short for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - 32) // 2 for side in small.size)
    mean = (np.asarray(small.crop((left, top, left + 32, top + 32))) / 255 - 0.5).mean((0, 1)) / 0.25
    palette = np.array(json.loads((folder / "palette.json").read_text())["colours"])
    np.testing.assert_allclose(answer["features"], palette @ mean, atol=0.03)


def test_it_conforms(toy: Site) -> None:
    done = toy.zoo("plugins", "check", "toy", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = json.loads(done.stdout)["reports"]
    assert (report["family"], report["entry"], report["state"]) == ("toy", "toy-palette", "passed")
    assert report["size"] > 0
    assert report["seconds"] > 0
    names = [check["name"] for check in report["checks"]]
    assert {"parity", "batch-invariant", "whole chain"} <= set(names)
    assert {"eval mode", "stages"} & set(names) == set()
    assert {check["state"] for check in report["checks"]} == {"passed"}


def test_without_it_nothing_of_it_is_there(toy: Site) -> None:
    for environment in ({"ZOO_PLUGINS": ""}, {"ZOO_PLUGINS": "backbone-zoo"}):
        assert "toy" not in toy.zoo("list", "-q", **environment).stdout
        assert toy.zoo("show", "toy-palette", **environment).returncode == 3
    chosen = toy.zoo("list", "toy", "-q", ZOO_PLUGINS="zoo-toy")
    assert chosen.stdout.split() == ["toy-palette"]


def test_a_registry_file_replaces_our_rows_and_not_its_rows(toy: Site, tmp_path: Path) -> None:
    registry = tmp_path / "mine.yaml"
    row = (TOY / "zoo_toy" / "registry.yaml").read_text()
    registry.write_text(row.replace("toy-palette", "mine"))
    home = Path(os.environ["ZOO_HOME"])
    home.mkdir()
    (home / "registry.yaml").write_text(row.replace("toy-palette", "added"))
    for arguments, environment in (
        (("--registry", registry, "list", "-q"), {}),
        (("list", "-q"), {"ZOO_REGISTRY": str(registry)}),
    ):
        done = toy.zoo(*arguments, **environment)
        assert done.stdout.split() == ["added", "mine", "toy-palette"], done.stderr
