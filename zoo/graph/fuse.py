"""Fused encoders for ONNX Runtime: attention, embeddings and skip-layer-norm each as one operator of `com.microsoft`.

Such a graph is no longer standard ONNX: only ONNX Runtime runs it. The patterns of attention, bias-GELU and
skip-layer-norm are onnxscript's (onnxscript.rewriter.ort_fusions); what it leaves over, the embeddings and the detours
around each attention, is done here. Operators:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.errors import PluginError, UsageError
from zoo.extras import require
from zoo.graph import edit

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

DOMAIN = "com.microsoft"
ATTENTION, EMBEDDINGS = "MultiHeadAttention", "EmbedLayerNormalization"
SKIP_NORM, BIAS_GELU = "SkipLayerNormalization", "BiasGelu"
NORM = "LayerNormalization"
#: The place of what is added to the scores among an attention's inputs.
BIAS = 5


class Fused(NamedTuple):
    """The fused graph, and how many of each fused operator it has."""

    model: "onnx.ModelProto"
    counts: Mapping[str, int]


def fuse(body: "onnx.ModelProto", family: str = "encoder") -> Fused:
    """`body`, an encoder of texts, in fused operators; its inputs and outputs, names and axes stay.

    Every softmax must become an attention with its two skip-layer-norms and its bias-GELU, and the first normalisation
    that of the embeddings: raises PluginError, with the counts and `family`, when one did not, be it that an exporter
    writes it otherwise. UsageError for a model that has no attention.
    """
    wanted = _wanted(body)
    if not wanted[ATTENTION]:
        raise UsageError("there is no attention to fuse in this model", hint="leave --fuse out")
    require("fusing a model", "onnxscript")
    model = _with_embeddings(body)
    model = _rewritten(model)
    counts = {kind: _count(model, kind) for kind in wanted}
    if missed := [f"{counts[kind]} of {wanted[kind]} {kind}" for kind in wanted if counts[kind] != wanted[kind]]:
        raise PluginError(
            f"not all of the model was fused: {', '.join(missed)}",
            plugin=family,
            hint="its graph has another form than the fusions know: export it without --fuse",
        )
    return Fused(model, counts)


def _wanted(body: "onnx.ModelProto") -> dict[str, int]:
    """How many of each fused operator the graph must become: by its layers, each of which has one softmax."""
    layers = _count(body, "Softmax")
    return {ATTENTION: layers, EMBEDDINGS: 1, SKIP_NORM: 2 * layers, BIAS_GELU: layers}


def _count(model: "onnx.ModelProto", kind: str) -> int:
    return sum(node.op_type == kind for node in model.graph.node)


def _with_embeddings(body: "onnx.ModelProto") -> "onnx.ModelProto":
    """The first normalisation, of words + positions (+ the one type of tokens), as one operator where it is that."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(body)
    makers = {output: node for node in model.graph.node for output in node.output}
    tables = {tensor.name: tensor for tensor in model.graph.initializer}
    norm = next((node for node in model.graph.node if node.op_type == NORM), None)
    if norm is None:
        return model
    terms, constants = _terms(norm.input[0], makers)
    words = next((node for node in terms if _looks_up(node, tables) and node.input[1] in _inputs(model)), None)
    places = next((node for node in terms if node is not words and _looks_up(node, tables, "Slice")), None)
    if words is None or places is None or len(terms) > 2 or not all(name in tables for name in constants):
        return model
    # One text is all of the first type: its vector is as well added to each position's.
    positions = numpy_helper.to_array(tables[places.input[0]]) + sum(
        numpy_helper.to_array(tables[n]) for n in constants
    )
    name = f"{model.graph.name}/positions"
    model.graph.initializer.append(numpy_helper.from_array(positions, name))
    ids = f"{model.graph.name}/ids"
    nodes = [helper.make_node("Cast", [words.input[1]], [ids], name=ids, to=TensorProto.INT32)]
    inputs = [ids, "", words.input[0], name, "", *norm.input[1:3], ""]
    if places.op_type == "Gather":
        where = f"{model.graph.name}/places"
        nodes.append(helper.make_node("Cast", [places.input[1]], [where], name=where, to=TensorProto.INT32))
        inputs.append(where)
    epsilon = next(item.f for item in norm.attribute if item.name == "epsilon")
    nodes.append(
        helper.make_node(
            EMBEDDINGS, inputs, [norm.output[0], ""], name=norm.name, domain=DOMAIN, epsilon=epsilon
        )
    )  # fmt: skip
    place = list(model.graph.node).index(norm)
    everything = list(model.graph.node)
    everything[place : place + 1] = nodes
    del model.graph.node[:]
    model.graph.node.extend(everything)
    [given] = [item for item in model.graph.input if item.name == words.input[1]]
    axes = [axis.dim_param for axis in given.type.tensor_type.shape.dim]
    edit.declare(model, norm.output[0], TensorProto.FLOAT, [*axes, positions.shape[1]])
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model


