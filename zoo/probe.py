"""Other people's code at arm's length: plugins are loaded, and families checked, in a child with a time limit.

A plugin that ends the process, crashes it or hangs is then a finding with a name. The child (`python -m zoo.probe`)
answers one JSON object a line; what plugins print goes to stderr, even from C.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from zoo.child import python
from zoo.errors import PluginError, ZooError
from zoo.manager import Plugins
from zoo.points import PluginState
from zoo.progress import SILENT, Progress
from zoo.schema import Entry
from zoo.testing import Check, Report, examine, skipped, summary

#: Seconds that one plugin may take to load, and that the check of one row may take.
LOAD_LIMIT = 10.0
CHECK_LIMIT = 600.0
#: Seconds that starting an interpreter and importing zoo may take.
START_LIMIT = 60.0


def load_all(limit: float = LOAD_LIMIT) -> list[PluginState]:
    """Every plugin of the environment after loading it in a child, each within `limit` seconds."""
    known = Plugins().describe()
    # Names that are claimed twice are known to be nobody's: they are not loaded.
    states = {(state.group, state.name): state for state in known if state.state == "not loaded"}
    waiting = list(states)
    while waiting:
        with _child({"load": waiting}) as answers:
            answers.ready()
            try:
                while waiting:
                    states[waiting[0]] = msgspec.convert(answers.next(limit), PluginState)
                    waiting.pop(0)
            except _EndedError as ended:
                # The children load in order, so it was the first of those that were waiting.
                culprit = states[waiting.pop(0)]
                error = f"the plugin {culprit.title} cannot be used: loading it {ended}"
                states[culprit.group, culprit.name] = msgspec.structs.replace(culprit, state="quarantined", error=error)
    return [states.get((state.group, state.name), state) for state in known]


def check_family(entry: Entry, weights: Path, limit: float = CHECK_LIMIT, progress: Progress = SILENT) -> Report:
    """`zoo.testing.check_backbone` on the family of `entry` in a child, within `limit` seconds.

    Raises PluginError when the family's plugin cannot be loaded: an error, a crash or a hang of its import.
    """
    deadline = time.monotonic() + limit
    found: list[Check | int] = []
    running = None
    request = {"check": msgspec.to_builtins(entry), "weights": str(weights)}
    with progress.task(f"checking {entry.family} with {entry.name}", None), _child(request) as answers:
        answers.ready()
        try:
            while (answer := answers.next(max(0.0, deadline - time.monotonic()), limit)) is not None:
                if isinstance(answer, str):
                    running = answer
                elif isinstance(answer, int):
                    found.append(answer)
                elif "code" in answer:
                    raise ZooError.restore(answer["code"], answer["message"], answer["hint"])
                else:
                    found.append(msgspec.convert(answer, Check))
        except _EndedError as ended:
            if running is None:
                raise PluginError(
                    f"loading the family '{entry.family}' {ended}",
                    plugin=entry.family,
                    hint="zoo plugins shows whose it is",
                ) from ended
            found.append(Check(name=running, state="failed", detail=f"it {ended}"))
            found += skipped(found, running)
    return summary(entry, found)


class _EndedError(Exception):
    """Raised when a child ends, or lets time run out, before its answer; says so in words."""


class _Answers:
    """The lines of a child as they come."""

    def __init__(self, child: "subprocess.Popen[bytes]") -> None:
        self.child = child
        self.lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def ready(self) -> None:
        """Wait until the child has started and nothing of a plugin has run yet. Raises ZooError where it does not."""
        try:
            self.next(START_LIMIT)
        except _EndedError as ended:
            raise ZooError(
                f"a child process of zoo's own {ended}", hint="zoo doctor; is zoo installed whole?"
            ) from ended

    def next(self, seconds: float, limit: float | None = None) -> Any:
        """The next answer. Raises _EndedError when there is none within `seconds`, what is left of `limit`."""
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            raise _EndedError(f"took more than {limit or seconds:g} s") from None
        if line is None:
            raise _EndedError(last_words(self.child.wait()))
        return json.loads(line)

    def close(self) -> None:
        """Let go of the pipe, once the child has ended."""
        # What the child forked may hold the other end open for as long as it likes.
        self.reader.join(1.0)
        if self.child.stdout is not None and not self.reader.is_alive():
            self.child.stdout.close()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.lines.put(line)
        self.lines.put(None)


@contextmanager
def _child(request: object) -> Iterator[_Answers]:
    """A child that works on `request`, ended with all its own children when the block is left."""
    command = python("-m", "zoo.probe")
    # A child that is killed does not tidy up: its temporary files lie in a folder of ours.
    with tempfile.TemporaryDirectory(prefix="zoo-", ignore_cleanup_errors=True) as folder:
        environ = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder)}
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=environ
        )
        answers = _Answers(child)
        try:
            assert child.stdin is not None
            # If it is gone already, the first answer that does not come says how.
            with suppress(BrokenPipeError), child.stdin:
                child.stdin.write(json.dumps(request).encode())
            yield answers
        finally:
            _end(child)
            answers.close()


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        if os.name == "posix":
            # Its session is its own, so this ends what it started, too.
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()


def last_words(code: int) -> str:
    """How a child that ended with `code` ended."""
    if code < 0:
        return f"crashed the process ({signal.Signals(-code).name})"
    return f"ended the process with exit code {code}"


def _answer_parent() -> None:
    """Work on the request on stdin; answers go to what was stdout, which then becomes stderr for everyone else."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: object) -> None:
        answers.write(msgspec.json.encode(answer).decode() + "\n")
        answers.flush()

    request = json.loads(sys.stdin.buffer.read())
    say("ready")
    if "load" in request:
        plugins = Plugins()
        for group, name in request["load"]:
            say(plugins.load(group, name))
    else:
        _check(msgspec.convert(request["check"], Entry), Path(request["weights"]), say)
    # Whatever a plugin left behind (threads, exit handlers) is not waited for.
    os._exit(0)


def _check(entry: Entry, weights: Path, say: Callable[[object], None]) -> None:
    try:
        plugins = Plugins()
        family = plugins.backbone(entry.family)
        module = plugins.claim("zoo.backbones", entry.family).value.partition(":")[0]
        for each in examine(family, entry, weights, module):
            say(each)
        say(None)
    except ZooError as error:
        say({"code": error.code, "message": error.message, "hint": error.hint})


if __name__ == "__main__":
    _answer_parent()
