"""Installed plugins: found by their entry points, each loaded when it is first needed.

A plugin that fails to load is quarantined: an error names the plugin, its distribution and the reason, and only verbs
that need this plugin fail.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from msgspec import Struct

from zoo.backbone import Backbone
from zoo.bridge import Bridge
from zoo.errors import PluginError, UnknownPluginError, ZooError, brief
from zoo.plugin.entry_points import OURS, EntryPoint, PluginState, State, allowed, installed, state_of
from zoo.progress import SILENT, Progress
from zoo.schema import Entry, ExportOptions, canonical
from zoo.source import Source

if TYPE_CHECKING:
    import pluggy
    import torch

    from zoo.backbone import TensorMap

T = TypeVar("T")


class Kind(NamedTuple):
    """One group of entry points: words for messages, the hook, and the base class of what the hook returns."""

    noun: str
    plural: str
    hook: str
    base: type


KINDS = {
    "zoo.backbones": Kind("family", "families", "zoo_register_backbones", Backbone),
    "zoo.sources": Kind("scheme", "schemes", "zoo_register_sources", Source),
    "zoo.bridges": Kind("prefix", "prefixes", "zoo_register_bridges", Bridge),
}


class _Plugin(Struct, eq=False):
    """One entry point; after loading, which took `seconds`, also its classes or its error."""

    point: EntryPoint
    classes: dict[str, type[Any]] | None = None
    error: PluginError | None = None
    seconds: float | None = None

    def problem(self, text: str, hint: str) -> PluginError:
        """An error about this plugin."""
        name = f"{self.point.name} ({self.point.distribution})"
        return PluginError(f"the plugin {self.point.title} {text}", plugin=name, hint=hint)

    def fail(self, reason: str, hint: str | None = None) -> PluginError:
        """The error that quarantines this plugin."""
        removal = f"zoo plugins shows all plugins; pip uninstall {self.point.distribution} removes this one"
        self.error = self.problem(f"cannot be used: {reason}", hint or removal)
        return self.error


class Plugins:
    """The installed plugins that ZOO_PLUGINS in `environ` allows; `points` replaces the installed entry points."""

    def __init__(self, points: Iterable[EntryPoint] | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._points = points
        self._environ = os.environ if environ is None else environ
        self._sources: dict[str, Source] = {}
        self._unreadable: list[PluginState] = []

    def backbone(self, family: str) -> type[Backbone]:
        """The class of a family.

        Raises UnknownPluginError, or PluginError when its plugin is broken or two plugins claim the family.
        """
        return self._loaded("zoo.backbones", family)[1]

    def make(self, entry: Entry, weights: Path) -> Backbone:
        """The backbone of a row. Everything that its plugin prints goes to stderr.

        Raises the errors of `backbone`. Here and in every method of the backbone, an exception of the plugin that is
        not a ZooError becomes a PluginError.
        """
        plugin, cls = self._loaded("zoo.backbones", entry.family)
        return _GuardedBackbone(plugin, cls, entry, weights)

    def source(self, scheme: str) -> Source:
        """The one instance of the source for a URL scheme. Raises the errors of `backbone`."""
        if scheme not in self._sources:
            self._sources[scheme] = _guarded(*self._loaded("zoo.sources", scheme))
        return self._sources[scheme]

    def claim(self, group: str, name: str) -> EntryPoint:
        """The entry point for `name`, without loading it. Raises the errors of `backbone`."""
        return self._claimed(group, name).point

    def bridge(self, prefix: str) -> Bridge:
        """A new instance of the bridge for a prefix, guarded like a backbone of `make`. Raises its errors too."""
        plugin, bridge = self._loaded("zoo.bridges", prefix)
        return _GuardedBridge(plugin, _guarded(plugin, bridge))

    def families(self) -> list[str]:
        """Families that plugins claim, broken ones included."""
        return self._names("zoo.backbones")

    def prefixes(self) -> list[str]:
        """Prefixes of bridged models that plugins claim, broken ones included."""
        return self._names("zoo.bridges")

    def describe(self) -> list[PluginState]:
        """The state of every plugin; none is loaded for this."""
        states = [self._state(plugin) for plugin in self._plugins]
        return sorted([*states, *self._unreadable], key=lambda state: (state.group, state.name, state.distribution))

    def load(self, group: str, name: str) -> PluginState:
        """Load the plugin for `name`; returns its state, with its error if it cannot be loaded."""
        claims = _claims(group, name, self._plugins)
        # The returned state has the error.
        with suppress(PluginError):
            self._loaded(group, name)
        return self._state(claims[0])

    @cached_property
    def _installed(self) -> list[_Plugin]:
        points = self._points
        if points is None:
            points, self._unreadable = installed()
        return [_Plugin(point) for point in dict.fromkeys(points) if point.group in KINDS]

    @cached_property
    def _plugins(self) -> list[_Plugin]:
        chosen = set(allowed([plugin.point for plugin in self._installed], self._environ))
        return [plugin for plugin in self._installed if plugin.point in chosen]

    @cached_property
    def _manager(self) -> "pluggy.PluginManager":
        # Imported here, because verbs that need no plugin, such as list, should not wait for pluggy.
        import pluggy

        from zoo import hookspecs

        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        return manager

    def _names(self, group: str) -> list[str]:
        return sorted({plugin.point.name for plugin in self._plugins if plugin.point.group == group})

    def _claimed(self, group: str, name: str) -> _Plugin:
        """The only plugin for `name`."""
        kind, claims = KINDS[group], _claims(group, name, self._plugins)
        if not claims:
            hint = f"known {kind.plural}: {', '.join(self._names(group)) or 'none'}"
            if left_out := _claims(group, name, self._installed):
                hint = f"ZOO_PLUGINS leaves {left_out[0].point.title} out: unset it, or add {name} to it"
            raise UnknownPluginError(f"no plugin provides the {kind.noun} '{name}'", plugin=name, hint=hint)
        if len(claims) > 1:
            claimants = " and ".join(sorted(f"{each.point.distribution} ({each.point.value})" for each in claims))
            foreign = sorted({each.point.distribution for each in claims if canonical(each.point.distribution) != OURS})
            others = " or ".join(f"pip uninstall {each}" for each in foreign)
            raise PluginError(
                f"the {kind.noun} '{name}' is claimed by {claimants}",
                plugin=f"{name} ({claimants})",
                hint=f"keep one of them: {others}; or choose with ZOO_PLUGINS",
            )
        return claims[0]

    def _loaded(self, group: str, name: str) -> tuple[_Plugin, type[Any]]:
        """The only plugin for `name`, loaded, and its class for that name."""
        plugin = self._claimed(group, name)
        if plugin.error is not None:
            raise plugin.error
        if plugin.classes is None:
            start = time.perf_counter()
            try:
                plugin.classes = _guarded(plugin, lambda: self._collect(plugin))
            finally:
                plugin.seconds = time.perf_counter() - start
        return plugin, plugin.classes[name]

    def _collect(self, plugin: _Plugin) -> dict[str, type]:
        """The classes that a plugin's hook returns. After an error the plugin is no longer registered."""
        # Imported here, because verbs that load no plugin, such as list, should not wait for this import.
        from importlib import metadata

        manager, point = self._manager, plugin.point
        kind = KINDS[point.group]
        module = metadata.EntryPoint(point.name, point.value, point.group).load()
        try:
            # Several entry points may name one module.
            if not manager.is_registered(module):
                manager.register(module, name=f"{point.distribution}:{point.value}")
                manager.check_pending()
            others = [other for other in manager.get_plugins() if other is not module]
            results = manager.subset_hook_caller(kind.hook, remove_plugins=others)()
            return _checked(plugin, kind, [each for result in results for each in result])
        except BaseException:
            if manager.is_registered(module):
                manager.unregister(module)
            raise

    def _state(self, plugin: _Plugin) -> PluginState:
        error = plugin.error
        try:
            self._claimed(plugin.point.group, plugin.point.name)
        except PluginError as clash:
            error = clash
        state: State = "quarantined" if error else "not loaded" if plugin.classes is None else "ok"
        return state_of(plugin.point, state, error.message if error else None, plugin.seconds)


