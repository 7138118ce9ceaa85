"""zoo verify: check the sha256 of stored files, offline."""

from typing import Annotated

import typer
from zoo_cli.output import counted, human_size, print_json, print_table, warn_damaged
from zoo_cli.state import make_zoo

from zoo import IntegrityError


def command(
    context: typer.Context,
    models: Annotated[list[str] | None, typer.Argument(help="Names or bundles. Default: all pulled models.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check the sha256 of every file of pulled models and bundles."""
    zoo = make_zoo(context)
    if not models:
        warn_damaged(zoo)
    names = models or [row.entry.name for row in zoo.list(pulled=True)]
    checked = [(name, file, is_same) for name in names for file, is_same in zoo.verify(name)]
    facts = [{"model": name, "file": file.path, "ok": is_same} for name, file, is_same in checked]
    if json and all(is_same for *_, is_same in checked):
        print_json("files", facts)
    elif not json:
        rows = [(name, file.path, human_size(file.size), "ok" if is_same else "BAD") for name, file, is_same in checked]
        print_table(("MODEL", "FILE", "SIZE", "STATE"), rows)
    bad = [f"{name}/{file.path}" for name, file, is_same in checked if not is_same]
    if bad:
        error = IntegrityError(
            f"wrong sha256 in {len(bad)} of {counted(len(checked), 'file')}: {', '.join(bad)}",
            hint="zoo pull downloads a model's files again; a bundle must be exported or fine-tuned again",
        )
        error.report = facts
        raise error
