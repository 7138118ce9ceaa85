"""hf:// with the loopback Hub; each pull has its own process, because huggingface_hub reads its environment once."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from zoo_plugins.sources import hub

from tests.kit.hub import FakeHub, HubRepo
from tests.kit.pulls import DATA, SMALL, finish, lock_of, row, start_pull
from zoo.errors import NetworkError, RegistryError
from zoo.hub import check_name, dataset_file, open_repository
from zoo.progress import Silent
from zoo.source import Want
from zoo.store.store import Store

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_server() -> Iterator[FakeHub]:
    with FakeHub() as running:
        yield running


def hub_pull(
    server: FakeHub, files: dict[str, tuple[bytes, str]], *arguments: str, **environment: str
) -> dict[str, Any]:
    entry = row(
        {path: (data, [url]) for path, (data, url) in files.items()}, is_pinned="--trust-first" not in arguments
    )
    return finish(start_pull(entry, *arguments, HF_ENDPOINT=server.origin, **environment))


def test_hub_files_small_and_large_arrive_without_a_word_on_the_screen(hub_server: FakeHub) -> None:
    files = {"config.json": SMALL, "onnx/model.bin": DATA}
    hub_server.add("org/net", COMMIT, HubRepo(files=files, lfs=frozenset({"onnx/model.bin"})))
    result = hub_pull(
        hub_server,
        {
            "config.json": (SMALL, f"hf://org/net@{COMMIT}/config.json"),
            "model.bin": (DATA, f"hf://org/net@{COMMIT}/onnx/model.bin"),
        },
        HF_TOKEN="hf_of_the_test",
    )
    folder = Path(result["folder"])
    assert (folder / "config.json").read_bytes() == SMALL
    assert (folder / "model.bin").read_bytes() == DATA
    assert result["stderr"] == ""
    assert list(Store().partials.iterdir()) == []
    assert {seen.headers.get("authorization") for seen in hub_server.requests} == {"Bearer hf_of_the_test"}
    assert not any("authorization" in seen.headers for seen in hub_server.cdn.requests)
    # No telemetry: only the files were requested, and the user agent lists no installed libraries.
    assert {seen.path.split("/")[3] for seen in hub_server.requests} == {"resolve"}
    assert not any("torch/" in seen.headers["user-agent"] for seen in hub_server.requests)


def test_hub_trust_first_compares_with_the_announced_digest(hub_server: FakeHub) -> None:
    lfs = frozenset({"w.bin"})
    hub_server.add("org/net", COMMIT, HubRepo(files={"w.bin": DATA}, lfs=lfs))
    hub_server.add("org/bad", COMMIT, HubRepo(files={"w.bin": DATA}, lfs=lfs, announced={"w.bin": "0" * 64}))
    bad = hub_pull(hub_server, {"w.bin": (DATA, f"hf://org/bad@{COMMIT}/w.bin")}, "--trust-first")
    assert bad["error"] == "integrity"
    assert not Store().lock_path.exists()
    good = hub_pull(hub_server, {"w.bin": (DATA, f"hf://org/net@{COMMIT}/w.bin")}, "--trust-first")
    assert (Path(good["folder"]) / "w.bin").read_bytes() == DATA
    assert lock_of(Store()).entries["toy_net.v1"]["w.bin"].sha256 == hashlib.sha256(DATA).hexdigest()
    assert f"/api/models/org/net/paths-info/{COMMIT}" in [seen.path for seen in hub_server.requests]


def test_hub_refusals_are_told_apart(hub_server: FakeHub) -> None:
    hub_server.add("org/gated", COMMIT, HubRepo(files={"w.bin": DATA}, is_gated=True))
    hub_server.add("org/long", COMMIT, HubRepo(files={"w.bin": DATA + b"!"}))
    cases = {
        "gated": (f"hf://org/gated@{COMMIT}/w.bin", {}, "access"),
        "no file": (f"hf://org/gated@{COMMIT}/gone.bin", {"HF_TOKEN": "hf_of_the_test"}, "network"),
        "no repository": (f"hf://org/gone@{COMMIT}/w.bin", {}, "network"),
        "offline": (f"hf://org/gated@{COMMIT}/w.bin", {"HF_HUB_OFFLINE": "1"}, "offline"),
        "too long": (f"hf://org/long@{COMMIT}/w.bin", {}, "integrity"),
    }
    entries = {name: row({"w.bin": (DATA, [url])}) for name, (url, _, _) in cases.items()}
    common = {"HF_ENDPOINT": hub_server.origin}
    children = {name: start_pull(entries[name], **common, **extra) for name, (_, extra, _) in cases.items()}
    results = {name: finish(child) for name, child in children.items()}
    assert {name: result["error"] for name, result in results.items()} == {
        name: code for name, (_, _, code) in cases.items()
    }
    assert "HF_TOKEN" in results["gated"]["hint"]
    assert "no such file" in results["no file"]["message"]
    assert "no such repository" in results["no repository"]["message"]
    assert results["offline"]["hint"] == "unset HF_HUB_OFFLINE"
    assert list(Store().models.rglob("*.bin")) == []


def never(seconds: float) -> None:
    raise AssertionError(f"the client waits {seconds} s before it asks again")


@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:9"])
def test_a_name_that_is_not_known_is_one_error_without_retries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], proxy: str
) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_http.time, "sleep", never)
    if proxy:
        # The proxy resolves the name, so the client itself must ask.
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        check_name("hf://org/net")
        return
    source, url = hub.HubSource(), f"hf://org/net@{COMMIT}/w.bin"
    for hint, attempt in (
        ("ZOO_OFFLINE=1", lambda: source.fetch([Want(url=url, partial=tmp_path / "w.bin", size=3)], Silent())),
        ("ZOO_OFFLINE=1", lambda: source.announced(url)),
        ("ZOO_OFFLINE=1", lambda: open_repository("org/net")),
        ("connection", lambda: dataset_file("hf://datasets/org/net/t.csv")),
    ):
        with pytest.raises(NetworkError, match=r"hub\.invalid") as caught:
            attempt()
        assert hint in str(caught.value.hint)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT[:12], COMMIT.upper()])
def test_hub_takes_commits_and_nothing_that_can_move(revision: str) -> None:
    with pytest.raises(RegistryError, match="not a commit") as caught:
        hub.parse(f"hf://org/net@{revision}/w.bin")
    assert "40 hex" in str(caught.value.hint)
    with pytest.raises(RegistryError, match="not hf://"):
        hub.parse(f"hf://net@{COMMIT}")
