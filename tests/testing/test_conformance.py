"""Every built-in family passes the conformance check by the real command, on one row each."""

import subprocess
from pathlib import Path

import pytest

from tests.kit.cli import parsed, zoo
from tests.kit.hub import COMMIT, FakeHub
from tests.kit.image_models import write_image_model
from tests.kit.libraries import hub_repo, write_encoder, write_timm
from tests.kit.upstream import Upstream
from tests.kit.word_tables import WORDS, binary, row, vectors, write_registry
from zoo.plugin.manager import Plugins

#: The rows of each family by their origin; add a new family here.
TINY = {"bert": "tiny-bert", "efficientnet": "tiny-lite"}
UPSTREAM = {"resnet": "resnet18.tv_in1k", "inception": "googlenet.tv_in1k"}
OTHERS = {"word2vec", "timm", "transformers", "transformers-images"}


def conforms(done: "subprocess.CompletedProcess[str]", family: str, name: str) -> dict[str, str]:
    """The details of the only report by check; every check must have passed."""
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = parsed(done)["reports"]
    assert (report["family"], report["entry"], report["state"]) == (family, name, "passed")
    assert {check["state"] for check in report["checks"]} == {"passed"}
    assert report["size"] > 0
    assert report["seconds"] > 0
    return {check["name"]: check["detail"] for check in report["checks"]}


def test_every_family_of_ours_is_looked_at() -> None:
    ours = {state.name for state in Plugins().describe() if state.group == "zoo.backbones"}
    assert ours == {*TINY, *UPSTREAM, *OTHERS}


@pytest.mark.parametrize(
    ("family", "name"),
    [("bert", TINY["bert"]), pytest.param("efficientnet", TINY["efficientnet"], marks=pytest.mark.slow)],
)
def test_a_family_of_the_tiny_models(shelf: Path, family: str, name: str) -> None:
    details = conforms(zoo("plugins", "check", family, "--row", name, "--json"), family, name)
    assert ("sequence" in details["dynamic batch"]) == (family == "bert")


@pytest.mark.parametrize(
    ("family", "name"),
    [("resnet", UPSTREAM["resnet"]), pytest.param("inception", UPSTREAM["inception"], marks=pytest.mark.slow)],
)
def test_a_family_of_upstreams_files(upstream: Upstream, family: str, name: str) -> None:
    upstream.pull(name)
    conforms(upstream.run("plugins", "check", family, "--row", name, "--json"), family, name)


def test_word_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v.bin").write_bytes(binary(WORDS, vectors(len(WORDS), 16)))
    registry = write_registry(tmp_path / "words.json", {"tiny-words": row(tmp_path / "v.bin", None, 16)})
    monkeypatch.setenv("ZOO_REGISTRY", str(registry))
    details = conforms(zoo("plugins", "check", "word2vec", "--json"), "word2vec", "tiny-words")
    assert "sequence" in details["dynamic batch"]


@pytest.mark.slow
def test_the_families_behind_bridges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_timm(tmp_path / "timm", "test_convnext")
    write_encoder(tmp_path / "hf", "Electra", embedding_size=32)
    write_image_model(tmp_path / "images", "vit", seed=41)
    names = {"timm": "timm/test_convnext.r160_in1k", "transformers": "hf/acme/electra"}
    names["transformers-images"] = "hf/acme/vit"
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.origin)
        hub.add("timm/test_convnext.r160_in1k", COMMIT, hub_repo(tmp_path / "timm"))
        hub.add("acme/electra", COMMIT, hub_repo(tmp_path / "hf"))
        hub.add("acme/vit", COMMIT, hub_repo(tmp_path / "images"))
        for name in names.values():
            done = zoo("pull", name, "--trust-first")
            assert done.returncode == 0, done.stderr
    for family, name in names.items():
        conforms(zoo("plugins", "check", family, "--json"), family, name)
    # Pulled models are listed with their trusted digests.
    assert {row["pulled"] for row in parsed(zoo("list", "--pulled", "--json"))["models"]} == {True}
