"""What verbs say of many inputs: what was written, which failed, and how many."""

from typing import Any, NoReturn

import typer
from zoo_cli.output import print_json, say, write

from zoo import Answered, Embedded, Failure, ZooError, to_plain


def print_written(kind: str, found: Embedded | Answered, more: dict[str, Any], *, as_json: bool) -> None:
    """The path of what was written, or one JSON object of `kind` with everything that is known of it."""
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
    """A line for each of the first inputs that failed, then how many more there are."""
    for name, failure in failures:
        print_failure(name, failure)
    if failed > len(failures):
        say(f"failed: {failed - len(failures)} more")


def print_failure(name: str, failure: Failure) -> None:
    """The input by name, what is wrong with it, and how to mend it."""
    message = " ".join(failure.message.split())
    hint = f" ({' '.join(failure.hint.split())})" if failure.hint else ""
    say(f"failed: {message if name in message or len(name) > LONG else f'{name}: {message}'}{hint}")


#: Letters of a name above which it is a text rather than a name.
LONG = 1000


def end_with_count(message: str, *, hint: str) -> NoReturn:
    """Say how many inputs failed, and end with exit code 1."""
    say(f"error: {message}")
    say(f"hint: {hint}")
    raise typer.Exit(ZooError.exit_code)
