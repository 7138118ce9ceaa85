"""The ONNX graph that prepares images: resize, centre crop and normalise.

Specification: https://onnx.ai/onnx/operators/ (Resize 19, Slice 13).
"""

from typing import TYPE_CHECKING, Any

from zoo.graph.edit import GraphBuilder, floats
from zoo.schema import IMAGE, PIXELS, ImagePreprocess

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

#: The key and value in a file's metadata that name the arithmetic of its preprocessing. Files without the key do not
#: round between the two passes.
ARITHMETIC = ("zoo.pixels", "2")
#: ONNX's attributes of each interpolation. For antialiasing Pillow and torchvision use Catmull-Rom's coefficient -0.5.
RESIZE_MODES: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "linear"},
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5},
}


def image_prefix(preprocess: ImagePreprocess) -> "onnx.ModelProto":
    """`image` uint8 [batch, height, width, 3] (RGB) -> `pixels` float32 [batch, 3, crop, crop].

    The short side (with `squash` each side) is resized to `resize`, the centre is cropped, then (x / 255 - mean) / std.
    Sizes and offsets are those of torchvision.transforms.v2: the long side is truncated, the offset rounded half to
    even; with `floor` the offset is truncated too.
    """
    from onnx import TensorProto, helper

    crop, graph = preprocess.crop, GraphBuilder()
    mean, inverse_std = normalisation(preprocess)
    # A squashed image has one size; otherwise the graph computes it.
    size = {"resized_size": [preprocess.resize] * 2} if preprocess.squash else {"short": preprocess.resize}
    indices = {"y": [2], "x": [3], "zero": [0], "one": [1], "two": [2]}
    for name, value in {**size, "crop": [crop, crop], **indices}.items():
        graph.constant(name, value, "int64")
    for name, number in {"half": 0.5, "black": 0, "white": 255, "mean": mean, "inverse_std": inverse_std}.items():
        graph.constant(name, number)
    graph.add("Transpose", [IMAGE], "planes_u8", perm=[0, 3, 1, 2])
    if not preprocess.squash:
        _add_resized_size(graph)
    _add_crop_bounds(graph, floor=preprocess.floor)
    graph.add("Cast", ["planes_u8"], "planes", to=TensorProto.FLOAT)
    _add_resize_and_crop(graph, RESIZE_MODES[preprocess.interpolation])
    graph.add("Sub", ["levels", "mean"], "centred")
    graph.add("Mul", ["centred", "inverse_std"], PIXELS)
    inputs = [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["batch", "height", "width", 3])]
    return graph.model("preprocess", inputs, [floats(PIXELS, ["batch", 3, crop, crop])])


def normalisation(preprocess: ImagePreprocess) -> "tuple[NDArray[np.float32], NDArray[np.float32]]":
    """Returns `mean` and `inverse_std`, [1, 3, 1, 1]: pixels are (grey level - mean) * inverse_std, in float32."""
    import numpy as np

    mean, std = (np.array(side, "float64").reshape(1, 3, 1, 1) * 255 for side in (preprocess.mean, preprocess.std))
    return mean.astype(np.float32), (1 / std).astype(np.float32)


def _add_resized_size(graph: GraphBuilder) -> None:
    """`planes_u8` -> `resized_size`: height and width with `short` as the short side."""
    graph.add("Shape", ["planes_u8"], "size", start=2, end=4)
    graph.add("ReduceMin", ["size"], "smaller", keepdims=0)
    graph.add("Mul", ["size", "short"], "size_times_short")
    graph.add("Div", ["size_times_short", "smaller"], "resized_size")


def _add_crop_bounds(graph: GraphBuilder, *, floor: bool) -> None:
    """`resized_size` -> `resized_height`, `resized_width`, and the crop's bounds in them: `top left bottom right`."""
    from onnx import TensorProto

    graph.add("Slice", ["resized_size", "zero", "one"], "resized_height")
    graph.add("Slice", ["resized_size", "one", "two"], "resized_width")
    graph.add("Sub", ["resized_size", "crop"], "margin")
    if floor:
        graph.add("Div", ["margin", "two"], "offset")
    else:
        graph.add("Cast", ["margin"], "margin_f", to=TensorProto.FLOAT)
        graph.add("Mul", ["margin_f", "half"], "offset_f")
        graph.add("Round", ["offset_f"], "offset_r")
        graph.add("Cast", ["offset_r"], "offset", to=TensorProto.INT64)
    graph.add("Add", ["offset", "crop"], "end")
    graph.add("Slice", ["offset", "zero", "one"], "top")
    graph.add("Slice", ["offset", "one", "two"], "left")
    graph.add("Slice", ["end", "zero", "one"], "bottom")
    graph.add("Slice", ["end", "one", "two"], "right")


def _add_resize_and_crop(graph: GraphBuilder, mode: dict[str, Any]) -> None:
    """`planes` -> `levels`: grey levels of the resized and cropped image.

    The width is resized first and then the height, with antialiasing. Bicubic interpolation overshoots, so each pass is
    rounded to grey levels and clipped to 0..255, as in Pillow (Pillow 13 resizes some tall images height first). Each
    side is cropped as soon as it is resized, which saves work. Pillow computes in fixed point, so halves may be rounded
    the other way: few values differ, nearly all of them by one level.
    """
    # Image libraries ignore pixels beyond the border; ONNX by default repeats the last pixel.
    resize: dict[str, Any] = {
        "antialias": 1, "exclude_outside": 1, "coordinate_transformation_mode": "half_pixel", **mode
    }  # fmt: skip
    graph.add("Resize", ["planes", "", "", "resized_width"], "wide", axes=[3], **resize)
    graph.add("Slice", ["wide", "left", "right", "x"], "columns")
    _add_levels(graph, "columns", "column_levels")
    graph.add("Resize", ["column_levels", "", "", "resized_height"], "high", axes=[2], **resize)
    graph.add("Slice", ["high", "top", "bottom", "y"], "cropped")
    _add_levels(graph, "cropped", "levels")


def _add_levels(graph: GraphBuilder, values: str, levels: str) -> None:
    """`values` -> `levels`: rounded, halves up, and clipped to 0..255."""
    graph.add("Add", [values, "half"], f"{values}_and_half")
    graph.add("Floor", [f"{values}_and_half"], f"{values}_rounded")
    graph.add("Clip", [f"{values}_rounded", "black", "white"], levels)
