"""Small JSON files are read, or refused with a reason and a hint, and are written atomically."""

import os
from pathlib import Path

import pytest
from msgspec import Struct

from zoo.errors import AccessError, IntegrityError
from zoo.system.records import SchemaError, find_record, read_record, write_record


class Note(Struct, frozen=True):
    schema_version: int
    text: str


NOTE = Note(1, "a note")


def read(path: Path) -> Note | None:
    return read_record(path, Note, 1, hint="write it again")


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path / "line.json", NOTE)
    write_record(tmp_path / "fields.json", NOTE, indent=2)
    assert (tmp_path / "line.json").read_bytes() == b'{"schema_version":1,"text":"a note"}'
    assert (tmp_path / "fields.json").read_bytes() == b'{\n  "schema_version": 1,\n  "text": "a note"\n}\n'
    assert read(tmp_path / "line.json") == read(tmp_path / "fields.json") == NOTE


def test_no_file_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read(tmp_path / "absent.json") is None
    assert read(tmp_path / "file" / "below.json") is None
    assert find_record(tmp_path / "absent.json", Note, 1) is None


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff", b'"\xff"', b"[" * 100_000, b'{"text": "a"}', b'{"schema_version": true}']
)
def test_a_damaged_record(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "note.json"
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="is damaged") as caught:
        read(path)
    assert caught.value.hint == "write it again"
    assert not isinstance(caught.value, SchemaError)
    assert find_record(path, Note, 1) is None


@pytest.mark.parametrize(("version", "age"), [(2, "a newer"), (10**30, "a newer"), (-1, "an older")])
def test_another_version_is_named_before_its_fields_are_checked(tmp_path: Path, version: int, age: str) -> None:
    path = tmp_path / "note.json"
    path.write_text(f'{{"schema_version": {version}, "words": ["a", "note"]}}')
    with pytest.raises(SchemaError, match=rf"note.json was written by {age} zoo \(schema {version}, .* schema 1\)"):
        read(path)
    assert find_record(path, Note, 1) is None


def test_a_record_without_a_version(tmp_path: Path) -> None:
    write_record(tmp_path / "run.json", {"out": "bundle"})
    assert find_record(tmp_path / "run.json", dict[str, object], 1) == {"out": "bundle"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_record_that_may_not_be_read(tmp_path: Path) -> None:
    write_record(tmp_path / "note.json", NOTE)
    (tmp_path / "note.json").chmod(0)
    with pytest.raises(AccessError, match="cannot be read: Permission denied"):
        read(tmp_path / "note.json")


def test_a_folder_in_place_of_a_record(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="cannot be read: Is a directory") as caught:
        read(tmp_path)
    assert caught.value.hint == f"chmod -R u+rX {tmp_path.parent}"
