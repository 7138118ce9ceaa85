"""Cutting an ONNX file without the onnx package: `zoo.graph.edit.extract` on bytes.

Importing onnx, then reading and writing a model, takes longer than loading the model in ONNX Runtime. A protobuf
message is a sequence of fields, each with its length. So parts are copied as bytes: names are read, tensors are not.
Format: https://protobuf.dev/programming-guides/encoding/ and onnx.proto3, whose field numbers are used below.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zoo.errors import IntegrityError

#: Fields of ModelProto: those copied into a part (IR version, producer, operator sets, metadata, functions), the graph.
KEPT, GRAPH, METADATA = (1, 2, 8, 14, 25), 7, 14
#: Fields of GraphProto.
NODE, NAME, INITIALIZER, INPUT, OUTPUT, VALUE = 1, 2, 5, 11, 12, 13
#: The field of a TensorProto's name; in a ValueInfoProto the name is field 1.
TENSOR_NAME = 8
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class Node(NamedTuple):
    """A NodeProto: the names of its inputs and outputs, and its bytes."""

    inputs: list[str]
    outputs: list[str]
    data: memoryview


class Wire:
    """The fields of an ONNX model: its `metadata`, and the names of the graph's `inputs` and `outputs`."""

    def __init__(self, model: bytes) -> None:
        """Raises IntegrityError for bytes that are not an ONNX model."""
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.metadata: dict[str, str] = {}
        self.nodes: list[Node] = []
        self._kept: list[memoryview] = []
        self._name = memoryview(b"")
        self._tensors: list[tuple[str, memoryview]] = []
        self._declared: dict[str, memoryview] = {}
        graphs: list[memoryview] = []
        try:
            for number, whole, value in _fields(memoryview(model)):
                if number in KEPT:
                    self._kept.append(whole)
                if number == METADATA:
                    self.metadata[_name(value, 1)] = _name(value, 2)
                elif number == GRAPH:
                    graphs.append(value)
            [graph] = graphs
            self._read(graph)
        except (ValueError, IndexError, UnicodeDecodeError) as error:
            raise IntegrityError("the model is not ONNX", hint="export it again") from error

    def knows(self, tensor: str) -> bool:
        """Whether a tensor of that name is an input of the graph or computed by it."""
        return tensor in self.inputs or any(tensor in node.outputs for node in self.nodes)

    def cut(self, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
        """The part from the tensors `inputs` to the tensors `outputs`, as the bytes of an ONNX file.

        Raises IntegrityError when the model does not declare the type and shape of one of these tensors.
        """
        wanted: list[Node] = []
        needed = set(outputs)
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                wanted.append(node)
                needed.update(name for name in node.inputs if name and name not in inputs)
        if undeclared := [name for name in (*inputs, *outputs) if name not in self._declared]:
            raise IntegrityError(f"the model declares no shape of '{undeclared[0]}'", hint="write the bundle again")
        fields = [
            *((NODE, node.data) for node in reversed(wanted)),
            (NAME, self._name),
            *((INITIALIZER, data) for name, data in self._tensors if name in needed),
            *((INPUT, self._declared[name]) for name in inputs),
            *((OUTPUT, self._declared[name]) for name in outputs),
        ]
        graph = [part for number, value in fields for part in (_head(number, len(value)), value)]
        return b"".join([*self._kept, _head(GRAPH, sum(map(len, graph))), *graph])

    def _read(self, graph: memoryview) -> None:
        for number, _, value in _fields(graph):
            if number == NODE:
                inputs, outputs = _strings(value, 1, 2)
                self.nodes.append(Node(inputs, outputs, value))
            elif number == NAME:
                self._name = value
            elif number == INITIALIZER:
                self._tensors.append((_name(value, TENSOR_NAME), value))
            elif number in (INPUT, OUTPUT, VALUE):
                name = _name(value, 1)
                self._declared[name] = value
                if number != VALUE:
                    (self.inputs if number == INPUT else self.outputs).append(name)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yields the number, the bytes and the value of every field of a message. Raises ValueError if it is truncated."""
    index, end = 0, len(data)
    while index < end:
        start = index
        tag, index = _varint(data, index)
        kind = tag & 7
        begin = index
        if kind == LENGTH:
            size, begin = _varint(data, index)
            index = begin + size
        elif kind == VARINT:
            _, index = _varint(data, index)
        elif kind in (FIXED64, FIXED32):
            index += 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if index > end or not tag >> 3:
            raise ValueError("a field that ends beyond its message")
        yield tag >> 3, data[start:index], data[begin:index]


def _varint(data: memoryview, index: int) -> tuple[int, int]:
    """Returns the varint at `index` and the index after it."""
    value = shift = 0
    while True:
        byte = data[index]
        index += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, index
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than 64 bits")


def _strings(data: memoryview, *numbers: int) -> list[list[str]]:
    """The strings in the fields with each of these numbers, a list for each number."""
    found: dict[int, list[str]] = {number: [] for number in numbers}
    for number, _, value in _fields(data):
        if number in found:
            found[number].append(str(value, "utf-8"))
    return list(found.values())


def _name(data: memoryview, number: int) -> str:
    """The string field of that number; empty if there is none. If it is repeated, protobuf takes the last one."""
    [found] = _strings(data, number)
    return found[-1] if found else ""


def _head(number: int, size: int) -> bytes:
    """The bytes before the value of field `number`: its tag, and the length `size`."""
    head = bytearray()
    for value in (number << 3 | LENGTH, size):
        while value > 127:
            head.append(value & 127 | 128)
            value >>= 7
        head.append(value)
    return bytes(head)
