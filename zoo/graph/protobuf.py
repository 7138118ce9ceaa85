"""An ONNX file cut in two without parsing its numbers: what `zoo.graph.edit.extract` does, on the bytes.

Importing onnx and having it read and write a model takes longer than ONNX Runtime takes to load it. A protobuf message
is a row of fields, each with its length, so that a part can be taken out as it stands: names are read, tensors are not.
Format: https://protobuf.dev/programming-guides/encoding/ and onnx.proto3, whose numbers of fields are used below.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zoo.errors import IntegrityError

#: Fields of ModelProto: what a part keeps (IR version, producer, operator sets, metadata, functions), and its graph.
KEPT, GRAPH = (1, 2, 8, 14, 25), 7
#: Fields of GraphProto.
NODE, NAME, INITIALIZER, INPUT, OUTPUT, VALUE = 1, 2, 5, 11, 12, 13
#: Where the name lies in a TensorProto; in a ValueInfoProto it is the first field.
TENSOR_NAME = 8
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class Node(NamedTuple):
    """A NodeProto: the names that it takes and gives, and its bytes."""

    inputs: list[str]
    outputs: list[str]
    data: memoryview


class Wire:
    """A model's fields. `inputs` and `outputs` are the names of its graph's."""

    def __init__(self, model: bytes) -> None:
        """Raises IntegrityError for bytes that are no ONNX model."""
        self.inputs: list[str] = []
        self.outputs: list[str] = []
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
                elif number == GRAPH:
                    graphs.append(value)
            [graph] = graphs
            self._read(graph)
        except (ValueError, IndexError, UnicodeDecodeError) as error:
            raise IntegrityError("the model is not ONNX", hint="export it again") from error

    def knows(self, tensor: str) -> bool:
        """Whether the graph takes or computes a tensor of that name."""
        return tensor in self.inputs or any(tensor in node.outputs for node in self.nodes)

    def cut(self, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
        """The part between those tensors, as an ONNX file, with the types and shapes that the model declares for them.

        Raises IntegrityError when it declares none for one.
        """
        wanted: list[Node] = []
        needed = set(outputs)
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                wanted.append(node)
                needed.update(name for name in node.inputs if name and name not in inputs)
        if undeclared := [name for name in (*inputs, *outputs) if name not in self._declared]:
            raise IntegrityError(f"the model declares no shape of '{undeclared[0]}'", hint="write the bundle again")
        graph = [
            *(part for node in reversed(wanted) for part in _field(NODE, node.data)),
            *_field(NAME, self._name),
            *(part for name, data in self._tensors if name in needed for part in _field(INITIALIZER, data)),
            *(part for name in inputs for part in _field(INPUT, self._declared[name])),
            *(part for name in outputs for part in _field(OUTPUT, self._declared[name])),
        ]
        return b"".join([*self._kept, _head(GRAPH, sum(map(len, graph))), *graph])

    def _read(self, graph: memoryview) -> None:
        for number, _, value in _fields(graph):
            if number == NODE:
                taken, given = [], []
                for inner, _, string in _fields(value):
                    if inner == 1:
                        taken.append(str(string, "utf-8"))
                    elif inner == 2:
                        given.append(str(string, "utf-8"))
                self.nodes.append(Node(taken, given, value))
            elif number == NAME:
                self._name = value
            elif number == INITIALIZER:
                self._tensors.append((_text(value, TENSOR_NAME), value))
            elif number in (INPUT, OUTPUT, VALUE):
                name = _text(value, 1)
                self._declared[name] = value
                if number != VALUE:
                    (self.inputs if number == INPUT else self.outputs).append(name)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """(number, the whole field, its value) of every field of a message. Raises ValueError where it breaks off."""
    place, end = 0, len(data)
    while place < end:
        start = place
        tag, place = _varint(data, place)
        kind = tag & 7
        begin = place
        if kind == LENGTH:
            size, begin = _varint(data, place)
            place = begin + size
        elif kind == VARINT:
            _, place = _varint(data, place)
        elif kind in (FIXED64, FIXED32):
            place += 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if place > end or not tag >> 3:
            raise ValueError("a field that does not fit")
        yield tag >> 3, data[start:place], data[begin:place]


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """(the number at `place`, the place after it)."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number that does not end")


def _text(data: memoryview, number: int) -> str:
    """The string field of that number; empty where there is none. Fields lie in the order of their numbers, or not."""
    found = ""
    for each, _, value in _fields(data):
        if each == number:
            found = str(value, "utf-8")
    return found


def _field(number: int, value: memoryview) -> tuple[bytes, memoryview]:
    return _head(number, len(value)), value


def _head(number: int, size: int) -> bytes:
    """The tag and the length of a field with a value of `size` bytes."""
    head = bytearray()
    for value in (number << 3 | LENGTH, size):
        while value > 127:
            head.append(value & 127 | 128)
            value >>= 7
        head.append(value)
    return bytes(head)
