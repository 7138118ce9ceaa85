"""Ctrl-C during work that can be resumed: the first one finishes the step and saves, the second ends at once."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

Item = TypeVar("Item")


class Interrupt:
    """Records whether the user pressed Ctrl-C."""

    def __init__(self) -> None:
        self.is_asked = False
        self._is_waiting = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Record the first signal; raise KeyboardInterrupt at the second, or while `before` waits for an item."""
        was_asked, self.is_asked = self.is_asked, True
        if was_asked or self._is_waiting:
            raise KeyboardInterrupt

    def before(self, items: Iterable[Item], report: Callable[[], None]) -> Iterator[Item]:
        """Yields the items until Ctrl-C, which also ends a wait for the next item and then calls `report`."""
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
        report()


@contextmanager
def noticing() -> Iterator[Interrupt]:
    """A context in which the first Ctrl-C only sets `is_asked`. Outside the main thread it changes nothing."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
