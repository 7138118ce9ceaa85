"""Registry files: valid forms, and the error for every kind of bad file."""

import time
import tracemalloc
from pathlib import Path

import pytest
import yaml

from tests.kit.cost import untraced
from zoo.errors import AccessError, NotFoundError, RegistryError, UnknownEntryError
from zoo.registry import strict_yaml
from zoo.registry.registry import Registry, builtin_registry_path, default_registry, load_registry
from zoo.schema import ImagePreprocess

SHA = "0123456789abcdef" * 4
ROW = f"""\
    family: tiny
    task: image-features
    description: a tiny network
    license: MIT
    params: 10
    dim: 4
    config: {{depth: 2, ratio: 1.5e+0, wide: false, note: ~}}
    preprocess:
      kind: image
      resize: 32
      crop: 28
      interpolation: bilinear
      mean: [0.5, 0.5, 0.5]
      std: [1, 1.0, .5]
    files:
      - path: model.safetensors
        sha256: {SHA}
        size: 12
        sources: [hf://org/tiny@{"ab" * 20}/model.safetensors, "https://example.org/model.safetensors"]
"""
REGISTRY = f"schema_version: 1\nmodels:\n  tiny_a.one:\n{ROW}"


def write(folder: Path, text: str | bytes, name: str = "rows.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problem(folder: Path, text: str | bytes) -> str:
    """The one-line error for a bad file; every case checks the file's name and the hint."""
    path = write(folder, text)
    with pytest.raises(RegistryError) as caught:
        load_registry([path])
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert caught.value.hint
    assert caught.value.source == path
    return message.removeprefix(str(path))


def changed(old: str, new: str) -> str:
    assert REGISTRY.count(old) == 1, old
    return REGISTRY.replace(old, new)


def test_a_row_becomes_an_entry(tmp_path: Path) -> None:
    entry = load_registry([write(tmp_path, REGISTRY)]).entry("tiny_a.one")
    assert (entry.family, entry.params, entry.dim, entry.size, entry.is_pinned) == ("tiny", 10, 4, 12, True)
    assert isinstance(entry.preprocess, ImagePreprocess)
    assert entry.preprocess.std == (1.0, 1.0, 0.5)
    assert entry.config == {"depth": 2, "ratio": 1.5, "wide": False, "note": None}
    assert [url.partition(":")[0] for url in entry.files[0].sources] == ["hf", "https"]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + REGISTRY.encode(),
        REGISTRY.replace("\n", "\r\n").encode(),
        b"---\n" + REGISTRY.encode() + b"...\n",
    ],
    ids=["BOM", "CRLF", "document markers"],
)
def test_harmless_forms_are_read(tmp_path: Path, data: bytes) -> None:
    assert list(load_registry([write(tmp_path, data)])) == ["tiny_a.one"]


def test_null_digest_and_size_are_an_unpinned_row(tmp_path: Path) -> None:
    text = changed(f"sha256: {SHA}", "sha256: null").replace("size: 12", "size: null")
    entry = load_registry([write(tmp_path, text)]).entry("tiny_a.one")
    assert not entry.is_pinned
    assert entry.size is None


