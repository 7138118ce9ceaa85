"""zoo run: labels and scores for files, folders, globs, tables, texts and stdin; nearest words from word vectors."""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from zoo_cli.output import counted, flush, next_command, print_json, say, write
from zoo_cli.output_files import end_with_count, print_failure, print_failures, print_written
from zoo_cli.progress import Bars
from zoo_cli.state import make_zoo

from zoo import Answer, Answers, DataError, Inputs, ProgressBar, UsageError, Zoo, ranks, to_plain

#: Characters that end a line or cannot be printed. Names may contain them: the name of a text input is the text.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
#: Seconds between two flushes of stdout.
FLUSH_EVERY = 0.2


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A bundle (./pets), or a name as for zoo pull.")],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Images, folders, globs, tables, texts, words; - reads stdin.", metavar="INPUT..."),
    ],
    # Without envvar: the API reads ZOO_DEVICE, and ignores it for word vectors.
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda[:N] or tensorrt[:N]; ZOO_DEVICE sets the default.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="How many labels or words to print. Default: 5.")] = None,
    analogy: Annotated[
        bool, typer.Option("--analogy", help="INPUT is three words A B C: print the words nearest to A - B + C.")
    ] = False,
    features: Annotated[
        bool, typer.Option("--features", help="Print the feature vector instead of labels or nearest words.")
    ] = False,
    prompt: Annotated[str | None, typer.Option(help="The name of the model's prompt to put before each text.")] = None,
    pair: Annotated[
        str | None, typer.Option(help="The second text of every input, for a classifier of pairs (INPUT, PAIR).")
    ] = None,
    text: Annotated[str | None, typer.Option(help="The column of texts if INPUT is a table.")] = None,
    image: Annotated[str | None, typer.Option(help="The column of images if INPUT is a table.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write every score to this .csv, .jsonl or .parquet file.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a file that an interrupted run left.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first input that fails.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object with every answer.")] = False,
) -> None:
    """Run a model on inputs, in order: labels with scores. Word vectors from the registry print the nearest words.

    Labels come from fine-tuning, or from the classifier in the weights. Multi-label models print the chosen labels
    first (a|b), then the scores; regression models print one number; BERT rows print the best tokens for a [MASK].
    Models without labels print features.

    Memory use does not grow with the inputs, except with --json without -o. An input that fails does not stop the
    others: its error is printed, and the exit code is 1. With -o, Ctrl-C leaves a readable, partial file; --resume
    finishes it to identical bytes.
    """
    zoo = make_zoo(context)
    if features and (out is not None or top is not None or analogy):
        unused = "-o" if out is not None else "--analogy" if analogy else "--top"
        hint = "zoo embed writes features to a file" if unused == "-o" else f"leave {unused} out"
        raise UsageError(f"{unused} has no effect with --features", hint=hint)
    if prompt is not None and (out is not None or analogy):
        hint = "zoo embed --prompt writes features to a file" if out is not None else "leave --prompt out"
        raise UsageError(f"--prompt has no effect with {'-o' if out is not None else '--analogy'}", hint=hint)
    if analogy and (unused := _first({"--pair": pair, "--text": text, "--image": image, "--strict": strict or None})):
        raise UsageError(f"{unused} has no effect with --analogy", hint=f"leave {unused} out")
    if resume and out is None:
        raise UsageError("--resume needs the file to continue", hint="-o FILE")
    if analogy:
        _analogy(zoo, model, inputs, device, top, out, as_json=json)
        return
    if top is not None and not ranks(facts := zoo.facts(model)):
        raise UsageError(f"--top has no effect: {facts.name} has no labels to rank", hint="leave --top out")
    each = zoo.each_input(model, inputs, text=text, image=image, pair=pair)
    # Counting the inputs reports mistyped arguments before a model is pulled or built.
    total = each.count()
    if out is None:
        answers = zoo.answers(
            model, each, device=device, top=top or 5, keep_going=not strict, features=features, prompt=prompt
        )
        _to_stdout(model, each, total, answers, as_json=json)
        return
    found = zoo.run_to_file(model, each, out, device=device, top=top, resume=resume, strict=strict)
    print_written("run", found, {"columns": found.columns}, as_json=json)
    say(f"{counted(found.rows, 'input')} on {found.placement or found.device}, fingerprint {found.fingerprint[:12]}")
    print_failures(found.failures, found.failed)
    if found.failed:
        end_with_count(
            f"no answer for {found.failed} of {counted(found.inputs, 'input')}", hint=f"{found.out} has the errors"
        )
    if not json and not {"word1", "token1"}.intersection(found.columns):
        next_command("zoo", "evaluate", model, "DATA")


