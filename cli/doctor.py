"""zoo doctor: problems of this installation, and the command that fixes each."""

from typing import Annotated

import typer
from zoo_cli.output import next_command, print_json, write
from zoo_cli.state import make_zoo

from zoo import UsageError, to_plain

MARKS = {"ok": "✓", "warn": "-", "fail": "✗"}


def command(
    context: typer.Context,
    deep: Annotated[bool, typer.Option("--deep", help="Also check the sha256 of every pulled or built file.")] = False,
    paste: Annotated[bool, typer.Option("--paste", help="Print Markdown for a bug report, without secrets.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not check whether the Hub answers.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check the runtime, the GPU, ZOO_HOME, the Hub, the registry, stored models and every plugin.

    The exit code is 0 if nothing fails, otherwise that of the first failure: 7 runtime or GPU, 8 ZOO_HOME, 2 registry,
    5 stored model or checksum, 9 plugin.
    """
    if paste and json:
        raise UsageError("--paste and --json exclude each other", hint="choose one of them")
    zoo = make_zoo(context, offline=offline)
    checks = zoo.doctor(deep=deep)
    failed = [check for check in checks if check.state == "fail"]
    if json:
        print_json("checks", to_plain(checks))
    elif paste:
        write(zoo.bug_report(checks))
    else:
        for check in checks:
            write(f"{MARKS[check.state]} {check.name + ':':<16} {check.found}")
            if check.fix and check.state != "ok":
                write(f"    fix: {check.fix}")
    if failed:
        raise typer.Exit(failed[0].exit_code)
    if not json:
        next_command("zoo", "list")
