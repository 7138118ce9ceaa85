"""Plugins: real distributions on the path, good and broken ones, found by the real importlib.metadata."""

import sys
from pathlib import Path

import pytest

from tests.kit.installed import FAMILY, SOURCE, Site
from zoo.backbone import Backbone
from zoo.errors import PluginError, UnknownPluginError
from zoo.plugin.entry_points import EntryPoint, PluginState, installed
from zoo.plugin.manager import Plugins
from zoo.source import Source


def state(plugins: Plugins, name: str) -> PluginState:
    found = [each for each in plugins.describe() if each.name == name]
    assert len(found) == 1
    return found[0]


def refusal(plugins: Plugins, family: str) -> PluginError:
    """The error for a broken family, which has exit code 9; the plugin is quarantined and our families still work."""
    with pytest.raises(PluginError) as caught:
        plugins.backbone(family)
    assert caught.value.exit_code == 9
    assert caught.value.hint
    assert state(plugins, family).state == "quarantined"
    assert state(plugins, family).error == caught.value.message
    assert plugins.backbone("bert").family == "bert"
    with pytest.raises(PluginError, match=r".") as again:
        plugins.backbone(family)
    assert again.value.message == caught.value.message
    return caught.value


def test_our_own_families_and_schemes_are_found_by_entry_points() -> None:
    plugins = Plugins()
    assert {"bert", "efficientnet"} <= set(plugins.families())
    assert {"hf", "https", "pypi", "file"} <= set(plugins._names("zoo.sources"))
    assert {each.distribution for each in plugins.describe()} == {"backbone-zoo"}
    family = plugins.backbone("bert")
    assert issubclass(family, Backbone)
    assert family is plugins.backbone("bert")


def test_a_foreign_distribution_gives_a_family_and_a_scheme(site: Site) -> None:
    module = site.family("toy-family", "toyf")
    site.source("toy-source", "toys")
    plugins = Plugins()
    assert "toyf" in plugins.families()
    assert "toys" in plugins._names("zoo.sources")
    assert state(plugins, "toyf") == PluginState(
        group="zoo.backbones", name="toyf", module=module, distribution="toy-family", version="1.0", state="not loaded"
    )
    assert module not in sys.modules
    assert plugins.backbone("toyf").family == "toyf"
    assert "toy_source" not in sys.modules
    source = plugins.source("toys")
    assert isinstance(source, Source)
    assert plugins.source("toys") is source
    assert type(source).made == 1  # type: ignore[attr-defined]
    after = state(plugins, "toyf")
    assert after.state == "ok"
    assert after.error is None
    assert after.seconds is not None
    assert after.seconds > 0
    assert not after.is_slow


def test_one_module_may_give_several_families_and_a_source(site: Site) -> None:
    code = SOURCE.replace("{name}", "toys") + FAMILY.replace("{name}", "toya")
    code = code.replace("[Toy]", "[Toy, type('Other', (Toy,), {'family': 'toyb'})]")
    site.install(
        "toy-both", code, "[zoo.backbones]", "toya = {module}", "toyb = {module}", "[zoo.sources]", "toys = {module}"
    )
    plugins = Plugins()
    assert plugins.backbone("toya").family == "toya"
    assert plugins.backbone("toyb").family == "toyb"
    assert plugins.source("toys").scheme == "toys"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise ValueError('two\\nlines')", "ValueError: two"),
        ("def broken(:", "SyntaxError: "),
        (
            FAMILY.replace("zoo_register_backbones", "zoo_register_backbone"),
            "PluginValidationError: unknown hook 'zoo_reg",
        ),
        (FAMILY.replace("backbones():", "backbones(registry):"), "PluginValidationError: "),
        (
            FAMILY.replace("@hookimpl\n", ""),
            "does not register the family 'toy' (is zoo_register_backbones there, marked",
        ),
        (FAMILY.replace("return [Toy]", "raise KeyboardError"), "NameError: name 'KeyboardError' is not defined"),
        (FAMILY.replace("return [Toy]", "raise GeneratorExit"), "GeneratorExit: "),
        (FAMILY.replace("return [Toy]", "yield Toy; raise OSError('half way')"), "OSError: half way"),
        (FAMILY.replace("return [Toy]", "return 7"), "TypeError: 'int' object is not iterable"),
        (FAMILY.replace("return [Toy]", "return [Toy(None, None)]"), "which is not a subclass of Backbone"),
        (
            FAMILY.replace("return [Toy]", "return [dict]"),
            "returned <class 'dict'>, which is not a subclass of Backbone",
        ),
        (FAMILY.replace("return [Toy]", "return None"), "does not register the family 'toy'"),
        (FAMILY.replace('"{name}"', '"other"'), "does not register the family 'toy' (it registers other)"),
        (FAMILY.replace('    family = "{name}"\n', ""), "the class Toy does not set 'family'"),
        (
            FAMILY.replace("    def reference(self, feeds): return feeds\n", ""),
            "the class Toy does not define reference",
        ),
        (FAMILY.replace("[Toy]", "[Toy, type('Two', (Toy,), {})]"), "two of its classes claim the family 'toy'"),
        (
            "from zoo.errors import MissingExtraError\nraise MissingExtraError('torch', 'train', 'the family toy')",
            "the family toy needs the package torch, which is not installed",
        ),
    ],
)
def test_a_broken_plugin_is_quarantined(site: Site, code: str, reason: str) -> None:
    site.family("toy-broken", "toy", code)
    site.family("toy-fine", "fine")
    plugins = Plugins()
    error = refusal(plugins, "toy")
    assert error.message.startswith("the plugin 'toy' of toy-broken cannot be used: ")
    assert reason in error.message
    assert "\n" not in error.message
    assert error.plugin == "toy (toy-broken)"
    wanted = "pip install 'backbone-zoo[train]'" if "MissingExtra" in code else "pip uninstall toy-broken"
    assert wanted in (error.hint or "")
    # pluggy keeps nothing of a broken plugin, so that plugins loaded later are called without it.
    assert plugins.backbone("fine").family == "fine"
    assert state(plugins, "fine").state == "ok"