class _GuardedBackbone(Backbone):
    """A backbone of a plugin; every call goes through `_run`."""

    def __init__(self, plugin: _Plugin, cls: type[Backbone], entry: Entry, weights: Path) -> None:
        super().__init__(entry, weights)
        self._plugin = plugin
        self._inner = _run(plugin, lambda: cls(entry, weights))

    @property
    def packages(self) -> tuple[str, ...]:
        return _run(self._plugin, lambda: self._inner.packages)

    def prepare(self, progress: Progress = SILENT) -> None:
        _run(self._plugin, lambda: self._inner.prepare(progress))

    def export(self, path: Path, options: ExportOptions) -> None:
        _run(self._plugin, lambda: self._inner.export(path, options))

    def load(self) -> bool:
        return _run(self._plugin, self._inner.load)

    def reference(self, feeds: "TensorMap") -> "TensorMap":
        return _run(self._plugin, lambda: self._inner.reference(feeds))

    def stages(self) -> "Sequence[torch.nn.Module]":
        return _run(self._plugin, self._inner.stages)


class _GuardedBridge(Bridge):
    """A bridge of a plugin; every call goes through `_run`."""

    def __init__(self, plugin: _Plugin, inner: Bridge) -> None:
        self._plugin = plugin
        self._inner = inner

    def entry(self, name: str, revision: str | None) -> Entry:
        return _run(self._plugin, lambda: self._inner.entry(name, revision))


