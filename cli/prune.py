"""zoo prune: free disk space."""

import sys
from typing import Annotated

import typer
from zoo_cli.output import counted, human_size, next_command, print_json, print_table, say, write
from zoo_cli.state import make_zoo

from zoo import UsageError


def command(
    context: typer.Context,
    models: Annotated[bool, typer.Option("--models", help="Also remove pulled models.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Remove caches (features, activations, optimised graphs), unused graphs and leftovers of crashed runs.

    All of it is made again when it is needed. Files that a running process uses stay.
    """
    zoo = make_zoo(context)
    found = zoo.prune(models=models, dry_run=True)
    if found and not dry_run:
        if not yes:
            _ask(sum(each.size for each in found), len(found), json)
        found = zoo.prune(models=models)
    freed = sum(each.size for each in found if dry_run or each.state == "removed")
    if json:
        print_json("pruned", {"dry_run": dry_run, "freed": freed, "items": found})
        return
    if found:
        rows = [(each.kind, each.name, human_size(each.size), each.state) for each in found]
        print_table(("KIND", "NAME", "SIZE", "STATE"), rows)
    write(f"{human_size(freed)} {'would be freed' if dry_run else 'freed'}")
    if dry_run and found:
        next_command("zoo", "prune", *(["--models"] if models else []), "-y")
    else:
        next_command("zoo", "list", "--pulled")


def _ask(size: int, count: int, json: bool) -> None:
    """Ask for confirmation; exit without it. Raises UsageError if stdin is not a terminal."""
    if json or not sys.stdin.isatty():
        raise UsageError(
            f"prune would remove {counted(count, 'item')}, {human_size(size)}", hint="zoo prune -y, or --dry-run"
        )
    if not typer.confirm(f"remove {counted(count, 'item')}, {human_size(size)}?", err=True):
        say("nothing was removed")
        raise typer.Exit
