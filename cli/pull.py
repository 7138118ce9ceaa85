"""zoo pull: download and verify the files of a model."""

from typing import Annotated

import typer
from zoo_cli.output import human_size, next_command, next_steps, print_json, print_table, write
from zoo_cli.state import make_zoo


def command(
    context: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            help="Names from the registry, or of other libraries: timm/NAME, hf/ORG/NAME, hf/ORG/NAME@REVISION.",
            metavar="NAME...",
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be downloaded.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use only local sources.")] = False,
    source: Annotated[str | None, typer.Option(help="Use only sources of this scheme: hf, https, pypi, file.")] = None,
    trust_first: Annotated[
        bool,
        typer.Option("--trust-first", help="Accept a file without a known sha256, and record its sha256 in zoo.lock."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Download models; every file is checked against the sha256 in the registry before it can be used."""
    zoo = make_zoo(context, offline=offline)
    if dry_run:
        planned = [(name, file) for name in names for file in zoo.plan(name, source=source)]
        if json:
            print_json("files", [{"model": name, "file": file} for name, file in planned])
            return
        rows = [
            (name, file.path, human_size(file.size), "present" if file.present else "to fetch", ", ".join(file.urls))
            for name, file in planned
        ]
        print_table(("MODEL", "FILE", "SIZE", "STATE", "SOURCES"), rows)
        return
    for name in names:
        zoo.entry(name)
    folders = {name: zoo.pull(name, source=source, trust_first=trust_first) for name in names}
    if json:
        print_json("pulled", {name: str(folder) for name, folder in folders.items()})
        return
    last = zoo.entry(names[-1])
    if last.family in zoo.plugins.families():
        next_steps(last)
    else:
        next_command("zoo", "verify", last.name)
    for folder in folders.values():
        write(str(folder))
