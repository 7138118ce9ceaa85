"""Fused text encoders for ONNX Runtime: attention, embeddings and skip-layer-norm as one `com.microsoft` operator each.

A fused graph is not standard ONNX: only ONNX Runtime runs it. onnxscript.rewriter.ort_fusions fuses attention,
bias-GELU and skip-layer-norm. This file fuses the embeddings and removes superfluous nodes around each attention.
Operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from zoo.errors import PluginError, UsageError
from zoo.extras import require
from zoo.graph import edit

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

DOMAIN = "com.microsoft"
ATTENTION, EMBEDDINGS = "MultiHeadAttention", "EmbedLayerNormalization"
SKIP_NORM, BIAS_GELU = "SkipLayerNormalization", "BiasGelu"
#: The index of the attention bias among the inputs of ATTENTION.
BIAS_INDEX = 5


def fuse(body: "onnx.ModelProto", family: str = "encoder") -> "onnx.ModelProto":
    """The text encoder `body` in fused operators, with the same inputs and outputs.

    For every softmax the result must have one attention, two skip-layer-norms and one bias-GELU; the first
    normalisation must become an embedding layer. Raises PluginError with the counts if a pattern was not found, for
    example because the exporter changed, and UsageError for a model without attention.
    """
    # Each layer has one softmax, and a head may have one more, which gives an output.
    outputs = {item.name for item in body.graph.output}
    layers = sum(node.op_type == "Softmax" and not outputs.intersection(node.output) for node in body.graph.node)
    if not layers:
        raise UsageError("there is no attention to fuse in this model", hint="leave --fuse out")
    require("fusing a model", "onnxscript")
    model = _rewritten(_with_embeddings(body))
    wanted = {ATTENTION: layers, EMBEDDINGS: 1, SKIP_NORM: 2 * layers, BIAS_GELU: layers}
    counts = {kind: _count(model, kind) for kind in wanted}
    if missed := [f"{counts[kind]} of {wanted[kind]} {kind}" for kind in wanted if counts[kind] != wanted[kind]]:
        raise PluginError(
            f"not all of the model was fused: {', '.join(missed)}",
            plugin=family,
            hint="zoo cannot fuse this form of graph: export it without --fuse",
        )
    return model


def _count(model: "onnx.ModelProto", kind: str) -> int:
    return sum(node.op_type == kind for node in model.graph.node)


def _with_embeddings(body: "onnx.ModelProto") -> "onnx.ModelProto":
    """`body` with one EmbedLayerNormalization instead of its embeddings, their sum and the first normalisation.

    `body` is unchanged unless the first normalisation reads the sum of words and positions (and the token type).
    """
    from onnx import TensorProto, helper, numpy_helper

    model = edit.copied(body)
    name, nodes = model.graph.name, list(model.graph.node)
    producers = {output: node for node in nodes for output in node.output}
    tables = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = {item.name: item for item in model.graph.input}
    norm = next((node for node in nodes if node.op_type == "LayerNormalization"), None)
    if norm is None:
        return model
    terms, constants = _terms(norm.input[0], producers)
    lookups = [node for node in terms if node.op_type in ("Gather", "Slice") and node.input[0] in tables]
    words = next((node for node in lookups if node.op_type == "Gather" and node.input[1] == "input_ids"), None)
    segments = next((node for node in lookups if node.op_type == "Gather" and node.input[1] == "token_type_ids"), None)
    places = next((node for node in lookups if node not in (words, segments)), None)
    most = 2 if segments is None else 3
    if words is None or places is None or len(terms) > most or not all(each in tables for each in constants):
        return model
    # All tokens of a text have the first token type, so its vector can be added to every position's vector.
    added = sum(numpy_helper.to_array(tables[each]) for each in constants)
    positions = numpy_helper.to_array(tables[places.input[0]]) + added
    model.graph.initializer.append(numpy_helper.from_array(positions, f"{name}/positions"))
    fused = edit.GraphBuilder()
    ids = fused.add("Cast", [words.input[1]], f"{name}/ids", to=TensorProto.INT32)
    types, table = "", ""
    if segments is not None:
        types = fused.add("Cast", [segments.input[1]], f"{name}/types", to=TensorProto.INT32)
        table = segments.input[0]
    taken = [ids, types, words.input[0], f"{name}/positions", table, *norm.input[1:3], ""]
    if places.op_type == "Gather":
        taken.append(fused.add("Cast", [places.input[1]], f"{name}/places", to=TensorProto.INT32))
    outputs, epsilon = [norm.output[0], ""], edit.attributes(norm)["epsilon"]
    node = helper.make_node(EMBEDDINGS, taken, outputs, name=norm.name, domain=DOMAIN, epsilon=epsilon)
    index = nodes.index(norm)
    nodes[index : index + 1] = [*fused.nodes, node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    axes = [axis.dim_param for axis in inputs[words.input[1]].type.tensor_type.shape.dim]
    model.graph.value_info.append(edit.floats(norm.output[0], [*axes, positions.shape[1]]))
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model


def _terms(name: str, producers: "Mapping[str, onnx.NodeProto]") -> "tuple[list[onnx.NodeProto], list[str]]":
    """Returns the terms of the sum in a tensor: nodes that compute a term, and names of terms that no node computes."""
    node = producers.get(name)
    if node is None:
        return [], [name]
    if node.op_type != "Add":
        return [node], []
    left, right = (_terms(each, producers) for each in node.input)
    return [*left[0], *right[0]], [*left[1], *right[1]]


def _rewritten(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The graph after onnxscript's fusions, without superfluous nodes around each attention."""
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    with warnings.catch_warnings(action="ignore"):
        from onnxscript.rewriter import ort_fusions

        inner = ir.from_proto(model)
        fused, _ = ort_fusions.optimize_for_ort(inner)
        _simplify_attention(fused.graph)
        ir.passes.Sequential(
            passes.CommonSubexpressionEliminationPass(),
            passes.RemoveUnusedNodesPass(),
            passes.RemoveUnusedOpsetsPass(),
        )(fused)
        proto: onnx.ModelProto = ir.to_proto(fused)
    taken = {name for node in proto.graph.node for name in node.input} | {item.name for item in proto.graph.output}
    for node in proto.graph.node:
        # ONNX Runtime computes an optional output if it has a name, so unused outputs are removed, except those of
        # EMBEDDINGS, whose names are required.
        while node.op_type == SKIP_NORM and len(node.output) > 1 and node.output[-1] not in taken:
            node.output.pop()
    return proto


