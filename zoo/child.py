"""How every Python process of zoo's starts, and how those that answer through pipes end."""

import subprocess
import sys
from contextlib import suppress


def python(*arguments: str) -> list[str]:
    """This interpreter with `arguments`, such as `-m zoo.build`."""
    # -P: nothing that lies in the current folder is imported in place of a package.
    return [sys.executable, "-P", *arguments]


def end(child: "subprocess.Popen[bytes]") -> None:
    """Kill the child, close its pipes and wait for it. It may be dead already, and this may be called again."""
    child.kill()
    # Of a question that it did not live to read, a part is still here: closing the pipe would try to write that.
    with suppress(BrokenPipeError), child:
        pass
