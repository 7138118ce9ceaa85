"""The ONNX graph that prepares images: resize, centre crop and normalise.

Specification: https://onnx.ai/onnx/operators/ (Resize 19, Slice 13).
"""

from typing import TYPE_CHECKING, Any

from zoo.graph.edit import new_model, prefix_names
from zoo.schema import IMAGE, PIXELS, ImagePreprocess

if TYPE_CHECKING:
    import onnx

#: onnx's interpolation mode, and Catmull-Rom's coefficient as Pillow and torchvision use it when antialiasing.
RESIZE_MODES: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "linear"},
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5},
}


def image_prefix(preprocess: ImagePreprocess) -> "onnx.ModelProto":
    """`image` uint8 [batch, height, width, 3] (RGB) -> `pixels` float32 [batch, 3, crop, crop].

    Short side to `resize` with antialiasing, width first and then height, each clipped to the range of a grey level as
    image libraries do, where bicubic overshoots. Only the result is rounded: libraries round between the passes too,
    each in its own way, and half a level there can never become two levels in the end. Centre crop, each side as soon
    as it is resized: what is cut off needs no more work. Then (x / 255 - mean) / std. Sizes and offsets follow
    torchvision.transforms.v2: the long side is truncated, the offset rounded half to even.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, value: object, dtype: str) -> "onnx.TensorProto":
        return numpy_helper.from_array(np.array(value, dtype=dtype), name)

    mean, std = (np.array(side, "float64").reshape(1, 3, 1, 1) * 255 for side in (preprocess.mean, preprocess.std))
    constants = [
        constant("short", preprocess.resize, "int64"),
        constant("crop", [preprocess.crop, preprocess.crop], "int64"),
        constant("y", [2], "int64"),
        constant("x", [3], "int64"),
        constant("zero", [0], "int64"),
        constant("one", [1], "int64"),
        constant("two", [2], "int64"),
        constant("half", 0.5, "float32"),
        constant("black", 0, "float32"),
        constant("white", 255, "float32"),
        constant("mean", mean, "float32"),
        constant("inverse_std", 1 / std, "float32"),
    ]
    node = helper.make_node
    resize: dict[str, Any] = {
        "antialias": 1,
        # Libraries let pixels beyond the border weigh nothing; by default they would repeat the last one.
        "exclude_outside": 1,
        "coordinate_transformation_mode": "half_pixel",
        **RESIZE_MODES[preprocess.interpolation],
    }
    nodes = [
        node("Transpose", [IMAGE], ["planes_u8"], perm=[0, 3, 1, 2]),
        node("Shape", ["planes_u8"], ["size"], start=2, end=4),
        node("ReduceMin", ["size"], ["smaller"], keepdims=0),
        node("Mul", ["size", "short"], ["size_times_short"]),
        node("Div", ["size_times_short", "smaller"], ["resized_size"]),
        node("Slice", ["resized_size", "zero", "one"], ["resized_height"]),
        node("Slice", ["resized_size", "one", "two"], ["resized_width"]),
        node("Sub", ["resized_size", "crop"], ["margin"]),
        node("Cast", ["margin"], ["margin_f"], to=TensorProto.FLOAT),
        node("Mul", ["margin_f", "half"], ["offset_f"]),
        node("Round", ["offset_f"], ["offset_r"]),
        node("Cast", ["offset_r"], ["offset"], to=TensorProto.INT64),
        node("Add", ["offset", "crop"], ["end"]),
        node("Slice", ["offset", "zero", "one"], ["top"]),
        node("Slice", ["offset", "one", "two"], ["left"]),
        node("Slice", ["end", "zero", "one"], ["bottom"]),
        node("Slice", ["end", "one", "two"], ["right"]),
        node("Cast", ["planes_u8"], ["planes"], to=TensorProto.FLOAT),
        node("Resize", ["planes", "", "", "resized_width"], ["wide"], axes=[3], **resize),
        node("Slice", ["wide", "left", "right", "x"], ["columns"]),
        node("Clip", ["columns", "black", "white"], ["column_levels"]),
        node("Resize", ["column_levels", "", "", "resized_height"], ["high"], axes=[2], **resize),
        node("Slice", ["high", "top", "bottom", "y"], ["cropped"]),
        node("Round", ["cropped"], ["rounded"]),
        node("Clip", ["rounded", "black", "white"], ["levels"]),
        node("Sub", ["levels", "mean"], ["centred"]),
        node("Mul", ["centred", "inverse_std"], [PIXELS]),
    ]  # fmt: skip
    crop = preprocess.crop
    inputs = [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["batch", "height", "width", 3])]
    outputs = [helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, ["batch", 3, crop, crop])]
    graph = helper.make_graph(nodes, "preprocess", inputs, outputs, constants)
    prefix_names(graph)
    return new_model(graph)