BOMB = (
    "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True))
).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", ": the file is empty"),
        (b"# only a comment\n", ": the file is empty"),
        (b"\xff\xfes\x00c\x00", ": not UTF-8 at byte 0"),
        ("schema_version: 1\n# caf\xe9\n".encode("latin-1"), ": not UTF-8 at byte 23"),
        (b"schema_version: 1\nmodels:\n\ttiny: {}\n", ":3:1: not valid YAML: "),
        (b"models: [1, 2\n", ":2:1: not valid YAML: "),
        (b"models: \x00\n", ": not valid YAML: "),
        (
            b"models: !!python/object/apply:os.system [echo]\n",
            ":1:9: tags are not allowed (tag:yaml.org,2002:python/ob",
        ),
        (b"models: {x: !!str y}\n", ":1:13: tags are not allowed (tag:yaml.org,2002:str)"),
        (b"models: ! y\n", ":1:9: tags are not allowed (!)"),
        (BOMB, ":1:4: anchors and aliases are not allowed (a)"),
        (b"models: *x\n", ":1:9: anchors and aliases are not allowed (x)"),
        (b"a: 1\nb: 2\na: 3\n", ":3:1: the key 'a' is given twice, in lines 1 and 3"),
        (b"? [a]\n: 1\n", ":1:3: a key must be a word"),
        (b"a: 1\n---\nb: 1\n", ":2:1: a second document begins here"),
        (b"a: .inf\n", ":1:4: .inf is not a finite number"),
        (b"a: 1.0e999\n", ":1:4: 1.0e999 is not a finite number"),
        (b"- 1\n", ":1: a registry is a mapping with the keys schema_version and models"),
        (b"models: {}\n", ":1: schema_version must be 1, not 'None'"),
        (b"schema_version: one\nmodels: {}\n", ":1: schema_version must be 1, not 'one'"),
        (b"schema_version: true\nmodels: {}\n", ":1: schema_version must be 1, not 'True'"),
        (b"schema_version: 2\nmodules: {}\n", ":1: schema_version 2 needs a newer zoo"),
        (b"schema_version: 1\nmodel: {}\n", ":2: unknown key 'model' (did you mean 'models'?)"),
        (b"schema_version: 1\n", ":1: models must be a mapping from names to rows"),
        (b"schema_version: 1\nmodels:\n  tiny: 3\n", ":3: row 'tiny': a row is a mapping of fields"),
        (b"[" * 500, ":1:22: nested deeper than 20 levels"),
        (b"- " * 500, ":1:43: nested deeper than 20 levels"),
        # libyaml 0.2.6 reads ahead and refuses a thousand levels by itself.
        (b"[" * 10_000, ":1:"),
        (b"[" + b"1," * 60_000 + b"]", ":1:100000: more than 50000 values"),
        (b"#" * (strict_yaml.MAX_BYTES + 1), ": larger than 1048576 bytes"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    start = time.process_time()
    assert untraced(problem)(tmp_path, data).startswith(said)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("data", [BOMB, b"#" * (100 << 20), b"[" * 900_000], ids=["aliases", "huge", "deep"])
def test_bombs_take_no_memory(tmp_path: Path, data: bytes) -> None:
    """Expanded, the alias bomb would have 430 million items."""
    path = write(tmp_path, data)
    tracemalloc.start()
    try:
        with pytest.raises(RegistryError):
            load_registry([path])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("license: MIT", "licence: MIT", ":7: row 'tiny_a.one': licence: unknown key (did you mean 'license'?)"),
        ("    license: MIT\n", "", ":3: row 'tiny_a.one': the key 'license' is missing"),
        ("size: 12", "sise: 12", ":21: row 'tiny_a.one': files[0].sise: unknown key (did you mean 'size'?)"),
        ("      crop: 28\n", "      crops: 28\n", ": preprocess.crops: unknown key (did you mean 'crop'?)"),
        ("family: tiny", "name: tiny", ": name: a row's name is its key under models"),
        (f"        sha256: {SHA}\n", "", ":19: row 'tiny_a.one': files[0]: the key 'sha256' is missing"),
        (SHA, SHA[:63], ":20: row 'tiny_a.one': files[0].sha256: must be 64 lower-case hex digits"),
        (SHA, SHA.upper(), "files[0].sha256: must be 64 lower-case hex digits"),
        (SHA, "12", "files[0].sha256: must be 64 lower-case hex digits"),
        ("size: 12", "size: 0", ":21: row 'tiny_a.one': files[0].size: must be a whole number of bytes above 0"),
        ("size: 12", "size: -1", "files[0].size: must be a whole number"),
        ("size: 12", "size: '12'", "files[0].size: must be a whole number"),
        ("size: 12", "size: 12.5", "files[0].size: must be a whole number"),
        ("size: 12", "size: 123456789012345678901234567890", "files[0].size: must be a whole number"),
        ("path: model.safetensors", "path: ../model", "files[0].path: must be a plain file name"),
        ("path: model.safetensors", "path: CON.txt", "files[0].path: 'CON.txt' cannot be a file name on Windows"),
        ("path: model.safetensors", "path: model.", "files[0].path: 'model.' cannot be a file name on Windows"),
        (
            '"https://example.org/model.safetensors"',
            "no-url",
            ":22: row 'tiny_a.one': files[0].sources[1]: must be a URL",
        ),
        ("task: image-features", "task: images", "task: must be one of: image-features, text-features, word-vectors"),
        ("task: image-features", "task: text-features", "preprocess.kind: this kind is for the task image-features"),
        ("kind: image", "kind: picture", "preprocess.kind: must be one of: image, text, words"),
        (
            "interpolation: bilinear",
            "interpolation: lanczos",
            "preprocess.interpolation: must be one of: bicubic, bili",
        ),
        ("crop: 28", "crop: 33", "preprocess: crop (33) is larger than resize (32)"),
        ("params: 10", "params: ten", "params: Expected int, got str"),
        ("[0.5, 0.5, 0.5]", "[0.5, 0.5]", "preprocess.mean: Expected array of length 3"),
        ("[0.5, 0.5, 0.5]", "[0.5, .nan, 0.5]", ":16:19: .nan is not a finite number"),
        ("[1, 1.0, .5]", "[1, 1.0, 1.e+400]", ":17:21: 1.e+400 is not a finite number"),
        ("[1, 1.0, .5]", "[1, 1.0, 0]", "preprocess: std must be positive"),
        ("wide: false", "<<: {wide: false}", None),
        ("dim: 4", "'` - at `$.x`': 4", "unknown key"),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, old: str, new: str, said: str | None) -> None:
    if said is None:  # a merge key is an ordinary key: nothing is merged
        config = load_registry([write(tmp_path, changed(old, new))]).entry("tiny_a.one").config
        assert config["<<"] == {"wide": False}
    else:
        assert said in problem(tmp_path, changed(old, new))


