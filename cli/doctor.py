"""zoo doctor: what is wrong here, and the command that mends it."""

from typing import Annotated

import typer
from zoo_cli.output import next_command, print_json, write
from zoo_cli.state import make_zoo

from zoo import to_plain

MARKS = {"ok": "✓", "note": "-", "problem": "✗"}


def command(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Look at the runtime, the device, ZOO_HOME, the registry, kept models and every plugin.

    Exit code 0 where there is no problem, else that of the first one: 7 runtime, 8 ZOO_HOME, 2 registry, 5 kept model,
    9 plugin.
    """
    findings = make_zoo(context).doctor()
    problems = [finding for finding in findings if finding.state == "problem"]
    if json:
        print_json("findings", to_plain(findings))
    else:
        for finding in findings:
            write(f"{MARKS[finding.state]} {finding.name + ':':<14} {finding.detail}")
            if finding.fix and finding.state != "ok":
                write(f"    fix: {finding.fix}")
    if problems:
        raise typer.Exit(problems[0].exit_code)
    if not json:
        next_command("zoo", "list")
