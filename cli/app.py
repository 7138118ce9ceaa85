"""The command `zoo` and its verbs. Only this module prints errors and turns them into exit codes."""

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

from zoo import AccessError, ZooError, version

INTERRUPTED = 130
#: Each verb is a module of this package.
VERBS = (
    *(
        "list",
        "show",
        "pull",
        "compare",
        "finetune",
        "evaluate",
        "export",
        "run",
        "embed",
        "similar",
        "bench",
        "verify",
    ),
    *("prune", "doctor", "plugins"),
)


class Commands(Mapping[str, Any]):
    """The verbs by name. A verb is imported when it is used: importing all takes longer than loading a model."""

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
        # typer only reads this mapping.
        self.commands = Commands()  # type: ignore[assignment]


app = typer.Typer(
    name="zoo",
    cls=Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a pretrained backbone to a checked ONNX model for your task.",
    epilog="Exit codes: 0 ok, 1 some inputs failed (or a bug in zoo), 2 usage, 3 not found, 4 network, 5 integrity, "
    "6 check failed, 7 device, 8 not permitted, 9 plugin, 10 training diverged, 130 interrupted.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        write(f"zoo {version()}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    registry: Annotated[
        Path | None, typer.Option(envvar="ZOO_REGISTRY", help="A registry file to use instead of the built-in one.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", envvar="ZOO_DEBUG", help="Show tracebacks.")] = False,
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep the root command's options for the verb that follows."""
    context.obj = registry
    if debug:
        os.environ["ZOO_DEBUG"] = "1"


def main() -> None:
    """Run the command line and exit with its exit code."""
    sys.exit(_run())


def process() -> NoReturn:
    """Run the command line as the main program, and end the process without freeing its objects.

    Freeing them takes 0.3 s if torch is imported (mypy skips it too). The process does not wait for running threads.
    """
    # The garbage collector takes a tenth of the time to import torch, and finds nothing. Large objects are freed by
    # their reference counts, so rare collections are enough later too.
    gc.set_threshold(100_000, 20, 20)
    code = _run()
    for stream in (sys.stdout, sys.stderr):
        # Errors here mean that the streams are closed; _run has already reported every other failure.
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
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except (BrokenPipeError, ReaderGoneError):
        # The reader of the output has gone (zoo list | head). That is not an error.
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ZooError, OSError) as error:
        return _failed(error)
    except Exception as error:  # even a bug in zoo ends in one line
        if _is_interrupt(error):
            return _interrupted()
        show = getattr(error, "show", None)
        if show is not None:
            # typer prints its own errors, such as wrong options.
            if "--json" in sys.argv:
                facts = {"message": error.format_message(), "hint": f"{_command_of(error)} --help"}  # type: ignore[attr-defined]
                print_error_json({"code": "usage", **facts})
            # The reader of stderr may have gone.
            with suppress(BrokenPipeError):
                show()
            return 2
        return _failed(error)


def _failed(error: Exception) -> int:
    """Print an error and return its exit code, or raise it with --debug."""
    if os.environ.get("ZOO_DEBUG"):
        raise error
    known = error
    if isinstance(error, OSError):
        hint = "check the path, its permissions and the free space"
        known = AccessError(f"{error.filename or 'the output'}: {error.strerror}", hint=hint)
    elif not isinstance(error, ZooError):
        hint = "zoo --debug shows where; please report it"
        known = ZooError(f"unexpected {type(error).__name__}: {error}", hint=hint)
    assert isinstance(known, ZooError)
    print_error(known, as_json="--json" in sys.argv)
    return known.exit_code


def _command_of(error: Any) -> str:
    """The command whose options are wrong, such as `zoo plugins check`."""
    context, names = error.ctx, []
    while context is not None and context.parent is not None:
        names.append(context.info_name)
        context = context.parent
    return " ".join(["zoo", *reversed(names)])


def _is_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C caused an error. C code that is interrupted during an import raises another error."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, KeyboardInterrupt):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False


def _deliver_again(failure: Any) -> None:
    """Repeat a Ctrl-C that arrived in a destructor, where Python drops every exception."""
    if isinstance(failure.exc_value, KeyboardInterrupt):
        # A timer repeats it, because an exception raised here would be dropped again.
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(failure)


def _interrupted() -> int:
    # The process is about to end, and another Ctrl-C would only add a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "--json" in sys.argv:
        print_error_json({"code": "interrupted", "message": "interrupted", "hint": None})
    say("interrupted")
    return INTERRUPTED


if __name__ == "__main__":
    main()
