"""zoo similar: the inputs or stored vectors that are most similar to a query."""

from pathlib import Path
from typing import Annotated

import typer
from zoo_cli.output import counted, next_command, print_json, say, write
from zoo_cli.output_files import end_with_count, print_failures
from zoo_cli.state import make_zoo

from zoo import UsageError, to_plain


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A bundle (./pets), or a name as for zoo pull.")],
    query: Annotated[str, typer.Argument(help="An image, or a text.")],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Files that zoo embed wrote, or inputs as for zoo embed.", metavar="INPUT..."),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many results to print.")] = 5,
    index: Annotated[
        bool,
        typer.Option(
            "--index",
            help="For a .npy of a million vectors or more: search an index (usearch), which is built once beside it.",
        ),
    ] = False,
    text: Annotated[str | None, typer.Option(help="The column of texts if INPUT is a table.")] = None,
    image: Annotated[str | None, typer.Option(help="The column of images if INPUT is a table.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The name of the model's prompt to put before QUERY.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda[:N] or tensorrt[:N].", envvar="ZOO_DEVICE")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Rank inputs or stored vectors by the cosine similarity of their features to those of a query.

    All of them are compared. A file of vectors that another model made causes a warning.
    """
    zoo = make_zoo(context)
    items, _ = zoo.inputs(model, [query], text=text)
    if len(items) != 1:
        raise UsageError(f"the query must be one input, got {len(items)}", hint="give one image, or one text")
    found = zoo.similar(
        model, items[0], inputs, device=device, top=top, index=index, prompt=prompt, text=text, image=image
    )
    for line in found.warnings:
        say(f"warning: {line}")
    if json:
        facts = {name: value for name, value in to_plain(found).items() if name not in ("matches", "failures")}
        matches = [{"input": name, "similarity": value} for name, value in found.matches]
        failures = [{"input": name, **to_plain(failure)} for name, failure in found.failures]
        print_json("similar", {**facts, "matches": matches, "failures": failures})
    else:
        for name, value in found.matches:
            write(f"{value:.4f}\t{name}")
    by = ", by an index" if found.approximate else ""
    say(f"{found.compared} compared on {found.placement or found.device}{by}")
    print_failures(found.failures, found.failed)
    if found.failed:
        end_with_count(f"no vector for {counted(found.failed, 'input')}", hint="repair or remove them")
    if not json and not all(each.endswith(".npy") or Path(f"{each}.zoo.json").is_file() for each in inputs):
        next_command("zoo", "embed", model, "INPUT", "-o", "vectors.npy")
