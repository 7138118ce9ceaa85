"""Eight bits for encoders of texts: weights with a scale a column, activations with a scale a row, found as they come.

A scale that a whole tensor shares would let a loud text change its neighbours' answers in a batch (so does ONNX
Runtime's dynamic quantisation), and one that is fixed beforehand fits no text well. With one a row (a token) no text
depends on another, and nothing is calibrated. The graph says it in standard operators (QuantizeLinear,
DequantizeLinear), which ONNX Runtime fuses with the product. Weights are rounded so that every processor sums them
alike (zoo.export.precision_images).

Rows scaled so are "token-wise dynamic quantisation" in the literature: Yao et al., https://arxiv.org/abs/2206.01861.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.errors import UsageError
from zoo.export.precision_images import fitting_range
from zoo.runtime.ort import create_session

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from zoo.backbone import TensorMap

#: Levels on either side of zero.
LEVELS = 127
#: Activations are bytes around the middle one; behind a GELU, which has no answer below -0.17, from that one up.
MIDDLE = 128
GELU, LEAST = ("Gelu", "BiasGelu"), 0.17
#: A row of zeros has a scale, too.
TINY = 1e-9
#: Products and tables with fewer weights than this gain nothing.
SMALL = 1024


class Rows(NamedTuple):
    """Activations as bytes and back, over `largest`, each row's size; LEAST was added before where `is_shifted`."""

    rounded: str
    largest: str
    is_shifted: bool


class Columns(NamedTuple):
    """A weight as bytes and back, and the sums [out] of its columns as they then are."""

    rounded: str
    sums: "NDArray[np.float32]"


