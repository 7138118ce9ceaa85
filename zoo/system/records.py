"""Small JSON files that zoo keeps, read into msgspec structs, checked by their schema version and replaced whole."""

from pathlib import Path
from typing import TypeVar

import msgspec

from zoo.errors import AccessError, IntegrityError
from zoo.system.files import write_atomic

Record = TypeVar("Record")


class SchemaError(IntegrityError):
    """Raised for a record that another version of zoo wrote."""


class _Versioned(msgspec.Struct):
    schema_version: int | None = None


def read_record(path: Path, kind: type[Record], version: int, *, hint: str) -> Record | None:
    """The record in the file `path` as a `kind`; None when there is no such file.

    `version` is the schema version to accept; a record without one is accepted too. `hint` is the hint of the error for
    a damaged record.

    Raises AccessError for a file that cannot be read, SchemaError for another version, IntegrityError when damaged.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise AccessError(message, hint=f"chmod -R u+rX {path.parent}") from error
    try:
        # Check the version before the fields: another version may have other fields.
        found = msgspec.json.decode(data, type=_Versioned).schema_version
        if found and found != version:
            age = "a newer" if found > version else "an older"
            message = f"{path} was written by {age} zoo (schema {found}, this one reads schema {version})"
            raise SchemaError(message, hint="upgrade backbone-zoo")
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(f"{path} is damaged: {error}", hint=hint) from error


def find_record(path: Path, kind: type[Record], version: int) -> Record | None:
    """The record in the file `path`; None also for one that cannot be read, is damaged or of another version."""
    try:
        return read_record(path, kind, version, hint="")
    except (AccessError, IntegrityError):
        return None


def write_record(path: Path, record: object, *, indent: int | None = None) -> None:
    """Replace the file `path` by `record`: one line, or with `indent` a line for each field. Raises OSError."""
    data = msgspec.json.encode(record)
    write_atomic(path, data if indent is None else msgspec.json.format(data, indent=indent) + b"\n")