@pytest.mark.parametrize("name", ["../x", "a/b", "nul.v1", "-x", "x" * 65, '"a\\0b"', "a b", "Tiny", "aux"])
def test_a_name_that_could_be_a_path_is_refused(tmp_path: Path, name: str) -> None:
    said = problem(tmp_path, changed("tiny_a.one", name))
    assert said.startswith(":3: row '")
    assert "a name is 1 to 64 lower-case letters" in said or "cannot be a file name on Windows" in said


def test_a_file_that_the_preprocessing_needs_must_be_listed(tmp_path: Path) -> None:
    text = yaml.safe_load(REGISTRY)
    row = text["models"]["tiny_a.one"]
    row["task"] = "text-features"
    row["preprocess"] = {
        "kind": "text",
        "tokenizer": "tokeniser.json",
        "max_length": 8,
        "pooling": "cls",
        "normalize": True,
    }
    row["files"].append({**row["files"][0], "path": "tokenizer.json", "sources": ["file:///x"]})
    said = problem(tmp_path, yaml.safe_dump(text))
    assert (
        "preprocess.tokenizer: 'tokeniser.json' is not among the row's files (did you mean 'tokenizer.json'?)" in said
    )


def test_a_file_listed_twice_is_refused(tmp_path: Path) -> None:
    second = f"      - {{path: Model.safetensors, sha256: {SHA}, size: 12, sources: [file:///x]}}\n"
    assert "files[1].path: 'Model.safetensors' is listed twice" in problem(tmp_path, REGISTRY + second)


@pytest.mark.parametrize("other", ["tiny_a.one", "Tiny_A.one", "tiny-a.one", "tiny.a_one", "tiny__a.one"])
def test_names_that_can_be_confused_are_refused(tmp_path: Path, other: str) -> None:
    said = problem(tmp_path, f"{REGISTRY}  {other}:\n{ROW}")
    if other == "tiny_a.one":
        assert "the key 'models.tiny_a.one' is given twice, in lines 3 and 23" in said
    else:
        assert said.startswith(f":23: row '{other}': the name can be confused with the row 'tiny_a.one' at ")
        assert said.endswith("rows.yaml:3")


