"""The hooks of a plugin module, and the marker `hookimpl` for implementing them.

A module is found by its entry point and loaded when the family, scheme or prefix of the entry point is first needed. A
family, scheme or prefix claimed by two distributions is an error that names both.
"""

from collections.abc import Iterable

import pluggy

from zoo.backbone import Backbone
from zoo.bridge import Bridge
from zoo.source import Source

PROJECT = "zoo"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def zoo_register_backbones() -> Iterable[type[Backbone]]:  # type: ignore[empty-body]
    """Return the backbone classes of this module: called once, for the entry points of `zoo.backbones`."""


@hookspec
def zoo_register_sources() -> Iterable[type[Source]]:  # type: ignore[empty-body]
    """Return the source classes of this module: called once, for the entry points of `zoo.sources`."""


@hookspec
def zoo_register_bridges() -> Iterable[type[Bridge]]:  # type: ignore[empty-body]
    """Return the bridge classes of this module: called once, for the entry points of `zoo.bridges`.

    Not called for a model whose entry was kept by an earlier pull.
    """
