"""What the root command's options leave for the verbs."""

from pathlib import Path

import typer
from zoo_cli.progress import Bars

from zoo import Zoo


class State:
    """The root command's options, kept in the context."""

    def __init__(self, registry: Path | None) -> None:
        self.registry = registry


def make_zoo(context: typer.Context, *, offline: bool = False) -> Zoo:
    """The Zoo a verb works on: its bars go to stderr."""
    state: State = context.obj
    return Zoo(registry=state.registry, offline=True if offline else None, progress=Bars())
