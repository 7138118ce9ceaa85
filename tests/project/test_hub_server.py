"""The loopback Hub as the real client sees it: the facts of a model, its listings and its files."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile, RepoFolder
from safetensors.numpy import save

from tests.kit.hub import FakeHub, HubRepo

OLD, NEW = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"
WEIGHTS = save({"a": np.zeros((3, 5), np.float32), "b": np.ones(7, np.float32), "n": np.ones((), np.int64)})
CARD = b"---\nlicense: apache-2.0\ntags: [image-classification]\nlibrary_name: timm\n---\n# A model\n"
FILES = {
    "README.md": CARD,
    "config.json": b'{"model_type": "toy", "architectures": ["ToyModel"], "hidden_size": 3}',
    "model.safetensors": WEIGHTS,
    "onnx/int8/model.onnx": bytes(range(256)),
}
LFS = frozenset({"model.safetensors", "onnx/int8/model.onnx"})


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as running:
        running.add("org/toy", OLD, HubRepo({"model.safetensors": WEIGHTS[:-1] + b"\0"}, lfs=frozenset()), branches=())
        running.add("org/toy", NEW, HubRepo(FILES, lfs=LFS), branches=("main", "v1.0"))
        yield running


def test_model_info_is_the_models(hub: FakeHub) -> None:
    api = HfApi(endpoint=hub.origin)
    info = api.model_info("org/toy")
    assert (info.id, info.author, info.sha, info.gated, info.library_name) == ("org/toy", "org", NEW, False, "timm")
    assert info.card_data is not None
    assert info.card_data.license == "apache-2.0"
    assert info.tags == ["timm", "image-classification", "license:apache-2.0"]
    assert info.config == {"model_type": "toy", "architectures": ["ToyModel"]}
    assert info.safetensors is not None
    assert (info.safetensors.parameters, info.safetensors.total) == ({"F32": 22, "I64": 1}, 23)
    assert info.siblings is not None
    assert [(each.rfilename, each.size, each.lfs) for each in info.siblings] == [(name, None, None) for name in FILES]
    assert api.model_info("org/toy", revision=OLD).sha == OLD
    assert api.model_info("org/toy", revision="v1.0").sha == NEW
    assert api.model_info("org/toy", expand=["safetensors", "sha"]).siblings is None
    assert api.model_info("org/toy", expand=["safetensors", "sha"]).safetensors == info.safetensors


def test_model_info_has_sizes_and_digests_when_asked(hub: FakeHub) -> None:
    siblings = HfApi(endpoint=hub.origin).model_info("org/toy", files_metadata=True).siblings or []
    assert {each.rfilename: each.size for each in siblings} == {name: len(data) for name, data in FILES.items()}
    assert {each.rfilename: each.lfs["sha256"] for each in siblings if each.lfs} == {
        name: hashlib.sha256(FILES[name]).hexdigest() for name in LFS
    }


@pytest.mark.parametrize("revision", ["main", NEW])
def test_the_tree_is_listed_whole_or_by_folder(hub: FakeHub, revision: str) -> None:
    api = HfApi(endpoint=hub.origin)
    everything = list(api.list_repo_tree("org/toy", recursive=True, revision=revision))
    assert sorted(each.path for each in everything) == sorted({*FILES, "onnx", "onnx/int8"})
    assert {each.path: each.size for each in everything if isinstance(each, RepoFile)} == {
        name: len(data) for name, data in FILES.items()
    }
    top = list(api.list_repo_tree("org/toy", revision=revision))
    assert [each.path for each in top if isinstance(each, RepoFolder)] == ["onnx"]
    assert {each.path for each in top if isinstance(each, RepoFile) and each.lfs} == {"model.safetensors"}
    assert [each.path for each in api.list_repo_tree("org/toy", "onnx", revision=revision)] == ["onnx/int8"]
    assert api.get_paths_info("org/toy", ["config.json", "gone"], revision=revision)[0].path == "config.json"


def test_object_ids_are_gits(hub: FakeHub, tmp_path: Path) -> None:
    """The object ids equal git's for a file, and git's for the pointer of an LFS file."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    blobs = {each.rfilename: each.blob_id for each in HfApi(endpoint=hub.origin).model_info(
        "org/toy", files_metadata=True).siblings or []}  # fmt: skip
    pointer = HubRepo(FILES, lfs=LFS).pointer("model.safetensors")
    for name, data in (("README.md", CARD), ("model.safetensors", pointer)):
        (tmp_path / "file").write_bytes(data)
        command = ["git", "hash-object", "--no-filters", str(tmp_path / "file")]
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == blobs[name]


@pytest.mark.parametrize("revision", ["main", "v1.0", NEW])
def test_a_file_comes_by_branch_and_by_commit(hub: FakeHub, tmp_path: Path, revision: str) -> None:
    for name, data in FILES.items():
        path = Path(hf_hub_download("org/toy", name, revision=revision, endpoint=hub.origin, cache_dir=tmp_path))
        assert path.read_bytes() == data
        # The cache stores a file under the commit in the answer's headers.
        assert path.parts[-2 - name.count("/")] == NEW


def test_a_snapshot_holds_the_files_that_were_asked_for(hub: FakeHub, tmp_path: Path) -> None:
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "from huggingface_hub import snapshot_download\n"
            "print(snapshot_download('org/toy', allow_patterns=['*.json', '*.safetensors']))",
        ],
        env={**os.environ, "HF_ENDPOINT": hub.origin, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    folder = Path(child.stdout.strip())
    assert folder.name == NEW
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: FILES[name] for name in ("config.json", "model.safetensors")
    }
    whole = Path(snapshot_download("org/toy", endpoint=hub.origin, revision=NEW, local_dir=tmp_path / "whole"))
    assert all((whole / name).read_bytes() == data for name, data in FILES.items())
    assert {seen.path for seen in hub.cdn.requests} == {
        f"/lfs/{hashlib.sha256(FILES[name]).hexdigest()}" for name in LFS
    }


def test_what_is_not_there_has_the_hubs_own_errors(hub: FakeHub, tmp_path: Path) -> None:
    api = HfApi(endpoint=hub.origin)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/other")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/toy", revision="v2")
    with pytest.raises(RevisionNotFoundError):
        list(api.list_repo_tree("org/toy", revision="0" * 40))
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/toy", "gone.txt", endpoint=hub.origin, cache_dir=tmp_path)
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("org/toy", "gone"))
