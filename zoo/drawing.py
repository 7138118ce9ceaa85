"""A report's plots drawn by a child process, on another core, beside what its parent does meanwhile.

Matplotlib takes about as long to import and to draw as a head takes to train.
"""

import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from zoo import plots
from zoo.child import python
from zoo.report import Facts, Report, gather

if TYPE_CHECKING:
    from typing import Self


#: Seconds that a child may take, which needs about one.
LIMIT = 60.0


class Drawing:
    """A context manager: the child starts with it, and ends with it at the latest.

    A child that cannot start or that fails costs time alone: the plots are then drawn here.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = ThreadPoolExecutor(1)
        self._result: Future[tuple[Facts, dict[str, bytes]]] | None = None
        self._is_over = False

    def __enter__(self) -> "Self":
        # What the child has to say of its own end is of no use to anyone: the plots are drawn in any case.
        try:
            self._child = subprocess.Popen(
                python("-m", "zoo.drawing"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            self._child = None
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._is_over = True
        if self._child:
            self._child.kill()
        self._thread.shutdown(cancel_futures=True)
        if self._child:
            with self._child:
                pass

    def begin(self, report: Report) -> None:
        """Gather the numbers of a report and draw its plots, beside what the caller does until `result`."""
        self._result = self._thread.submit(self._draw, report)

    def result(self) -> tuple[Facts, dict[str, bytes]]:
        """(the numbers, PNG files by their name) of the report given to `begin`."""
        assert self._result is not None
        return self._result.result()

    def _draw(self, report: Report) -> tuple[Facts, dict[str, bytes]]:
        facts = gather(report)
        if self._child:
            try:
                images, _ = self._child.communicate(msgspec.msgpack.encode(facts), timeout=LIMIT)
                return facts, msgspec.msgpack.decode(images, type=dict[str, bytes])
            except (OSError, ValueError, msgspec.DecodeError, subprocess.TimeoutExpired):
                self._child.kill()
        if self._is_over:
            # An error ended the context: nobody will look at them.
            return facts, {}
        return facts, plots.draw(facts)


def main() -> None:
    """The child: facts as msgpack on its input, images by file name on its output."""
    plots.load()
    data = sys.stdin.buffer.read()
    if data:
        sys.stdout.buffer.write(msgspec.msgpack.encode(plots.draw(msgspec.msgpack.decode(data, type=Facts))))


if __name__ == "__main__":
    main()
