"""zoo doctor finds each fault of an environment, names it and prints a line that fixes it."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.installed import Site, checks
from tests.kit.servers import Handler, Loopback, status
from zoo.diagnostics.doctor import _elsewhere


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


def test_a_sound_environment(site: Site, zoo_home: Path) -> None:
    found = checks(site, 0)
    assert {name for name, each in found.items() if each["state"] == "fail"} == set()
    always = {"zoo", "python", "onnxruntime", "gpu", "torch", "ZOO_HOME", "hub", "registry", "plugins"}
    assert always <= set(found) <= {*always, "cuda libraries", "cuda session"}
    assert found["onnxruntime"]["found"].endswith("a one-node model runs on the CPU")
    assert str(zoo_home) in found["ZOO_HOME"]["found"]
    assert not zoo_home.exists()
    shown = site.zoo("doctor")
    assert shown.returncode == 0
    assert shown.stdout.count("✓") >= 6


def test_every_warning_and_failure_has_a_fix(site: Site) -> None:
    found = checks(site, 7, ZOO_DEVICE="cuda", CUDA_VISIBLE_DEVICES="", ZOO_HOME="/tmp/zoo-of-nobody")
    bad = [each for each in found.values() if each["state"] != "ok"]
    assert {"gpu", "ZOO_HOME", "hub"} <= {each["name"] for each in bad}
    assert [each["name"] for each in bad if not each["fix"]] == []


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX paths")
def test_a_home_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    found = checks(site, 8, ZOO_HOME="/proc/zoo")["ZOO_HOME"]
    assert "cannot be written" in found["found"]
    assert found["fix"].startswith("export ZOO_HOME=")
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name, reason in (("file", "Not a directory"), ("link", "No such file or directory")):
        found = checks(site, 8, ZOO_HOME=str(tmp_path / name))["ZOO_HOME"]
        assert f"cannot be written: {reason}" in found["found"]
        assert found["fix"].startswith("export ZOO_HOME=")


def test_a_read_only_home(site: Site, tmp_path: Path) -> None:
    """A read-only mount, if the tests may mount, because permissions do not stop root."""
    home = tmp_path / "mounted"
    home.mkdir()
    mounts = ["unshare", "--mount", "sh", "-c"]
    script = f"mount --bind {home} {home} && mount -o remount,bind,ro {home} && "
    try:
        may = subprocess.run([*mounts, script + "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare of util-linux")
    if may.returncode != 0:
        pytest.skip(f"one may not mount here: {may.stderr.strip()}")
    site.prefix = [*mounts, script + 'exec "$@"', "sh"]
    found = checks(site, 8, ZOO_HOME=str(home))["ZOO_HOME"]
    assert "cannot be written: Read-only file system" in found["found"]
    assert found["fix"].startswith("export ZOO_HOME=")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be somebody else")
def test_a_part_of_the_home_that_another_user_made() -> None:
    """As after `sudo zoo pull`: the user owns the folder, but not the files in it."""
    from zoo.diagnostics.doctor import _home

    nobody = 65534
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        (home / "models").mkdir(parents=True)
        Path(folder).chmod(0o755)
        os.chown(home, nobody, nobody)
        os.seteuid(nobody)
        try:
            check = _home(home)
            os.seteuid(0)
            assert (check.state, check.exit_code) == ("fail", 8)
            assert "Permission denied" in check.found
            assert check.fix == f'sudo chown -R "$(id -u)" {home}'
            os.chown(home / "models", nobody, nobody)
            os.seteuid(nobody)
            check = _home(home)
        finally:
            os.seteuid(0)
        assert check.state == "warn"
        assert "is emptied" in check.found


@pytest.mark.skipif(os.name != "posix", reason="POSIX paths")
def test_a_home_among_temporary_files(site: Site, tmp_path: Path) -> None:
    who = {"HOME": "/srv/somebody", "XDG_CACHE_HOME": "", "TMPDIR": str(tmp_path)}
    new = "/srv/somebody/.cache/backbone-zoo"
    found = checks(site, 0, ZOO_HOME="/tmp/zoo-of-nobody", **who)["ZOO_HOME"]
    assert found["state"] == "warn"
    assert "/tmp/zoo-of-nobody is in /tmp, which is emptied" in found["found"]
    assert found["fix"] == f"export ZOO_HOME={new}"
    # The fix also moves the existing files.
    (tmp_path / "full").mkdir()
    found = checks(site, 0, ZOO_HOME=str(tmp_path / "full"), **who)["ZOO_HOME"]
    moved = f"mv {tmp_path / 'full'} {new} && export ZOO_HOME={new}"
    assert found["fix"] == f"mkdir -p /srv/somebody/.cache && {moved}"


def test_the_hub_refuses(site: Site) -> None:
    with Loopback() as running:
        gone = running.origin
    found = checks(site, 0, HF_ENDPOINT=gone)["hub"]
    assert found["state"] == "warn"
    assert f"{gone} cannot be reached: " in found["found"]
    assert "refused" in found["found"]
    assert found["fix"].startswith("unset HF_ENDPOINT")
    proxied = checks(site, 0, HF_ENDPOINT="https://huggingface.co", HTTPS_PROXY=gone)["hub"]
    assert proxied["state"] == "warn"
    assert proxied["fix"].startswith("set HTTPS_PROXY to the proxy of your network")


def test_the_hub_answers_and_gets_no_token(site: Site, server: Loopback) -> None:
    server.script("/", status(200))
    found = checks(site, 0, HF_ENDPOINT=server.origin, HF_TOKEN="hf_abcdefghijklmnop")["hub"]
    assert (found["state"], found["found"]) == ("ok", f"{server.origin} answers")
    (seen,) = server.requests
    assert (seen.method, seen.path) == ("HEAD", "/")
    assert "hf_" not in str(seen.headers)
    server.script("/", status(503))
    assert "status 503" in checks(site, 0, HF_ENDPOINT=server.origin)["hub"]["found"]


def test_a_hub_that_is_silent_is_not_waited_for(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.diagnostics import hub_check

    def silent(handler: Handler) -> None:
        server.gate.wait(20)

    server.script("/", silent)
    monkeypatch.setenv("HF_ENDPOINT", server.origin)
    started = time.monotonic()
    check = hub_check.begin(offline=False)()
    assert time.monotonic() - started < 10
    assert check.state == "warn"


@pytest.mark.parametrize("name", ["ZOO_OFFLINE", "HF_HUB_OFFLINE", "--offline"])
def test_offline_nobody_is_asked(site: Site, server: Loopback, name: str) -> None:
    options = [name] if name.startswith("-") else []
    environment = {} if options else {name: "1"}
    found = checks(site, 0, *options, HF_ENDPOINT=server.origin, **environment)["hub"]
    assert found["state"] == "ok"
    assert found["found"].startswith("not asked: ")
    assert server.requests == []


def test_digests(site: Site, shelf: Path, zoo_home: Path) -> None:
    """Only --deep finds a changed byte, and its printed command repairs the file."""
    whole = checks(site, 0, "--deep")["digests"]
    assert whole["state"] == "ok"
    assert "of 2 models and 2 graphs" in whole["found"]
    weights = next((zoo_home / "models/tiny-bert").rglob("*.safetensors"))
    flip(weights)
    assert "digests" not in checks(site, 0)
    found = checks(site, 5, "--deep")["digests"]
    assert found["found"] == f"tiny-bert: changed since it was pulled or exported: {weights.name}"
    assert found["fix"] == "zoo pull tiny-bert"
    assert site.zoo("pull", "tiny-bert").returncode == 0
    (graph,) = zoo_home.glob("graphs/tiny-lite-*/*.onnx")
    flip(graph)
    found = checks(site, 5, "--deep")["digests"]
    assert graph.name in found["found"]
    subprocess.run(found["fix"], shell=True, check=True)
    assert "of 2 models and 1 graph" in checks(site, 0, "--deep")["digests"]["found"]


def flip(path: Path) -> None:
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_registry_that_cannot_be_read(site: Site, tmp_path: Path) -> None:
    """The states of plugins are reported in spite of a broken registry."""
    site.family("toy-broken", "toy", "raise ValueError('no luck')")
    broken = tmp_path / "broken.yaml"
    broken.write_text("models: [")
    for options in ([], ["--deep"]):
        found = checks(site, 2, *options, ZOO_REGISTRY=str(broken))
        assert "not valid YAML" in found["registry"]["found"]
        assert "'toy' of toy-broken" in found["plugin"]["found"]
        assert found.get("digests", {}).get("state") == ("warn" if options else None)
    missing = checks(site, 3, ZOO_REGISTRY=str(tmp_path / "nowhere.yaml"))
    assert missing["registry"]["state"] == "fail"


def test_a_quarantined_plugin(site: Site) -> None:
    site.family("toy-broken", "toy", "raise ValueError('no luck')")
    found = checks(site, 9)["plugin"]
    assert "zoo.backbones 'toy' of toy-broken" in found["found"]
    assert "ValueError: no luck" in found["found"]
    assert "pip uninstall toy-broken" in found["fix"]
    chosen = checks(site, 0, ZOO_PLUGINS="backbone-zoo")["plugins"]
    assert chosen["found"].endswith("(those of ZOO_PLUGINS=backbone-zoo)")


def test_zoo_itself_is_never_to_be_uninstalled(site: Site) -> None:
    site.family("toy-thief", "bert")
    done = site.zoo("doctor", "--json")
    assert done.returncode == 9
    fixes = {each["fix"] for each in json.loads(done.stdout)["checks"] if each["state"] == "fail"}
    assert fixes == {
        "pip uninstall toy-thief, or set ZOO_PLUGINS=backbone-zoo",
        "pip uninstall toy-thief, or leave it out with ZOO_PLUGINS",
    }
    assert checks(site, 0, ZOO_PLUGINS="backbone-zoo")
    hint = site.zoo("plugins", "check", "bert").stderr.splitlines()[-1]
    assert hint == "hint: keep one of them: pip uninstall toy-thief; or choose with ZOO_PLUGINS"


def test_a_user_who_is_temporary_altogether(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, or a checkout in /tmp: there is no better folder to suggest."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("zoo.diagnostics.doctor.TEMPORARY", (str(tmp_path),))
    assert _elsewhere(tmp_path / "home").endswith("export ZOO_HOME=FOLDER")