def test_a_source_that_cannot_be_made_is_quarantined(site: Site) -> None:
    site.source("toy-source", "toys", SOURCE.replace("ToySource.made += 1", "raise RuntimeError('no network card')"))
    plugins = Plugins()
    with pytest.raises(PluginError, match="'toys' of toy-source cannot be used: RuntimeError: no network card"):
        plugins.source("toys")
    assert state(plugins, "toys").state == "quarantined"


def test_an_interrupt_is_not_swallowed(site: Site) -> None:
    site.family("toy-slow", "toy", "raise KeyboardInterrupt")
    plugins = Plugins()
    with pytest.raises(KeyboardInterrupt):
        plugins.backbone("toy")
    assert state(plugins, "toy").state == "not loaded"


def test_what_a_plugin_prints_goes_to_stderr(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    chatty = "print('at import')\n" + FAMILY.replace("return [Toy]", "print('in the hook'); return [Toy]")
    site.family("toy-chatty", "toy", chatty)
    site.source("toy-talker", "toys", SOURCE.replace("ToySource.made += 1", "print('when made')"))
    plugins = Plugins()
    plugins.backbone("toy")
    plugins.source("toys")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.split("\n") == ["at import", "in the hook", "when made", ""]


def test_a_slow_plugin_is_noted(site: Site) -> None:
    site.family("toy-slow", "toy", f"import time\ntime.sleep(1.05)\n{FAMILY}")
    plugins = Plugins()
    plugins.describe()
    assert state(plugins, "toy").seconds is None
    plugins.backbone("toy")
    assert state(plugins, "toy").is_slow


def test_a_family_claimed_twice_names_both_distributions(site: Site) -> None:
    for distribution, name in (("toy-one", "toy"), ("toy-two", "toy"), ("toy-thief", "bert"), ("toy-fine", "fine")):
        site.family(distribution, name)
    plugins = Plugins()
    for name, first, second in (("toy", "toy-one", "toy-two"), ("bert", "backbone-zoo", "toy-thief")):
        with pytest.raises(PluginError, match=f"the family '{name}' is claimed by {first} .* and {second} ") as caught:
            plugins.backbone(name)
        assert f"pip uninstall {second}" in (caught.value.hint or "")
        quarantined = [each for each in plugins.describe() if each.name == name]
        assert [each.state for each in quarantined] == ["quarantined", "quarantined"]
        assert all(first in (each.error or "") and second in (each.error or "") for each in quarantined)
    assert not {"toy_one", "toy_two", "toy_thief"} & set(sys.modules)
    assert plugins.backbone("fine").family == "fine"
    chosen = Plugins(environ={"ZOO_PLUGINS": "backbone-zoo,toy-two"})
    assert chosen.backbone("toy").__module__ == "toy_two"
    assert chosen.backbone("bert").__module__ == "zoo_plugins.backbones.bert"


def test_zoo_plugins_chooses(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.family("toy-one", "toya")
    site.family("Toy.Two", "toyb")
    assert {"toya", "toyb", "bert"} <= set(Plugins(environ={}).families())
    assert Plugins(environ={"ZOO_PLUGINS": ""}).describe() == []
    assert Plugins(environ={"ZOO_PLUGINS": " , "}).families() == []
    assert Plugins(environ={"ZOO_PLUGINS": "toy_one"}).families() == ["toya"]
    assert Plugins(environ={"ZOO_PLUGINS": "toy-one, toy-two"}).families() == ["toya", "toyb"]
    monkeypatch.setenv("ZOO_PLUGINS", "toyb,https")
    plugins = Plugins()
    assert (plugins.families(), plugins._names("zoo.sources")) == (["toyb"], ["https"])
    with pytest.raises(UnknownPluginError) as caught:
        plugins.backbone("toya")
    assert caught.value.hint == "ZOO_PLUGINS leaves 'toya' of toy-one out: unset it, or add toya to it"


def test_an_unknown_family_or_scheme_lists_the_known(site: Site) -> None:
    plugins = Plugins(environ={"ZOO_PLUGINS": "bert,efficientnet"})
    with pytest.raises(UnknownPluginError, match="no plugin provides the family 'vgg'") as family:
        plugins.backbone("vgg")
    assert family.value.hint == "known families: bert, efficientnet"
    with pytest.raises(UnknownPluginError, match="no plugin provides the scheme 'ftp'") as scheme:
        plugins.source("ftp")
    assert scheme.value.hint == "known schemes: none"
    assert (scheme.value.plugin, scheme.value.exit_code) == ("ftp", 9)


def test_loading_every_plugin_raises_nothing(site: Site) -> None:
    site.family("toy-fine", "fine")
    site.family("toy-broken", "broken", "raise SystemExit")
    site.family("toy-one", "twice")
    site.family("toy-two", "twice")
    names = {"ZOO_PLUGINS": "toy-fine,toy-broken,toy-one,toy-two"}
    plugins = Plugins(environ=names)
    for each in plugins.describe():
        plugins.load(each.group, each.name)
    assert [(each.name, each.distribution, each.state) for each in plugins.describe()] == [
        ("broken", "toy-broken", "quarantined"),
        ("fine", "toy-fine", "ok"),
        ("twice", "toy-one", "quarantined"),
        ("twice", "toy-two", "quarantined"),
    ]


def test_a_distribution_seen_twice_counts_once(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like an editable checkout: its metadata lies in two folders of the path, and the second is older."""
    site.family("toy-family", "toy")
    stale = Site(tmp_path / "stale")
    stale.folder.mkdir()
    stale.install("Toy_Family", "", "[zoo.backbones]", "toy = toy_gone", "gone = toy_gone", version="0.9")
    monkeypatch.syspath_prepend(str(stale.folder))
    monkeypatch.syspath_prepend(str(site.folder))
    points, unreadable = installed()
    assert unreadable == []
    assert [point.name for point in points if point.distribution == "toy-family"] == ["toy"]
    plugins = Plugins(environ={"ZOO_PLUGINS": "toy-family"})
    assert plugins.families() == ["toy"]
    assert state(plugins, "toy").version == "1.0"
    assert plugins.backbone("toy").family == "toy"


def test_an_entry_point_without_a_distribution(site: Site) -> None:
    site.family("toy-family", "toy")
    points = [EntryPoint("zoo.backbones", "toy", "toy_family"), EntryPoint("console_scripts", "x", "toy_family")]
    plugins = Plugins(points, {})
    assert plugins.backbone("toy").family == "toy"
    assert [(each.distribution, each.version) for each in plugins.describe()] == [("an unnamed distribution", "?")]


def test_metadata_that_cannot_be_read_stops_nothing(site: Site) -> None:
    site.install("toy-garbled", "", "[zoo.backbones]", "no equals sign here")
    (site.folder / "toy_garbled-1.0.dist-info" / "entry_points.txt").write_bytes(b"[zoo.backbones]\n\xff = x\n")
    plugins = Plugins()
    assert plugins.backbone("bert").family == "bert"
    garbled = [each for each in plugins.describe() if each.distribution == "toy-garbled"]
    assert [each.state for each in garbled] == ["quarantined"]
    assert "its entry_points.txt cannot be read: UnicodeDecodeError" in (garbled[0].error or "")


def test_an_entry_point_of_an_uninstalled_checkout(site: Site) -> None:
    module = site.family("toy-gone", "toy")
    (site.folder / f"{module}.py").unlink()
    assert "ModuleNotFoundError: No module named 'toy_gone'" in refusal(Plugins(), "toy").message
