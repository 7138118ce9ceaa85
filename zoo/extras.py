"""Optional packages, checked before work starts, so that a missing one gives one clear error."""

import sys
from importlib.util import find_spec
from pathlib import Path

from zoo.errors import MissingExtraError

#: Packages that running any model needs.
RUNTIME = ("onnxruntime", "numpy", "onnx")
#: Packages that exporting, parity checks and training need as well.
TRAINING = ("torch", "torchvision", "onnxscript", "safetensors")
#: Packages that draw the training report.
REPORT = ("matplotlib",)
TRAIN_EXTRA = frozenset({"torch", "torchvision", "onnxscript", "matplotlib"})
#: The extra `words`: to pull word vectors and search nearest words.
WORDS_EXTRA = frozenset({"pyarrow", "numpy"})
#: The extra `data`: to read Parquet files.
DATA_EXTRA = frozenset({"pyarrow"})
#: The extra `search`: a nearest-neighbour index.
SEARCH_EXTRA = frozenset({"usearch"})
#: Libraries of bridges: each has an extra of the same name, which includes the packages for training.
BRIDGES = ("timm", "transformers")


def require(purpose: str, *packages: str) -> None:
    """Raise MissingExtraError if one of `packages` (import names) is not installed; the hint installs all of them."""
    missing = [package for package in packages if find_spec(package) is None]
    if not missing:
        return
    if set(packages) <= SEARCH_EXTRA:
        raise MissingExtraError(missing[0], "search", purpose, alternative="leave --index out to compare all vectors")
    if set(packages) <= DATA_EXTRA:
        raise MissingExtraError(missing[0], "data", purpose)
    if set(missing) <= WORDS_EXTRA and set(packages) <= WORDS_EXTRA:
        raise MissingExtraError(missing[0], "words", purpose)
    bridges = [package for package in missing if package in BRIDGES]
    if bridges:
        raise MissingExtraError(bridges[0], bridges[0], purpose, alternative="use a bundle that was exported elsewhere")
    extras = [] if set(missing) <= TRAIN_EXTRA else ["gpu"]
    if "pyarrow" in missing:
        extras.append("words")
    if TRAIN_EXTRA.intersection(missing):
        extras.append("train")
    alternative = "cpu in place of gpu, never both" if "gpu" in extras else "use a bundle that was exported elsewhere"
    raise MissingExtraError(missing[0], ",".join(extras), purpose, alternative=alternative)


def package_folder(package: str) -> Path | None:
    """The folder of a package, found without importing it or its parents; None if it has no `__init__.py`."""
    locations: list[str] | None = None
    parts = package.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        finders = [find for finder in sys.meta_path if (find := getattr(finder, "find_spec", None))]
        try:
            spec = next((spec for find in finders if (spec := find(name, locations)) is not None), None)
        except (KeyError, ValueError):
            # A folder without __init__.py inside a package: only importing its parent would find it.
            return None
        if spec is None or spec.submodule_search_locations is None:
            return None
        locations = list(spec.submodule_search_locations)
    return next((Path(each) for each in locations or () if Path(each, "__init__.py").is_file()), None)
