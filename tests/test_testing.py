"""The conformance check: conforming families pass it, and each wrong one fails exactly the check that is about it."""

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from zoo.backbone import Backbone
from zoo.schema import Entry
from zoo.testing import Report, check_backbone

#: A family with everything in its place, to be broken in one place at a time; its features are the mean colour, scaled.
RIGHT = """
from zoo.torchkit import TorchBackbone, as_stage
from zoo.backbone import Backbone

def network(change=lambda features, module: features):
    import torch

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]), requires_grad=False)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, pixels):
            return change(pixels.mean((2, 3)) * self.scale, self)

    return Network().eval()

class Toy(TorchBackbone):
    family = "toy"

    def build(self):
        return network()
"""
#: The same without torch, where the graph itself is what goes wrong.
PLAIN = """
from zoo.backbone import Backbone

class Toy(Backbone):
    family = "toy"
    output, opset, domain, nodes = "features", 20, "", ()

    def export(self, path, options):
        import numpy as np
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        extra = [helper.make_node(*each[:3], **each[3]) for each in self.nodes]
        last = extra[-1].output[0] if extra else "mean"
        nodes = [
            helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["mean"]),
            *extra,
            helper.make_node("Identity", [last], [self.output]),
        ]
        graph = helper.make_graph(
            nodes,
            "toy",
            [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 32, 32])],
            [helper.make_tensor_value_info(self.output, TensorProto.FLOAT, ["batch", 3])],
            [numpy_helper.from_array(np.array([1, 3], np.int64), "one_row")],
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=options.ir_version), path)

    def reference(self, feeds):
        return {"features": feeds["pixels"].mean((2, 3))}
"""
NORMAL = "RandomNormalLike"