def rowwise(body: "onnx.ModelProto", exclude: Collection[str] = ()) -> "onnx.ModelProto":
    """`body` with its products of activations [..., in] and weights [in, out] in eight bits, and its tables.

    But for the nodes `exclude`. Raises UsageError when there is no such product.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(body)
    if not any(True for _ in layers(model)):
        raise UsageError("this model has no layers that eight bits would speed up", hint="--precision fp32, or fp16")
    writer = _Writer(model)
    products = {node.name for node in layers(model)}.difference(exclude)
    tables = {node.name for node in _lookups(model)}.difference(exclude)
    for node in model.graph.node:
        if node.name in products:
            writer.product(node.input[0], node.input[1], node.output[0])
        elif node.name in tables:
            writer.lookup(node)
        else:
            writer.nodes.append(node)
    writer.finish()
    return model


def layers(body: "onnx.ModelProto") -> "Iterator[onnx.NodeProto]":
    """The products of activations and a large weight."""
    large = _large(body)
    return (node for node in body.graph.node if node.op_type == "MatMul" and node.input[1] in large)


def worst_layers(body: "onnx.ModelProto", batches: "Sequence[TensorMap]", exclude: Collection[str] = ()) -> list[str]:
    """Names of the products, those first that alone move the outputs of `body` furthest when they are rounded."""
    import numpy as np

    names = [node.name for node in layers(body) if node.name not in exclude]

    def answers(model: "onnx.ModelProto") -> "list[NDArray[Any]]":
        session = create_session(model.SerializeToString(), "cpu")
        return [session.run(None, dict(batch))[0] for batch in batches]

    exact = answers(body)

    def moved(name: str) -> float:
        others = [*(other for other in names if other != name), *exclude]
        pairs = zip(answers(rowwise(body, others)), exact, strict=True)
        return float(sum(np.square(found - right).sum() for found, right in pairs))

    cost = {name: moved(name) for name in names}
    return sorted(names, key=lambda name: -cost[name])


def _lookups(body: "onnx.ModelProto") -> "Iterator[onnx.NodeProto]":
    """Rows taken of a large table."""
    large = _large(body)
    for node in body.graph.node:
        axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
        if node.op_type == "Gather" and node.input[0] in large and axis == 0:
            yield node


def _large(body: "onnx.ModelProto") -> set[str]:
    """Names of the constants that are matrices of many floats, and lie in the file itself."""
    from onnx import TensorProto

    return {
        tensor.name
        for tensor in body.graph.initializer
        if len(tensor.dims) == 2
        and tensor.data_type == TensorProto.FLOAT
        and tensor.data_location != TensorProto.EXTERNAL
        and tensor.dims[0] * tensor.dims[1] >= SMALL
    }


class _Writer:
    """The graph's nodes anew, one after another; what several of them need is written once."""

    def __init__(self, model: "onnx.ModelProto") -> None:
        self.model, self.name = model, model.graph.name
        self.nodes: list[onnx.NodeProto] = []
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {output: node.op_type for node in model.graph.node for output in node.output}
        self.known_rows: dict[str, Rows] = {}
        self.known_columns: dict[str, Columns] = {}

    def product(self, values: str, weight: str, output: str) -> None:
        """`values` [..., in] times `weight` [in, out]."""
        if values not in self.known_rows:
            self.known_rows[values] = self._rows(values)
        if weight not in self.known_columns:
            self.known_columns[weight] = self._columns(weight)
        rows, columns = self.known_rows[values], self.known_columns[weight]
        relative = self._node("MatMul", [rows.rounded, columns.rounded], f"{output}/relative")
        if not rows.is_shifted:
            self._node("Mul", [relative, rows.largest], output)
            return
        # (largest * rounded - LEAST) @ weight: the second part is the same for all rows.
        rest = self._constant(f"{output}/rest", -LEAST * columns.sums)
        shifted = self._node("Mul", [relative, rows.largest], f"{output}/shifted")
        self._node("Add", [shifted, rest], output)

    def lookup(self, node: "onnx.NodeProto") -> None:
        """Rows of a table, whose own scale each of them has."""
        import numpy as np
        from onnx import TensorProto

        (table, index), output = node.input, node.output[0]
        rows = self._array(table)
        scale, rounded = _rounded(rows.T, np.abs(rows).max(1))
        bytes_ = self._constant(f"{table}/bytes", np.ascontiguousarray(rounded.T), "int8")
        scales = self._constant(f"{table}/scale", scale[:, None])
        found = self._node("Gather", [bytes_, index], f"{output}/bytes")
        exact = self._node("Cast", [found], f"{output}/whole", to=TensorProto.FLOAT)
        self._node("Mul", [exact, self._node("Gather", [scales, index], f"{output}/scale")], output)

    def finish(self) -> None:
        """Put the nodes, and the constants that they take, into the model."""
        graph = self.model.graph
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        graph.initializer.extend(tensor for name, tensor in self.constants.items() if name in used)

    def _rows(self, values: str) -> Rows:
        last = self._constant(f"{self.name}/last_axis", [-1], "int64")
        most = self._node("ReduceMax", [values, last], f"{values}/max", keepdims=1)
        is_shifted = self.makers.get(values) in GELU
        if is_shifted:
            least = self._constant(f"{self.name}/least", LEAST)
            largest = self._node("Add", [most, least], f"{values}/size")
            given = self._node("Add", [values, least], f"{values}/positive")
            step, origin = 1 / 255, 0
        else:
            tiny = self._constant(f"{self.name}/tiny", TINY)
            lowest = self._node("ReduceMin", [values, last], f"{values}/min", keepdims=1)
            largest = self._node(
                "Max", [most, self._node("Neg", [lowest], f"{values}/negative"), tiny], f"{values}/size"
            )
            given, step, origin = values, 1 / LEVELS, MIDDLE
        scale = self._constant(f"{self.name}/step_{origin}", step)
        zero = self._constant(f"{self.name}/origin_{origin}", origin, "uint8")
        relative = self._node("Div", [given, largest], f"{values}/relative")
        whole = self._node("QuantizeLinear", [relative, scale, zero], f"{values}/bytes")
        return Rows(self._node("DequantizeLinear", [whole, scale, zero], f"{values}/rounded"), largest, is_shifted)

    def _columns(self, weight: str) -> Columns:
        import numpy as np

        columns = self._array(weight)
        scale, rounded = _rounded(columns, fitting_range(columns.T[:, :, None, None]))
        inputs = [
            self._constant(f"{weight}/bytes", rounded, "int8"),
            self._constant(f"{weight}/scale", scale),
            self._constant(f"{weight}/origin", np.zeros(len(scale)), "int8"),
        ]
        sums: NDArray[np.float32] = rounded.sum(0, dtype=np.int64).astype(np.float32) * scale
        return Columns(self._node("DequantizeLinear", inputs, f"{weight}/rounded", axis=1), sums)

    def _array(self, name: str) -> "NDArray[np.float32]":
        from onnx import numpy_helper

        array: NDArray[np.float32] = numpy_helper.to_array(self.constants[name])
        return array

    def _node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def _constant(self, name: str, value: object, dtype: str = "float32") -> str:
        import numpy as np
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name


def _rounded(
    weight: "NDArray[np.float32]", ranges: "NDArray[np.float32]"
) -> "tuple[NDArray[np.float32], NDArray[np.int8]]":
    """(each column's scale, by which its range has LEVELS steps, and the weight over that in whole numbers)."""
    import numpy as np

    scale: NDArray[np.float32] = (np.maximum(ranges, TINY) / LEVELS).astype(np.float32)
    return scale, np.clip(np.rint(weight / scale), -LEVELS, LEVELS).astype(np.int8)
