"""zoo list: the models of the registry."""

from typing import Annotated

import typer
from zoo_cli.output import human_count, human_size, next_command, print_json, print_table, say, warn_damaged, write
from zoo_cli.state import make_zoo

HEADER = ("NAME", "TASK", "DIM", "PARAMS", "SIZE", "LICENSE", "PULLED")


def command(
    context: typer.Context,
    pattern: Annotated[str | None, typer.Argument(help="A part of the name, or a glob pattern.")] = None,
    family: Annotated[str | None, typer.Option(help="Only models of this family.")] = None,
    task: Annotated[str | None, typer.Option(help="Only models for this task.")] = None,
    license: Annotated[str | None, typer.Option(help="Only models with this license (SPDX id).")] = None,
    pulled: Annotated[bool, typer.Option("--pulled", help="Only models that are on this machine.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print names only.")] = False,
) -> None:
    """List the models of the registry."""
    zoo = make_zoo(context)
    rows = zoo.list(pattern, family=family, task=task, license=license, pulled=pulled)
    for file in zoo.shelves:
        if file.state == "quarantined":
            say(f"warning: the registry file {file.title} is left out: zoo plugins says why")
    warn_damaged(zoo)
    if json:
        names = ("name", "family", "task", "dim", "params", "size", "license")
        facts = [
            {
                **{name: getattr(row.entry, name) for name in names},
                "pinned": row.entry.is_pinned,
                "pulled": row.is_pulled,
            }
            for row in rows
        ]
        print_json("models", facts)
    elif quiet:
        for row in rows:
            write(row.entry.name)
    else:
        cells = [
            (
                row.entry.name,
                row.entry.task,
                str(row.entry.dim),
                human_count(row.entry.params),
                human_size(row.entry.size),
                row.entry.license,
                "yes" if row.is_pulled else ("-" if row.entry.is_pinned else "- (unpinned)"),
            )
            for row in rows
        ]
        print_table(HEADER, cells)
        next_command("zoo", "show", rows[0].entry.name if rows else "NAME")
