"""zoo run: labels and scores for files, folders, globs, texts, stdin."""

from typing import Annotated

import typer
from zoo_cli.output import next_command, print_json, say, write
from zoo_cli.state import make_zoo

from zoo import Answer


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A bundle (./pets), or a name as for zoo pull.")],
    inputs: Annotated[
        list[str], typer.Argument(help="Pictures, folders, globs, texts; - reads stdin.", metavar="INPUT...")
    ],
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda[:N].", envvar="ZOO_DEVICE")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many labels to show.")] = 5,
    text: Annotated[str | None, typer.Option(help="The text column when INPUT is a table.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Run a model on inputs."""
    zoo = make_zoo(context)
    items, names = zoo.inputs(model, inputs, text=text)
    result = zoo.run(model, items, names=names, device=device, top=top)
    if json:
        print_json("run", {"model": model, "device": result.device, "results": [_facts(a) for a in result.answers]})
        return
    for answer in result.answers:
        write(f"{answer.input}\t{_words(answer)}")
    say(f"{len(items)} inputs on {result.device}")
    if result.answers[0].labels:
        next_command("zoo", "evaluate", model, "DATA")
    else:
        next_command("zoo", "finetune", result.entry, "DATA", "-o", "DIR")


def _facts(answer: Answer) -> dict[str, object]:
    if answer.labels:
        return {"input": answer.input, "labels": [{"name": name, "score": score} for name, score in answer.labels]}
    return {"input": answer.input, "features": answer.features}


def _words(answer: Answer) -> str:
    if answer.labels:
        return "  ".join(f"{name} {score:.3f}" for name, score in answer.labels)
    shown = " ".join(f"{value:.4f}" for value in answer.features[:4])
    return f"{len(answer.features)} features: {shown} ..."
