"""The Zoo that verbs use, made from the options of the root command."""

from pathlib import Path

import typer
from zoo_cli.progress import Bars

from zoo import Zoo


def make_zoo(context: typer.Context, *, offline: bool = False) -> Zoo:
    """The Zoo for a verb; it prints progress on stderr."""
    registry: Path | None = context.obj
    return Zoo(registry=registry, offline=True if offline else None, progress=Bars())
