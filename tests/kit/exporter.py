"""Cheaper exports in the processes of the tests."""

import tempfile
from pathlib import Path

from tests.kit.cost import untraced


def make_exports_cheaper() -> None:
    """Let the exports of this process share torch's table of ONNX functions, and hide them from coverage.

    Torch makes the table anew for every export, which takes a second. Coverage would trace millions of calls in torch,
    and of zoo only the forward functions that the references of the same families run, too.
    """
    from functools import cache

    import torch
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    shared = staticmethod(cache(ONNXRegistry.from_torchlib))
    ONNXRegistry.from_torchlib = shared  # type: ignore[method-assign, assignment]
    torch.onnx.export = untraced(torch.onnx.export)


def warm_up() -> None:
    """Export a graph of two layers: the first export of a process costs three seconds more than the next ones."""
    import torch

    from zoo.schema import ExportOptions, TensorSpec
    from zoo.torchkit import export_module, threads

    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU6()).eval()
    pixels = TensorSpec(name="pixels", dtype="float32", shape=("batch", 3, 8, 8))
    make_exports_cheaper()
    # A second thread would be missing in the children.
    with threads(1), tempfile.TemporaryDirectory() as folder:
        export_module(layers, Path(folder) / "model.onnx", [pixels], ["features"], ExportOptions())
