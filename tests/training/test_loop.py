"""The training loop: equal numbers with and without stops, early stopping, and crash-safe checkpoints."""

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.heads import blobs
from zoo import FinetuneOptions, OutOfMemoryError, UsageError
from zoo.progress import SILENT
from zoo.system.interrupt import Interrupt, noticing
from zoo.torchkit import as_stage
from zoo.training.adamw import AdamW
from zoo.training.checkpoints import MARKER, Checkpoints
from zoo.training.fit_head import TrainedHead, fit
from zoo.training.loop import Part, Phase, Plan, Training, TrainingRun, rate
from zoo.training.problem import Problem
from zoo.training.unfreeze import fit_tail

PLAN = Plan(count=60, batch=16, seed=3, weight_decay=0.1, decay=5)


class Asked(Interrupt):
    """An interrupt that is asked for once `is_asked` was read `after` times."""

    def __init__(self, after: int) -> None:
        self.left = after

    @property  # type: ignore[override]
    def is_asked(self) -> bool:
        self.left -= 1
        return self.left < 0


class Notes:
    """Progress that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def task(self, description: str, total: int | None, unit: str = "it") -> Any:
        return SILENT.task(description, total, unit)


def training(dropout: float = 0.3) -> Training:
    """A small net with dropout on 60 items."""
    features, targets = blobs(60)
    x, y = torch.from_numpy(features), torch.from_numpy(targets)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(24, 8), torch.nn.ReLU(), torch.nn.Dropout(dropout), torch.nn.Linear(8, 4))
    return Training(
        net, [Part("net", net, 0.01)], lambda rows: torch.nn.functional.cross_entropy(net(x[rows]), y[rows]), PLAN
    )


def weights(run: Training) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in run.weights().items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 18), min_size=1, max_size=3))
def test_wherever_it_is_stopped_it_goes_on_as_if_it_had_not_been(stops: list[int]) -> None:
    whole = training()
    losses = [whole.train_epoch(Interrupt()) for _ in range(4)]
    state, found = None, []
    for stop in (*stops, 10**6):
        run, asked = training(), Asked(stop)
        if state:
            run.restore(*state)
        while run.epoch < 4:
            loss = run.train_epoch(asked)
            if loss is None:
                break
            found.append(loss)
        state = run.state()
    assert found == losses
    assert same(weights(run), weights(whole))


@pytest.mark.parametrize("large", [0, 10**9])
def test_adamw_of_one_rate_is_torchs(monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    """Our AdamW equals torch's, with torch's kernel and with the arithmetic for small parameters."""
    monkeypatch.setattr("zoo.training.adamw.LARGE", large)
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3)
    theirs.load_state_dict(ours.state_dict())
    right = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.3)
    mine = AdamW(list(ours.parameters()), [0.01] * 2, [0.3] * 2)
    for factor in np.linspace(1, 0.2, 40):
        x = torch.randn(9, 6)
        for group in right.param_groups:
            group["lr"] = 0.01 * factor
        for model, optimizer in ((theirs, right), (ours, mine)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
        right.step()
        mine.step(float(factor))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_adamw_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3)
    theirs.load_state_dict(ours.state_dict())
    right = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.3)
    # Two candidates along the first axis; the second one has another rate and decay.
    stacked = [p.detach().expand(2, *p.shape).clone().requires_grad_() for p in ours.parameters()]
    shapes = [(2, *[1] * (p.dim() - 1)) for p in stacked]
    rates, decays = ([torch.tensor(pair).view(shape) for shape in shapes] for pair in ((0.01, 0.1), (0.3, 0.0)))
    mine = AdamW(stacked, rates, decays)
    for factor in np.linspace(1, 0.2, 40):
        x = torch.randn(9, 6)
        for group in right.param_groups:
            group["lr"] = 0.01 * factor
        right.zero_grad()
        mine.zero_grad()
        theirs(x).square().mean().backward()
        weight, bias = stacked
        ((x @ weight.transpose(1, 2) + bias.unsqueeze(1)).square().mean() * 2).backward()
        right.step()
        mine.step(float(factor))
    torch.testing.assert_close(stacked[0][0], theirs.weight.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stacked[1][0], theirs.bias.detach(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(stacked[0][1], stacked[0][0])


def test_a_head_is_trained_without_torchs_compiler() -> None:
    """Importing torch's compiler takes longer than the training."""
    code = (
        "import sys\nfrom zoo.training import adamw\nadamw.LARGE = 0\n"
        "from tests.training.test_loop import fitted\nfitted(None, epochs=2)\n"
        "print('torch._dynamo' in sys.modules, 'torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_rate_rises_and_falls_and_knows_no_end() -> None:
    rates = [rate(step / 4, 4, decay=5) for step in range(40)]
    assert rates[0] == pytest.approx(0.25)
    assert max(rates) <= 1
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rate(5, 4, decay=5) == pytest.approx(0.5)


def options(**changed: Any) -> FinetuneOptions:
    return FinetuneOptions(**{"hidden": (8,), "lr": 0.003, "weight_decay": 0.1, "patience": 100, **changed})


def fitted(folder: Path | None, *, resume: bool = False, stop: Interrupt | None = None, **changed: Any) -> TrainedHead:
    features, targets = blobs(120, noise=3)
    problem = Problem(features, targets, 4, options(**changed))
    return fit(problem, TrainingRun(stop=stop or Interrupt(), checkpoints=folder, resume=resume))


def test_n_epochs_and_n_more_are_2n_epochs(tmp_path: Path) -> None:
    whole = fitted(None, epochs=12)
    fitted(tmp_path, epochs=6)
    both = fitted(tmp_path, resume=True, epochs=12)
    assert both.curve == whole.curve
    assert both.best_epoch == whole.best_epoch > 6
    assert all(
        np.array_equal(a, b)
        for one, two in zip(both.layers, whole.layers, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    with pytest.raises(UsageError, match="has 12 epochs already, more than --epochs 8"):
        fitted(tmp_path, resume=True, epochs=8)


def test_ctrl_c_finishes_the_step_and_saves(tmp_path: Path) -> None:
    whole = fitted(None, epochs=8)
    for after in (0, 3, 7, 14):
        folder = tmp_path / str(after)
        with pytest.raises(KeyboardInterrupt):
            fitted(folder, epochs=8, stop=Asked(after))
        assert Checkpoints(folder / "inner").newest() is not None
        again = fitted(folder, resume=True, epochs=8)
        assert again.curve == whole.curve
        np.testing.assert_array_equal(again.layers[0][0], whole.layers[0][0])


def test_the_second_ctrl_c_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with noticing() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
    seen = []
    thread = threading.Thread(target=lambda: seen.append(noticing().__enter__().is_asked))
    thread.start()
    thread.join()
    assert seen == [False]


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    curve = iter([1.0, 0.5, 0.49999, 0.7, 0.8, 0.3])
    run = training()
    phase = Phase(TrainingRun(stop=Interrupt()), "net", run, lambda: (next(curve), 0.0), tolerance=0.001)
    with SILENT.task("training", None) as bar:
        phase.train(bar, 50, patience=3)
    # A loss that is only slightly lower is not better.
    assert (phase.best_epoch, run.epoch) == (2, 5)
    two = training()
    for _ in range(2):
        two.train_epoch(Interrupt())
    run.load_weights(phase.best)
    assert same(weights(run), weights(two))


def test_a_checkpoint_is_the_newest_that_is_whole(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "run")
    assert store.newest() is None
    for number in range(5):
        store.save({"a": torch.full((3,), float(number)), "n": torch.tensor(number)}, {"epoch": number})
    folders = sorted(tmp_path.joinpath("run").iterdir())
    assert [path.name for path in folders] == ["000004", "000005"]
    for damage in ("state.safetensors", "state.json", MARKER):
        path = folders[1] / damage
        data = path.read_bytes()
        for wrong in (data[:-1], b"", data[:10] + b"!" + data[11:], None):
            path.unlink() if wrong is None else path.write_bytes(wrong)
            found = store.newest()
            assert found is not None
            assert found.facts == {"epoch": 3}
        path.write_bytes(data)
    found = store.newest()
    assert found is not None
    assert found.facts == {"epoch": 4}
    assert found.tensors["a"].tolist() == [4, 4, 4]


SWEEP = """
import os, signal, sys, torch
from pathlib import Path
from zoo.training.checkpoints import Checkpoints

def saved(folder, last):
    store = Checkpoints(folder)
    for number in range(2):
        store.save({"a": torch.full((40,), float(number))}, {"epoch": number})
    calls = 0
    def count(event, arguments):
        nonlocal calls
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            calls += 1
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    store.save({"a": torch.full((40,), 2.0)}, {"epoch": 2})

for last in range(1, 100):
    # One import of torch for all of them.
    if os.fork() == 0:
        saved(Path(sys.argv[1]) / str(last), last)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.wait()[1])
    print(last, status, flush=True)
    if status == 0:
        break
"""


def test_a_kill_anywhere_in_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """A process is killed before its first, second, ... call that changes the disk, until one succeeds."""
    done = subprocess.run([sys.executable, "-c", SWEEP, str(tmp_path)], capture_output=True, text=True, check=True)
    statuses = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(statuses) > 8
    assert statuses == [-signal.SIGKILL] * (len(statuses) - 1) + [0]
    for last in range(1, len(statuses) + 1):
        folder = tmp_path / str(last)
        found = Checkpoints(folder).newest()
        assert found is not None
        assert found.facts["epoch"] in (1, 2)
        assert found.tensors["a"].eq(found.facts["epoch"]).all()
        # The next process continues from the newest checkpoint and removes the remains.
        Checkpoints(folder).save({"a": torch.ones(1)}, {"epoch": 9})
        assert Checkpoints(folder).newest().facts == {"epoch": 9}  # type: ignore[union-attr]
        assert len(list(folder.iterdir())) == 2


def test_a_full_disk_leaves_the_checkpoint_before_it_whole(tmp_path: Path) -> None:
    notes = Notes()
    run = TrainingRun(stop=Interrupt(), checkpoints=tmp_path, progress=notes)  # type: ignore[arg-type]
    phase = Phase(run, "run", training(), lambda: (1.0, 0.0))
    with notes.task("training", None) as bar:
        phase.train(bar, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
        phase.train(bar, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "no checkpoint could be written" in notes.notes[0]
    found = Checkpoints(tmp_path / "run").newest()
    assert found is not None
    assert found.facts["epoch"] == 1


def test_a_checkpoint_of_another_kind_is_never_executed(tmp_path: Path) -> None:
    """A pickle with the file names of a checkpoint is not a whole checkpoint, whatever its marker says."""
    import pickle

    class Canary:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "canary"),)

    from zoo.system.files import sha256_file
    from zoo.training.checkpoints import _digests

    folder = tmp_path / "run" / "000001"
    folder.mkdir(parents=True)
    for name in ("state.safetensors", "state.json"):
        (folder / name).write_bytes(pickle.dumps(Canary()))
    (folder / MARKER).write_bytes(
        _digests([sha256_file(folder / name) for name in ("state.safetensors", "state.json")])
    )
    assert Checkpoints(tmp_path / "run").newest() is None
    assert not (tmp_path / "canary").exists()


class Scarce:
    """Activations of 30 items; a batch of more than `rows` raises an out-of-memory error."""

    is_text = False

    def __init__(self, rows: int) -> None:
        self.most = rows
        self.views = [None]
        features, self.targets = blobs(30, noise=3)
        self.features = features
        self.examples = [None] * 30

    def batch(self, rows: list[int]) -> dict[str, np.ndarray]:
        if len(rows) > self.most:
            raise MemoryError
        return {"activations": self.features[rows]}


def test_too_little_memory_halves_the_batch_when_it_may() -> None:
    def tail() -> torch.nn.ModuleList:
        torch.manual_seed(0)
        return torch.nn.ModuleList([as_stage(torch.nn.Linear(24, 24), ["activations"], output="features")])

    scarce, notes = Scarce(8), Notes()
    for auto_batch in (False, True):
        problem = Problem(scarce.features, scarce.targets, 4, options(hidden=(), epochs=2, auto_batch=auto_batch))
        trained = fit(problem, TrainingRun(stop=Interrupt()))
        if auto_batch:
            run = TrainingRun(stop=Interrupt(), progress=notes)  # type: ignore[arg-type]
            head, _ = fit_tail(problem, trained, scarce, tail, run)  # type: ignore[arg-type]
            assert len(head.curve) == 3
        else:
            with pytest.raises(OutOfMemoryError, match="a step of 32 items needs more memory than cpu has") as caught:
                fit_tail(problem, trained, scarce, tail, TrainingRun(stop=Interrupt()))  # type: ignore[arg-type]
            assert caught.value.hint == "--batch 16, or --auto-batch"
    assert [note.split()[3] for note in notes.notes] == ["32", "16"]