def test_a_name_in_two_registry_files_names_both_files(tmp_path: Path) -> None:
    first, second = write(tmp_path, REGISTRY, "first.yaml"), write(tmp_path, REGISTRY, "second.yaml")
    for paths in ([first, second], [second, first]):
        with pytest.raises(RegistryError, match=r"the name is already a row at") as caught:
            load_registry(paths)
        assert f"{first}:3" in str(caught.value)
        assert f"{second}:3" in str(caught.value)
    assert len(load_registry([first, first])) == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.yaml: no such registry file") as missing:
        load_registry([tmp_path / "nowhere.yaml"])
    assert "ZOO_REGISTRY" in (missing.value.hint or "")
    with pytest.raises(RegistryError, match="not a file"):
        load_registry([tmp_path])
    locked = write(tmp_path, REGISTRY)
    locked.chmod(0)
    try:
        locked.read_bytes()
    except PermissionError:
        with pytest.raises(AccessError, match="may not be read"):
            load_registry([locked])


def test_the_environment_chooses_the_registry_files(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    builtin = set(default_registry(home, {}))
    assert "resnet50.tv_in1k" in builtin
    registry = write(tmp_path, REGISTRY)
    assert set(default_registry(home, {"ZOO_REGISTRY": str(registry)})) == {"tiny_a.one"}
    assert set(default_registry(home, {"ZOO_REGISTRY": ""})) == builtin
    write(home, REGISTRY.replace("tiny_a.one", "tiny_b"), "registry.yaml")
    assert set(default_registry(home, {})) == builtin | {"tiny_b"}
    assert set(default_registry(home, {"ZOO_REGISTRY": str(registry)})) == {"tiny_a.one", "tiny_b"}
    with pytest.raises(NotFoundError):
        default_registry(home, {"ZOO_REGISTRY": str(tmp_path / "nowhere.yaml")})


@pytest.fixture(scope="module")
def shelf() -> Registry:
    return load_registry([builtin_registry_path()])


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("resnet50.tv_in2k", "resnet50.tv_in1k"),
        ("ResNet50", "resnet50.a1_in1k"),
        ("resnet50-tv-in1k", "resnet50.tv_in1k"),
        ("bert-base-uncasd", "bert-base-uncased"),
        ("efficientnet-lite0", "efficientnet_lite0"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(shelf: Registry, name: str, first: str) -> None:
    with pytest.raises(UnknownEntryError) as caught:
        shelf.entry(name)
    assert caught.value.suggestions[0] == first
    assert first in (caught.value.hint or "")
    assert len(caught.value.suggestions) <= 3


@pytest.mark.parametrize("name", ["", "zzzzzz", "§"])
def test_an_unknown_name_without_neighbours(shelf: Registry, name: str) -> None:
    with pytest.raises(UnknownEntryError) as caught:
        shelf.entry(name)
    assert caught.value.hint == "zoo list shows every name"


def test_search(shelf: Registry) -> None:
    names = [entry.name for entry in shelf.search("RESNET*.tv_in1k")]
    assert names == [f"resnet{depth}.tv_in1k" for depth in (18, 34, 50, 101, 152)]
    assert {entry.name for entry in shelf.search("lite")} == {"efficientnet_lite0"}
    assert {entry.family for entry in shelf.search(family="Bert")} == {"bert"}
    assert {entry.name for entry in shelf.search(license="mit")} == {"bge-small-en-v1.5"}
    assert {entry.name for entry in shelf.search(task="word-vectors", license="PDDL-1.0")} == {"glove-6b-50d"}
    assert len(shelf.search()) == len(shelf)
    assert shelf.search("nothing-like-it") == []
    assert shelf.search(family="resnet", task="text-features") == []


def test_a_registry_is_a_mapping(shelf: Registry) -> None:
    assert shelf["all-minilm-l6-v2"] is shelf.entry("all-minilm-l6-v2")
    assert shelf.get("nothing") is None
    assert "glove-6b-50d" in shelf
    assert len(list(shelf)) == len(shelf)
    assert repr(shelf) == f"Registry({len(shelf)} entries)"


def test_the_parser_written_in_python_reads_the_same(monkeypatch: pytest.MonkeyPatch, shelf: Registry) -> None:
    """PyYAML may be built without libyaml."""
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert dict(load_registry([builtin_registry_path()])) == dict(shelf)


def test_the_shipped_registry_loads_in_25_ms() -> None:
    pytest.importorskip("yaml._yaml", reason="PyYAML without libyaml is slower")
    seconds = []
    for _ in range(7):
        start = time.process_time()
        untraced(load_registry)([builtin_registry_path()])
        seconds.append(time.process_time() - start)
    assert min(seconds) <= 0.025
