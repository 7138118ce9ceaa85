"""External data: tensors too large for an ONNX file, stored beside it, and checked before a runtime reads them.

Format: https://onnx.ai/onnx/repo-docs/ExternalData.html. A model may name any path there. A file is therefore opened
only after every location in the model is known to be a plain file name. The bundle's manifest lists the files that
belong to the model.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from zoo.errors import IntegrityError
from zoo.system.files import map_file

if TYPE_CHECKING:
    import mmap

    import onnx
    from google.protobuf.message import Message

    Bytes: TypeAlias = mmap.mmap | bytes

#: The rule of zoo.schema.FilePath: no folder, no hidden file, no marker of a runtime such as "*/_ORT_MEM_ADDR_/*".
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
HINT = "do not use this model unless you know who made it; write the bundle again"


class ExternalTensor(NamedTuple):
    """An initializer whose data are `size` bytes of `file`, starting at `offset`."""

    name: str
    file: str
    offset: int
    size: int


def total_size(path: Path) -> int:
    """Bytes of the ONNX file at `path` and of its external data."""
    data = path.read_bytes()
    return len(data) + sum((path.parent / name).stat().st_size for name in file_names(data))


def references(model: "bytes | onnx.ModelProto") -> list[ExternalTensor]:
    """Every tensor of the model that is stored in another file.

    Raises IntegrityError for a location that is not a plain file name, and for an external tensor that is not an
    initializer of the main graph.
    """
    if isinstance(model, bytes):
        # Every external tensor has the key "location". A model without these bytes has none and need not be parsed.
        if b"location" not in model:
            return []
        import onnx
        from google.protobuf.message import DecodeError

        try:
            model = onnx.load_from_string(model)
        except DecodeError as error:
            raise IntegrityError("the model is not ONNX", hint="export it again") from error
    found = [_external(tensor) for tensor in model.graph.initializer if _is_outside(tensor)]
    if sum(map(_is_outside, _tensors(model))) != len(found):
        raise IntegrityError("a tensor inside the model's nodes may not be stored in another file", hint=HINT)
    return found


def files(model: "bytes | onnx.ModelProto", read: "Callable[[str], Bytes]") -> "dict[str, Bytes]":
    """The contents of each file with external data of the model, by file name; `read(name)` returns them.

    Raises IntegrityError for a tensor that ends beyond its file.
    """
    found: dict[str, Bytes] = {}
    for tensor in references(model):
        if tensor.file not in found:
            found[tensor.file] = read(tensor.file)
        if tensor.offset + tensor.size > len(found[tensor.file]):
            raise IntegrityError(f"{tensor.file} ends before the data of '{tensor.name}'", hint=HINT)
    return found


def beside(folder: Path) -> "Callable[[str], Bytes]":
    """A `read` for `files` that reads from `folder`, for a folder that has no manifest yet."""

    def read(name: str) -> "Bytes":
        try:
            return map_file(folder / name)
        except OSError as error:
            raise IntegrityError(f"{folder / name} is missing or not a regular file", hint=HINT) from error

    return read


def file_names(model: "bytes | onnx.ModelProto") -> set[str]:
    """The names of the files with external data of the model."""
    return {tensor.file for tensor in references(model)}


def _is_outside(tensor: "onnx.TensorProto") -> bool:
    return bool(tensor.data_location == tensor.EXTERNAL or tensor.external_data)


def _external(tensor: "onnx.TensorProto") -> ExternalTensor:
    from onnx import helper

    facts: Mapping[str, str] = {entry.key: entry.value for entry in tensor.external_data}
    file, offset = facts.get("location", ""), facts.get("offset", "0")
    if not PLAIN.fullmatch(file):
        raise IntegrityError(
            f"the tensor '{tensor.name}' names the file {file!a}, which is not a plain file name", hint=HINT
        )
    try:
        shape, dtype = tuple(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        dtype = None
    if dtype is None or dtype.kind not in "fiub":
        raise IntegrityError(f"the tensor '{tensor.name}' has a type that may not be stored in another file", hint=HINT)
    size = math.prod(shape) * dtype.itemsize
    if not offset.isdecimal() or min(shape, default=0) < 0 or facts.get("length", str(size)) != str(size):
        raise IntegrityError(
            f"the tensor '{tensor.name}' has no valid offset and length of its {size:,} bytes", hint=HINT
        )
    return ExternalTensor(tensor.name, file, int(offset), size)


def _tensors(message: "Message") -> "Iterator[onnx.TensorProto]":
    """Every TensorProto in a message, including those in attributes, subgraphs and functions."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for each in value if field.is_repeated else [value]:
                yield from _tensors(each)
