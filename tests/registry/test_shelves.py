"""Registry files of plugins (`zoo.shelves`): found without an import, added if valid, otherwise left out as a whole."""

import json
import os
import statistics
import sys
from pathlib import Path

import pytest

from tests.kit.cost import cpu_seconds
from tests.kit.installed import FAMILY, Site
from zoo.extras import package_folder
from zoo.registry.registry import Registry
from zoo.registry.shelves import add_shelves

ROW = """\
  {name}:
    family: {family}
    task: image-features
    description: a row of a plugin
    license: MIT
    params: 10
    dim: 4
    preprocess: {{kind: image, resize: 32, crop: 28, interpolation: bilinear, mean: [0, 0, 0], std: [1, 1, 1]}}
    files:
      - {{path: a.safetensors, sha256: {digest}, size: 1, sources: ["file:///a.safetensors"]}}
"""
#: The additional seconds that `zoo list` may take with twenty plugins, each with a family and a registry file.
BUDGET = 0.050
RUNS = 9


def registry(*names: str, family: str = "toy") -> str:
    rows = "".join(ROW.format(name=name, family=family, digest="0" * 64) for name in names)
    return f"schema_version: 1\nmodels:\n{rows}"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return Site(folder)


def states(site: Site, **environment: str) -> dict[str, dict[str, str]]:
    """The states of the registry files in `zoo plugins`, by distribution."""
    done = site.zoo("plugins", "--json", **environment)
    assert done.returncode == 0, done.stderr
    return {each["distribution"]: each for each in json.loads(done.stdout)["plugins"] if each["group"] == "zoo.shelves"}


def test_a_shelf_adds_its_rows_and_its_package_is_not_imported(site: Site) -> None:
    package = site.shelf("toy-shelf", "toys", registry("toy-a", "toy-b"))
    done = site.zoo("list", "toy", "-q")
    assert (done.returncode, done.stdout.split()) == (0, ["toy-a", "toy-b"])
    assert site.zoo("show", "toy-a").returncode == 0
    state = states(site)["toy-shelf"]
    assert (state["name"], state["module"], state["version"], state["state"]) == ("toys", package, "1.0", "ok")
    assert "bert-base-uncased" in site.zoo("list", "-q").stdout
    for words, rows in (("", []), ("toys", ["toy-a", "toy-b"]), ("toy_shelf", ["toy-a", "toy-b"]), ("other", [])):
        assert site.zoo("list", "toy", "-q", ZOO_PLUGINS=words).stdout.split() == rows


def test_the_parents_of_a_shelf_are_not_run(site: Site) -> None:
    (site.folder / "toy_deep" / "inner").mkdir(parents=True)
    for folder in ("toy_deep", "toy_deep/inner"):
        (site.folder / folder / "__init__.py").write_text("raise SystemExit('imported')")
    (site.folder / "toy_deep" / "inner" / "registry.yaml").write_text(registry("toy-deep"))
    site.install("toy-dist", "", "[zoo.shelves]", "deep = toy_deep.inner")
    assert package_folder("toy_deep.inner") == site.folder / "toy_deep" / "inner"
    assert site.zoo("list", "toy", "-q").stdout.split() == ["toy-deep"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (registry("toy-good", "bert_base-uncased"), "has a row 'bert-base-uncased' already, which can be confused"),
        (registry("bert-base-uncased"), "the registry has a row 'bert-base-uncased' already"),
        ("schema_version: 1\nmodels: {toy-good: {}}\n", "registry.yaml:2: row 'toy-good': the key 'family' is missing"),
        ("models: [", "not valid YAML"),
        ("", "the file is empty"),
    ],
)
def test_a_shelf_that_cannot_be_used_is_left_out_whole(site: Site, text: str, reason: str) -> None:
    site.shelf("toy-broken", "broken", text)
    site.shelf("toy-fine", "fine", registry("toy-fine"))
    listed = site.zoo("list", "-q")
    assert listed.returncode == 0
    assert {"toy-fine", "bert-base-uncased"} <= set(listed.stdout.split())
    assert "toy-good" not in listed.stdout
    assert "warning: the registry file 'broken' of toy-broken is left out" in listed.stderr
    assert "BERT-base" in site.zoo("show", "bert-base-uncased").stdout
    missing = site.zoo("show", "toy-good")
    assert missing.returncode == 3
    assert "quarantined ('broken' of toy-broken): zoo plugins" in missing.stderr
    found = states(site)
    assert found["toy-fine"]["state"] == "ok"
    assert found["toy-broken"]["state"] == "quarantined"
    assert reason in found["toy-broken"]["error"]
    doctor = site.zoo("doctor", "--json")
    assert doctor.returncode == 9
    (problem,) = [each for each in json.loads(doctor.stdout)["checks"] if each["state"] == "fail"]
    assert "'broken' of toy-broken" in problem["found"]
    assert reason in problem["found"]


