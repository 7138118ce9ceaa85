"""A bridge from another distribution is found by its entry point, and its models work like registry rows."""

import sys
from pathlib import Path

import pytest

from tests.kit.installed import Site
from zoo import PluginError, Zoo
from zoo.plugin.manager import Plugins

CODE = """
import msgspec
from zoo.bridge import Bridge
from zoo.errors import NotFoundError
from zoo.hookspecs import hookimpl
from zoo.registry.registry import load_registry
from pathlib import Path

class Toy(Bridge):
    prefix = "toyb"
    def entry(self, name, revision):
        rows = load_registry([Path({registry!r})])
        if name not in rows:
            raise NotFoundError(f"toyb has no {name}", hint="toyb/tiny-bert")
        row = rows[name]
        files = tuple(msgspec.structs.replace(file, sha256=None) for file in row.files)
        return msgspec.structs.replace(row, name=f"toyb/{name}", files=files)

@hookimpl
def zoo_register_bridges():
    return [Toy]
"""


@pytest.fixture
def toy(site: Site, shelf_file: Path) -> Site:
    code = CODE.replace("{registry!r}", repr(str(shelf_file)))
    site.install("toy-bridge", code, "[zoo.bridges]", "toyb = {module}")
    return site


def test_a_foreign_bridge_gives_models(toy: Site) -> None:
    assert "toyb" in Plugins().prefixes()
    zoo = Zoo()
    assert [row.entry.name for row in zoo.list("toyb")] == []
    assert "toy_bridge" not in sys.modules
    folder = zoo.pull("toyb/tiny-bert", trust_first=True)
    assert (folder / "model.safetensors").is_file()
    assert [row.entry.name for row in Zoo().list("toyb", pulled=True)] == ["toyb/tiny-bert"]
    with pytest.raises(Exception, match="toyb has no tinny") as caught:
        zoo.entry("toyb/tinny")
    assert caught.value.hint == "toyb/tiny-bert"  # type: ignore[attr-defined]


def test_list_loads_no_bridge(toy: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    Zoo().pull("toyb/tiny-bert", trust_first=True)
    del sys.modules["toy_bridge"]
    assert [row.is_pulled for row in Zoo().list("toyb")] == [True]
    assert Zoo().pull("toyb/tiny-bert").is_dir()
    # If the bridge is left out or uninstalled, pulled models stay usable.
    monkeypatch.setenv("ZOO_PLUGINS", "backbone-zoo")
    assert Zoo().pull("toyb/tiny-bert").is_dir()
    assert "toy_bridge" not in sys.modules


def test_a_broken_bridge_and_a_prefix_claimed_twice_are_named(toy: Site) -> None:
    toy.install("toy-broken", "raise SystemExit('no')", "[zoo.bridges]", "toyx = {module}")
    toy.install("toy-second", CODE, "[zoo.bridges]", "hf = {module}")
    with pytest.raises(PluginError, match="'toyx' of toy-broken cannot be used: SystemExit: no") as caught:
        Zoo().entry("toyx/net")
    assert caught.value.exit_code == 9
    with pytest.raises(PluginError, match=r"the prefix 'hf' is claimed by backbone-zoo .* and toy-second"):
        Zoo().entry("hf/a/b")
    # Neither problem stops the other verbs.
    assert Zoo().pull("toyb/tiny-bert", trust_first=True).is_dir()
