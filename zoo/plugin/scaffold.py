"""The files of a new plugin distribution, which pass the conformance check before anything is edited."""

import json
import keyword
import math
import random
import re
import struct
from collections.abc import Container, Iterable
from pathlib import Path
from string import Template

from zoo.errors import AccessError, UsageError
from zoo.schema import canonical
from zoo.system.files import sha256, staged_dir

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
#: Names that zoo itself uses: its own import packages are zoo_plugins and zoo_cli.
RESERVED = frozenset({"cli", "plugins"})
#: The tensors of the network in templates/module.py.in: nn.Sequential names them by index.
WIDTH, DIM = 8, 16
SHAPES = {"0.weight": (WIDTH, 3, 3, 3), "0.bias": (WIDTH,), "2.weight": (DIM, WIDTH, 3, 3), "2.bias": (DIM,)}


def write_plugin(name: str, out: Path | None, rows: Container[str], families: Iterable[str]) -> tuple[Path, list[str]]:
    """Write the distribution zoo-`name` at `out` (./zoo-`name` by default); returns its folder and its files.

    `rows` and `families` are the names in use. Raises UsageError for a name that is in use or not fit for a package,
    and for a folder that is not empty; AccessError for a folder that cannot be written.
    """
    longest = 40
    if not NAME.fullmatch(name) or len(name) > longest or name in RESERVED:
        raise UsageError(
            f"'{name}' cannot be the name of a new family",
            hint=f"lower-case letters, digits and single - or _ between them, a letter first, at most {longest}",
        )
    if taken := [family for family in families if canonical(family) == canonical(name)]:
        raise UsageError(
            f"the family '{taken[0]}' already exists", hint="zoo plugins shows which distribution provides it"
        )
    folder = out or Path(f"zoo-{canonical(name)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} already exists", hint="choose an empty or a new folder for -o")
    package, row = f"zoo_{name.replace('-', '_')}", f"{name}-tiny"
    if row in rows:
        raise UsageError(f"the registry already has a row {row}", hint="choose another name")
    weights = _random_weights()
    words = {
        "family": name, "distribution": f"zoo-{canonical(name)}", "package": package, "row": row,
        "cls": _class_name(name),
        "weights": f"{row}.safetensors", "sha256": sha256(weights), "size": str(len(weights)),
        "params": str(sum(map(math.prod, SHAPES.values()))), "dim": str(DIM), "width": str(WIDTH),
    }  # fmt: skip
    files = {
        "pyproject.toml": _filled("pyproject.toml", words),
        "README.md": _filled("README.md", words),
        f"{package}/__init__.py": _filled("module.py", words),
        f"{package}/registry.yaml": _filled("registry.yaml", words),
        f"{package}/{row}.safetensors": weights,
        f"tests/test_{package}.py": _filled("test.py", words),
    }
    try:
        with staged_dir(folder) as staged:
            for path, data in files.items():
                (staged / path).parent.mkdir(parents=True, exist_ok=True)
                (staged / path).write_bytes(data)
    except OSError as error:
        raise AccessError(f"{folder} cannot be written: {error.strerror or error}", hint="choose another -o") from error
    return folder, list(files)


def _class_name(name: str) -> str:
    """`SqueezeNet` for squeeze-net, with a suffix if it is a keyword of Python or already used in the module."""
    cls = "".join(part.capitalize() for part in re.split("[-_]", name))
    template = (TEMPLATES / "module.py.in").read_text(encoding="utf-8")
    return f"{cls}Family" if keyword.iskeyword(cls) or re.search(rf"\b{cls}\b", template) else cls


def _filled(name: str, words: dict[str, str]) -> bytes:
    return Template((TEMPLATES / f"{name}.in").read_text(encoding="utf-8")).substitute(words).encode()


def _random_weights() -> bytes:
    """Seeded normal numbers as a safetensors file, without numpy, which zoo's base install does not have.

    Format: https://github.com/huggingface/safetensors#format.
    """
    numbers = random.Random(0)
    header, data = {}, b""
    for name, shape in SHAPES.items():
        scale = math.sqrt(2 / max(1, math.prod(shape[1:])))
        values = [numbers.gauss(0, scale) for _ in range(math.prod(shape))]
        start = len(data)
        data += struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (start, len(data))}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data