def test_a_shelf_without_its_package_or_file(site: Site) -> None:
    site.install("toy-module", "", "[zoo.shelves]", "module = toy_module")
    site.install("toy-gone", "", "[zoo.shelves]", "gone = toy_of_nobody.part")
    site.shelf("toy-empty", "empty", "")
    (site.folder / "toy_empty" / "registry.yaml").unlink()
    found = {state.distribution: state for state in add_shelves(Registry(), {})[1]}
    assert {state.state for state in found.values()} == {"quarantined"}
    assert "there is no package toy_module with an __init__.py" in (found["toy-module"].error or "")
    assert "there is no package toy_of_nobody.part" in (found["toy-gone"].error or "")
    assert "registry.yaml" in (found["toy-empty"].error or "")


def test_a_row_that_two_shelves_claim_is_nobodys(site: Site) -> None:
    site.shelf("toy-one", "one", registry("toy-a", "toy-same"))
    site.shelf("toy-two", "two", registry("toy_same", "toy-b"))
    site.shelf("toy-three", "three", registry("toy-c"))
    rows, found = add_shelves(Registry(), {})
    assert set(rows) == {"toy-c"}
    assert [state.distribution for state in found if state.state == "quarantined"] == ["toy-one", "toy-two"]
    for state in [each for each in found if each.state == "quarantined"]:
        assert "toy-one and toy-two" in (state.error or "")
    assert set(add_shelves(Registry(), {"ZOO_PLUGINS": "toy-one,three"})[0]) == {"toy-a", "toy-same", "toy-c"}


def test_rows_of_the_users_own_come_first(site: Site) -> None:
    site.shelf("toy-shelf", "toys", registry("toy-a"))
    home = Path(os.environ["ZOO_HOME"])
    home.mkdir()
    (home / "registry.yaml").write_text(registry("toy-a", family="mine"))
    shown = site.zoo("show", "toy-a", "--json")
    assert json.loads(shown.stdout)["model"]["family"] == "mine"
    assert states(site)["toy-shelf"]["state"] == "quarantined"


def test_twenty_plugins_cost_list_little(site: Site, tmp_path: Path) -> None:
    """Medians of the CPU time of interleaved processes, so that other load on the machine affects both alike."""
    for number in range(20):
        code = f"from pathlib import Path\nPath(r'{tmp_path}', 'imported').touch()\n" + FAMILY
        module = site.family(f"toy-family-{number}", f"toy{number}", code)
        (site.folder / f"{module}-1.0.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: toy-family-{number}\nVersion: 1.0\n\n" + "A long description.\n" * 500
        )
        site.shelf(f"toy-shelf-{number}", f"toy{number}", registry(f"toy-{number}", family=f"toy{number}"))

    def seconds(folder: str) -> float:
        """User and system time of `zoo list` with `folder` on its path."""
        command = [sys.executable, "-m", "zoo_cli", "list", "-q"]
        used, said = cpu_seconds(command, env={**os.environ, "PYTHONPATH": folder})
        assert ("toy-19" in said.decode()) is (folder != "")
        return used

    for folder in ("", str(site.folder)):
        seconds(folder)
    pairs = [(seconds(""), seconds(str(site.folder))) for _ in range(RUNS)]
    bare, full = (statistics.median(column) for column in zip(*pairs, strict=True))
    assert full - bare <= BUDGET, f"{(full - bare) * 1000:.0f} ms more than {bare * 1000:.0f} ms"
    assert not (tmp_path / "imported").exists()
    sys.stderr.write(f"20 plugins: {(full - bare) * 1000:.0f} ms more than {bare * 1000:.0f} ms\n")
