"""ONNX surgery: the preprocessing prefix, the trained head, joining them to a features graph, and cutting them again.

Every graph made here is IR 10, opset 20, of standard operators (but for fused ones: zoo.graph.fuse), and carries no
trace of the machine that made it. Specification: https://onnx.ai/onnx/operators/ (Resize 19, Slice 13, Gemm 13, Softmax
13).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import IntegrityError
from zoo.schema import TensorSpec

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 20, 10


def load(path: Path) -> "onnx.ModelProto":
    """The model at `path`. Raises IntegrityError when it is not one, or needs a newer runtime than ours."""
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
    """One graph: `first`'s outputs feed `second`'s inputs of the same names; those in `keep` stay outputs.

    An input that both take, such as a text's mask, is one. Both were made or cleaned by this module: their inner names
    carry their graph's name and cannot clash.
    """
    from onnx import helper

    one, two = first.graph, second.graph
    given = {value.name: value for value in one.output}
    taken = {value.name for value in one.input}
    graph = helper.make_graph(
        [*one.node, *two.node],
        f"{one.name}_{two.name}",
        [*one.input, *(value for value in two.input if value.name not in given and value.name not in taken)],
        [*(given[name] for name in keep), *two.output],
        [*one.initializer, *two.initializer],
        value_info=[*one.value_info, *two.value_info],
    )
    return new_model(graph)


def extract(model: "onnx.ModelProto", inputs: Sequence[str], outputs: Sequence[str]) -> "onnx.ModelProto":
    """The part of `model` between those tensors, with the types and shapes that `model` declares for them."""
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


def declare(model: "onnx.ModelProto", name: str, dtype: int, shape: Sequence[int | str]) -> None:
    """State the type and shape of an inner tensor, so that `extract` can cut the graph there."""
    from onnx import helper

    model.graph.value_info.append(helper.make_tensor_value_info(name, dtype, shape))


def clean(model: "onnx.ModelProto", name: str) -> "onnx.ModelProto":
    """An exporter's model as we ship it: our IR version, our graph name, no stack traces or local paths in it."""
    graph = model.graph
    graph.name = name
    graph.doc_string = ""
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    # Inner shapes of an exporter name axes that joining renames; the runtime infers them anyway.
    del graph.value_info[:]
    del graph.metadata_props[:]
    prefix_names(graph)
    return new_model(graph)


def describe(model: "onnx.ModelProto", metadata: Mapping[str, str]) -> None:
    """Write `metadata` into the model, sorted, as `session.get_modelmeta().custom_metadata_map` will show it."""
    from onnx import helper

    helper.set_model_props(model, dict(sorted(metadata.items())))


def tensor_specs(model: "onnx.ModelProto") -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """(inputs, outputs) as the graph declares them."""
    return tuple(map(_spec, model.graph.input)), tuple(map(_spec, model.graph.output))


def save(model: "onnx.ModelProto", path: Path) -> bytes:
    """Write the model, check it against the ONNX specification, and return the bytes written.

    Files of its external data lie beside `path` already.
    """
    from onnx import checker

    data: bytes = model.SerializeToString(deterministic=True)
    path.write_bytes(data)
    try:
        # By its path: external data is looked for beside the file.
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
    """A model of `graph` at the IR version and opset of every file made here."""
    from onnx import helper

    # Beside the standard operators, those of ONNX Runtime's own where a graph was fused (zoo.graph.fuse).
    domains = sorted({node.domain for node in graph.node} | {""})
    opset = [helper.make_opsetid(domain, 1 if domain else OPSET) for domain in domains]
    return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="zoo")


def prefix_names(graph: "onnx.GraphProto") -> None:
    """Put the graph's name before every inner name; inputs and outputs keep theirs."""
    public = {"", *(item.name for item in (*graph.input, *graph.output))}

    def renamed(name: str) -> str:
        return name if name in public else f"{graph.name}/{name}"

    for node in graph.node:
        # An output is written once, so its name is free for the node that writes it.
        node.name = f"{graph.name}/{node.name or node.output[0]}"
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for item in graph.initializer:
        item.name = renamed(item.name)
