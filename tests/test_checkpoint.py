"""Checkpoints: one file or several, and single linear layers of them. Damaged files are in tests/plugins."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zoo import IntegrityError
from zoo.checkpoint import load_linear, load_state


@pytest.fixture
def network() -> torch.nn.Sequential:
    torch.manual_seed(41)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))


def test_a_checkpoint_in_several_files_is_one(network: torch.nn.Sequential, tmp_path: Path) -> None:
    state = network.state_dict()
    parts = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for part, names in zip(parts, (list(state)[:3], list(state)[3:]), strict=True):
        save_file({name: state[name] for name in names}, part)
    empty = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    loaded = load_state(parts, empty)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert not loaded.training
    with pytest.raises(IntegrityError, match=r"a\.safetensors lacks 1\.bias, .* and 2 more"):
        load_state(parts[0], empty)
    with pytest.raises(IntegrityError, match=r"a\.safetensors has twice 0\."):
        load_state([parts[0], *parts], empty)


def test_a_linear_layer_of_a_checkpoint(network: torch.nn.Sequential, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(network.state_dict(), path)
    layer = load_linear(path, "2", (3, 2))
    inputs = torch.randn(5, 3)
    assert torch.equal(layer(inputs), network[2](inputs))
    with pytest.raises(IntegrityError, match="the head 2 gives 2 scores from 3 features, but the row has 7 labels"):
        load_linear(path, "2", (3, 7))
    with pytest.raises(IntegrityError, match="lacks weight, bias"):
        load_linear(path, "fc", (3, 2))
    path.write_bytes(b"no tensors")
    with pytest.raises(IntegrityError, match="not a valid safetensors file"):
        load_linear(path, "2", (3, 2))
