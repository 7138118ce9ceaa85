"""The shelf: registry files, checked row by row, become entries that can be looked up and searched."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from zoo.errors import RegistryError, UnknownEntryError, quote
from zoo.registry.strict_yaml import HINT, Document, Place, spell
from zoo.schema import Entry, ImagePreprocess, TextPreprocess, canonical

SCHEMA_VERSION = 1
PORTS = frozenset(f"{port}{digit}" for port in ("com", "lpt") for digit in range(10))
#: Device names: Windows opens the device whatever the extension, so no file or folder may be called so.
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
        """Entries whose name matches `pattern` (a glob, or a part of the name) and whose fields are those given.

        Sorted as people count: resnet18 before resnet101. Upper and lower case are the same.
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
    """Our own shelf: beside this module in an installed package, in its parent folder in a checkout."""
    package = Path(__file__).resolve().parents[1]
    beside = package / "registry.yaml"
    return beside if beside.is_file() else package.parent / "registry.yaml"


def default_registry(store_home: Path, environ: Mapping[str, str], replacement: Path | None = None) -> Registry:
    """The registry that the environment asks for.

    `replacement`, or else the file that ZOO_REGISTRY names, replaces our own shelf; `store_home`/registry.yaml, where
    it exists, adds one. Raises what `load_registry` raises.
    """
    named = replacement or environ.get("ZOO_REGISTRY")
    paths = [Path(named).expanduser() if named else builtin_registry_path()]
    addition = store_home / "registry.yaml"
    # A dangling link counts as there: reading it says what is wrong.
    if os.path.lexists(addition):
        paths.append(addition)
    return load_registry(paths)


def load_registry(paths: Sequence[Path]) -> Registry:
    """All rows of these files.

    Raises RegistryError naming file, line, row and field for anything that is not as the schema wants it or for names
    that clash, NotFoundError for a file that does not exist, AccessError for one that may not be read.
    """
    entries: list[Entry] = []
    taken: dict[str, tuple[str, str]] = {}
    for path in dict.fromkeys(paths):
        shelf = _Shelf(path)
        for name, row in shelf.rows():
            # Names that a reader, or a file system, could take for each other are one name.
            other, at = taken.setdefault(canonical(name), (name, shelf.at(name)))
            if (other, at) != (name, shelf.at(name)):
                clash = "is already a row" if name == other else f"can be confused with the row {quote(other)}"
                shelf.fail(f"the name {clash} at {at}", ("models", name), hint="rename one of them")
            entries.append(shelf.entry(name, row))
    return Registry(entries)