def _simplify_attention(inner: "ir.Graph") -> None:
    """Connect each attention directly to its projections [batch, sequence, width], without Reshape and Transpose.

    The shape of the attention's bias is then computed from the input ids.
    """
    import onnx_ir as ir

    for node in list(inner):
        if node.op_type == "Reshape" and (source := _before_reshape(node)) is not None:
            for user, index in list(node.outputs[0].uses()):
                user.replace_input_with(index, source)
    ids = next(value for value in inner.inputs if value.name == "input_ids")
    length = ir.Node("", "Shape", [ids], attributes=[ir.AttrInt64("start", 1), ir.AttrInt64("end", 2)])
    inner.insert_before(inner[0], length)
    for node in inner:
        expand = _producer(node, BIAS_INDEX) if node.op_type == ATTENTION else None
        shape = _producer(expand, 1) if expand is not None and expand.op_type == "Expand" else None
        if shape is not None and shape.op_type == "Concat" and len(shape.inputs) == 4:
            shape.replace_input_with(2, length.outputs[0])


def _before_reshape(node: "ir.Node") -> "ir.Value | None":
    """The tensor [batch, sequence, width] that the Reshape `node` restores after its heads were split and transposed.

    None if the Reshape does anything else.
    """
    order = [0, 1, 2, 3]
    before = _producer(node)
    while before is not None and before.op_type == "Transpose":
        permutation = list(before.attributes["perm"].as_ints())
        if len(permutation) != 4:
            return None
        order = [permutation[axis] for axis in order]
        before = _producer(before)
    if before is None or before.op_type != "Reshape" or order != [0, 1, 2, 3]:
        return None
    restores = _axes(node.inputs[1]) == 3 and _axes(before.inputs[1]) == 4
    return before.inputs[0] if restores else None


def _producer(node: "ir.Node", index: int = 0) -> "ir.Node | None":
    """The node that computes an input of `node`; None if there is no such input or no node computes it."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return value.producer() if value is not None else None


def _axes(shape: "ir.Value | None") -> object:
    """The number of axes that the second input of a Reshape gives its output; None if that is not known."""
    return shape.shape[0] if shape is not None and shape.shape is not None else None
