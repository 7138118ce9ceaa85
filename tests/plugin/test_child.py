"""A broken plugin affects nothing but itself, with real distributions and the real command line."""

import json
import shutil
from pathlib import Path

import pytest

from tests.kit.installed import CRASH, FAMILY, HOOK, PLAIN, SOURCE, Site

#: Writes a file beside itself when it is imported, and another if its import is allowed to finish.
SLEEPER = """
import time
from pathlib import Path
Path(__file__ + ".imported").touch()
time.sleep(60)
Path(__file__ + ".awake").touch()
"""

#: The fault, the code of the plugin, and the reason that `zoo plugins` prints.
BAD = [
    ("raises", "raise ValueError('no luck')", "ValueError: no luck"),
    ("exits", "raise SystemExit(3)", "SystemExit: 3"),
    ("leaves", "import os; os._exit(3)", "loading it ended the process with exit code 3"),
    ("crashes", CRASH, "loading it crashed the process (SIGSEGV)"),
    ("sleeps", SLEEPER, "loading it took more than"),
    ("misspells", FAMILY.replace("zoo_register_backbones", "zoo_register_backbone"), "unknown hook"),
    ("hook-raises", FAMILY.replace("return [Toy]", "raise OSError('in the hook')"), "OSError: in the hook"),
    ("hook-crashes", FAMILY.replace("return [Toy]", CRASH), "crashed the process (SIGSEGV)"),
]


@pytest.fixture
def wall(site: Site) -> Site:
    """All bad plugins at once, two that claim our family and our scheme, and a good one."""
    for name, code, _ in BAD:
        site.family(f"toy-{name}", f"toy-{name}", code)
    site.family("toy-thief", "bert")
    site.source("toy-fence", "https")
    site.family("toy-prints", "toy-prints", "print('hello from toy')\nimport os; os.write(1, b'and from C')\n" + FAMILY)
    return site


def test_each_is_named_and_the_others_work(wall: Site) -> None:
    done = wall.zoo("plugins", "--json", "--limit", 8)
    assert list(wall.folder.glob("*.imported")) != []
    assert list(wall.folder.glob("*.awake")) == []
    assert done.returncode == 0, done.stderr
    # stdout has one JSON object; the plugins' output is on stderr.
    found = {(each["distribution"], each["name"]): each for each in json.loads(done.stdout)["plugins"]}
    assert "hello from toy" in done.stderr
    assert "and from C" in done.stderr
    for name, _, reason in BAD:
        state = found[f"toy-{name}", f"toy-{name}"]
        assert state["state"] == "quarantined"
        assert f"the plugin 'toy-{name}' of toy-{name} cannot be used: " in state["error"]
        assert reason in state["error"]
    for name, distributions in (("bert", ("backbone-zoo", "toy-thief")), ("https", ("backbone-zoo", "toy-fence"))):
        for distribution in distributions:
            assert found[distribution, name]["state"] == "quarantined"
            assert all(each in found[distribution, name]["error"] for each in distributions)
    assert found["toy-prints", "toy-prints"]["state"] == "ok"
    assert found["backbone-zoo", "efficientnet"]["state"] == "ok"


def test_doctor_names_them_and_exits_with_nine(wall: Site) -> None:
    chosen = "backbone-zoo,toy-raises,toy-crashes,toy-thief"
    done = wall.zoo("doctor", ZOO_PLUGINS=chosen)
    assert done.returncode == 9, done.stdout + done.stderr
    for words in ("'toy-raises' of toy-raises", "'toy-crashes' of toy-crashes", "backbone-zoo", "toy-thief", "SIGSEGV"):
        assert words in done.stdout
    assert "fix: pip uninstall toy-crashes" in done.stdout


def test_other_verbs_work_and_stay_fast(wall: Site, shelf: Path) -> None:
    """They import no bad plugin, not even the sleeping one, which would take a minute."""
    for arguments in (("--help",), ("list",), ("show", "tiny-lite"), ("pull", "tiny-lite"), ("verify", "tiny-lite")):
        done = wall.zoo(*arguments)
        assert done.returncode == 0, done.stderr
    ran = wall.zoo("run", "tiny-lite", Path(__file__).parents[2] / "zoo/assets/coffee.jpg", "--device", "cpu")
    assert ran.returncode == 0, ran.stderr
    assert list(wall.folder.glob("*.imported")) == []


def test_only_what_needs_a_bad_one_fails(wall: Site, shelf: Path, tmp_path: Path) -> None:
    document = json.loads(shelf.read_text())
    document["models"] = {"toy": {**document["models"]["tiny-lite"], "family": "toy-raises"}}
    file = tmp_path / "registry.json"
    file.write_text(json.dumps(document))
    image = Path(__file__).parents[2] / "zoo/assets/rocket.jpg"
    done = wall.zoo("--registry", file, "run", "toy", image)
    assert done.returncode == 9
    error, hint = done.stderr.splitlines()
    assert error == "error: the plugin 'toy-raises' of toy-raises cannot be used: ValueError: no luck"
    assert "pip uninstall toy-raises" in hint


def test_without_any_plugin_zoo_still_lists(wall: Site) -> None:
    assert wall.zoo("list", "-q", ZOO_PLUGINS="").stdout.split()
    done = wall.zoo("plugins", "--json", ZOO_PLUGINS="")
    assert json.loads(done.stdout)["plugins"] == []
    assert wall.zoo("plugins", ZOO_PLUGINS="").stderr.splitlines()[-1] == "next: unset ZOO_PLUGINS"
    assert wall.zoo("doctor", ZOO_PLUGINS="").returncode == 0


