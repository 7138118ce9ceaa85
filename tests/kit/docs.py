"""The blocks of code in the documents."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"


def snippet(page: Path, name: str) -> str:
    """The fenced block after `<!-- tested: name -->`."""
    found = re.search(rf"<!-- tested: {name} -->\n```\w+\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page.name} has no block that is tested as {name!r}"
    return found[1]


def run_python(script: str, folder: Path, **environment: str) -> str:
    """Run a snippet in a process of its own, in `folder`; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", script],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
