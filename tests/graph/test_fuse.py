"""Fused encoders: every part of every architecture is fused, the numbers stay, and other graphs are refused."""

import numpy as np
import onnx
import pytest

from tests.kit.berts import exported, tokens
from tests.kit.graphs import ARCHITECTURES, answers, operators, weights
from zoo import PluginError, UsageError
from zoo.graph import edit, fuse


def encoder(factory: pytest.TempPathFactory, arch: str) -> onnx.ModelProto:
    return edit.clean(edit.load(exported(factory, arch) / "model.onnx"), "bert")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_layer_is_fused(tmp_path_factory: pytest.TempPathFactory, arch: str) -> None:
    """All three layers are fused; this test fails if the exporter changes its patterns."""
    body = encoder(tmp_path_factory, arch)
    fused = fuse.fuse(body)
    wanted = {"MultiHeadAttention": 3, "EmbedLayerNormalization": 1, "SkipLayerNormalization": 6, "BiasGelu": 3}
    assert {kind: operators(fused, kind) for kind in wanted} == wanted
    for kind in ("Softmax", "LayerNormalization", "Gelu", "Transpose", "Reshape", "Slice"):
        # MPNet transposes its table of distances once.
        assert operators(fused, kind) == (kind == "Transpose" and arch == "mpnet"), kind
    assert edit.tensor_specs(fused) == edit.tensor_specs(body)
    for batch, length in ((1, 3), (2, 40), (7, 150)):
        feeds = tokens(batch, length)
        np.testing.assert_allclose(answers(fused, feeds), answers(body, feeds), atol=1e-5)


def test_what_is_fused_in_part_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A softmax that is not fused, as from another exporter, is an error with the counts."""
    body = encoder(tmp_path_factory, "bert")
    index = next(index for index, node in enumerate(body.graph.node) if node.op_type == "Softmax")
    softmax = body.graph.node[index]
    between = onnx.helper.make_node("Identity", [softmax.output[0]], ["odd"], name="odd")
    doubled = onnx.helper.make_node("Add", ["odd", "odd"], ["twice"], name="twice")
    for node in body.graph.node:
        node.input[:] = ["twice" if name == softmax.output[0] else name for name in node.input]
    body.graph.node.insert(index + 1, between)
    body.graph.node.insert(index + 2, doubled)
    with pytest.raises(PluginError, match="not all of the model was fused: 2 of 3 MultiHeadAttention") as caught:
        fuse.fuse(body)
    assert caught.value.hint is not None
    assert "without --fuse" in caught.value.hint


def test_a_model_without_attention() -> None:
    with pytest.raises(UsageError, match="no attention to fuse"):
        fuse.fuse(weights((64, 64)))
