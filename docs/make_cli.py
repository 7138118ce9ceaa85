"""Write docs/cli.md from the command line itself; --check only says whether it is up to date."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).resolve().parent / "cli.md"


def page() -> str:
    """The help of every verb, in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "cli.md"
        command = [
            sys.executable,
            "-m",
            "typer",
            "zoo_cli.app",
            "utils",
            "docs",
            "--name",
            "zoo",
            "--output",
            str(target),
        ]
        # Environment variables of whoever runs this would show up as defaults.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ZOO_")}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=clean)
        text = target.read_text(encoding="utf-8").rstrip() + "\n"
    return text.replace(
        "# `zoo`", "# The command line\n\nWritten by `make docs` from the commands themselves.\n\n## `zoo`", 1
    )


def main() -> int:
    """0 if the page is up to date (or was just written)."""
    wanted = page()
    if "--check" not in sys.argv:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    sys.stderr.write("docs/cli.md is out of date: run make docs\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
