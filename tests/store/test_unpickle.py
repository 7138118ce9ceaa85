"""Checkpoints that do not match their row: one line, a hint and exit code 5; their code is never run."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from zoo_plugins.backbones.inception import Inception

from tests.kit.upstream import ROWS, Upstream
from zoo import IntegrityError, Zoo
from zoo.schema import Entry
from zoo.store.unpickle import as_safetensors, convert

NAME = "googlenet.tv_in1k"
WEIGHT = "inception3a.branch1.conv.weight"
VARIANCE = "inception3a.branch1.bn.running_var"
State = dict[str, Any]


@pytest.fixture(scope="module")
def state() -> State:
    """The weights of a whole GoogLeNet in torchvision's layout."""
    from torchvision import models

    torch.manual_seed(0)
    return dict(models.googlenet(init_weights=False, aux_logits=True).state_dict())


def entry_of(path: str) -> Entry:
    from tests.kit.vision import with_config

    return with_config(Zoo().entry(NAME), path)


def build(state: State, folder: Path) -> torch.nn.Module:
    """The family's network, loaded from a safetensors file with these tensors."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "w.safetensors")
    return Inception(entry_of("w.safetensors"), folder).build()


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.index_fill(0, torch.tensor([3]), float("nan"))


FAULTS: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (lambda s: {k: v for k, v in s.items() if k != WEIGHT}, f"lacks {WEIGHT}"),
    "empty": (lambda s: {}, r"lacks conv1.conv.weight, .* and \d+ more"),
    "extra": (lambda s: {**s, "inception9z.bias": torch.ones(2)}, "has unexpected inception9z.bias"),
    "another network": (lambda s: {f"module.{k}": v for k, v in s.items()}, "lacks conv1"),
    "transposed": (lambda s: {**s, WEIGHT: s[WEIGHT].transpose(0, 1)}, f"has wrong shapes for {WEIGHT}"),
    "a scalar": (lambda s: {**s, WEIGHT: torch.tensor(1.0)}, f"has wrong shapes for {WEIGHT}"),
    "nan": (lambda s: {**s, WEIGHT: with_nan(s[WEIGHT])}, f"has non-finite numbers in {WEIGHT}"),
    "infinite": (lambda s: {**s, WEIGHT: s[WEIGHT] / 0}, f"has non-finite numbers in {WEIGHT}"),
    "infinite half": (lambda s: {**s, WEIGHT: (s[WEIGHT] * 1e9).half()}, f"has non-finite numbers in {WEIGHT}"),
    "negative variance": (lambda s: {**s, VARIANCE: s[VARIANCE] - 1e6}, f"has negative variances in {VARIANCE}"),
    **{
        str(dtype): (
            lambda s, dtype=dtype: {**s, WEIGHT: s[WEIGHT].to(dtype)},
            rf"has wrong types for {WEIGHT} \({str(dtype).removeprefix('torch.')}\)",
        )
        for dtype in (torch.int8, torch.int64, torch.bool, torch.float64, torch.float8_e4m3fn, torch.complex64)
    },
}


@pytest.mark.filterwarnings("ignore:Casting complex values:UserWarning")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_tensor_that_is_not_the_rows(state: State, tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    with pytest.raises(IntegrityError, match=f"w.safetensors {message}") as caught:
        build(change(state), tmp_path)
    assert caught.value.exit_code == 5
    assert caught.value.hint == "the file is not the one this row describes"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(state: State, tmp_path: Path, dtype: torch.dtype) -> None:
    half = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    parameters = dict(build(half, tmp_path).named_parameters())
    assert {each.dtype for each in parameters.values()} == {torch.float32}
    assert torch.equal(parameters[WEIGHT], half[WEIGHT].float())


def test_old_checkpoints_have_no_batch_counters(state: State, tmp_path: Path) -> None:
    bare = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert len(bare) < len(state)
    assert torch.equal(build(bare, tmp_path).get_parameter(WEIGHT), state[WEIGHT])


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    """A prefixed and a bare name of transformers mean the same tensor, and zoo must not choose between them."""
    from zoo_plugins.backbones.resnet import from_transformers

    from zoo.torchkit import load_state

    network = torch.nn.Sequential()
    network.conv1 = torch.nn.Conv2d(3, 4, 1, bias=False)
    name = "embedder.embedder.convolution.weight"
    save_file({name: torch.ones(4, 3, 1, 1), f"resnet.{name}": torch.zeros(4, 3, 1, 1)}, tmp_path / "w.safetensors")
    with pytest.raises(IntegrityError, match=r"has twice conv1\.weight"):
        load_state(tmp_path / "w.safetensors", network, from_transformers)


def test_a_safetensors_file_that_is_none(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04", (1 << 62).to_bytes(8, "little") + b"{}"):
        (tmp_path / "w.safetensors").write_bytes(content)
        with pytest.raises(IntegrityError, match="not a valid safetensors file"):
            Inception(entry_of("w.safetensors"), tmp_path).build()


def test_a_nested_state_dict_is_the_checkpoint(state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": state, "epoch": 90, "arch": "googlenet"}, tmp_path / "w.pth")
    network = Inception(entry_of("w.pth"), tmp_path).build()
    assert torch.equal(network.get_parameter(WEIGHT), state[WEIGHT])


class Payload:
    """An object whose unpickling runs a command."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def write_bad(kind: str, path: Path, canary: Path) -> None:
    tensor = torch.arange(30_000.0)
    contents = {
        "code": {"a": tensor, "b": Payload(canary)},
        "code below": {"state_dict": {"a": tensor, "b": Payload(canary)}},
        "a module": torch.nn.Linear(2, 2),
        "sparse": {"a": torch.eye(3).to_sparse()},
        "numbers": {"a": tensor, "epoch": 3},
        "a list": [tensor],
        "number names": {3: tensor},
    }
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(Payload(canary)))
    elif kind == "cut":
        torch.save({"a": tensor}, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind in ("empty", "a page"):
        path.write_bytes(b"" if kind == "empty" else b"<!doctype html><title>Log in</title>")
    else:
        torch.save(contents[kind], path)


REASONS = {
    "code": "it needs the code (posix|nt).system",
    "code below": "it needs the code (posix|nt).system",
    "bare pickle": "it cannot be read",
    "a module": "it needs the code torch.nn.modules.linear.Linear",
    "sparse": "a is not a dense tensor but torch.sparse_coo",
    "numbers": "epoch is not a tensor but int",
    "a list": "it is a list, not a dictionary of tensors",
    "number names": "the name 3 of a tensor is not text",
    "cut": "it cannot be read",
    "empty": "it cannot be read",
    "a page": "it cannot be read",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_pickle_that_is_not_plain_tensors(tmp_path: Path, kind: str) -> None:
    """The work of the child, in this process: `weights_only` prevents that the code runs."""
    path, canary = tmp_path / "w.pth", tmp_path / "canary"
    write_bad(kind, path, canary)
    assert re.match(REASONS[kind], convert(path, tmp_path / "out") or "")
    assert [each.name for each in tmp_path.iterdir()] == ["w.pth"]


@pytest.mark.parametrize("kind", ["code", "sparse", "cut"])
def test_the_child_says_why_in_one_line(tmp_path: Path, kind: str) -> None:
    path, canary = tmp_path / "w.pth", tmp_path / "canary"
    write_bad(kind, path, canary)
    with pytest.raises(IntegrityError, match=f"w.pth does not hold plain tensors: {REASONS[kind]}") as caught:
        as_safetensors(path)
    assert caught.value.exit_code == 5
    assert "\n" not in caught.value.message
    assert "safetensors" in str(caught.value.hint)
    assert [each.name for each in tmp_path.iterdir()] == ["w.pth"]


def test_the_canary_would_sing(tmp_path: Path) -> None:
    """The payload works: opening it with pickle runs its command."""
    write_bad("bare pickle", tmp_path / "w.pth", tmp_path / "canary")
    pickle.loads((tmp_path / "w.pth").read_bytes())
    assert (tmp_path / "canary").exists()


def test_the_command_line_says_it_in_one_line(upstream: Upstream, tmp_path: Path) -> None:
    """A hostile pickle with the pinned digest is pulled, and refused when it is read."""
    kept = upstream.rows.get(NAME)
    folder, canary = tmp_path / "files", tmp_path / "canary"
    folder.mkdir()
    write_bad("code", folder / ROWS[NAME]["files"][0]["path"], canary)
    try:
        upstream.publish(NAME, folder)
        done = upstream.run("export", NAME, "-o", str(tmp_path / "out"), home=tmp_path / "home")
    finally:
        if kept is not None:
            upstream.publish(NAME, upstream.files / NAME)
        else:
            del upstream.rows[NAME]
    assert done.returncode == 5
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("error: googlenet-1378be20.pth does not hold plain tensors: it needs the code")
    assert hint == "hint: use the safetensors file of this model if there is one"
    assert not canary.exists()
    assert not (tmp_path / "out").exists()
