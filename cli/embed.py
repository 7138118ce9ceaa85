"""zoo embed: the features of any number of inputs into a file."""

from pathlib import Path
from typing import Annotated

import typer
from zoo_cli.output import next_command, print_json, say, write
from zoo_cli.state import make_zoo

from zoo import Embedded, ZooError, to_plain


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A bundle (./pets), or a name as for zoo pull.")],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Pictures, folders, globs, tables, texts, .txt files; - reads stdin.", metavar="INPUT..."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="A .npy, .parquet or .jsonl file.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a break left the file.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first input that cannot be read.")] = False,
    text: Annotated[str | None, typer.Option(help="The text column when INPUT is a table.")] = None,
    image: Annotated[str | None, typer.Option(help="The column of pictures when INPUT is a table.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda[:N].", envvar="ZOO_DEVICE")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Write the features of inputs to a file, in their order, with the fingerprint of the model that made them.

    Memory does not grow with the inputs. One that cannot be read is named, its error is in the file, and the exit code
    is 1. Ctrl-C leaves a file that is valid as far as it is, and that --resume continues.
    """
    zoo = make_zoo(context)
    found = zoo.embed(
        model, zoo.each_input(model, inputs, text=text, image=image), out, device=device, resume=resume, strict=strict
    )
    if json:
        print_json("embed", {**_facts(found), "failures": [{"input": n, **to_plain(f)} for n, f in found.failures]})
    else:
        write(found.out)
    say(f"{found.rows} vectors of {found.dim} numbers on {found.device}, fingerprint {found.fingerprint[:12]}")
    print_failures(found.failures, found.failed)
    if found.failed:
        error = ZooError(f"{found.failed} of {found.inputs} inputs have no vector", hint=f"{found.out} says why")
        say(f"error: {error.message}")
        say(f"hint: {error.hint}")
        raise typer.Exit(error.exit_code)
    if not json:
        next_command("zoo", "similar", model, "QUERY", found.out)


def print_failures(failures: tuple[tuple[str, object], ...], failed: int) -> None:
    """A line for each of the first inputs that failed, then how many more there are."""
    for name, failure in failures:
        message = " ".join(getattr(failure, "message", "").split())
        say(f"failed: {message if name in message else f'{name}: {message}'}")
    if failed > len(failures):
        say(f"failed: {failed - len(failures)} more")


def _facts(found: Embedded) -> dict[str, object]:
    return {
        "model": found.model,
        "device": found.device,
        "out": found.out,
        "fingerprint": found.fingerprint,
        "dim": found.dim,
        "inputs": found.inputs,
        "rows": found.rows,
        "failed": found.failed,
        "resumed": found.resumed,
    }
