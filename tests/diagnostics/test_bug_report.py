"""The bug report of zoo doctor has the useful facts and no secrets."""

from pathlib import Path

import pytest

from tests.kit.installed import Site
from zoo.diagnostics.bug_report import hide

TOKEN, PASSWORD, KEY = "hf_AbCdEfGhIjKlMnOpQrSt", "correct-horse", "key-of-a-mirror-42"


@pytest.mark.parametrize("options", [["--paste"], ["--json"], []], ids=["paste", "json", "plain"])
def test_no_secret_is_printed(site: Site, tmp_path: Path, options: list[str]) -> None:
    home = tmp_path / "mallory"
    home.mkdir()
    # The messages of a plugin may contain anything that it finds.
    talks = "import os\nraise ValueError(' '.join(os.environ[k] for k in ('HF_TOKEN', 'MIRROR_API_KEY', 'HTTP_PROXY')))"
    site.family("toy-talks", "toy", talks)
    done = site.zoo(
        "doctor",
        *options,
        HOME=str(home),
        ZOO_HOME=str(home / "models"),
        HF_TOKEN=TOKEN,
        MIRROR_API_KEY=KEY,
        HTTP_PROXY=f"http://mallory:{PASSWORD}@127.0.0.1:9",
        HF_ENDPOINT=f"http://me:{PASSWORD}@127.0.0.1:9/?token={KEY}",
    )
    assert done.returncode == 9
    said = done.stdout + done.stderr
    assert "'toy' of toy-talks" in said
    assert [secret for secret in (TOKEN, PASSWORD, KEY) if secret in said] == []
    if options == ["--paste"]:
        assert "mallory" not in said
        assert "ZOO_HOME=~/models" in said
        assert "HF_TOKEN=***" in said
        assert "HTTP_PROXY=http://***@127.0.0.1:9" in said


def test_what_is_in_it(site: Site) -> None:
    """One block of Markdown with the checks as in the plain output, versions, and the set variables."""
    site.family("toy-fence", "toy", "raise ValueError('```\\nout of the block')")
    done = site.zoo("doctor", "--paste", CUDA_VISIBLE_DEVICES="0")
    assert done.returncode == 9
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("```text", "```")
    assert done.stdout.count("```") == 2
    assert "FAIL plugin: zoo.backbones 'toy' of toy-fence" in done.stdout
    assert "     fix: pip uninstall toy-fence" in done.stdout
    assert [line for line in lines if line.startswith("packages: ") and "onnx 1." in line and "pip " in line]
    assert "CUDA_VISIBLE_DEVICES=0" in lines
    assert "HOME=" not in [line[:5] for line in lines]


def test_paste_is_not_json(site: Site) -> None:
    assert site.zoo("doctor", "--paste", "--json").returncode == 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("https://user:pa%40ss@host/x", "https://***@host/x"),
        ("https://token@host:80/x and socks5://a:b@c", "https://***@host:80/x and socks5://***@c"),
        ("https://host/x?a=1&X-Amz-Signature=abc&b=2", "https://host/x?a=1&X-Amz-Signature=***&b=2"),
        (f"Bearer {TOKEN}.", "Bearer ***."),
        ("mail me@host, hf_hub 2.4, https://host/a@b", "mail me@host, hf_hub 2.4, https://host/a@b"),
        ("secret-value and short", "*** and short"),
    ],
)
def test_secrets_by_their_looks(text: str, wanted: str) -> None:
    environ = {"WIKI_PASSWORD": "secret-value", "SOME_TOKEN": "short", "KEYBOARD": "mail me", "HOME": "host"}
    assert hide(text, environ) == wanted


@pytest.mark.parametrize(
    ("proxy", "shown"),
    [
        ("bob:hunter2secret@127.0.0.1:9", "***@127.0.0.1:9"),
        ("http://bob:hunter2/secret@127.0.0.1:9", "http://***@127.0.0.1:9"),
        ("bob:hunter2://secret@127.0.0.1:9", "***@127.0.0.1:9"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9"),
    ],
)
def test_logins_of_proxies(proxy: str, shown: str) -> None:
    for name in ("HTTPS_PROXY", "all_proxy"):
        said = hide(f"{name}={proxy}", {name: proxy})
        assert "hunter2" not in said
        assert "secret" not in said
    assert hide(f"it said: {proxy}", {"HTTP_PROXY": proxy}) == f"it said: {shown}"
