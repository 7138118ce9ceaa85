"""A training that stops and is resumed by the real command: equal bytes, and refusals with their reason."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.kit.cli import fails, parsed, zoo
from tests.kit.items import write_texts
from zoo import UsageError
from zoo.training.checkpoints import Checkpoints, State

#: Neither a search nor early stopping, so that every epoch runs.
PLAIN = ("--lr", 0.001, "--weight-decay", 0.1, "--patience", 100)
#: More epochs than any test waits for.
ENDLESS = 1_000_000


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data") / "tickets.csv", 30)


@pytest.fixture(scope="module")
def kept_home(kept_home: Path, trunks: Path) -> Path:
    """The ZOO_HOME of this file's tests, with the trunks of the tiny models."""
    return shutil.copytree(trunks, kept_home / "graphs", dirs_exist_ok=True).parent


@pytest.fixture(scope="module")
def whole(texts: Path, kept_home: Path, shelf_file: Path) -> bytes:
    """The bytes of the head after twelve epochs without a stop."""
    out = texts.parent / "whole"
    environ = {"ZOO_HOME": str(kept_home), "ZOO_REGISTRY": str(shelf_file)}
    done = zoo("finetune", "tiny-bert", texts, "-o", out, "--epochs", 12, *PLAIN, "--json", **environ)
    assert parsed(done)["finetune"]["best_epoch"] == 12
    return (out / "head.safetensors").read_bytes()


