"""Folders made once for each test run: the first of pytest's processes that asks makes one, the others wait for it."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock


def run_folder(factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of the whole run; the worker gw0 of pytest-xdist has its own, popen-gw0, inside."""
    own = factory.getbasetemp()
    return own.parent if own.name == f"popen-{os.environ.get('PYTEST_XDIST_WORKER')}" else own


@contextmanager
def shared(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """The folder `name` of this run, for large files: the last process that leaves it removes it."""
    folder = run_folder(factory) / name
    lock, here = FileLock(f"{folder}.lock"), folder / f"used-by-{os.getpid()}"
    with lock:
        folder.mkdir(exist_ok=True)
        here.touch()
    try:
        yield folder
    finally:
        with lock:
            here.unlink()
            if not list(folder.glob("used-by-*")):
                shutil.rmtree(folder)


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` of this run, which `make` fills; no test may change its content.

    If `make` fails, the next process that asks calls it again.
    """
    run = run_folder(factory)
    folder, is_made = run / name, run / f"{name}.made"
    with FileLock(run / f"{name}.lock"):
        if not is_made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            is_made.touch()
    return folder