def _run(plugin: _Plugin, call: Callable[[], T]) -> T:
    """Run code of a loaded plugin: its output goes to stderr, and errors that are not zoo's become PluginError."""
    try:
        with redirect_stdout(sys.stderr):
            return call()
    except (KeyboardInterrupt, ZooError):
        raise
    except BaseException as error:
        if os.environ.get("ZOO_DEBUG"):
            traceback.print_exc()
        reason = f"failed: {type(error).__name__}: {brief(str(error))}"
        raise plugin.problem(reason, "zoo --debug shows the traceback; report it to the plugin's author") from error


def _claims(group: str, name: str, plugins: Iterable[_Plugin]) -> list[_Plugin]:
    return [plugin for plugin in plugins if (plugin.point.group, plugin.point.name) == (group, name)]


def _checked(plugin: _Plugin, kind: Kind, found: list[Any]) -> dict[str, type]:
    """The classes that a hook returned, by family, scheme or prefix. Raises PluginError for anything else."""
    classes: dict[str, type] = {}
    for each in found:
        if not (isinstance(each, type) and issubclass(each, kind.base)):
            raise plugin.fail(
                f"{kind.hook} returned {brief(repr(each))}, which is not a subclass of {kind.base.__name__}"
            )
        name = getattr(each, kind.noun, None)
        if not isinstance(name, str) or not name:
            raise plugin.fail(f"the class {each.__name__} does not set '{kind.noun}'")
        if missing := sorted(getattr(each, "__abstractmethods__", ())):
            raise plugin.fail(f"the class {each.__name__} does not define {', '.join(missing)}")
        if classes.setdefault(name, each) is not each:
            raise plugin.fail(f"two of its classes claim the {kind.noun} '{name}'")
    if plugin.point.name not in classes:
        given = f"it registers {', '.join(sorted(classes))}" if classes else f"is {kind.hook} there, marked @hookimpl?"
        raise plugin.fail(f"it does not register the {kind.noun} '{plugin.point.name}' ({given})")
    return classes


def _guarded(plugin: _Plugin, call: Callable[[], T]) -> T:
    """Run code that loads a plugin: its output goes to stderr, and any exception quarantines the plugin."""
    try:
        with redirect_stdout(sys.stderr):
            return call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # This includes SystemExit, because no failure of one plugin may stop the others.
        if error is plugin.error:
            raise
        if isinstance(error, ZooError):
            raise plugin.fail(error.message, error.hint) from error
        raise plugin.fail(f"{type(error).__name__}: {brief(str(error))}") from error
