"""zoo plugins: who provides families and sources, and how they load."""

from typing import Annotated

import typer
from zoo_cli.output import print_json, print_table
from zoo_cli.state import make_zoo

from zoo import to_plain


def command(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Load every plugin, one by one, and show its state."""
    plugins = make_zoo(context).plugins
    plugins.check_all()
    states = plugins.describe()
    if json:
        print_json("plugins", to_plain(states))
        return
    rows = [
        (s.group, s.name, f"{s.distribution} {s.version}", s.module, s.state + (f": {s.error}" if s.error else ""))
        for s in states
    ]
    print_table(("GROUP", "NAME", "DISTRIBUTION", "MODULE", "STATE"), rows)
