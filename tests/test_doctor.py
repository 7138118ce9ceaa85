"""zoo doctor: each fault of an environment is found, named and has a line that mends it."""

import json
import os
from pathlib import Path

import pytest

from tests.installed import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    folder = tmp_path / "site"
    folder.mkdir()
    return Site(folder)


def findings(site: Site, code: int, **environment: str) -> dict[str, dict[str, str]]:
    """What `zoo doctor --json` finds, by name, when it ends with `code`."""
    done = site.zoo("doctor", "--json", **environment)
    assert done.returncode == code, done.stdout + done.stderr
    return {each["name"]: each for each in json.loads(done.stdout)["findings"]}


def test_a_sound_environment(site: Site, zoo_home: Path) -> None:
    found = findings(site, 0)
    assert {name for name, each in found.items() if each["state"] == "problem"} == set()
    assert {"zoo", "python", "onnxruntime", "cuda", "torch", "ZOO_HOME", "registry", "plugins"} == set(found)
    assert str(zoo_home) in found["ZOO_HOME"]["detail"]
    assert not zoo_home.exists()
    shown = site.zoo("doctor")
    assert shown.returncode == 0
    assert shown.stdout.count("✓") >= 6


def test_both_builds_of_onnxruntime(site: Site) -> None:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        site.install(name, "", version="1.31.0")
        # Only the metadata counts here: the module that install() wrote must not stand in the real one's way.
        (site.folder / f"{name.replace('-', '_')}.py").unlink()
    found = findings(site, 7)["onnxruntime"]
    assert found["state"] == "problem"
    assert "both installed" in found["detail"]
    assert "pip uninstall onnxruntime onnxruntime-gpu" in found["fix"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX paths")
def test_a_home_that_cannot_be_written(site: Site) -> None:
    found = findings(site, 8, ZOO_HOME="/proc/zoo")["ZOO_HOME"]
    assert "cannot be written" in found["detail"]
    assert "set ZOO_HOME" in found["fix"]


def test_a_registry_that_cannot_be_read(site: Site, tmp_path: Path) -> None:
    """It does not hide the plugins: their states are told, too."""
    site.family("toy-broken", "toy", "raise ValueError('no luck')")
    broken = tmp_path / "broken.yaml"
    broken.write_text("models: [")
    found = findings(site, 2, ZOO_REGISTRY=str(broken))
    assert "not valid YAML" in found["registry"]["detail"]
    assert "'toy' of toy-broken" in found["plugin"]["detail"]
    missing = findings(site, 3, ZOO_REGISTRY=str(tmp_path / "nowhere.yaml"))
    assert missing["registry"]["state"] == "problem"


def test_a_quarantined_plugin(site: Site) -> None:
    site.family("toy-broken", "toy", "raise ValueError('no luck')")
    found = findings(site, 9)["plugin"]
    assert "zoo.backbones 'toy' of toy-broken" in found["detail"]
    assert "ValueError: no luck" in found["detail"]
    assert "pip uninstall toy-broken" in found["fix"]
    chosen = findings(site, 0, ZOO_PLUGINS="backbone-zoo")["plugins"]
    assert chosen["detail"].endswith("(those of ZOO_PLUGINS=backbone-zoo)")


def test_zoo_itself_is_never_to_be_uninstalled(site: Site) -> None:
    site.family("toy-thief", "bert")
    done = site.zoo("doctor", "--json")
    assert done.returncode == 9
    fixes = {each["fix"] for each in json.loads(done.stdout)["findings"] if each["state"] == "problem"}
    assert fixes == {
        "pip uninstall toy-thief, or set ZOO_PLUGINS=backbone-zoo",
        "pip uninstall toy-thief, or leave it out with ZOO_PLUGINS",
    }
    assert findings(site, 0, ZOO_PLUGINS="backbone-zoo")
    hint = site.zoo("plugins", "check", "bert").stderr.splitlines()[-1]
    assert hint == "hint: keep one of them: pip uninstall toy-thief; or choose with ZOO_PLUGINS"
