"""Graphs that are cut on their bytes equal those that onnx cuts, and bytes that are no model are refused."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from zoo import IntegrityError, Zoo
from zoo.graph import edit
from zoo.graph.protobuf import Wire
from zoo.schema import IMAGE


def test_both_parts_of_a_real_model(kept_shelf: Path) -> None:
    bundle = Zoo().graph("tiny-lite")
    data, cut = bundle.read_model(), bundle.manifest.cut
    assert cut is not None
    whole, wire = onnx.load_from_string(data), Wire(data)
    assert wire.inputs == [IMAGE]
    assert wire.outputs == [item.name for item in whole.graph.output]
    for inputs, outputs in (([IMAGE], [cut]), ([cut], wire.outputs)):
        wanted = edit.extract(whole, inputs, outputs)
        # A cut graph keeps the metadata of the whole.
        wanted.metadata_props.extend(whole.metadata_props)
        assert onnx.load_from_string(wire.cut(inputs, outputs)) == wanted


def chain(lengths: list[int]) -> onnx.ModelProto:
    """y0 = x + w0, y1 = y0 + w1, ...: weights of these lengths, which the file stores in one byte or more."""
    nodes = [
        helper.make_node("Add", [f"y{n - 1}" if n else "x", f"w{n}"], [f"y{n}"], name=f"add {n}")
        for n in range(len(lengths))
    ]
    weights = [numpy_helper.from_array(np.full(size, n, np.float32), f"w{n}") for n, size in enumerate(lengths)]
    values = [helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, ["n"]) for n in range(len(lengths))]
    made = helper.make_graph(
        nodes, "chain", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])], values[-1:], weights,
        value_info=values[:-1],
    )  # fmt: skip
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", edit.OPSET)], ir_version=edit.IR_VERSION, producer_name="zoo"
    )


@given(st.lists(st.integers(1, 5000), min_size=2, max_size=6), st.data())
def test_chains_are_cut_anywhere(lengths: list[int], data: st.DataObject) -> None:
    model = chain(lengths)
    cut = f"y{data.draw(st.integers(0, len(lengths) - 2))}"
    wire, last = Wire(model.SerializeToString()), f"y{len(lengths) - 1}"
    for inputs, outputs in ((["x"], [cut]), ([cut], [last])):
        assert onnx.load_from_string(wire.cut(inputs, outputs)) == edit.extract(model, inputs, outputs)


@given(st.data())
def test_damaged_models_are_refused_or_read_but_never_crash(data: st.DataObject) -> None:
    good = bytearray(chain([3, 300]).SerializeToString())
    index = data.draw(st.integers(0, len(good) - 1))
    if data.draw(st.booleans()):
        damaged = bytes(good[:index])
    else:
        good[index] = data.draw(st.integers(0, 255))
        damaged = bytes(good)
    with suppress(IntegrityError):
        Wire(damaged).cut(["x"], ["y1"])


@pytest.mark.parametrize("data", [b"", b"not a model", b"\xff" * 40, b"PK\x03\x04 a zip file"])
def test_what_is_no_model(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="not ONNX"):
        Wire(data)


def test_a_tensor_without_a_shape_cannot_be_cut_at() -> None:
    model = chain([1, 1])
    del model.graph.value_info[:]
    wire = Wire(model.SerializeToString())
    assert wire.knows("y0")
    assert not wire.knows("z")
    with pytest.raises(IntegrityError, match="no shape of 'y0'"):
        wire.cut(["y0"], ["y1"])
