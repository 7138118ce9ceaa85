"""Folders that are made once a run, by whichever of pytest's processes asks first: the others wait, then use them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` of this run of the tests, which `make` fills; no test may change what is in it.

    A worker of pytest-xdist, say gw0, has the temporary folder popen-gw0 in the run's. A `make` that failed is called
    anew by the next one who asks.
    """
    own = factory.getbasetemp()
    run = own.parent if own.name == f"popen-{os.environ.get('PYTEST_XDIST_WORKER')}" else own
    folder, is_made = run / name, run / f"{name}.made"
    with FileLock(run / f"{name}.lock"):
        if not is_made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            is_made.touch()
    return folder
