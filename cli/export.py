"""zoo export: a checked ONNX bundle where you want it."""

from pathlib import Path
from typing import Annotated

import typer
from zoo_cli.output import human_size, next_command, print_json, reference, say, write
from zoo_cli.state import make_zoo

from zoo import to_plain


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A registry name, or a bundle.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Export a model as one ONNX file that equals the original weights' own arithmetic, or write nothing."""
    bundle = make_zoo(context).export(model, out)
    manifest = bundle.manifest
    if json:
        print_json("export", {"path": str(bundle.model), "parity": to_plain(manifest.parity)})
        return
    for check in manifest.parity.checks:
        say(f"  ✓ {check.name}, batch {check.batch}: {max(check.value, 0):.2g} (at most {check.bound:g})")
    size = bundle.model.stat().st_size
    say(f"{manifest.precision}, {human_size(size)}, checked on {manifest.parity.samples}")
    next_command("zoo", "run", reference(out), "INPUT")
    write(str(bundle.model))
