"""Registry files, checked row by row, and their entries, which can be looked up and searched."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from zoo.errors import RegistryError, UnknownEntryError, quote
from zoo.registry.strict_yaml import HINT, Document, KeyPath, spell
from zoo.schema import Entry, ImagePreprocess, TextPreprocess, canonical

SCHEMA_VERSION = 1
PORTS = frozenset(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10))
#: Names of Windows devices. Windows ignores an extension here: com1.txt opens the device, so it cannot be a file.
RESERVED = PORTS | {"con", "prn", "aux", "nul"}


class Registry(Mapping[str, Entry]):
    """Entries by name, in the order of their files."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = {entry.name: entry for entry in entries}

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({len(self)} entries)"

    def entry(self, name: str) -> Entry:
        """The entry called `name`. Raises UnknownEntryError with the nearest names."""
        if name not in self._entries:
            raise UnknownEntryError(name, _nearest(name, self._entries))
        return self._entries[name]

    def search(
        self,
        pattern: str | None = None,
        *,
        family: str | None = None,
        task: str | None = None,
        license: str | None = None,
    ) -> list[Entry]:
        """Entries whose name matches `pattern` (a glob, or a part of the name) and whose fields have these values.

        They are sorted naturally (resnet18 before resnet101). Case is ignored.
        """
        wanted = {"family": family, "task": task, "license": license}
        fields = {field: value.lower() for field, value in wanted.items() if value is not None}
        matches = _matcher(pattern)
        found = [
            entry
            for entry in self._entries.values()
            if matches(entry.name) and all(getattr(entry, field).lower() == value for field, value in fields.items())
        ]
        return sorted(found, key=lambda entry: _natural(entry.name))


def builtin_registry_path() -> Path:
    """The shipped registry file: in the package if it is installed, beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    beside = package / "registry.yaml"
    return beside if beside.is_file() else package.parent / "registry.yaml"


def default_registry(store_home: Path, environ: Mapping[str, str], replacement: Path | None = None) -> Registry:
    """The rows of the shipped registry file and, if it exists, of `store_home`/registry.yaml.

    `replacement`, or else the file that ZOO_REGISTRY names, replaces the shipped file. Raises the errors of
    `load_registry`.
    """
    named = replacement or environ.get("ZOO_REGISTRY")
    paths = [Path(named).expanduser() if named else builtin_registry_path()]
    addition = store_home / "registry.yaml"
    # A dangling link counts as a file, so that reading it raises an error.
    if os.path.lexists(addition):
        paths.append(addition)
    return load_registry(paths)


def load_registry(paths: Sequence[Path]) -> Registry:
    """All rows of these files.

    Raises RegistryError, with file, line, row and field, for rows that break the schema and for names that clash;
    NotFoundError for a file that does not exist, AccessError for one that may not be read.
    """
    entries: list[Entry] = []
    taken: dict[str, tuple[str, str]] = {}
    for path in dict.fromkeys(paths):
        file = _RegistryFile(path)
        for name, row in file.rows():
            # Names that a reader, or a file system, may confuse count as the same name.
            other, at = taken.setdefault(canonical(name), (name, file.at(name)))
            if (other, at) != (name, file.at(name)):
                clash = "is already a row" if name == other else f"can be confused with the row {quote(other)}"
                file.fail(f"the name {clash} at {at}", ("models", name), hint="rename one of them")
            entries.append(file.entry(name, row))
    return Registry(entries)


class _RegistryFile:
    """One registry file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._document = Document(path)

    def at(self, name: str) -> str:
        """`file:line` of a row."""
        return self._document.at(("models", name))

    def fail(self, problem: str, key_path: KeyPath = (), hint: str = HINT) -> NoReturn:
        """Raise RegistryError for the value at `key_path`, with its row and field."""
        row = f"row {quote(key_path[1])}: " if len(key_path) > 1 else ""
        field = f"{spell(key_path[2:])}: " if len(key_path) > 2 else ""
        raise RegistryError(f"{self._document.at(key_path)}: {row}{field}{problem}", source=self.path, hint=hint)

    def rows(self) -> Iterable[tuple[str, object]]:
        """Names and unchecked rows. Raises RegistryError for other keys, or another schema version."""
        top = self._document.value
        if not isinstance(top, dict):
            self.fail("a registry is a mapping with the keys schema_version and models")
        version = top.get("schema_version")
        if type(version) is not int or version < 1:
            self.fail(f"schema_version must be {SCHEMA_VERSION}, not {quote(version)}", ("schema_version",))
        if version > SCHEMA_VERSION:
            self.fail(
                f"schema_version {version} needs a newer zoo",
                ("schema_version",),
                hint="pip install --upgrade backbone-zoo",
            )
        for key in top:
            if key not in ("schema_version", "models"):
                self.fail(f"unknown key {quote(key)}{_did_you_mean(key, ('schema_version', 'models'))}", (key,))
        models = top.get("models")
        if not isinstance(models, dict):
            self.fail("models must be a mapping from names to rows", ("models",))
        return models.items()

    def entry(self, name: str, row: object) -> Entry:
        """The row as an entry, checked."""
        key_path: KeyPath = ("models", name)
        if not isinstance(row, dict):
            self.fail("a row is a mapping of fields", key_path)
        if "/" in name:
            self.fail(FORMS["name"], key_path)
        if "name" in row:
            self.fail("a row's name is its key under models", (*key_path, "name"))
        try:
            entry = msgspec.convert({**row, "name": name}, Entry)
        except msgspec.ValidationError as error:
            inside, problem = _in_words(str(error), row)
            self.fail(problem, (*key_path, *inside))
        for inside, problem in _inconsistencies(entry):
            self.fail(problem, (*key_path, *inside))
        return entry


