"""The head learns, is reproducible to the bit, copes with nearly constant features, and reports divergence."""

import numpy as np
import pytest
import torch

from tests.kit.heads import blobs, train
from zoo import DivergedError, FinetuneOptions, UsageError, parse_head
from zoo.evaluation.metrics import wilson
from zoo.graph import head as head_graph
from zoo.runtime.ort import create_session
from zoo.training import head
from zoo.training.fit_head import TrainedHead


def accuracy(trained: TrainedHead, features: np.ndarray, targets: np.ndarray) -> float:
    return float((head_graph.apply(trained.layers, features).argmax(1) == targets).mean())


@pytest.mark.parametrize("hidden", [(), (16,), (32, 16)])
def test_it_learns_and_the_onnx_head_is_the_same(hidden: tuple[int, ...]) -> None:
    features, targets = blobs()
    features = features * 40 + 1000
    trained = train(features, targets, 4, FinetuneOptions(hidden=hidden, lr=0.01))
    assert accuracy(trained, features, targets) > 0.97
    session = create_session(head_graph.as_graph(trained.layers, "softmax").SerializeToString(), "cpu")
    for batch in (1, 2, 7):
        scores = session.run(None, {"features": features[:batch]})[0]
        np.testing.assert_allclose(scores, head_graph.apply(trained.layers, features[:batch]), atol=1e-5)


def test_a_seed_repeats_to_the_bit_and_leaves_torch_alone() -> None:
    features, targets = blobs()
    state = torch.get_rng_state()
    runs = [train(features, targets, 4, FinetuneOptions(epochs=5, seed=seed, hidden=(8,))) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    for (weight, bias), (weight_again, bias_again) in zip(runs[0].layers, runs[1].layers, strict=True):
        np.testing.assert_array_equal(weight, weight_again)
        np.testing.assert_array_equal(bias, bias_again)
    assert not np.array_equal(runs[0].layers[0][0], runs[2].layers[0][0])


def test_near_dead_features_do_not_drown_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = blobs(80)
    random = np.random.default_rng(1)
    dead = random.normal(0, 1e-6, (80, 400)).astype(np.float32)
    held = np.concatenate([blobs(80)[0], random.normal(0, 1e-3, (80, 400)).astype(np.float32)], 1)
    for scaling in head.SCALINGS:
        monkeypatch.setattr(head, "SCALINGS", (scaling,))
        trained = train(np.concatenate([features, dead], 1), targets, 4, FinetuneOptions(lr=0.01))
        assert accuracy(trained, held, targets) > 0.95


def test_constant_features_and_one_item_a_class() -> None:
    features, targets = np.ones((2, 5), np.float32), np.array([0, 1])
    trained = train(features, targets, 2, FinetuneOptions(epochs=3))
    assert np.isfinite(head_graph.apply(trained.layers, features)).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567, 1e-30, 3e7])
def test_constant_features_make_no_noise_of_the_head(value: float) -> None:
    """If features were divided by a spread near zero, their last bit would decide the class."""
    features = np.full((40, 8), value, np.float32)
    trained = train(features, np.arange(40) % 2, 2, FinetuneOptions(epochs=3, hidden=(4,)))
    nearly = np.nextafter(features, np.float32(np.inf))
    for each in (features, nearly):
        np.testing.assert_allclose(head_graph.apply(trained.layers, each), 0.5, atol=0.45)
    np.testing.assert_allclose(
        head_graph.apply(trained.layers, nearly), head_graph.apply(trained.layers, features), atol=1e-2
    )


@pytest.mark.parametrize("scaling", head.SCALINGS)
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_the_folded_layers_are_the_net(scaling: str, offset: float) -> None:
    features, _ = blobs(60)
    features = (features * np.logspace(-2, 2, features.shape[1]) + offset).astype(np.float32)
    module = head.build(head.affine(features, scaling), (8,), torch.arange(4.0), seed=3).eval()
    with torch.inference_mode():
        wanted = torch.softmax(module(torch.from_numpy(features)), -1).numpy()
    np.testing.assert_allclose(head_graph.apply(head.folded(module), features), wanted, atol=2e-5)


def test_classes_of_one_item_and_of_many() -> None:
    features, _ = blobs(23, classes=4)
    targets = np.array([0, 1, *[2] * 20, 3])
    trained = train(features, targets, 4, FinetuneOptions(epochs=5))
    assert trained.layers[-1][0].shape[0] == 4
    assert 1 <= trained.best_epoch <= 5 == len(trained.curve)


@pytest.mark.parametrize(("epochs", "batch"), [(1, 1000), (2, 7)])
def test_a_rate_that_only_the_validation_notices(epochs: int, batch: int) -> None:
    """The loss of the only step is measured before this step changes the weights."""
    features, targets = blobs()
    with pytest.raises(DivergedError, match="not finite in epoch"):
        train(features, targets, 4, FinetuneOptions(lr=1e30, epochs=epochs, batch=batch, hidden=(8,)))


def test_features_that_are_no_numbers() -> None:
    features, targets = blobs()
    features[3, 3] = np.nan
    with pytest.raises(DivergedError):
        train(features, targets, 4, FinetuneOptions(epochs=2))


def test_random_labels_stay_at_chance_on_other_items() -> None:
    random = np.random.default_rng(0)
    features, held = (random.normal(size=(400, 32)).astype(np.float32) for _ in range(2))
    targets, held_targets = (random.integers(0, 4, 400) for _ in range(2))
    trained = train(features, targets, 4, FinetuneOptions(epochs=30))
    low, high = wilson(round(accuracy(trained, held, held_targets) * 400), 400)
    assert low < 0.25 < high


def test_an_absurd_rate_is_said_to_diverge() -> None:
    features, targets = blobs()
    with pytest.raises(DivergedError, match="not finite") as caught:
        train(features, targets, 4, FinetuneOptions(lr=1e30, hidden=(8,)))
    assert caught.value.exit_code == 10
    assert caught.value.hint.startswith("--lr ")


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"lr": -1.0}, {"lr": float("nan")}, {"batch": 0}, {"val": 1.0}, {"weight_decay": -1.0}]
)
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        FinetuneOptions(**options)


def test_head_shapes() -> None:
    assert [parse_head(text) for text in ("linear", "mlp", "mlp:512,128")] == [(), (256,), (512, 128)]
    for text in ("", "mlp:0", "mlp:a", "mlp:-3", "linear:4", "deep"):
        with pytest.raises(UsageError):
            parse_head(text)
