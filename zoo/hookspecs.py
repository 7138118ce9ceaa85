"""The hooks a plugin module may implement, and the markers to do it with.

A module is found by its entry point and loaded only when the family, scheme or prefix that it names is needed.
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
    """Return the backbone classes of this module.

    Called once, when a family that one of the module's `zoo.backbones` entry points names is first needed.
    A family claimed by two distributions is an error that names both.
    """


@hookspec
def zoo_register_sources() -> Iterable[type[Source]]:  # type: ignore[empty-body]
    """Return the source classes of this module.

    Called once, when a URL of a scheme that one of the module's `zoo.sources` entry points names is first needed.
    A scheme claimed by two distributions is an error that names both.
    """


@hookspec
def zoo_register_bridges() -> Iterable[type[Bridge]]:  # type: ignore[empty-body]
    """Return the bridge classes of this module.

    Called once, when a model behind a prefix that one of the module's `zoo.bridges` entry points names is first asked
    for and not kept yet. A prefix claimed by two distributions is an error that names both.
    """
