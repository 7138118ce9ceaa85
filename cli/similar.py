"""zoo similar: the inputs, or stored vectors, most like one."""

from typing import Annotated

import typer
from zoo_cli.output import next_command, print_json, say, write
from zoo_cli.state import make_zoo
from zoo_cli.written import end_with_count, print_failures

from zoo import UsageError, to_plain


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A bundle (./pets), or a name as for zoo pull.")],
    query: Annotated[str, typer.Argument(help="A picture, or a text.")],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Files that zoo embed wrote, or inputs as zoo embed takes them.", metavar="INPUT..."),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many to show.")] = 5,
    index: Annotated[
        bool, typer.Option("--index", help="Above a million vectors: an index beside the .npy, made once (usearch).")
    ] = False,
    text: Annotated[str | None, typer.Option(help="The text column when INPUT is a table.")] = None,
    image: Annotated[str | None, typer.Option(help="The column of pictures when INPUT is a table.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda[:N], tensorrt[:N].", envvar="ZOO_DEVICE")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Rank a folder, a text file or stored vectors by the cosine of their features with a query's.

    Every one is compared. A file of vectors whose fingerprint is another model's is warned about.
    """
    zoo = make_zoo(context)
    items, _ = zoo.inputs(model, [query], text=text)
    if len(items) != 1:
        raise UsageError(f"the query is {len(items)} inputs", hint="give one picture, or one text")
    found = zoo.similar(model, items[0], inputs, device=device, top=top, text=text, image=image, index=index)
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
        end_with_count(f"{found.failed} inputs have no vector", hint="repair or remove them")
    if not json:
        next_command("zoo", "embed", model, "INPUT", "-o", "vectors.npy")
