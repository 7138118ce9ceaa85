"""Messages about many inputs: the written file, the inputs that failed, and the number of failures."""

from typing import Any, NoReturn

import typer
from zoo_cli.output import print_json, say, write

from zoo import Answered, Embedded, Failure, ZooError, to_plain


def print_written(kind: str, found: Embedded | Answered, more: dict[str, Any], *, as_json: bool) -> None:
    """Print the path of the output, or one JSON object of `kind` with all facts about it."""
    if not as_json:
        write(found.out)
        return
    facts = {
        "model": found.model, "device": found.device, "placement": to_plain(found.placement), "out": found.out,
        "fingerprint": found.fingerprint, **more, "inputs": found.inputs, "rows": found.rows, "failed": found.failed,
        "resumed": found.resumed,
        "failures": [{"input": name, **to_plain(failure)} for name, failure in found.failures],
    }  # fmt: skip
    print_json(kind, facts)


def print_failures(failures: tuple[tuple[str, Failure], ...], failed: int) -> None:
    """Print a line for each of the first inputs that failed, then the number of the others."""
    for name, failure in failures:
        print_failure(name, failure)
    if failed > len(failures):
        say(f"failed: {failed - len(failures)} more")


def print_failure(name: str, failure: Failure) -> None:
    """Print an input's name, error and hint."""
    message = " ".join(failure.message.split())
    hint = f" ({' '.join(failure.hint.split())})" if failure.hint else ""
    # A longer name is the text itself and is not repeated.
    say(f"failed: {message if name in message or len(name) > 1000 else f'{name}: {message}'}{hint}")


def end_with_count(message: str, *, hint: str) -> NoReturn:
    """Print `message`, which counts the failed inputs, and its hint; end with exit code 1."""
    say(f"error: {message}")
    say(f"hint: {hint}")
    raise typer.Exit(ZooError.exit_code)
