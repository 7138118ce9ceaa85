"""Exports of several rows: two at a time, each in a child process."""

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest

from zoo import Bundle, NetworkError, Zoo
from zoo.export import build
from zoo.system.process import Child


def test_graphs_of_several_rows_are_those_of_each_alone(shelf_file: Path, built_home: Path, tmp_path: Path) -> None:
    registry = json.loads(shelf_file.read_text())
    registry["models"]["lost"] = json.loads(json.dumps(registry["models"]["tiny-bert"]))
    for file in registry["models"]["lost"]["files"]:
        file |= {"sha256": "0" * 64, "sources": ["file:///nowhere/" + file["path"]]}
    (tmp_path / "registry.yaml").write_text(json.dumps(registry))
    zoo = Zoo(home=tmp_path / "home", registry=tmp_path / "registry.yaml")
    found = zoo.graphs(["tiny-bert", "lost", "tiny-bert-cls", "tiny-lite"])
    assert found.keys() == {"tiny-bert", "lost", "tiny-bert-cls", "tiny-lite"}
    assert isinstance(found["lost"], NetworkError)
    alone = Zoo(home=built_home, registry=shelf_file)
    for name in ("tiny-bert", "tiny-lite"):
        bundle = found[name]
        assert isinstance(bundle, Bundle)
        assert bundle.read_model() == alone.graph(name).read_model()
    assert zoo.graphs(["tiny-bert"])["tiny-bert"].path == found["tiny-bert"].path


def test_ctrl_c_ends_all_exports(shelf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[Child] = []
    begin = build.Building.__init__

    def recorded(self: build.Building, *arguments: Any) -> None:
        begin(self, *arguments)
        children.append(self._child)

    def stop(*_: object) -> NoReturn:
        assert [child.is_alive for child in children] == [True, True]
        raise KeyboardInterrupt

    monkeypatch.setattr(build.Building, "__init__", recorded)
    monkeypatch.setattr(build.Building, "wait", stop)
    with pytest.raises(KeyboardInterrupt):
        Zoo(home=tmp_path / "home", registry=shelf_file).graphs(["tiny-bert", "tiny-bert-cls", "tiny-lite"])
    assert [child.is_alive for child in children] == [False, False]
