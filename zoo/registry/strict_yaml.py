"""Small YAML files from untrusted sources, as plain data.

A file is parsed event by event, without YAML's constructors. So it cannot run code, grow by aliases, or give a key
twice.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from zoo.errors import AccessError, NotFoundError, RegistryError, quote, short

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_NODES = 50_000

#: The path of a value in a document: the keys and indices that lead to it.
KeyPath: TypeAlias = tuple[str | int, ...]

HINT = "the comment at the top of zoo's own registry.yaml explains the format"

PLAIN_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
#: At most 18 digits, which fit into 64 bits. A longer number stays text, which the schema then refuses.
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
NUMBER = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Document:
    """The one YAML document of the file at `path`: its `value`, and the `lines` of all values in it.

    Scalars are read as in YAML 1.2 (null, true, false, decimal numbers; anything else is text), keys always as text.
    Raises RegistryError, with line and column, for broken YAML, tags, anchors, aliases, duplicate keys, infinite
    numbers and NaN, and beyond MAX_DEPTH, MAX_NODES or MAX_BYTES; NotFoundError or AccessError for the file itself.
    """

    def __init__(self, path: Path) -> None:
        # Imported here, because running a bundle reads no YAML and should not wait for this import.
        import yaml

        self.path = path
        self.lines: dict[KeyPath, int] = {(): 1}
        self._nodes = 0
        # The type stubs of yaml lack anchor, tag and marks of its event classes.
        self._events: Iterator[Any] = yaml.parse(read_text(path), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        try:
            next(self._events)
            if isinstance(next(self._events), yaml.StreamEndEvent):
                self._fail("the file is empty")
            self.value = self._value(next(self._events), ())
            next(self._events)
            if not isinstance(after := next(self._events), yaml.StreamEndEvent):
                self._fail("a second document begins here, and only one is allowed", after.start_mark)
        except yaml.MarkedYAMLError as error:
            self._fail(f"not valid YAML: {error.problem or error.context}", error.problem_mark or error.context_mark)
        except yaml.reader.ReaderError as error:
            self._fail(f"not valid YAML: {error.reason} (character {error.position})")

    def at(self, key_path: KeyPath) -> str:
        """`file:line` of the value at `key_path`, or of the innermost value that contains it."""
        while key_path not in self.lines:
            key_path = key_path[:-1]
        return f"{self.path}:{self.lines[key_path]}"

    def _value(self, event: Any, key_path: KeyPath) -> Any:
        import yaml

        self._refuse(event, key_path)
        self.lines.setdefault(key_path, event.start_mark.line + 1)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(key_path)
        values: list[Any] = []
        while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
            values.append(self._value(item, (*key_path, len(values))))
        return values

    def _mapping(self, key_path: KeyPath) -> dict[str, Any]:
        import yaml

        values: dict[str, Any] = {}
        while not isinstance(key := next(self._events), yaml.MappingEndEvent):
            self._refuse(key, key_path)
            mark = key.start_mark
            if not isinstance(key, yaml.ScalarEvent):
                self._fail("a key must be a word", mark)
            inside, line = (*key_path, key.value), mark.line + 1
            if key.value in values:
                lines = f"in lines {self.lines[inside]} and {line}"
                self._fail(f"the key {quote(spell(inside))} is given twice, {lines}", mark)
            self.lines[inside] = line
            values[key.value] = self._value(next(self._events), inside)
        return values

    def _refuse(self, event: Any, key_path: KeyPath) -> None:
        """Raise RegistryError for legal YAML that is not allowed here."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._fail(f"more than {MAX_NODES} values", event.start_mark)
        if len(key_path) > MAX_DEPTH:
            self._fail(f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
        if event.anchor is not None:
            self._fail(f"anchors and aliases are not allowed ({short(event.anchor)})", event.start_mark)
        if event.tag is not None:
            self._fail(f"tags are not allowed ({short(event.tag)})", event.start_mark)

    def _scalar(self, event: Any) -> str | int | float | bool | None:
        text: str = event.value
        if not event.implicit[0]:  # in quotes, or a block
            return text
        if text in PLAIN_WORDS:
            return PLAIN_WORDS[text]
        if INTEGER.fullmatch(text):
            return int(text)
        if NUMBER.fullmatch(text):
            number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            if not math.isfinite(number):
                self._fail(f"{short(text)} is not a finite number", event.start_mark)
            return number
        return text

    def _fail(self, problem: str, mark: Any = None) -> NoReturn:
        position = "" if mark is None else f":{mark.line + 1}:{mark.column + 1}"
        raise RegistryError(f"{self.path}{position}: {problem}", source=self.path, hint=HINT)


def read_text(path: Path) -> str:
    """The UTF-8 text of a regular file of at most MAX_BYTES, without a byte order mark."""
    try:
        if path.exists() and not path.is_file():
            raise RegistryError(f"{path}: not a file", source=path, hint="give a registry file such as registry.yaml")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        hint = "unset ZOO_REGISTRY, or let it name a file"
        raise NotFoundError(f"{path}: no such registry file", hint=hint) from error
    except PermissionError as error:
        raise AccessError(f"{path}: the registry may not be read", hint=f"chmod u+r {path}") from error
    except OSError as error:
        raise RegistryError(f"{path}: cannot be read: {error.strerror}", source=path, hint=HINT) from error
    if len(data) > MAX_BYTES:
        raise RegistryError(f"{path}: larger than {MAX_BYTES} bytes", source=path, hint="split it into smaller files")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = f"iconv -f LATIN1 -t UTF-8 {path}"
        raise RegistryError(f"{path}: not UTF-8 at byte {error.start}", source=path, hint=hint) from error


def spell(key_path: KeyPath) -> str:
    """`files[0].sha256` for ("files", 0, "sha256")."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{short(step)}" for step in key_path)
    return text.removeprefix(".")
