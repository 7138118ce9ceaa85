"""Optional packages: asked for by name before work starts, so that a missing one is one clear error."""

from importlib.util import find_spec

from zoo.errors import MissingExtraError

#: What running a model needs, whatever it reads.
RUNTIME = ("onnxruntime", "numpy", "onnx")
#: What exporting, gating and training need on top.
TRAINING = ("torch", "torchvision", "onnxscript", "safetensors")
TRAIN_EXTRA = frozenset({"torch", "torchvision", "onnxscript"})


def require(purpose: str, *packages: str) -> None:
    """Raise MissingExtraError for the first of `packages` (import names) that is not installed."""
    for package in packages:
        if find_spec(package) is not None:
            continue
        if package in TRAIN_EXTRA:
            raise MissingExtraError(package, "train", purpose, alternative="use a bundle that was exported elsewhere")
        raise MissingExtraError(package, "gpu", purpose, alternative="pip install 'backbone-zoo[cpu]' (never both)")