#: (what is wrong, the code of the family, the one check that must fail)
WRONG = [
    ("the output has another name", PLAIN + '    output = "embedding"\n', "inputs and outputs"),
    ("an opset of tomorrow", PLAIN + "    opset = 21\n", "IR and opset"),
    (
        "an operator of one runtime alone",
        PLAIN + '    nodes = [("Gelu", ["mean"], ["gelu"], {"domain": "com.microsoft"})]\n',
        "IR and opset",
    ),
    ("a frozen batch", PLAIN + '    nodes = [("Reshape", ["mean", "one_row"], ["row"], {})]\n', "dynamic batch"),
    (
        "a batch axis of fixed length",
        RIGHT + '    def export(self, path, options):\n        import torch\n        torch.onnx.export(self.module, '
        '(torch.ones(2, 3, 32, 32),), str(path), input_names=["pixels"], output_names=["features"], '
        "opset_version=20, dynamo=True, external_data=False, verbose=False)\n",
        "dynamic batch",
    ),
    (
        "random noise in the graph",
        PLAIN + f'    nodes = [("{NORMAL}", ["mean"], ["noise"], {{}}), ("Add", ["mean", "noise"], ["noisy"], {{}})]\n',
        "graph deterministic",
    ),
    ("a wrong conversion", PLAIN + '    nodes = [("Neg", ["mean"], ["negative"], {})]\n', "parity"),
    (
        "a wrong reference",
        PLAIN + '    def reference(self, feeds):\n        return {"features": feeds["pixels"].mean((2, 3)) + 0.01}\n',
        "parity",
    ),
    (
        "random noise in the reference",
        PLAIN + "    def reference(self, feeds):\n        import numpy as np\n        "
        'return {"features": feeds["pixels"].mean((2, 3)) + np.random.rand(3)}\n',
        "reference deterministic",
    ),
    (
        "the reference is of another size",
        PLAIN + '    def reference(self, feeds):\n        return {"features": feeds["pixels"].mean((1, 2, 3))}\n',
        "reference",
    ),
    (
        "a leak between the rows of a batch",
        RIGHT.replace("return network()", "return network(lambda features, module: features + 0.1 * features.mean(0))"),
        "batch-invariant",
    ),
    (
        "dropout left on",
        RIGHT.replace(
            "return network()",
            "import torch\n        return torch.nn.Sequential(network(), torch.nn.Dropout(0.5))",
        ),
        "eval mode",
    ),
    (
        "state that changes as it runs",
        RIGHT.replace(
            "return network()", "return network(lambda features, module: features + 0 * module.seen.add_(1))"
        ),
        "state unchanged",
    ),
    (
        "stages that leave something out",
        RIGHT + '    def stages(self):\n        from torch import nn\n        '
        'return [as_stage(nn.AdaptiveAvgPool2d(1), ["pixels"], output="mean"), '
        'as_stage(nn.Flatten(), ["mean"], output="features")]\n',
        "stages",
    ),
    (
        "stages with tensors of their own",
        RIGHT + '    def stages(self):\n        return [as_stage(self.build(), ["pixels"], output="features")]\n',
        "stages",
    ),
    ("torch at import", "import torch\n" + RIGHT, "light import"),
    ("torch when the hook is asked", RIGHT + "\ndef zoo_register_backbones():\n    import torch\n", "light import"),
    ("an exit in the export", PLAIN.replace("        import numpy as np", "        raise SystemExit(3)", 1), "export"),
    ("no file", PLAIN.replace("        import numpy as np", "        return", 1), "export"),
    ("files it cannot read", RIGHT.replace("return network()", "raise OSError('not mine')"), "weights"),
]  # fmt: skip


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], type[Backbone]]]:
    """Makes the class Toy of some code, in a module that a child process can import, too."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(code: str) -> type[Backbone]:
        (tmp_path / "toy_family.py").write_text(code)
        family: type[Backbone] = importlib.import_module("toy_family").Toy
        return family

    yield load
    sys.modules.pop("toy_family", None)


def row(**changes: object) -> Entry:
    preprocess = {"kind": "image", "resize": 40, "crop": 32, "interpolation": "bilinear"}
    file = {"path": "toy.bin", "sha256": "0" * 64, "size": 1, "sources": ["file:///toy.bin"]}
    fields = {
        "name": "toy", "family": "toy", "task": "image-features", "description": "toy", "license": "CC0-1.0",
        "params": 3, "dim": 3, "preprocess": {**preprocess, "mean": [0.5] * 3, "std": [0.3] * 3}, "files": [file],
    }  # fmt: skip
    return msgspec.convert({**fields, **changes}, Entry)


def failed(report: Report) -> list[str]:
    """The checks that failed; what depends on them is skipped, and everything else passed."""
    states = {check.name: check.state for check in report.checks}
    assert all(check.detail for check in report.checks)
    return [name for name, state in states.items() if state == "failed"]


@pytest.mark.parametrize("code", [RIGHT, PLAIN], ids=["torch", "onnx"])
def test_a_right_family_passes(toy: Callable[[str], type[Backbone]], tmp_path: Path, code: str) -> None:
    report = check_backbone(toy(code), row(), tmp_path)
    assert report.failures == []
    assert report.passed
    assert report.size is not None
    assert report.size > 100
    names = [check.name for check in report.checks]
    assert ("stages" in names) is ("TorchBackbone" in code)
    assert names[-1] == "whole chain"


@pytest.mark.parametrize(("code", "check"), [each[1:] for each in WRONG], ids=[each[0] for each in WRONG])
def test_a_wrong_family_fails_that_check_alone(
    toy: Callable[[str], type[Backbone]], tmp_path: Path, code: str, check: str
) -> None:
    report = check_backbone(toy(textwrap.dedent(code)), row(), tmp_path)
    assert failed(report) == [check]
    assert not report.passed
    assert report.failures[0].startswith(f"{check}: ")
    assert "\n" not in report.failures[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"license": "unknown"}, "the license of toy is 'unknown'"),
        (
            {"files": [{"path": "toy.bin", "sha256": None, "size": None, "sources": ["file:///t"]}]},
            "toy.bin has no sha256",
        ),
    ],
)
def test_a_row_without_license_or_digest(
    toy: Callable[[str], type[Backbone]], tmp_path: Path, change: dict[str, object], said: str
) -> None:
    report = check_backbone(toy(PLAIN), row(**change), tmp_path)
    assert failed(report) == ["license and digests"]
    assert said in report.failures[0]
