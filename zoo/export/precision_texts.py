"""int8 for text encoders: weights with a scale for each column, activations with a scale for each row.

Each row (token) has its own scale, computed at run time: no text depends on another, and nothing is calibrated. One
scale for a whole tensor, as in ONNX Runtime's dynamic quantisation, would let one text of a batch change the others. A
scale fixed beforehand fits no text well. The graph uses standard operators (QuantizeLinear, DequantizeLinear), which
ONNX Runtime fuses with the MatMul. Weights are scaled so that every processor computes the same sums
(zoo.export.precision_images).

The literature calls this "token-wise dynamic quantisation": Yao et al., https://arxiv.org/abs/2206.01861.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from zoo.errors import UsageError
from zoo.export.precision_images import LEVELS, fitting_range, rounded
from zoo.graph import edit
from zoo.runtime.ort import create_session

if TYPE_CHECKING:
    from zoo.backbone import TensorMap

#: The zero point of activations, which are uint8. Outputs of a GELU have the zero point 0 after LEAST is added to them.
MIDDLE = 128
GELU, LEAST = ("Gelu", "BiasGelu"), 0.17
#: The smallest scale: a row of zeros needs one too.
TINY = 1e-9
#: The smallest number of elements for which a weight or a table is quantised; smaller ones save no time.
SMALLEST_MATRIX = 1024


def quantise_encoder(body: onnx.ModelProto, exclude: Collection[str] = ()) -> onnx.ModelProto:
    """`body` with its large MatMuls [..., in] x [in, out] and its embedding tables in int8.

    Nodes whose names are in `exclude` stay in float. Raises UsageError for a model without a large MatMul.
    """
    names = {node.name for node in quantisable_layers(body)}
    if not names:
        raise UsageError("this model has no layers that int8 would speed up", hint="--precision fp32, or fp16")
    model = edit.copied(body)
    writer = _Writer(model.graph)
    layers, lookups = names.difference(exclude), _lookups(body).difference(exclude)
    for node in model.graph.node:
        if node.name in layers:
            writer.matmul(node.input[0], node.input[1], node.output[0])
        elif node.name in lookups:
            writer.lookup(node.input[0], node.input[1], node.output[0])
        else:
            writer.nodes.append(node)
    writer.replace(model)
    return model


def quantisable_layers(body: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The MatMul nodes with a large constant weight."""
    large = _large(body)
    return [node for node in body.graph.node if node.op_type == "MatMul" and node.input[1] in large]


def worst_layers(body: onnx.ModelProto, batches: "Sequence[TensorMap]") -> list[str]:
    """Names of the large MatMuls, sorted by how much quantising each alone changes the outputs; the worst first."""
    names = [node.name for node in quantisable_layers(body)]

    def outputs(model: onnx.ModelProto) -> list[NDArray[Any]]:
        session = create_session(model.SerializeToString(), "cpu")
        return [session.run(None, dict(batch))[0] for batch in batches]

    exact = outputs(body)

    def cost(name: str) -> float:
        others = [other for other in names if other != name]
        pairs = zip(outputs(quantise_encoder(body, others)), exact, strict=True)
        return float(sum(np.square(found - right).sum() for found, right in pairs))

    return sorted(names, key=cost, reverse=True)


def _lookups(body: onnx.ModelProto) -> set[str]:
    """Names of the nodes that gather rows of a large table."""
    large = _large(body)
    gathers = [node for node in body.graph.node if node.op_type == "Gather" and node.input[0] in large]
    return {node.name for node in gathers if edit.attributes(node).get("axis", 0) == 0}


def _large(body: onnx.ModelProto) -> set[str]:
    """Names of the constants that are large float matrices, stored in the file itself."""
    return {
        tensor.name
        for tensor in body.graph.initializer
        if len(tensor.dims) == 2
        and tensor.data_type == TensorProto.FLOAT
        and tensor.data_location != TensorProto.EXTERNAL
        and tensor.dims[0] * tensor.dims[1] >= SMALLEST_MATRIX
    }