def _inputs(model: "onnx.ModelProto") -> set[str]:
    return {item.name for item in model.graph.input}


def _terms(name: str, makers: "Mapping[str, onnx.NodeProto]") -> "tuple[list[onnx.NodeProto], list[str]]":
    """What is added up in a tensor: (the nodes, the names of what no node makes)."""
    node = makers.get(name)
    if node is None:
        return [], [name]
    if node.op_type != "Add":
        return [node], []
    left, right = (_terms(each, makers) for each in node.input)
    return [*left[0], *right[0]], [*left[1], *right[1]]


def _looks_up(node: "onnx.NodeProto", tables: Mapping[str, Any], *more: str) -> bool:
    """Whether a node takes rows of a constant table."""
    return node.op_type in ("Gather", *more) and node.input[0] in tables


def _rewritten(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The graph after onnxscript's fusions, without the detours around each attention."""
    import warnings

    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnxscript.rewriter import ort_fusions

        inner = ir.from_proto(model)
        fused, _ = ort_fusions.optimize_for_ort(inner)
        _straighten(fused.graph)
        ir.passes.Sequential(
            passes.CommonSubexpressionEliminationPass(),
            passes.RemoveUnusedNodesPass(),
            passes.RemoveUnusedOpsetsPass(),
        )(fused)
        proto: onnx.ModelProto = ir.to_proto(fused)
    taken = {name for node in proto.graph.node for name in node.input} | {item.name for item in proto.graph.output}
    for node in proto.graph.node:
        # What an operator gives on the side is computed only where it has a name; that of the embeddings must have one.
        while node.op_type == SKIP_NORM and len(node.output) > 1 and node.output[-1] not in taken:
            node.output.pop()
    return proto


def _straighten(inner: "ir.Graph") -> None:
    """Give each attention its projections as they are [batch, sequence, width], and what follows its own answer."""
    import onnx_ir as ir

    for node in list(inner):
        if node.op_type == "Reshape" and (source := _undone(node)) is not None:
            for user, place in list(node.outputs[0].uses()):
                user.replace_input_with(place, source)
    ids = next(value for value in inner.inputs if value.name == "input_ids")
    length: ir.Value | None = None
    for node in list(inner):
        bias = node.inputs[BIAS] if node.op_type == ATTENTION and len(node.inputs) > BIAS else None
        expand = bias.producer() if bias is not None else None
        if expand is None or expand.op_type != "Expand":
            continue
        if length is None:
            one = ir.Node("", "Shape", [ids], attributes=[ir.AttrInt64("start", 1), ir.AttrInt64("end", 2)])
            inner.insert_before(inner[0], one)
            length = one.outputs[0]
        shape = expand.inputs[1].producer() if expand.inputs[1] is not None else None
        if shape is not None and shape.op_type == "Concat" and len(shape.inputs) == 4:
            shape.replace_input_with(2, length)


def _undone(node: "ir.Node") -> "ir.Value | None":
    """The tensor [batch, sequence, width] that a Reshape to three axes gives back after heads were split and turned."""
    order = [0, 1, 2, 3]
    maker = _maker(node)
    while maker is not None and maker.op_type == "Transpose":
        turned = list(maker.attributes["perm"].as_ints())
        if len(turned) != 4:
            return None
        order = [turned[axis] for axis in order]
        maker = _maker(maker)
    if maker is None or maker.op_type != "Reshape" or order != [0, 1, 2, 3]:
        return None
    source = maker.inputs[0]
    target, rank = node.inputs[1], maker.inputs[1]
    if source is None or _length(target) != 3 or _length(rank) != 4:
        return None
    return source


def _maker(node: "ir.Node") -> "ir.Node | None":
    """Who makes the first input of a node."""
    value = node.inputs[0]
    return value.producer() if value is not None else None


def _length(shape: "ir.Value | None") -> int | None:
    """How many axes a Reshape's second input names."""
    if shape is None or shape.shape is None or len(shape.shape) != 1:
        return None
    first = shape.shape[0]
    return first if isinstance(first, int) else None