@pytest.fixture
def train(kept_shelf: Path, texts: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a training on `texts` that writes `out`."""

    def command(*more: object, model: str = "tiny-bert", data: Path = texts) -> list[str]:
        return [str(word) for word in ("finetune", model, data, "-o", tmp_path / "out", *PLAIN, *more)]

    return command


def run(command: list[str]) -> None:
    """Run the command in this process, which is faster than a new one."""
    from zoo_cli.app import app

    assert not app(command, standalone_mode=False)


def newest(home: Path, out: Path, phase: str = "inner") -> State | None:
    """The newest whole checkpoint of the training that writes `out`."""
    for run in (home / "training").iterdir():
        if json.loads((run / "run.json").read_text())["out"] == str(out.resolve()):
            return Checkpoints(run / phase).newest()
    return None


def start(command: list[str], home: Path, out: Path) -> "subprocess.Popen[str]":
    """The command as a child process that has begun to train."""
    before = {run: run.stat().st_mtime_ns for run in (home / "training").glob("*/run.json")}
    # Tests that a shell started in the background ignore SIGINT, and their children would inherit that.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "zoo_cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, ignored)
    deadline = time.monotonic() + 120
    if "--resume" in command:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("features"):
                break
    else:
        while {run: run.stat().st_mtime_ns for run in (home / "training").glob("*/run.json")} == before:
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
    time.sleep(1.5)
    assert child.poll() is None
    return child


def test_six_epochs_and_six_more_are_twelve(train: Callable[..., list[str]], whole: bytes, tmp_path: Path) -> None:
    run(train("--epochs", 6))
    half = (tmp_path / "out" / "head.safetensors").read_bytes()
    done = zoo(*train("--epochs", 12, "--resume", "--json"))
    said = parsed(done)["finetune"]
    assert (said["best_epoch"], said["features_computed"]) == (12, 0)
    assert (tmp_path / "out" / "head.safetensors").read_bytes() == whole != half
    fails(2, "has 12 epochs already", *train("--epochs", 8, "--resume"))


@pytest.mark.parametrize("rate", ["0.003", pytest.param("auto", marks=pytest.mark.slow)])
def test_deeper_trainings_go_on_alike(
    train: Callable[..., list[str]], kept_home: Path, tmp_path: Path, rate: str
) -> None:
    deep, found = ("--unfreeze", 1, "--lr", rate), []
    for name, runs in (("whole", [(4,)]), ("halves", [(2,), (4, "--resume")])):
        for epochs, *resume in runs:
            run(train("--epochs", epochs, *resume, *deep))
        found.append([(tmp_path / "out" / f"{part}.safetensors").read_bytes() for part in ("head", "tail")])
        shutil.move(tmp_path / "out", tmp_path / name)
    assert found[0] == found[1]
    # The training of the tail ran all its epochs.
    state = newest(kept_home, tmp_path / "out", "tail-inner")
    assert state is not None
    assert state.facts["epoch"] == 4


def test_ctrl_c_saves_and_says_how_to_go_on(
    train: Callable[..., list[str]], kept_home: Path, whole: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    child = start(train("--epochs", ENDLESS, "--patience", ENDLESS), kept_home, out)
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stderr
    assert "--resume continues" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert list(tmp_path.iterdir()) == [tmp_path / "zoo-home"] * (tmp_path / "zoo-home").exists()
    state = newest(kept_home, out)
    assert state is not None
    reached = state.facts["epoch"]
    assert reached >= 0
    run(train("--epochs", reached + 3, "--resume"))
    assert 1 <= json.loads((out / "training.json").read_text())["best_epoch"] <= reached + 3
    assert (out / "zoo.json").is_file()


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_a_second_ctrl_c_leaves_a_whole_checkpoint(
    train: Callable[..., list[str]], kept_home: Path, whole: bytes, tmp_path: Path, pause: float
) -> None:
    out = tmp_path / "out"
    run(train("--epochs", 6))
    shutil.rmtree(out)
    child = start(train("--epochs", ENDLESS, "--patience", ENDLESS, "--resume"), kept_home, out)
    child.send_signal(signal.SIGINT)
    time.sleep(pause)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert not out.exists()
    state = newest(kept_home, out)
    assert state is not None
    epochs = state.facts["epoch"] + 1
    assert epochs >= 7
    run(train("--epochs", epochs, "--resume"))


def test_a_kill_in_the_middle(train: Callable[..., list[str]], kept_home: Path, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for more in ((), ("--resume",)):
        # The first process has no checkpoint yet, the second one has that of six epochs.
        child = start(train("--epochs", ENDLESS, "--patience", ENDLESS, *more), kept_home, out)
        child.kill()
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        assert not (out / "zoo.json").exists() or more
        run(train("--epochs", 6, "--resume"))
    run(train("--epochs", 12, "--resume"))
    assert (out / "head.safetensors").read_bytes() == whole


def test_another_training_is_not_gone_on_with(
    train: Callable[..., list[str]], kept_home: Path, texts: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "out", tmp_path / "other.csv"
    fails(3, "no saved training of", *train("--epochs", 2, "--resume"))
    run(train("--epochs", 2))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    rows = texts.read_text()
    changes = {
        "training items": (rows + "my card is new,billing\nmy parcel is new,delivery\nmy code is new,account\n", ()),
        "labels": (rows.replace(",billing", ",money"), ()),
        "seed": (rows, ("--seed", 1)),
        "hidden": (rows, ("--head", "mlp:8")),
        "batch": (rows, ("--batch", 16)),
    }
    for what, (content, more) in changes.items():
        other.write_text(content)
        with pytest.raises(UsageError, match=f"{what}: ") as refused:
            run(train("--epochs", 4, "--resume", *more, data=other))
        assert "leave --resume out" in str(refused.value.hint)
    # With several differences the error names each, with its old and new value.
    other.write_text(changes["labels"][0])
    done = zoo(*train("--epochs", 4, "--resume", "--seed", 1, model="tiny-bert-cls", data=other))
    assert done.returncode == 2
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "model: tiny-bert then, tiny-bert-cls now" in error
    assert "seed: 0 then, 1 now" in error
    for what in ("features graph", "training items", "held-out items", "labels"):
        assert f"{what}: " in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    # The refusals removed nothing.
    other.write_text(rows)
    run(train("--epochs", 3, "--resume", data=other))


def test_a_loss_that_is_no_number(
    train: Callable[..., list[str]], kept_home: Path, whole: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    hint = fails(10, "the loss is not finite", *train("--epochs", 4, "--lr", 1e30))
    assert "--lr auto" in hint
    assert not out.exists()
    run(train("--epochs", 4))
    shutil.rmtree(out)
    fails(10, "the loss is not finite", *train("--epochs", 12, "--lr", 1e30, "--resume"))
    assert not out.exists()
    state = newest(kept_home, out)
    assert state is not None
    assert state.facts["epoch"] == 4
    run(train("--epochs", 12, "--resume"))
    assert (out / "head.safetensors").read_bytes() == whole


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    train: Callable[..., list[str]], kept_home: Path, tmp_path: Path
) -> None:
    """No file above 9 MB can be written: the checkpoints of this head are larger, the files of the bundle smaller."""
    out, head = tmp_path / "out", ("--head", "mlp:1000,1000")
    run(train("--epochs", 2, *head))
    command = [sys.executable, "-m", "zoo_cli", *train("--epochs", 4, "--resume", *head)]
    limit = 9_000_000
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no checkpoint could be written: File too large; the previous one is intact" in done.stderr
    state = newest(kept_home, out)
    assert state is not None
    assert state.facts["epoch"] == 2
    limited = (out / "head.safetensors").read_bytes()
    run(train("--epochs", 4, "--resume", *head))
    assert (out / "head.safetensors").read_bytes() == limited
    assert load_file(out / "head.safetensors")["0.weight"].shape == (1000, 32)