def _first(options: dict[str, object]) -> str:
    """The name of the first option that was given, "" if none was."""
    return next((name for name, value in options.items() if value is not None), "")


def _analogy(
    zoo: Zoo, model: str, inputs: Sequence[str], device: str | None, top: int | None, out: Path | None, *, as_json: bool
) -> None:
    if len(inputs) != 3:
        raise UsageError(f"--analogy needs three words, got {len(inputs)}", hint="--analogy king man woman")
    if out is not None:
        raise UsageError("--analogy prints one answer and writes no file", hint="leave out -o")
    a, b, c = inputs
    result = zoo.analogy(model, a, b, c, device=device, top=top or 5)
    if as_json:
        print_json("run", {"model": model, "device": "cpu", "placement": None, "results": [_facts(result.answers[0])]})
    else:
        _print(result.answers[0])
    say(f"1 input on {result.device}")
    next_command("zoo", "finetune", result.entry, "DATA", "-o", "DIR")


def _to_stdout(model: str, each: Inputs, total: int | None, answers: Answers, *, as_json: bool) -> None:
    results: list[dict[str, object]] = []
    answered = failed = 0
    hints: set[str | None] = set()
    flushed = time.monotonic()
    with _bar(answers, total, is_table=not as_json) as bar:
        for answer in answers:
            if answer.error is not None:
                failed += 1
                hints.add(answer.error.hint)
                print_failure(answer.input, answer.error)
            else:
                answered += 1
            if as_json:
                results.append(_facts(answer))
            elif answer.error is None:
                _print(answer)
                if each.is_piped or time.monotonic() - flushed > FLUSH_EVERY:
                    flush()
                    flushed = time.monotonic()
            if bar is not None:
                bar.advance()
    if not answered + failed:
        raise DataError("there is no input", hint="name files, or give text; - reads stdin")
    if as_json:
        placement = to_plain(answers.placement)
        print_json("run", {"model": model, "device": answers.device, "placement": placement, "results": results})
    say(f"{counted(answered, 'input')} on {answers.placement or answers.device}")
    if answers.no_head is not None:
        say(f"{answers.entry} answers with features: {answers.no_head}")
    if failed:
        [hint] = hints if len(hints) == 1 else [None]
        end_with_count(
            f"no answer for {failed} of {counted(answered + failed, 'input')}",
            hint=hint or "correct or remove them; --strict stops at the first",
        )
    if answers.is_measurable:
        next_command("zoo", "evaluate", model, "DATA")
    else:
        next_command("zoo", "finetune", answers.entry, "DATA", "-o", "DIR")


@contextmanager
def _bar(answers: Answers, total: int | None, *, is_table: bool) -> Iterator[ProgressBar | None]:
    """A progress bar, unless the answers are printed on the terminal."""
    if is_table and sys.stdout is not None and sys.stdout.isatty():
        yield None
        return
    with Bars().task(f"{answers.entry} on {answers.device}", total) as bar:
        yield bar


def _print(answer: Answer) -> None:
    """Print an answer on one line, with escapes for characters of the name that cannot be printed."""
    write(f"{_escaped(answer.input)}\t{_words(answer)}")


def _escaped(name: str) -> str:
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), name)


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
        # The chosen labels, written as in a label column, and then every score.
        return "\t".join(("|".join(answer.chosen), _scored(answer.labels)))
    if best := answer.labels or answer.words:
        return _scored(best)
    shown = " ".join(f"{value:.4f}" for value in answer.features[:4])
    return f"{len(answer.features)} features: {shown} ..."


def _scored(best: Sequence[tuple[str, float]]) -> str:
    return "  ".join(f"{_escaped(name)} {value:.3f}" for name, value in best)
