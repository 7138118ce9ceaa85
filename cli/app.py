"""The command `zoo`: mounts the verbs; `main` holds the one place where errors become words and exit codes."""

import _thread
import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from zoo_cli.output import ReaderGoneError, print_error, print_error_json, say, speak_any_code, write
from zoo_cli.state import State

from zoo import AccessError, ZooError, version

INTERRUPTED = 130
#: Each is a module of its own in this package.
VERBS = (
    *("list", "show", "pull", "finetune", "evaluate", "export", "run", "embed", "similar", "bench", "verify"),
    *("prune", "doctor", "plugins"),
)


class Commands(Mapping[str, Any]):
    """The verbs by name, each imported when it is asked for: importing all takes longer than loading a model."""

    def __getitem__(self, name: str) -> Any:
        if name not in VERBS:
            raise KeyError(name)
        module = import_module(f"zoo_cli.{name}")
        verb = getattr(module, "app", None)
        if verb is None:
            verb = typer.Typer(add_completion=False)
            verb.command(name)(module.command)
        command = typer.main.get_command(verb)
        command.name = name
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


class Root(TyperGroup):
    """The command `zoo` itself."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts)
        # Nobody adds to it.
        self.commands = Commands()  # type: ignore[assignment]


app = typer.Typer(
    name="zoo",
    cls=Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a pretrained backbone to a verified ONNX model on your task.",
    epilog="Exit codes: 0 ok, 1 inputs failed or unexpected, 2 usage, 3 not found, 4 network, 5 integrity, "
    "6 gate failed, 7 device, 8 not permitted, 9 plugin, 10 training diverged, 130 interrupted.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        write(f"zoo {version()}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    registry: Annotated[
        Path | None, typer.Option(envvar="ZOO_REGISTRY", help="A registry file that replaces the built-in shelf.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", envvar="ZOO_DEBUG", help="Show tracebacks.")] = False,
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep the root command's options for the verb."""
    context.obj = State(registry)
    if debug:
        os.environ["ZOO_DEBUG"] = "1"


def main() -> None:
    """Run the command line and exit with the code that its errors document."""
    sys.exit(_run())


def process() -> NoReturn:
    """`main` as the whole of a process, which ends without freeing piece by piece what the system frees at once.

    As mypy does: with torch in it that takes 0.3 s. Threads that still run, such as a plugin's, are not waited for.
    """
    # A tenth of the time to import torch goes to looking for garbage among what stays anyway. Reference counts free
    # what is large: there is no need to look so often later, either.
    gc.set_threshold(100_000, 20, 20)
    code = _run()
    for stream in (sys.stdout, sys.stderr):
        # What can be said of a failure was said in _run.
        with suppress(OSError, AttributeError, ValueError):
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def _run() -> int:
    sys.unraisablehook = _deliver_again
    speak_any_code()
    try:
        code = app(standalone_mode=False) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return _interrupted() if code == INTERRUPTED else code
    except ZooError as error:
        if os.environ.get("ZOO_DEBUG"):
            raise
        print_error(error, as_json="--json" in sys.argv)
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except (BrokenPipeError, ReaderGoneError):
        # The reader of our output has gone (zoo list | head): nothing is wrong, and nothing can be said.
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if os.environ.get("ZOO_DEBUG"):
            raise
        known = AccessError(
            f"{error.filename or 'the output'}: {error.strerror}", hint="check the path, its rights and space"
        )
        print_error(known, as_json="--json" in sys.argv)
        return known.exit_code
    except Exception as error:  # the last resort: a bug of ours still ends in one line
        if _is_interrupt(error):
            return _interrupted()
        show = getattr(error, "show", None)
        if show is not None:
            # A wrong option: typer's own errors know how to print themselves.
            if "--json" in sys.argv:
                print_error_json({"code": "usage", "message": str(error), "hint": "zoo --help"})
            # Nobody may be listening any more.
            with suppress(BrokenPipeError):
                show()
            return 2
        if os.environ.get("ZOO_DEBUG"):
            raise
        problem, hint = f"unexpected {type(error).__name__}: {error}", "zoo --debug shows where; please report it"
        if "--json" in sys.argv:
            print_error_json({"code": "error", "message": problem, "hint": hint})
        say(f"error: {problem}")
        say(f"hint: {hint}")
        return 1


def _is_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C is behind an error: C code that is interrupted while it imports says something else."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, KeyboardInterrupt):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False


def _deliver_again(failure: Any) -> None:
    """Ctrl-C that came while Python was tidying up, where it drops every exception, comes a second time."""
    if isinstance(failure.exc_value, KeyboardInterrupt):
        # Not from here, where it would be dropped once more.
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(failure)


def _interrupted() -> int:
    # The process is about to end: one more Ctrl-C would only add a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "--json" in sys.argv:
        print_error_json({"code": "interrupted", "message": "interrupted", "hint": None})
    say("interrupted")
    return INTERRUPTED


if __name__ == "__main__":
    main()