@pytest.mark.parametrize(
    ("code", "limit", "detail"),
    [
        (CRASH, 300, "it crashed the process (SIGSEGV)"),
        ("import os; os._exit(0)", 300, "it ended the process with exit code 0"),
        ("import time; time.sleep(120)", 6, "it took more than 6 s"),
    ],
    ids=["crashes", "leaves", "hangs"],
)
def test_a_family_that_ends_its_check(site: Site, toy_row: Path, code: str, limit: int, detail: str) -> None:
    """The parent survives: the running check failed, the later ones are skipped, exit code 6."""
    broken = PLAIN.replace("        import numpy as np\n", f"        {code}\n        import numpy as np\n", 1) + HOOK
    site.family("toy-family", "toy", broken)
    done = site.zoo("--registry", toy_row, "plugins", "check", "toy", "--limit", limit, "--json")
    assert done.returncode == 6, done.stdout + done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "gate"
    assert error["message"].startswith("toy: export: it ")
    checks = {check["name"]: check for check in error["report"][0]["checks"]}
    assert detail in checks["export"]["detail"]
    assert checks["weights"]["state"] == "passed"
    assert {checks[name]["state"] for name in ("parity", "whole chain")} == {"skipped"}
    assert not list(Path(toy_row.parent).glob("zoo-*check*"))


def test_a_check_that_fails_shows_every_line(site: Site, toy_row: Path) -> None:
    site.family("toy-family", "toy", PLAIN + '    output = "embedding"\n' + HOOK)
    done = site.zoo("--registry", toy_row, "plugins", "check", "toy")
    assert done.returncode == 6
    assert "✗ inputs and outputs:" in done.stdout
    assert "embedding float32" in done.stdout
    assert "✓ license and digests:" in done.stdout
    assert "- parity:" in done.stdout
    assert "error: toy: inputs and outputs: the graph's outputs are embedding" in done.stderr
    whole = site.zoo("--registry", toy_row, "plugins", "check")
    assert whole.returncode == 6
    assert "left out: no row is pulled: zoo plugins check efficientnet" in whole.stdout


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ValueError('no luck')", "the plugin 'toy' of toy-family cannot be used: ValueError: no luck"),
        (CRASH, "loading the family 'toy' crashed the process (SIGSEGV)"),
    ],
    ids=["raises", "crashes"],
)
def test_a_family_that_cannot_be_loaded_is_exit_nine(site: Site, toy_row: Path, code: str, said: str) -> None:
    site.family("toy-family", "toy", code)
    one = site.zoo("--registry", toy_row, "plugins", "check", "toy")
    assert one.returncode == 9, one.stderr
    assert said in one.stderr
    every = site.zoo("--registry", toy_row, "plugins", "check", "--json")
    assert every.returncode == 9, every.stderr
    reports = {report["family"]: report for report in json.loads(every.stdout)["error"]["report"]}
    assert reports["toy"]["state"] == "broken"
    assert said in reports["toy"]["note"]
    assert reports["bert"]["state"] == "left out"


def test_check_says_what_it_needs(site: Site, toy_row: Path) -> None:
    site.family("toy-family", "toy", PLAIN + HOOK)
    site.family("toy-other", "other")
    for arguments, code, said in (
        (("nobody",), 9, "no plugin provides the family 'nobody'"),
        (("other",), 2, "no row of the registry is of the family other"),
        (("other", "--row", "toy"), 2, "toy is a row of the family toy, not of other"),
        (("toy", "--row", "nothing"), 3, "no model named 'nothing'"),
    ):
        done = site.zoo("--registry", toy_row, "plugins", "check", *arguments)
        assert done.returncode == code, done.stderr
        assert said in done.stderr
    shutil.rmtree(toy_row.parent / "zoo-home", ignore_errors=True)
    (toy_row.parent / "toy.bin").unlink()
    assert site.zoo("--registry", toy_row, "plugins", "check", "toy").returncode == 4


FETCH = "def fetch(self, wants, progress): ..."
CHATTER = """def fetch(self, wants, progress):
        print('chatter')
        [want.partial.write_bytes(b'weights') for want in wants]
"""


def test_a_source_that_prints_leaves_json_whole(site: Site, toy_row: Path) -> None:
    site.source("toy-source", "toys", SOURCE.replace(FETCH, CHATTER))
    toy_row.write_text(toy_row.read_text().replace((toy_row.parent / "toy.bin").as_uri(), "toys://toy.bin"))
    done = site.zoo("--registry", toy_row, "pull", "toy", "--json")
    assert done.returncode == 0, done.stderr
    assert "pulled" in json.loads(done.stdout)
    assert "chatter" in done.stderr


def test_a_source_that_exits_is_one_error(site: Site, toy_row: Path) -> None:
    site.source("toy-source", "toys", SOURCE.replace(FETCH, "def fetch(self, wants, progress): raise SystemExit(0)"))
    toy_row.write_text(toy_row.read_text().replace((toy_row.parent / "toy.bin").as_uri(), "toys://toy.bin"))
    done = site.zoo("--registry", toy_row, "pull", "toy")
    assert done.returncode == 9, done.stdout + done.stderr
    assert "the source toys:// failed: SystemExit" in done.stderr