def _inconsistencies(entry: Entry) -> Iterator[tuple[KeyPath, str]]:
    """Yields the path and the problem of fields that are valid one by one and contradict each other."""
    preprocess, seen = entry.preprocess, set()
    if isinstance(preprocess, ImagePreprocess):
        task, needs = "image-features", {}
    elif isinstance(preprocess, TextPreprocess):
        task, needs = "text-features", {"tokenizer": preprocess.tokenizer}
    else:
        listed = {"words": preprocess.words} if preprocess.words else {}
        task, needs = "word-vectors", {"table": preprocess.table, **listed}
    if entry.task != task:
        yield ("preprocess", "kind"), f"this kind is for the task {task}, and the row's task is {entry.task}"
    paths = [file.path for file in entry.files]
    for field, path in needs.items():
        if path not in paths:
            yield ("preprocess", field), f"{quote(path)} is not among the row's files{_did_you_mean(path, paths)}"
    for index, path in enumerate(paths):
        if path.lower() in seen:
            yield ("files", index, "path"), f"{quote(path)} is listed twice (upper and lower case are the same)"
        seen.add(path.lower())
    named = [((), entry.name), *((("files", index, "path"), path) for index, path in enumerate(paths))]
    for key_path, name in named:
        if name.split(".")[0].lower() in RESERVED or name.endswith("."):
            yield key_path, f"{quote(name)} cannot be a file name on Windows"


#: The constraints of zoo/schema.py on each field, as error messages describe them.
FORMS = {
    "name": "a name is 1 to 64 lower-case letters, digits, '.', '_' or '-', and begins with a letter or digit",
    "files[].path": "must be a plain file name",
    "files[].sha256": "must be 64 lower-case hex digits, or null while it is not known",
    "files[].size": "must be a whole number of bytes above 0, or null while it is not known",
    "files[].sources[]": "must be a URL without spaces, such as hf://org/repo@<40-hex commit>/model.safetensors",
}


def _in_words(problem: str, row: Mapping[str, Any]) -> tuple[KeyPath, str]:
    """Returns the path in `row` and a description of the problem for the error message `problem` of msgspec."""
    match = re.fullmatch(r"(.*) - at `\$(.*)`", problem, re.DOTALL)
    problem, path = match.groups() if match else (problem, "")
    steps = re.findall(r"\.([^.\[]+)|\[([0-9]+)\]", path)
    key_path: KeyPath = tuple(int(index) if index else key for key, index in steps)
    keys, choices = _expected(key_path, row)
    # If the key contains backticks, only the part before its first one is found.
    word = (re.findall(r"`([^`]*)`", problem) or [""])[0]
    if problem.startswith("Object contains unknown field"):
        return (*key_path, word), f"unknown key{_did_you_mean(word, keys)}"
    if problem.startswith("Object missing required field"):
        return key_path, f"the key {quote(word)} is missing"
    if choices:
        return key_path, f"must be one of: {', '.join(choices)}"
    form = re.sub(r"\[[0-9]+\]", "[]", spell(key_path))
    if form in FORMS:
        # The name is the row's key, so the error is at the row itself.
        return (() if form == "name" else key_path), FORMS[form]
    return key_path, problem.replace("`", "")


def _expected(key_path: KeyPath, row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the keys and the literal values that the schema allows at `key_path` of a row."""
    from msgspec import inspect

    def unwrapped(kind: inspect.Type) -> list[inspect.Type]:
        if isinstance(kind, inspect.Metadata):
            return unwrapped(kind.type)
        if isinstance(kind, inspect.UnionType):
            return [inner for each in kind.types for inner in unwrapped(each)]
        return [kind]

    kinds = unwrapped(inspect.type_info(Entry))
    value: Any = row
    for step in key_path:
        structs = [kind for kind in kinds if isinstance(kind, inspect.StructType)]
        if step in {kind.tag_field for kind in structs}:
            return [], [str(kind.tag) for kind in structs]
        fields = [field.type for kind in structs for field in kind.fields if field.encode_name == step]
        items = [kind.item_type for kind in kinds if isinstance(kind, inspect.VarTupleType)]
        kinds = [inner for kind in (items if isinstance(step, int) else fields) for inner in unwrapped(kind)]
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            value = {}
    tag = value.get("kind") if isinstance(value, Mapping) else None
    structs = [kind for kind in kinds if isinstance(kind, inspect.StructType) and (tag is None or kind.tag == tag)]
    keys = [field.encode_name for kind in structs for field in kind.fields if field.encode_name != "name"]
    choices = [str(word) for kind in kinds if isinstance(kind, inspect.LiteralType) for word in kind.values]
    return keys, choices


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {quote(near[0])}?)" if near else ""


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three similar names: first equal except for punctuation, then with this beginning, then spelt alike."""
    import difflib

    names, wanted = sorted(known, key=_natural), canonical(name)
    same = [each for each in names if canonical(each) == wanted]
    longer = [each for each in names if wanted and canonical(each).startswith(wanted)]
    alike = difflib.get_close_matches(name.lower(), names, n=3)
    return list(dict.fromkeys([*same, *longer, *alike]))[:3]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _matcher(pattern: str | None) -> Callable[[str], object]:
    from fnmatch import translate

    lowered = (pattern or "").lower()
    return re.compile(translate(lowered if set(lowered) & set("*?[") else f"*{lowered}*")).match
