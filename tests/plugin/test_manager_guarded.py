"""Plugins that load and fail later: their code is guarded wherever a verb calls it."""

import json
from pathlib import Path

import pytest

from tests.kit.installed import CRASH, HOOK, PLAIN, Site

INIT = """    def __init__(self, entry, weights):
        {code}
        super().__init__(entry, weights)

"""
PREPARE = """    def prepare(self, progress=None):
        {code}

"""
BRIDGE = """
from zoo.bridge import Bridge
from zoo.hookspecs import hookimpl

class Exit(Bridge):
    prefix = "toys"
    def entry(self, name, revision):
        {code}

@hookimpl
def zoo_register_bridges():
    return [Exit]
"""


def family(site: Site, method: str, code: str) -> None:
    """Install a good family with one additional method, whose body is `code`."""
    head, marker, tail = PLAIN.partition("    def export")
    site.family("toy-family", "toy", head + method.format(code=code) + marker + tail + HOOK)


@pytest.mark.parametrize(
    ("method", "verb"),
    [(INIT, ("run", "toy", "some.png")), (PREPARE, ("pull", "toy"))],
    ids=["init", "prepare"],
)
@pytest.mark.parametrize(
    ("code", "said"),
    [("raise SystemExit(42)", "SystemExit: 42"), ("raise KeyError('boom')", "KeyError: 'boom'")],
    ids=["exits", "raises"],
)
def test_a_family_that_fails_later_is_named(
    site: Site, toy_row: Path, method: str, verb: tuple[str, ...], code: str, said: str
) -> None:
    (site.folder / "some.png").write_bytes((Path(__file__).parents[2] / "zoo/assets/rocket.jpg").read_bytes())
    family(site, method, f"print('hello'); {code}")
    arguments = [str(site.folder / word) if word.endswith(".png") else word for word in verb]
    done = site.zoo("--registry", toy_row, *arguments, "--json")
    assert done.returncode == 9, done.stdout + done.stderr
    # stdout has one JSON object, whatever the family printed.
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "plugin"
    assert error["message"] == f"the plugin 'toy' of toy-family failed: {said}"
    assert "Traceback" not in done.stderr
    assert "hello" in done.stderr


def test_what_a_family_prints_leaves_json_whole(site: Site, toy_row: Path) -> None:
    family(site, PREPARE, "print('hello')")
    done = site.zoo("--registry", toy_row, "pull", "toy", "--json")
    assert done.returncode == 0, done.stderr
    assert "toy" in json.loads(done.stdout)["pulled"]
    assert "hello" in done.stderr


@pytest.mark.parametrize(
    ("code", "limit", "detail"),
    [(CRASH, 300, "crashed the process (SIGSEGV)"), ("import time; time.sleep(120)", 5, "took more than")],
    ids=["crashes", "hangs"],
)
def test_the_check_prepares_in_the_child(site: Site, toy_row: Path, code: str, limit: int, detail: str) -> None:
    family(site, PREPARE, code)
    done = site.zoo("--registry", toy_row, "plugins", "check", "toy", "--limit", limit, "--json")
    assert done.returncode == 6, done.stdout + done.stderr
    assert detail in json.loads(done.stdout)["error"]["message"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise KeyError('boom')", "the plugin 'toy' of toy-family failed: KeyError: 'boom'"),
        ("raise SystemExit(0)", "the plugin 'toy' of toy-family failed: SystemExit: 0"),
        (CRASH, "the family 'toy' ended the process that exported toy (exit code -11)"),
        ("import os; os.write(1, b'from C')", None),
    ],
    ids=["raises", "exits", "crashes", "prints"],
)
def test_a_family_that_fails_while_it_exports(site: Site, toy_row: Path, code: str, said: str | None) -> None:
    broken = PLAIN.replace("        import numpy as np\n", f"        {code}\n        import numpy as np\n", 1) + HOOK
    site.family("toy-family", "toy", broken)
    image = Path(__file__).parents[2] / "zoo/assets/rocket.jpg"
    done = site.zoo("--registry", toy_row, "run", "toy", image, "--json")
    answer = json.loads(done.stdout)
    if said is None:
        assert done.returncode == 0, done.stderr
        assert len(answer["run"]["results"]) == 1
        return
    assert done.returncode == 9, done.stdout + done.stderr
    assert answer["error"]["message"] == said
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("code", ["raise SystemExit(45)", "raise KeyError('boom')"], ids=["exits", "raises"])
def test_a_bridge_that_fails_is_named(site: Site, code: str) -> None:
    site.install("toy-bridge", BRIDGE.format(code=code), "[zoo.bridges]", "toys = {module}")
    done = site.zoo("show", "toys/anything", "--json")
    assert done.returncode == 9, done.stdout + done.stderr
    assert "the plugin 'toys' of toy-bridge failed: " in json.loads(done.stdout)["error"]["message"]


def test_an_unexpected_error_is_one_object_too(site: Site, toy_row: Path) -> None:
    (site.folder / "sitecustomize.py").write_text(
        "import zoo.workspace\nzoo.workspace.Workspace.entry = lambda self, name: 1 / 0\n"
    )
    done = site.zoo("--registry", toy_row, "show", "toy", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["message"] == "unexpected ZeroDivisionError: division by zero"
