"""ONNX graphs: building, joining, cutting, cleaning, loading and saving them.

Every graph made here is IR 10, opset 20, and holds no trace of the machine that made it. Its operators are standard
ones, except in fused graphs (zoo.graph.fuse). Specification: https://onnx.ai/onnx/operators/
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zoo.errors import IntegrityError
from zoo.schema import TensorSpec

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message
    from numpy.typing import NDArray

_Message = TypeVar("_Message", bound="Message")

OPSET, IR_VERSION = 20, 10


def load(path: Path) -> "onnx.ModelProto":
    """The model at `path`. Raises IntegrityError for a file that is not ONNX, is empty or has a newer IR or opset."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise IntegrityError(f"{path} is not an ONNX model", hint="export it again") from error
    if not model.ByteSize():
        raise IntegrityError(f"{path} is empty", hint="export it again")
    newest = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)
    if model.ir_version > IR_VERSION or newest > OPSET:
        raise IntegrityError(
            f"{path} is IR {model.ir_version}, opset {newest}; at most IR {IR_VERSION}, opset {OPSET} is supported",
            hint=f"export it with opset {OPSET}",
        )
    return model


def join(first: "onnx.ModelProto", second: "onnx.ModelProto", *, keep: Sequence[str] = ()) -> "onnx.ModelProto":
    """One model in which outputs of `first` feed the inputs of `second` with the same names.

    Outputs of `first` that are named in `keep` stay outputs. An input that both models have, such as a text's mask,
    becomes one input. Inner names begin with their graph's name (see `clean`), so they cannot clash.
    """
    from onnx import helper

    one, two = first.graph, second.graph
    outputs = {value.name: value for value in one.output}
    known = {*outputs, *(value.name for value in one.input)}
    graph = helper.make_graph(
        [*one.node, *two.node],
        f"{one.name}_{two.name}",
        [*one.input, *(value for value in two.input if value.name not in known)],
        [*(outputs[name] for name in keep), *two.output],
        [*one.initializer, *two.initializer],
        value_info=[*one.value_info, *two.value_info],
    )
    return new_model(graph)


def extract(model: "onnx.ModelProto", inputs: Sequence[str], outputs: Sequence[str]) -> "onnx.ModelProto":
    """The part of `model` from the tensors `inputs` to the tensors `outputs`; `model` must declare their shapes."""
    from onnx import helper

    wanted, needed = [], set(outputs)
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            wanted.append(node)
            needed.update(name for name in node.input if name and name not in inputs)
    declared = {item.name: item for item in (*model.graph.input, *model.graph.output, *model.graph.value_info)}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    graph = helper.make_graph(
        wanted[::-1], model.graph.name, [declared[n] for n in inputs], [declared[n] for n in outputs], constants
    )
    return new_model(graph)


def sources(model: "onnx.ModelProto", output: str, stops: Sequence[str]) -> set[str]:
    """The tensors among `stops` that `output` is computed from, by paths without other tensors of `stops`."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found: set[str] = set()
    seen, pending = set[str](), [output]
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in stops:
            found.add(name)
        elif name in makers:
            pending.extend(makers[name].input)
    return found


def floats(name: str, shape: Sequence[int | str]) -> "onnx.ValueInfoProto":
    """The declaration of a float32 tensor: an input, an output, or an inner tensor at which `extract` can cut."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def clean(model: "onnx.ModelProto", name: str) -> "onnx.ModelProto":
    """An exporter's model in zoo's form: zoo's IR version, the graph called `name`, no stack traces or local paths."""
    graph = model.graph
    graph.name = name
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    # The exporter's inner shapes name axes that joining renames. They are not needed: the runtime infers shapes.
    del graph.value_info[:]
    prefix_names(graph)
    return new_model(graph)


def describe(model: "onnx.ModelProto", metadata: Mapping[str, str]) -> None:
    """Write `metadata` into the model, sorted by key; a session has it in `get_modelmeta().custom_metadata_map`."""
    from onnx import helper

    helper.set_model_props(model, dict(sorted(metadata.items())))


