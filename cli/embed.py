"""zoo embed: write the features of any number of inputs to a file."""

from pathlib import Path
from typing import Annotated

import typer
from zoo_cli.output import counted, next_command, say
from zoo_cli.output_files import end_with_count, print_failures, print_written
from zoo_cli.state import make_zoo


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A bundle (./pets), or a name as for zoo pull.")],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Images, folders, globs, tables, texts, .txt files; - reads stdin.", metavar="INPUT..."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The .npy, .parquet or .jsonl file to write.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue a file that an interrupted run left.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first input that cannot be read.")] = False,
    text: Annotated[str | None, typer.Option(help="The column of texts if INPUT is a table.")] = None,
    image: Annotated[str | None, typer.Option(help="The column of images if INPUT is a table.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The name of the model's prompt to put before each text.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda[:N] or tensorrt[:N].", envvar="ZOO_DEVICE")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Write the features of inputs to a file, in input order, with the fingerprint of the model that made them.

    Memory use does not grow with the inputs. If an input cannot be read, its error is printed and written to the file,
    and the exit code is 1. Ctrl-C leaves a readable, partial file; --resume finishes it to identical bytes.
    """
    zoo = make_zoo(context)
    each = zoo.each_input(model, inputs, text=text, image=image)
    # Counting the inputs reports mistyped arguments before a model is pulled or built.
    each.count()
    found = zoo.embed(model, each, out, device=device, resume=resume, strict=strict, prompt=prompt)
    print_written("embed", found, {"dim": found.dim}, as_json=json)
    vectors = f"{counted(found.rows, 'vector')} of {found.dim} numbers"
    say(f"{vectors} on {found.placement or found.device}, fingerprint {found.fingerprint[:12]}")
    print_failures(found.failures, found.failed)
    if found.failed:
        end_with_count(
            f"no vector for {found.failed} of {counted(found.inputs, 'input')}", hint=f"{found.out} has the errors"
        )
    if not json:
        next_command("zoo", "similar", model, "QUERY", found.out)