class _Shelf:
    """One registry file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._document = Document(path)

    def at(self, name: str) -> str:
        """`file:line` of a row."""
        return self._document.at(("models", name))

    def fail(self, problem: str, place: Place = (), hint: str = HINT) -> NoReturn:
        """Raise RegistryError for what stands at `place`, naming its row and field."""
        row = f"row {quote(place[1])}: " if len(place) > 1 else ""
        field = f"{spell(place[2:])}: " if len(place) > 2 else ""
        raise RegistryError(f"{self._document.at(place)}: {row}{field}{problem}", source=self.path, hint=hint)

    def rows(self) -> Iterable[tuple[str, object]]:
        """Names and unchecked rows."""
        top = self._document.value
        if not isinstance(top, dict):
            self.fail("a registry is a mapping with the keys schema_version and models")
        version = top.get("schema_version")
        if type(version) is not int or version < 1:
            self.fail(f"schema_version must be {SCHEMA_VERSION}, not {quote(version)}", ("schema_version",))
        if version > SCHEMA_VERSION:
            self.fail(
                f"schema_version {version} was made for a newer zoo: upgrade",
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
        place: Place = ("models", name)
        if not isinstance(row, dict):
            self.fail("a row is a mapping of fields", place)
        if "/" in name:
            self.fail(FORMS["name"], place)
        if "name" in row:
            self.fail("a row's name is its key under models", (*place, "name"))
        try:
            entry = msgspec.convert({**row, "name": name}, Entry)
        except msgspec.ValidationError as error:
            inside, problem = _in_words(str(error), row)
            self.fail(problem, (*place, *inside))
        for inside, problem in _inconsistencies(entry):
            self.fail(problem, (*place, *inside))
        return entry


def _inconsistencies(entry: Entry) -> Iterator[tuple[Place, str]]:
    """What each field allows by itself and all of them together do not."""
    preprocess, seen = entry.preprocess, set()
    if isinstance(preprocess, ImagePreprocess):
        task, needs = "image-features", {}
    elif isinstance(preprocess, TextPreprocess):
        task, needs = "text-features", {"tokenizer": preprocess.tokenizer}
    else:
        listed = {"words": preprocess.words} if preprocess.words else {}
        task, needs = "word-vectors", {"table": preprocess.table, **listed}
    if entry.task != task:
        yield ("preprocess", "kind"), f"this kind prepares input for {task}, and the row's task is {entry.task}"
    paths = [file.path for file in entry.files]
    for field, path in needs.items():
        if path not in paths:
            yield ("preprocess", field), f"{quote(path)} is not among the row's files{_did_you_mean(path, paths)}"
    for position, path in enumerate(paths):
        if path.lower() in seen:
            yield ("files", position, "path"), f"{quote(path)} is listed twice (upper and lower case are the same)"
        seen.add(path.lower())
    for place, name in [
        ((), entry.name),
        *((("files", position, "path"), path) for position, path in enumerate(paths)),
    ]:
        if name.split(".")[0].lower() in RESERVED or name.endswith("."):
            yield place, f"{quote(name)} cannot be a file name on Windows"


#: What zoo/schema.py wants of a field, in words.
FORMS = {
    "name": "a name is 1 to 64 lower-case letters, digits, '.', '_' or '-', and begins with a letter or digit",
    "files[].path": "must be a plain file name",
    "files[].sha256": "must be 64 lower-case hex digits, or null while nobody has pinned it",
    "files[].size": "must be a whole number of bytes above 0, or null while it is not known",
    "files[].sources[]": "must be a URL without spaces, such as hf://org/repo@<40-hex commit>/model.safetensors",
}


def _in_words(problem: str, row: Mapping[str, Any]) -> tuple[Place, str]:
    """Where in `row` msgspec found a fault, and the fault in our words."""
    if match := re.fullmatch(r"(.*) - at `\$(.*)`", problem, re.DOTALL):
        problem, path = match.groups()
    else:
        path = ""
    steps = re.findall(r"\.([^.\[]+)|\[([0-9]+)\]", path)
    place: Place = tuple(int(position) if position else key for key, position in steps)
    keys, choices = _expected(place, row)
    # A stranger's key may itself hold backticks: then the first part of it has to do.
    word = (re.findall(r"`([^`]*)`", problem) or [""])[0]
    if problem.startswith("Object contains unknown field"):
        return (*place, word), f"unknown key{_did_you_mean(word, keys)}"
    if problem.startswith("Object missing required field"):
        return place, f"the key {quote(word)} is missing"
    if choices:
        return place, f"must be one of: {', '.join(choices)}"
    form = re.sub(r"\[[0-9]+\]", "[]", spell(place))
    if form in FORMS:
        # The name is the row's key, so its fault stands at the row itself.
        return (() if form == "name" else place), FORMS[form]
    return place, problem.replace("`", "")


def _expected(place: Place, row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The keys, and the words, that the schema allows at `place` of a row."""
    from msgspec import inspect

    def unwrapped(kind: inspect.Type) -> list[inspect.Type]:
        if isinstance(kind, inspect.Metadata):
            return unwrapped(kind.type)
        if isinstance(kind, inspect.UnionType):
            return [inner for each in kind.types for inner in unwrapped(each)]
        return [kind]

    kinds = unwrapped(inspect.type_info(Entry))
    value: Any = row
    for step in place:
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
    """Up to three names that were perhaps meant: the same but for punctuation, beginning so, or spelt like it."""
    import difflib

    names, wanted = sorted(known, key=_natural), canonical(name)
    same = [each for each in names if canonical(each) == wanted]
    longer = [each for each in names if wanted and canonical(each).startswith(wanted)]
    alike = difflib.get_close_matches(name.lower(), names, n=3)
    return list(dict.fromkeys([*same, *longer, *alike]))[:3]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _matcher(pattern: str | None) -> Callable[[str], object]:
    if not pattern:
        return lambda name: True
    lowered = pattern.lower()
    if set(lowered) & set("*?["):
        from fnmatch import translate

        return re.compile(translate(lowered)).match
    return lambda name: lowered in name
