"""Mistakes that an exported graph may have, and the parity check that finds them."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from zoo_plugins.backbones.bert import Bert
from zoo_plugins.backbones.efficientnet import EfficientNet

from zoo import Zoo
from zoo.data.samples import bundled
from zoo.export import parity
from zoo.export.build import encoder
from zoo.export.reference import expect


def behind(model: onnx.ModelProto, name: str, *nodes: onnx.NodeProto, **constants: np.ndarray) -> None:
    """Rename the tensor `name` to `true` where it is computed; `nodes` compute a new `name` from it."""
    for node in model.graph.node:
        node.output[:] = ["true" if output == name else output for output in node.output]
    model.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in constants.items())
    index = max(i for i, node in enumerate(model.graph.node) if "true" in node.output) + 1
    after = list(model.graph.node)[index:]
    del model.graph.node[index:]
    model.graph.node.extend([*nodes, *after])


def frozen_input(model: onnx.ModelProto) -> None:
    """Inputs that are declared with a batch axis of 1."""
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1


def reversed_channels(model: onnx.ModelProto) -> None:
    """BGR instead of RGB."""
    node = helper.make_node("Gather", ["true", "bgr"], ["pixels"], axis=1)
    behind(model, "pixels", node, bgr=np.array([2, 1, 0], np.int64))


def check_parity(zoo: Zoo, name: str, change: Callable[[onnx.ModelProto], None]) -> parity.Parity:
    """The result of the parity check on the built bundle of `name` after `change` was made to its graph."""
    bundle = zoo.graph(name)
    model = onnx.load_from_string(bundle.read_model())
    change(model)
    family = {"bert": Bert, "efficientnet": EfficientNet}[zoo.entry(name).family]
    backbone = family(zoo.entry(name), zoo.pull(name))
    preprocess = bundle.manifest.preprocess
    expected = expect(backbone.reference, *bundled(preprocess), encoder(preprocess, bundle.path))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return parity.check(path, expected)


def one_weight(model: onnx.ModelProto) -> None:
    """One number of the largest weight is wrong."""
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    array = numpy_helper.to_array(largest).copy()
    array.flat[np.abs(array).argmax()] *= -3
    largest.CopyFrom(numpy_helper.from_array(array, largest.name))


def swapped_sides(model: onnx.ModelProto) -> None:
    """Height and width of the input are swapped."""
    node = next(node for node in model.graph.node if node.op_type == "Transpose")
    next(attribute for attribute in node.attribute if attribute.name == "perm").ints[:] = [0, 3, 2, 1]


def frozen_batch(model: onnx.ModelProto) -> None:
    """Only the first item of a batch is computed; its features are repeated for the others."""
    first = onnx.helper.make_node("Slice", ["whole", "zero", "one", "zero"], ["first"])
    shape = onnx.helper.make_node("Shape", ["whole"], ["shape"])
    spread = onnx.helper.make_node("Expand", ["first", "shape"], ["features"])
    for node in model.graph.node:
        node.output[:] = ["whole" if name == "features" else name for name in node.output]
    for name, value in (("zero", [0]), ("one", [1])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    model.graph.node.extend([first, shape, spread])
