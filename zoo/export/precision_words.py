"""Converts a word table to fewer bits: half precision, or int8 with a scale for each row. No data are needed.

The graph gathers the rows of a text's words and converts only these rows to single precision, so the table stays small.
Every row is converted independently of the others. The original is memory-mapped and read some rows at a time.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from zoo.errors import UsageError
from zoo.graph import edit, external_data
from zoo.schema import Precision

if TYPE_CHECKING:
    from zoo.graph.external_data import Bytes

#: Rows converted at once, and the levels of a signed byte on each side of zero.
ROWS, LEVELS = 1 << 14, 127
#: The file of the scales, beside that of the rows.
SCALES = "scales.bin"


def convert_table(
    model: onnx.ModelProto, precision: Precision, read: "Callable[[str], Bytes]", folder: Path
) -> onnx.ModelProto:
    """`model` with its external table [words, dim] as float16, or as int8 with a float32 scale for each row.

    `read` returns the bytes of a file beside the model; the new table is written to `folder` under the same name.
    Raises UsageError for a model without such a table, and for numbers beyond half precision.
    """
    converted = edit.copied(model)
    table = _table(converted)
    [tensor] = external_data.references(converted)
    rows = _rows(read(tensor.file), tensor.offset, tuple(table.dims))
    if precision == "fp16":
        _write_halves(rows, folder / tensor.file)
        _set_external(table, TensorProto.FLOAT16, rows.shape, tensor.file)
    else:
        _write_bytes(rows, folder / tensor.file, folder / SCALES)
        _set_external(table, TensorProto.INT8, rows.shape, tensor.file)
        scales = converted.graph.initializer.add(name=f"{table.name}_scales")
        _set_external(scales, TensorProto.FLOAT, (len(rows), 1), SCALES)
    node, graph = helper.make_node, edit.GraphBuilder(converted.graph)
    for gather in converted.graph.node:
        graph.nodes.append(gather)
        if table.name not in gather.input:
            continue
        ids, wanted, name = gather.input[1], gather.output[0], gather.name
        single = wanted if precision == "fp16" else f"{wanted}_levels"
        gather.output[:] = [f"{wanted}_narrow"]
        graph.nodes.append(node("Cast", [f"{wanted}_narrow"], [single], name=f"{name}_wide", to=TensorProto.FLOAT))
        if precision != "fp16":
            graph.nodes += [
                node("Gather", [f"{table.name}_scales", ids], [f"{wanted}_scales"], name=f"{name}_scales"),
                node("Mul", [single, f"{wanted}_scales"], [wanted], name=f"{name}_scaled"),
            ]
    graph.replace(converted)
    return converted


def _table(model: onnx.ModelProto) -> onnx.TensorProto:
    """The only external tensor: a float32 matrix that only Gather nodes read, row by row."""
    names = [external.name for external in external_data.references(model)]
    tensor: onnx.TensorProto
    for tensor in model.graph.initializer:
        if names != [tensor.name] or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2:
            continue
        users = [node for node in model.graph.node if tensor.name in node.input]
        # The default axis of a Gather is 0: rows.
        if users and all(node.op_type == "Gather" and not any(each.i for each in node.attribute) for node in users):
            return tensor
    raise UsageError("this model has no word table in single precision to convert", hint="--precision fp32")


def _rows(data: "Bytes", offset: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4", math.prod(shape), offset).reshape(shape)


def _batches(rows: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    return (rows[start : start + ROWS] for start in range(0, len(rows), ROWS))


def _write_halves(rows: NDArray[np.float32], path: Path) -> None:
    with path.open("wb") as file, np.errstate(over="ignore"):
        for batch in _batches(rows):
            halves = batch.astype("<f2")
            if not np.isfinite(halves).all():
                largest = float(np.finfo(np.float16).max)
                raise UsageError(
                    f"the table has numbers beyond {largest:,.0f}, the largest number of half precision",
                    hint="--precision int8, which has a scale for each row, or fp32",
                )
            file.write(halves.tobytes())


def _write_bytes(rows: NDArray[np.float32], path: Path, scales: Path) -> None:
    """Write the rows as int8 and their scales; a row's largest number becomes LEVELS, a row of zeros has scale 0."""
    with path.open("wb") as levels, scales.open("wb") as factors:
        for batch in _batches(rows):
            scale = (np.abs(batch).max(1, keepdims=True) / np.float32(LEVELS)).astype("<f4")
            # A subnormal scale has lost digits: such a row becomes zeros.
            scale[scale < np.finfo(np.float32).tiny] = 0
            divisor = np.where(scale > 0, scale, np.float32(np.inf))
            levels.write(np.rint(batch / divisor).clip(-LEVELS, LEVELS).astype("i1").tobytes())
            factors.write(scale.tobytes())


def _set_external(tensor: onnx.TensorProto, kind: int, shape: tuple[int, ...], file: str) -> None:
    """Make a tensor of this type and shape the whole contents of `file`."""
    tensor.data_type, tensor.dims[:] = kind, shape
    tensor.data_location = tensor.EXTERNAL
    del tensor.external_data[:]
    length = math.prod(shape) * helper.tensor_dtype_to_np_dtype(kind).itemsize
    for key, value in (("location", file), ("offset", 0), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