class _Writer(edit.GraphBuilder):
    """Writes the quantised graph node by node; tensors that several nodes need are written once."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        super().__init__(graph)
        self.name = graph.name
        self.gelus = {node.output[0] for node in graph.node if node.op_type in GELU}
        self.known_rows: dict[str, tuple[str, str]] = {}
        self.known_columns: dict[str, tuple[str, NDArray[np.float32]]] = {}

    def matmul(self, values: str, weight: str, output: str) -> None:
        """Write `values` [..., in] times `weight` [in, out]."""
        if values not in self.known_rows:
            self.known_rows[values] = self._rows(values)
        if weight not in self.known_columns:
            self.known_columns[weight] = self._columns(weight)
        (rows, largest), (columns, sums) = self.known_rows[values], self.known_columns[weight]
        relative = self.add("MatMul", [rows, columns], f"{output}/relative")
        if values not in self.gelus:
            self.add("Mul", [relative, largest], output)
            return
        # (largest * rows - LEAST) @ weight: LEAST @ weight is the same for all rows.
        rest = self.constant(f"{output}/rest", -LEAST * sums)
        shifted = self.add("Mul", [relative, largest], f"{output}/shifted")
        self.add("Add", [shifted, rest], output)

    def lookup(self, table: str, index: str, output: str) -> None:
        """Write a Gather of rows of `table`; every row has its own scale."""
        rows = self.array(table)
        levels, scale = rounded(rows, np.maximum(np.abs(rows).max(1, keepdims=True), TINY))
        stored = self.constant(f"{table}/bytes", levels, "int8")
        scales = self.constant(f"{table}/scale", scale)
        found = self.add("Gather", [stored, index], f"{output}/bytes")
        exact = self.add("Cast", [found], f"{output}/whole", to=TensorProto.FLOAT)
        self.add("Mul", [exact, self.add("Gather", [scales, index], f"{output}/scale")], output)

    def _rows(self, values: str) -> tuple[str, str]:
        """Returns activations quantised to uint8 with one scale per row and back, and each row's largest number."""
        last = self.constant(f"{self.name}/last_axis", [-1], "int64")
        most = self.add("ReduceMax", [values, last], f"{values}/max", keepdims=1)
        if values in self.gelus:
            least = self.constant(f"{self.name}/least", LEAST)
            largest = self.add("Add", [most, least], f"{values}/size")
            given = self.add("Add", [values, least], f"{values}/positive")
            step, origin = 1 / 255, 0
        else:
            tiny = self.constant(f"{self.name}/tiny", TINY)
            lowest = self.add("ReduceMin", [values, last], f"{values}/min", keepdims=1)
            negative = self.add("Neg", [lowest], f"{values}/negative")
            largest = self.add("Max", [most, negative, tiny], f"{values}/size")
            given, step, origin = values, 1 / LEVELS, MIDDLE
        scale = self.constant(f"{self.name}/step_{origin}", step)
        zero = self.constant(f"{self.name}/origin_{origin}", origin, "uint8")
        relative = self.add("Div", [given, largest], f"{values}/relative")
        stored = self.add("QuantizeLinear", [relative, scale, zero], f"{values}/bytes")
        return self.add("DequantizeLinear", [stored, scale, zero], f"{values}/rounded"), largest

    def _columns(self, weight: str) -> tuple[str, NDArray[np.float32]]:
        """Returns a weight quantised with one scale per column and back, and its column sums [out] after that."""
        columns = self.array(weight)
        levels, scale = rounded(columns, np.maximum(fitting_range(columns.T[:, :, None, None]), TINY))
        inputs = [
            self.constant(f"{weight}/bytes", levels, "int8"),
            self.constant(f"{weight}/scale", scale),
            self.constant(f"{weight}/origin", np.zeros(len(scale)), "int8"),
        ]
        sums: NDArray[np.float32] = levels.sum(0, dtype=np.int64).astype(np.float32) * scale
        return self.add("DequantizeLinear", inputs, f"{weight}/rounded", axis=1), sums