def metadata_of(model: "onnx.ModelProto") -> dict[str, str]:
    """The metadata that `describe` wrote."""
    return {item.key: item.value for item in model.metadata_props}


def copied(message: _Message) -> _Message:
    """A copy of a model or a node; changing the copy does not change the original."""
    copy: _Message = type(message)()
    copy.CopyFrom(message)
    return copy


def attributes(node: "onnx.NodeProto") -> dict[str, Any]:
    """The values of a node's attributes by their names."""
    from onnx import helper

    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def tensor_specs(model: "onnx.ModelProto") -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Returns the inputs and the outputs that the graph declares."""
    return tuple(map(_spec, model.graph.input)), tuple(map(_spec, model.graph.output))


def save(model: "onnx.ModelProto", path: Path) -> bytes:
    """Write the model, check it against the ONNX specification, and return the written bytes.

    Files of external data must already lie beside `path`.
    """
    from onnx import checker

    data: bytes = model.SerializeToString(deterministic=True)
    path.write_bytes(data)
    try:
        # The checker looks for external data beside the path that it is given.
        checker.check_model(os.fspath(path))
    except checker.ValidationError:
        path.unlink()
        raise
    return data


def _spec(value: "onnx.ValueInfoProto") -> TensorSpec:
    from onnx import helper

    tensor = value.type.tensor_type
    shape = tuple(axis.dim_param or int(axis.dim_value) for axis in tensor.shape.dim)
    return TensorSpec(name=value.name, dtype=str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape=shape)


def new_model(graph: "onnx.GraphProto") -> "onnx.ModelProto":
    """A model of `graph` at zoo's IR version and opset."""
    from onnx import helper

    # A fused graph has operators of ONNX Runtime's own domain (zoo.graph.fuse).
    domains = sorted({node.domain for node in graph.node} | {""})
    opset = [helper.make_opsetid(domain, 1 if domain else OPSET) for domain in domains]
    return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="zoo")


def prefix_names(graph: "onnx.GraphProto") -> None:
    """Put the graph's name before every inner name; inputs and outputs keep their names."""
    public = {"", *(item.name for item in (*graph.input, *graph.output))}

    def renamed(name: str) -> str:
        return name if name in public else f"{graph.name}/{name}"

    for node in graph.node:
        # The name of an output is unique in the graph, so it can also name the node.
        node.name = f"{graph.name}/{node.name or node.output[0]}"
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for item in graph.initializer:
        item.name = renamed(item.name)


class GraphBuilder:
    """Collects nodes and constants in the order in which they are added; nodes may also use constants of `graph`."""

    def __init__(self, graph: "onnx.GraphProto | None" = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants = {tensor.name: tensor for tensor in graph.initializer} if graph is not None else {}

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node named like its `output`, and return that name."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: object, dtype: str = "float32") -> str:
        """Add a constant, unless one of that name exists, and return the name."""
        import numpy as np
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    def array(self, name: str) -> "NDArray[Any]":
        """The numbers of the constant `name`."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name])

    def model(
        self, name: str, inputs: "Sequence[onnx.ValueInfoProto]", outputs: "Sequence[onnx.ValueInfoProto]"
    ) -> "onnx.ModelProto":
        """A model of the added nodes, in a graph called `name`; inner names begin with `name`."""
        from onnx import helper

        graph = helper.make_graph(self.nodes, name, inputs, outputs, list(self.constants.values()))
        prefix_names(graph)
        return new_model(graph)

    def replace(self, model: "onnx.ModelProto") -> None:
        """Replace the nodes and constants of `model` by the added nodes and the constants that they take."""
        graph = model.graph
        used = {name for node in self.nodes for name in node.input}
        constants = [tensor for name, tensor in self.constants.items() if name in used]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(constants)
