"""The family `toy`: the mean colour of an image, compared with each colour of a palette by a dot product."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.backbone import Backbone
from zoo.errors import IntegrityError
from zoo.hookspecs import hookimpl
from zoo.schema import ExportOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.backbone import TensorMap


class Toy(Backbone):
    """`features` [batch, dim]: one number for each colour of the palette."""

    family = "toy"

    def palette(self) -> "NDArray[np.float32]":
        """The colours in the row's file: float32 [dim, 3]. Raises IntegrityError for another number of colours."""
        import numpy as np

        path = self.weights / self.entry.files[0].path
        colours = np.array(json.loads(path.read_text(encoding="utf-8"))["colours"], np.float32)
        if colours.shape != (self.entry.dim, 3):
            raise IntegrityError(f"{path.name} holds {list(colours.shape)}, not [{self.entry.dim}, 3]")
        return colours

    def export(self, path: Path, options: ExportOptions) -> None:
        """GlobalAveragePool, Flatten and MatMul, by onnx.helper."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        nodes = [
            helper.make_node("GlobalAveragePool", ["pixels"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["colour"]),
            helper.make_node("MatMul", ["colour", "palette"], ["features"]),
        ]
        (pixels,) = self.entry.inputs
        graph = helper.make_graph(
            nodes,
            "toy",
            [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, pixels.shape)],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", self.entry.dim])],
            [numpy_helper.from_array(self.palette().T.copy(), "palette")],
        )
        opset = [helper.make_opsetid("", options.opset)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=options.ir_version), path)

    def reference(self, feeds: "TensorMap") -> "TensorMap":
        """The features in numpy, in double precision."""
        import numpy as np

        means = np.asarray(feeds["pixels"], np.float64).mean((2, 3))
        return {"features": (means @ self.palette().T.astype(np.float64)).astype(np.float32)}


@hookimpl
def zoo_register_backbones() -> Iterable[type[Backbone]]:
    """The one family of this module."""
    return [Toy]
