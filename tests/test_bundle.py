"""Bundles: valid and refused folders, and the places where a bundle may be written."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from zoo import AccessError, IntegrityError, NotFoundError, UsageError, Zoo
from zoo.bundle import MANIFEST, MODEL, Bundle, check_target, describe_files, write_manifest


@pytest.fixture
def bundle(shelf: Path, tmp_path: Path) -> Bundle:
    """A copy of tiny-bert's features bundle."""
    shutil.copytree(Zoo().graph("tiny-bert").path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


def rewrite(bundle: Bundle, **changes: Any) -> None:
    """Change values of zoo.json; None removes one."""
    path = bundle.path / MANIFEST
    facts = {**json.loads(path.read_bytes()), **changes}
    path.write_text(json.dumps({name: value for name, value in facts.items() if value is not None}))


def test_a_manifest_survives_writing_and_reading(bundle: Bundle) -> None:
    written = write_manifest(bundle.path, bundle.manifest)
    assert Bundle.open(bundle.path).manifest == written.manifest == bundle.manifest
    assert json.loads((bundle.path / MANIFEST).read_bytes())["schema_version"] == 1
    assert {file.path for file in bundle.manifest.files} == {MODEL, "tokenizer.json"}
    assert describe_files(bundle.path) == bundle.manifest.files


def test_unknown_facts_of_a_manifest_are_left_alone(bundle: Bundle) -> None:
    rewrite(bundle, added_by_a_later_zoo={"deep": [1]})
    assert Bundle.open(bundle.path).manifest == bundle.manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, r"written by a newer zoo \(schema 2,"),
        ({"schema_version": 10**30, "files": 3}, "written by a newer zoo"),
        ({"schema_version": "1"}, "damaged"),
        ({"schema_version": True}, "damaged"),
        ({"schema_version": None}, "damaged"),
        ({"name": None}, "damaged"),
        ({"task": "magic"}, "damaged"),
        ({"dim": "wide"}, "damaged"),
        ({"preprocess": {"kind": "smell"}}, "damaged"),
        (
            {
                "preprocess": {
                    "kind": "text",
                    "tokenizer": "../t.json",
                    "max_length": 8,
                    "pooling": "cls",
                    "normalize": True,
                }
            },
            "damaged",
        ),
    ],
)
def test_manifests_that_do_not_fit(bundle: Bundle, changes: dict[str, Any], message: str) -> None:
    rewrite(bundle, **changes)
    with pytest.raises(IntegrityError, match=message) as caught:
        Bundle.open(bundle.path)
    assert caught.value.exit_code == 5
    assert caught.value.hint


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff", b'{"name": "\xff"}', b"\0" * 99, b'{"a":' + b"[" * 100_000, b"{} {}"]
)
def test_manifests_that_are_no_json(bundle: Bundle, data: bytes) -> None:
    (bundle.path / MANIFEST).write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged"):
        Bundle.open(bundle.path)


def test_every_cut_manifest_is_damaged(bundle: Bundle) -> None:
    data = (bundle.path / MANIFEST).read_bytes().rstrip()
    for length in range(0, len(data), 37):
        (bundle.path / MANIFEST).write_bytes(data[:length])
        with pytest.raises(IntegrityError, match="damaged"):
            Bundle.open(bundle.path)


def test_what_is_no_bundle(bundle: Bundle, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", bundle.model):
        with pytest.raises(NotFoundError, match=r"is not a (folder|bundle)|no such folder") as caught:
            Bundle.open(path)
        assert caught.value.exit_code == 3
        assert caught.value.hint
    (bundle.path / MANIFEST).unlink()
    (bundle.path / MANIFEST).mkdir()
    with pytest.raises(AccessError, match="cannot be read"):
        Bundle.open(bundle.path)


def test_the_models_bytes_are_checked(bundle: Bundle) -> None:
    data = bytearray(bundle.read_model())
    assert all(is_same for _, is_same in bundle.verify())
    for index in (0, len(data) // 2, len(data) - 1):
        data[index] ^= 1
        bundle.model.write_bytes(data)
        with pytest.raises(IntegrityError, match="not the file") as caught:
            bundle.read_model()
        assert caught.value.expected == bundle.digest(MODEL) != caught.value.actual
        assert {file.path for file, is_same in bundle.verify() if not is_same} == {MODEL}
        data[index] ^= 1
    bundle.model.unlink()
    with pytest.raises(IntegrityError, match=r"has no model\.onnx"):
        bundle.read_model()
    assert {file.path for file, is_same in bundle.verify() if not is_same} == {MODEL}


def test_a_manifest_that_lists_no_model(bundle: Bundle) -> None:
    rewrite(bundle, files=[])
    with pytest.raises(IntegrityError, match=r"does not list model\.onnx"):
        Bundle.open(bundle.path).read_model()


def test_a_file_swapped_for_one_of_the_same_size(bundle: Bundle) -> None:
    path = bundle.path / "tokenizer.json"
    path.write_bytes(path.read_bytes()[::-1])
    assert {file.path for file, is_same in bundle.verify() if not is_same} == {"tokenizer.json"}


def test_a_link_is_not_the_file(bundle: Bundle) -> None:
    """A link is refused whatever its target: a bundle has all its files itself."""
    assert all(is_same for _, is_same in bundle.verify())
    elsewhere = bundle.path.parent / "elsewhere.onnx"
    bundle.model.rename(elsewhere)
    bundle.model.symlink_to(elsewhere)
    assert [file.path for file, is_same in bundle.verify() if not is_same] == ["model.onnx"]


def test_where_a_bundle_may_be_written(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for path in (tmp_path / "new" / "deep", tmp_path / "empty", tmp_path / "link", bundle.path):
        check_target(path, inside=[tmp_path / "other"])
    for path, message in ((tmp_path / "other", "not a bundle"), (tmp_path / "other/file", "is a file")):
        with pytest.raises(UsageError, match=message) as caught:
            check_target(path)
        assert caught.value.hint


def test_what_is_read_is_never_replaced(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bundle.path / "data" / "images"
    data.mkdir(parents=True)
    (tmp_path / "link").symlink_to(bundle.path)
    monkeypatch.chdir(tmp_path)
    for path in (bundle.path, tmp_path / "link", data, data / "..", Path("bundle"), Path("bundle/../link")):
        with pytest.raises(UsageError, match="would replace"):
            check_target(path, inside=[data])
    check_target(tmp_path / "bundle2", inside=[data, bundle.path])


def test_a_described_folder_is_every_file_but_the_manifest(tmp_path: Path) -> None:
    for name, data in (("b", b"bb"), ("a", b""), (MANIFEST, b"{}")):
        (tmp_path / name).write_bytes(data)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    first, second = describe_files(tmp_path)
    assert msgspec.structs.astuple(first) == ("a", 0, empty)
    assert (second.path, second.size) == ("b", 2)
