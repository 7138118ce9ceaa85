"""zoo plugins: list the installed plugins, check one against the interface, or write a new one."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from zoo_cli.output import human_size, next_command, print_json, print_table, say, warn_damaged, write
from zoo_cli.state import make_zoo

from zoo import GateError, PluginError, to_plain

app = typer.Typer(help="Show, check and create plugins.", add_completion=False)

MARKS = {"passed": "✓", "failed": "✗", "skipped": "-"}


@app.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    limit: Annotated[float, typer.Option(min=0.1, help="Time limit for loading a plugin, in seconds.")] = 10.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Load every plugin in a child process and show its state."""
    if context.invoked_subcommand is not None:
        return
    states = make_zoo(context).plugin_states(limit)
    if json:
        print_json("plugins", to_plain(states))
        return
    rows = [
        (s.group, s.name, f"{s.distribution} {s.version}", s.module, s.state + (f": {s.error}" if s.error else ""))
        for s in states
    ]
    print_table(("GROUP", "NAME", "DISTRIBUTION", "MODULE", "STATE"), rows)
    for state in states:
        if state.is_slow:
            say(f"warning: {state.title} takes {state.seconds:.1f} s to load, in every command that uses it")
    if any(state.group == "zoo.backbones" and state.state == "ok" for state in states):
        next_command("zoo", "plugins", "check")
    elif "ZOO_PLUGINS" in os.environ:
        next_command("unset", "ZOO_PLUGINS")
    else:
        next_command("zoo", "doctor")


@app.command()
def check(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="A family. Default: all families, each with its pulled models.")
    ] = None,
    row: Annotated[list[str] | None, typer.Option(help="A registry row to check with; may be repeated.")] = None,
    limit: Annotated[float, typer.Option(min=1, help="Time limit for the check of one row, in seconds.")] = 600.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check that a family meets the interface of zoo, with real weights, in a child process.

    The family's pulled rows are checked; if there are none, the smallest one is pulled. The exit code is 6 if a check
    fails, 9 if the plugin cannot be loaded.
    """
    zoo = make_zoo(context)
    warn_damaged(zoo)
    reports = zoo.check_plugins(name, rows=row or (), limit=limit)
    failed = [report for report in reports if report.state == "failed"]
    broken = [report for report in reports if report.state == "broken"]
    if not json:
        for report in reports:
            _print(report)
    if failed:
        problems = [f"{report.family}: {failure}" for report in failed for failure in report.failures]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        hint = "docs/plugins.md describes each check"
        raise GateError(f"{problems[0]}{more}", report=list(reports), hint=hint)
    if broken:
        error = PluginError(broken[0].note or "", plugin=broken[0].family, hint="zoo plugins shows every plugin")
        error.report = list(reports)
        raise error
    if json:
        print_json("reports", to_plain(reports))
    else:
        next_command("zoo", "list", *(("--family", name) if name else ()))


@app.command()
def new(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The family: lower-case letters, digits, single - or _ in between.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The folder to write. Default: zoo-NAME.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Write a small, complete distribution with a new family; replace its network and registry row with yours."""
    folder, files = make_zoo(context).new_plugin(name, out)
    if json:
        print_json("plugin", {"name": name, "folder": str(folder), "files": files})
        return
    for file in files:
        write(str(folder / file))
    next_command("pip", "install", "-e", folder if folder.is_absolute() else f"./{folder}")


def _print(report: Any) -> None:
    """Print the report on one row, with a line for each check."""
    if report.note is not None:
        write(f"{report.family}: {report.state}: {report.note}")
        return
    write(f"{report.family} with {report.entry}")
    for check in report.checks:
        write(f"  {MARKS[check.state]} {check.name + ':':<24} {check.detail}  ({check.seconds:.1f} s)")
    size = f"{human_size(report.size)}, " if report.size is not None else ""
    write(f"  {report.state}: {size}{report.seconds:.1f} s")
