"""zoo run: labels and scores for files, folders, globs, texts, stdin; the nearest words from word vectors."""

from collections.abc import Sequence
from typing import Annotated

import typer
from zoo_cli.output import next_command, print_error, print_json, say, write
from zoo_cli.state import make_zoo

from zoo import Answer, RunResult, UsageError, to_plain


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A bundle (./pets), or a name as for zoo pull.")],
    inputs: Annotated[
        list[str], typer.Argument(help="Pictures, folders, globs, texts, words; - reads stdin.", metavar="INPUT...")
    ],
    # Without envvar: ZOO_DEVICE is a wish for models that can have it, and the API reads it.
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda[:N], tensorrt[:N]; or ZOO_DEVICE.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many labels, or words, to show.")] = 5,
    analogy: Annotated[
        bool, typer.Option("--analogy", help="INPUT is three words A B C: what is to C as A is to B? (A - B + C)")
    ] = False,
    text: Annotated[str | None, typer.Option(help="The text column when INPUT is a table.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Run a model on inputs. A registry name of word vectors answers a text with its nearest words.

    Where several labels may hold, those that do come first (a|b), then the scores; a number comes alone.

    An input that cannot be read does not stop the others; the exit code is then that of the first such error.
    """
    zoo = make_zoo(context)
    if analogy:
        if len(inputs) != 3:
            raise UsageError(f"--analogy takes three words, not {len(inputs)}", hint="--analogy king man woman")
        a, b, c = inputs
        result = zoo.analogy(model, a, b, c, device=device, top=top)
    else:
        items, names = zoo.inputs(model, inputs, text=text)
        result = zoo.run(model, items, names=names, device=device, top=top, keep_going=True)
    failures = [answer.error.as_error() for answer in result.answers if answer.error is not None]
    if len(failures) == len(result.answers):
        for failure in failures[1:]:
            print_error(failure, as_json=False)
        raise failures[0]
    if json:
        facts = {"model": model, "device": result.device, "placement": to_plain(result.placement)}
        print_json("run", {**facts, "results": [_facts(answer) for answer in result.answers]})
    else:
        _print(model, result)
    for failure in failures:
        print_error(failure, as_json=False)
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _print(model: str, result: RunResult) -> None:
    answered = [answer for answer in result.answers if answer.error is None]
    for answer in answered:
        write(f"{answer.input}\t{_words(answer)}")
    say(f"{len(answered)} inputs on {result.placement or result.device}")
    if answered[0].labels or answered[0].value is not None:
        next_command("zoo", "evaluate", model, "DATA")
    else:
        next_command("zoo", "finetune", result.entry, "DATA", "-o", "DIR")


def _facts(answer: Answer) -> dict[str, object]:
    if answer.error is not None:
        return {"input": answer.input, "error": to_plain(answer.error)}
    if answer.value is not None:
        return {"input": answer.input, "value": answer.value}
    if answer.labels:
        chosen = {} if answer.chosen is None else {"chosen": answer.chosen}
        labels = [{"name": name, "score": score} for name, score in answer.labels]
        return {"input": answer.input, **chosen, "labels": labels}
    if answer.words:
        words = [{"word": word, "similarity": value} for word, value in answer.words]
        return {"input": answer.input, "words": words}
    return {"input": answer.input, "features": answer.features}


def _words(answer: Answer) -> str:
    if answer.value is not None:
        return f"{answer.value:.7g}"
    if answer.chosen is not None:
        # As data is written, so that it can be cut out; then every score.
        return "\t".join(("|".join(answer.chosen), _scored(answer.labels)))
    if best := answer.labels or answer.words:
        return _scored(best)
    shown = " ".join(f"{value:.4f}" for value in answer.features[:4])
    return f"{len(answer.features)} features: {shown} ..."


def _scored(best: Sequence[tuple[str, float]]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in best)
