"""A frozen trunk and a tuned tail together equal the whole model, in torch, in ONNX, and on disk."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from zoo_plugins.backbones.bert import Bert

from tests.kit.berts import entry_of, reference, tokens
from tests.kit.upstream import Upstream
from tests.kit.vision import ours
from zoo import GateError, IntegrityError, UsageError, Zoo
from zoo.backbone import Backbone
from zoo.data import samples
from zoo.export import parity, trunk
from zoo.export.build import encoder, metadata
from zoo.export.reference import expect
from zoo.graph import edit
from zoo.graph import head as head_graph
from zoo.runtime.ort import create_session
from zoo.schema import ExportOptions
from zoo.torchkit import TorchBackbone


def nudged(backbone: Backbone, cut: int) -> torch.nn.ModuleList:
    """A tail with changed weights, as after a training."""
    stages = trunk.tail(backbone, cut)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stages.parameters():
            assert parameter.requires_grad
            parameter.add_(0.3 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator))
    return stages


def joined(backbone: TorchBackbone, stages: torch.nn.ModuleList, folder: Path) -> onnx.ModelProto:
    """Trunk and tail, each exported alone, as one graph."""
    cut = len(backbone.stages()) - len(stages)
    backbone.export(folder / "trunk.onnx", ExportOptions(cut=cut))
    first = edit.clean(edit.load(folder / "trunk.onnx"), trunk.NAME)
    computed = trunk.output_specs(backbone, cut)
    trunk.check_contract(first, backbone.entry, backbone.entry.inputs, computed)
    trunk.export_tail(folder / "tail.onnx", stages, backbone)
    return edit.join(first, edit.load(folder / "tail.onnx"))


def check_same(backbone: TorchBackbone, cut: int, folder: Path, feeds: list[dict[str, np.ndarray]]) -> None:
    """The joined graph equals torch with a tuned tail, and with an untuned tail it equals the whole model."""
    tuned, untuned = nudged(backbone, cut), trunk.tail(backbone, cut)
    session = create_session(joined(backbone, tuned, folder).SerializeToString(), "cpu")
    for feed in feeds:
        whole = backbone.reference(feed)["features"]
        size = max(1.0, np.abs(whole).max())
        np.testing.assert_allclose(trunk.tuned_reference(backbone, untuned)(feed)["features"], whole, atol=1e-5 * size)
        wanted = trunk.tuned_reference(backbone, tuned)(feed)["features"]
        got = session.run(["features"], feed)[0]
        np.testing.assert_allclose(got, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))
        assert np.abs(got - whole).max() > 1e-3 * np.abs(whole).max()


@pytest.mark.parametrize(
    ("arch", "cut"),
    [
        ("bert", 1),
        ("distilbert", 2),
        # The graphs of these two are exported and fused in tests/graph/test_fuse.py, too.
        pytest.param("roberta", 3, marks=pytest.mark.slow),
        pytest.param("mpnet", 2, marks=pytest.mark.slow),
    ],
)
def test_text_families(tmp_path: Path, arch: str, cut: int) -> None:
    reference(arch).save_pretrained(tmp_path)
    feeds = [tokens(batch, length) for batch, length in ((1, 3), (2, 40), (7, 150))]
    check_same(Bert(entry_of(arch), tmp_path), cut, tmp_path, feeds)


# Inception v3 shares the code of GoogLeNet's stages; tests/plugins/test_vision.py compares its stages with the module.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "unfreeze"),
    [("resnet18.tv_in1k", 1), ("googlenet.tv_in1k", 2)],
)
def test_image_families(upstream: Upstream, tmp_path: Path, name: str, unfreeze: int) -> None:
    backbone = ours(upstream, name)
    side = backbone.entry.inputs[0].shape[-1]
    random = np.random.default_rng(0)
    feeds = [{"pixels": random.normal(size=(batch, 3, side, side)).astype(np.float32)} for batch in (1, 2, 7)]
    check_same(backbone, trunk.cut_at(backbone, unfreeze), tmp_path, feeds)


@pytest.mark.parametrize(("name", "cut"), [("tiny-bert", 2), ("tiny-lite", 7)])
def test_the_chain_from_a_built_trunk(deep_shelf: Path, tmp_path: Path, name: str, cut: int) -> None:
    zoo = Zoo()
    base = zoo.graph(name, cut)
    assert base.manifest.parity.passed
    assert {check.batch for check in base.manifest.parity.checks} >= {1, 2, 7}
    assert zoo.graph(name, cut).path == base.path != zoo.graph(name).path
    backbone = zoo.plugins.make(zoo.entry(name), zoo.pull(name))
    tuned = nudged(backbone, cut)
    trunk.export_tail(tmp_path / "tail.onnx", tuned, backbone)
    facts = metadata(base.manifest.lineage, base.manifest.preprocess, ("a", "b"))
    layers = [(np.eye(2, backbone.entry.dim, dtype=np.float32), np.zeros(2, np.float32))]
    head = head_graph.as_graph(layers, "softmax")
    whole = trunk.merge(base, tmp_path / "tail.onnx", tmp_path / "model.onnx", head=head, facts=facts)
    assert [spec.name for spec in edit.tensor_specs(whole)[1]] == ["features", "scores"]
    top = parity.Top(layers, "softmax")
    items, origin = samples.bundled(base.manifest.preprocess)
    reader = encoder(base.manifest.preprocess, base.path)
    right = trunk.tuned_reference(backbone, tuned)
    assert parity.check(tmp_path / "model.onnx", expect(right, items, origin, reader), top=top).passed
    with pytest.raises(GateError):
        parity.check(tmp_path / "model.onnx", expect(backbone.reference, items, origin, reader), top=top)


def test_what_is_shared_with_the_trunk_is_not_tuned_there(tmp_path: Path) -> None:
    # All layers of MPNet share one bias for distances: training the last layer must not change the others.
    reference("mpnet").save_pretrained(tmp_path)
    backbone, feeds = Bert(entry_of("mpnet"), tmp_path), tokens(2, 20)
    before = backbone.reference(feeds)["features"]
    nudged(backbone, 2)
    np.testing.assert_array_equal(backbone.reference(feeds)["features"], before)


def test_more_stages_than_there_are(tmp_path: Path) -> None:
    reference("bert").save_pretrained(tmp_path)
    backbone = Bert(entry_of("bert"), tmp_path)
    assert trunk.cut_at(backbone, 3) == 1
    for number in (0, 4, 5):
        with pytest.raises(UsageError, match="4 stages") as caught:
            trunk.cut_at(backbone, number)
        assert "--unfreeze 3" in caught.value.hint
    with pytest.raises(UsageError):
        backbone.export(tmp_path / "x.onnx", ExportOptions(cut=4))


def test_a_family_without_stages_cannot_be_unfrozen(shelf: Path, tmp_path: Path) -> None:
    class Whole(TorchBackbone):
        family = "whole"

        def build(self) -> torch.nn.Module:
            return torch.nn.Flatten()

    for family in (Whole(Zoo().entry("tiny-lite"), tmp_path),):
        with pytest.raises(UsageError, match="no stages"):
            trunk.cut_at(family, 1)


def test_a_tail_on_disk(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    reference("mpnet").save_pretrained(tmp_path)
    backbone, path = Bert(entry_of("mpnet"), tmp_path), tmp_path / trunk.TAIL_FILE
    tuned, fresh = nudged(backbone, 1), trunk.tail(backbone, 1)
    trunk.save_tail(tuned, path)
    stored = load_file(path)
    assert {name.partition(".")[0] for name in stored} == {"0", "1", "2"}
    fresh.train()
    trunk.load_tail(path, fresh)
    assert all(parameter.requires_grad for parameter in fresh.parameters())
    assert fresh[0].training
    for name, tensor in tuned.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)
    name = next(name for name in stored if name.endswith("query.weight"))
    for broken in (
        {key: tensor for key, tensor in stored.items() if key != name},
        {**stored, "9.inner.weight": torch.zeros(2)},
        {**stored, name: torch.zeros(3, 3)},
        {**stored, name: stored[name].int()},
        {**stored, name: stored[name] * torch.nan},
    ):
        save_file(broken, path)
        with pytest.raises(IntegrityError, match="tail"):
            trunk.load_tail(path, fresh)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(IntegrityError):
        trunk.load_tail(path, fresh)
