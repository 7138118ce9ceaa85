"""The command line of every Python process that zoo starts."""

import sys


def python(*arguments: str) -> list[str]:
    """This interpreter with `arguments`, such as `-m zoo.build`."""
    # -P: nothing that lies in the current folder is imported in place of a package.
    return [sys.executable, "-P", *arguments]
