"""zoo run: labels and scores for files, folders, globs, texts, stdin; the nearest words for words."""

from collections.abc import Sequence
from typing import Annotated

import typer
from zoo_cli.output import next_command, print_json, say, write
from zoo_cli.state import make_zoo

from zoo import Answer, DeviceError, UsageError


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A bundle (./pets), or a name as for zoo pull.")],
    inputs: Annotated[
        list[str], typer.Argument(help="Pictures, folders, globs, texts, words; - reads stdin.", metavar="INPUT...")
    ],
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda[:N].", envvar="ZOO_DEVICE")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many labels, or words, to show.")] = 5,
    analogy: Annotated[
        bool, typer.Option("--analogy", help="INPUT is three words A B C: what is to C as A is to B? (A - B + C)")
    ] = False,
    text: Annotated[str | None, typer.Option(help="The text column when INPUT is a table.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Run a model on inputs. A registry name of word vectors answers a word with its nearest words."""
    zoo = make_zoo(context)
    if analogy:
        _check_device(device)
        if len(inputs) != 3:
            raise UsageError(f"--analogy takes three words, not {len(inputs)}", hint="--analogy king man woman")
        a, b, c = inputs
        _print_words(model, [zoo.analogy(model, a, b, c, top=top)], json)
        return
    items, names = zoo.inputs(model, inputs, text=text)
    if zoo.has_words(model) and all(len(item.split()) == 1 for item in items):
        _check_device(device)
        _print_words(model, zoo.neighbours(model, items, top=top), json)
        return
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


def _check_device(device: str | None) -> None:
    if device not in (None, "auto", "cpu"):
        raise DeviceError("nearest words are searched on the CPU", device=device, hint="--device cpu, or --device auto")


def _print_words(model: str, answers: Sequence[Answer], json: bool) -> None:
    if json:
        rows = [
            {"input": answer.input, "words": [{"word": word, "similarity": value} for word, value in answer.words]}
            for answer in answers
        ]
        print_json("run", {"model": model, "device": "cpu", "results": rows})
        return
    for answer in answers:
        write(f"{answer.input}\t" + "  ".join(f"{word} {value:.3f}" for word, value in answer.words))
    next_command("zoo", "finetune", model, "DATA", "-o", "DIR")


def _facts(answer: Answer) -> dict[str, object]:
    if answer.labels:
        return {"input": answer.input, "labels": [{"name": name, "score": score} for name, score in answer.labels]}
    return {"input": answer.input, "features": answer.features}


def _words(answer: Answer) -> str:
    if answer.labels:
        return "  ".join(f"{name} {score:.3f}" for name, score in answer.labels)
    shown = " ".join(f"{value:.4f}" for value in answer.features[:4])
    return f"{len(answer.features)} features: {shown} ..."
