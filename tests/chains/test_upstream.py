"""The shipped rows' own URLs, pulled by the real command and the real Hub client from servers on loopback."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.upstream import ROWS, Upstream
from zoo.registry.registry import builtin_registry_path

#: Rows from the Hub or a web server; the others come only from a package index (tests marked `network`).
NAMES = [
    name
    for name, row in ROWS.items()
    if all(any(not url.startswith("pypi://") for url in file["sources"]) for file in row["files"])
]
SHIPPED = builtin_registry_path().read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    """All shipped rows, with a few bytes for each path, which differ by the path and the name of the weights."""
    folder = tmp_path_factory.mktemp("everything")
    with Upstream(folder) as upstream:
        for name in NAMES:
            for file in ROWS[name]["files"]:
                path = upstream.files / name / file["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{file['sources'][-1]} holds this\n")
            upstream.publish(name, upstream.files / name)
        yield upstream


def test_every_row_is_pulled_from_its_own_urls(everything: Upstream) -> None:
    done = everything.run("pull", "--json", *NAMES)
    assert done.returncode == 0, done.stderr
    pulled = json.loads(done.stdout)["pulled"]
    assert list(pulled) == NAMES
    for name, folder in pulled.items():
        for file in ROWS[name]["files"]:
            got = (Path(folder) / file["path"]).read_bytes()
            assert got == (everything.files / name / file["path"]).read_bytes()
    # Read from the shipped file as text, independently of the code that made the servers' paths.
    hub = {
        f"/{repo}/resolve/{commit}/{path}" for repo, commit, path in re.findall(r"hf://(\S+)@(\w{40})/(\S+)", SHIPPED)
    }
    web = set(re.findall(r"- https://[^/\s]+(/\S+)", SHIPPED))
    assert {seen.path for seen in everything.hub.requests if "/resolve/" in seen.path} == hub
    assert {seen.path for seen in everything.web.requests} == web
    assert len(hub) + len(web) > 30


def test_only_a_package_index_has_the_rest() -> None:
    assert sorted(set(ROWS) - set(NAMES)) == ["efficientnet_lite0", "glove-6b-50d"]


def test_what_the_hub_serves_is_checked_against_the_row(everything: Upstream, tmp_path: Path) -> None:
    """Other bytes at the same commit are refused and not kept."""
    name = "resnet18.a1_in1k"
    repo, commit = re.match(r"hf://(\S+)@(\w{40})", ROWS[name]["files"][0]["sources"][0]).groups()
    honest = everything.hub.repos[repo, commit]
    try:
        [(path, data)] = honest.files.items()
        everything.hub.add(repo, commit, type(honest)({path: bytes(data)[:-1] + b"?"}, lfs=honest.lfs))
        done = everything.run("pull", name, home=tmp_path / "home")
    finally:
        everything.hub.add(repo, commit, honest)
    assert done.returncode == 5
    assert [line.partition(":")[0] for line in done.stderr.splitlines()[-2:]] == ["error", "hint"]
    assert list((tmp_path / "home").rglob("*.safetensors")) == []
