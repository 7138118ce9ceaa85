"""Ctrl-C during work that can be continued: once finishes the step and saves, twice ends at once."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

Item = TypeVar("Item")


class Interrupt:
    """Whether the user asked to stop."""

    def __init__(self) -> None:
        self.is_asked = False
        self._is_waiting = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take note of the first signal; a second one interrupts wherever the program is, as does one that waits."""
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
        if self._is_waiting:
            raise KeyboardInterrupt

    def before(self, items: Iterable[Item], tell: Callable[[], None]) -> Iterator[Item]:
        """The items that come before Ctrl-C, which ends the wait for one that may never come; `tell` is called then."""
        rest = iter(items)
        while True:
            try:
                self._is_waiting = True
                if self.is_asked:
                    break
                item = next(rest)
            except StopIteration:
                return
            except KeyboardInterrupt:
                break
            finally:
                self._is_waiting = False
            yield item
        tell()


@contextmanager
def noticing() -> Iterator[Interrupt]:
    """Inside, the first Ctrl-C only sets `is_asked`. Outside the main thread nothing changes: Python forbids it."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
