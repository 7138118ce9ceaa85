"""The Zoo that verbs use, made from the options of the root command."""

from pathlib import Path

import typer
from zoo_cli.progress import Bars

from zoo import Zoo


def make_zoo(context: typer.Context, *, offline: bool = False) -> Zoo:
    """The Zoo that a verb uses; its progress goes to stderr."""
    registry: Path | None = context.obj
    return Zoo(registry=registry, offline=True if offline else None, progress=Bars())
