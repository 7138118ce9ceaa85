"""Write the table of docs/errors.md from the types in zoo/errors.py; --check only says whether it is up to date."""

import sys
from pathlib import Path

from zoo.errors import ZooError

PAGE = Path(__file__).resolve().parent / "errors.md"
BEGIN, END = "<!-- begin: written by `make docs` from zoo/errors.py -->\n", "<!-- end -->\n"


def error_types() -> list[type[ZooError]]:
    """ZooError and its subclasses in zoo/errors.py, by exit code, parents first."""
    kinds = [ZooError]
    for kind in kinds:
        kinds += [child for child in kind.__subclasses__() if child.__module__ == ZooError.__module__]
    return sorted(dict.fromkeys(kinds), key=lambda kind: kind.exit_code)


def table() -> str:
    """One Markdown row for each type: name, code, exit code, parent, and the first line of its docstring."""
    lines = ["| type | code | exit | parent | raised when |", "|---|---|---|---|---|"]
    for kind in error_types():
        first_line = (kind.__doc__ or "").partition("\n")[0]
        meaning = first_line.removeprefix("Raised when ").removesuffix(".")
        parent = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
        lines.append(f"| `{kind.__name__}` | `{kind.code}` | {kind.exit_code} | {parent} | {meaning} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """0 if the page is up to date (or was just written), 1 if --check finds another table."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    wanted = f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"
    if "--check" not in sys.argv:
        PAGE.write_text(wanted, encoding="utf-8")
    elif page != wanted:
        sys.stderr.write("docs/errors.md is out of date: run make docs\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
