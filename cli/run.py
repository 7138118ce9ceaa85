"""zoo run: labels and scores for files, folders, globs, tables, texts, stdin; the nearest words from word vectors."""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from zoo_cli.output import flush, next_command, print_json, say, write
from zoo_cli.progress import Bars
from zoo_cli.state import make_zoo
from zoo_cli.written import end_with_count, print_failure, print_failures, print_written

from zoo import Answer, Answers, DataError, Inputs, ProgressBar, UsageError, Zoo, to_plain

#: What would end a line, or cannot be printed: a text is its own name.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
#: Seconds after which a reader at the other end of a pipe gets what there is.
EVERY = 0.2


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A bundle (./pets), or a name as for zoo pull.")],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Pictures, folders, globs, tables, texts, words; - reads stdin.", metavar="INPUT..."),
    ],
    # Without envvar: ZOO_DEVICE is a wish for models that can have it, and the API reads it.
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda[:N], tensorrt[:N]; or ZOO_DEVICE.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="How many labels, or words, to show; 5 if not given.")] = None,
    analogy: Annotated[
        bool, typer.Option("--analogy", help="INPUT is three words A B C: what is to C as A is to B? (A - B + C)")
    ] = False,
    text: Annotated[str | None, typer.Option(help="The text column when INPUT is a table.")] = None,
    image: Annotated[str | None, typer.Option(help="The column of pictures when INPUT is a table.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write a .csv, .jsonl or .parquet file, with every score.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a break left the file.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first input that cannot be answered.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object, which holds every answer.")] = False,
) -> None:
    """Run a model on inputs, in their order. A registry name of word vectors answers a text with its nearest words.

    Where several labels may hold, those that do come first (a|b), then the scores; a number comes alone.

    Memory does not grow with the inputs, but for --json without -o. An input that cannot be answered does not stop the
    others: it is named, and the exit code is then 1. With -o Ctrl-C leaves a file that is valid as far as it is, and
    that --resume continues.
    """
    zoo = make_zoo(context)
    if resume and out is None:
        raise UsageError("--resume continues a file", hint="name it: -o FILE")
    if analogy:
        _analogy(zoo, model, inputs, device, top, out, as_json=json)
        return
    each = zoo.each_input(model, inputs, text=text, image=image)
    # What was mistyped is said before anything is pulled or built for it.
    total = each.count()
    if out is None:
        _to_stdout(zoo, model, each, total, device, top, strict=strict, as_json=json)
        return
    found = zoo.run_to_file(model, each, out, device=device, top=top, resume=resume, strict=strict)
    print_written("run", found, {"columns": found.columns}, as_json=json)
    say(f"{found.rows} inputs on {found.placement or found.device}, fingerprint {found.fingerprint[:12]}")
    print_failures(found.failures, found.failed)
    if found.failed:
        end_with_count(f"{found.failed} of {found.inputs} inputs have no answer", hint=f"{found.out} says why")
    if not json and "word1" not in found.columns:
        next_command("zoo", "evaluate", model, "DATA")


def _analogy(
    zoo: Zoo, model: str, inputs: Sequence[str], device: str | None, top: int | None, out: Path | None, *, as_json: bool
) -> None:
    if len(inputs) != 3:
        raise UsageError(f"--analogy takes three words, not {len(inputs)}", hint="--analogy king man woman")
    if out is not None:
        raise UsageError("--analogy prints one answer, and writes no file", hint="leave out -o")
    a, b, c = inputs
    result = zoo.analogy(model, a, b, c, device=device, top=top or 5)
    if as_json:
        print_json("run", {"model": model, "device": "cpu", "placement": None, "results": [_facts(result.answers[0])]})
    else:
        _print(result.answers[0])
    say(f"1 inputs on {result.device}")
    next_command("zoo", "finetune", result.entry, "DATA", "-o", "DIR")


def _to_stdout(
    zoo: Zoo, model: str, each: Inputs, total: int | None, device: str | None, top: int | None, *, strict: bool,
    as_json: bool,
) -> None:  # fmt: skip
    answers = zoo.answers(model, each, device=device, top=top or 5, keep_going=not strict)
    results: list[dict[str, object]] = []
    answered, failed, last = 0, 0, None
    flushed = time.monotonic()
    with _bar(answers, total, is_table=not as_json) as bar:
        for answer in answers:
            if answer.error is not None:
                failed += 1
                print_failure(answer.input, answer.error)
            else:
                answered, last = answered + 1, answer
            if as_json:
                results.append(_facts(answer))
            elif answer.error is None:
                _print(answer)
                if each.is_piped or time.monotonic() - flushed > EVERY:
                    flush()
                    flushed = time.monotonic()
            if bar is not None:
                bar.advance()
    if not answered + failed:
        raise DataError("there is no input", hint="name files, or give text; - reads stdin")
    if as_json:
        placement = to_plain(answers.placement)
        print_json("run", {"model": model, "device": answers.device, "placement": placement, "results": results})
    say(f"{answered} inputs on {answers.placement or answers.device}")
    if failed:
        hint = "repair or remove them; --strict stops at the first"
        end_with_count(f"{failed} of {answered + failed} inputs have no answer", hint=hint)
    if last is not None and (last.labels or last.value is not None):
        next_command("zoo", "evaluate", model, "DATA")
    else:
        next_command("zoo", "finetune", answers.entry, "DATA", "-o", "DIR")


@contextmanager
def _bar(answers: Answers, total: int | None, *, is_table: bool) -> Iterator[ProgressBar | None]:
    """A bar, but where the answers themselves run over the terminal."""
    if is_table and sys.stdout is not None and sys.stdout.isatty():
        yield None
        return
    with Bars().task(f"{answers.entry} on {answers.device}", total) as bar:
        yield bar


def _print(answer: Answer) -> None:
    """One line, whatever the input is called."""
    name = UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), answer.input)
    write(f"{name}\t{_words(answer)}")


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
