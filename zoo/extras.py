"""Optional packages: asked for by name before work starts, so that a missing one is one clear error."""

import sys
from importlib.util import find_spec
from pathlib import Path

from zoo.errors import MissingExtraError

#: What running a model needs, whatever it reads.
RUNTIME = ("onnxruntime", "numpy", "onnx")
#: What exporting, gating and training need on top.
TRAINING = ("torch", "torchvision", "onnxscript", "safetensors")
#: What the report on a training draws with.
REPORT = ("matplotlib",)
TRAIN_EXTRA = frozenset({"torch", "torchvision", "onnxscript", "matplotlib"})
#: What the extra `words` brings: enough to pull word vectors and to look for nearest words.
WORDS_EXTRA = frozenset({"pyarrow", "numpy"})
#: What the extra `data` brings: enough to read data sets in Parquet files.
DATA_EXTRA = frozenset({"pyarrow"})
#: What the extra `search` brings: an index of more than a million vectors.
SEARCH_EXTRA = frozenset({"usearch"})
#: Libraries behind bridges: each has an extra of its own name, which brings those of training too.
BRIDGES = ("timm", "transformers")


def require(purpose: str, *packages: str) -> None:
    """Raise MissingExtraError when one of `packages` (import names) is not installed; its hint brings them all."""
    missing = [package for package in packages if find_spec(package) is None]
    if not missing:
        return
    if set(packages) <= SEARCH_EXTRA:
        raise MissingExtraError(missing[0], "search", purpose, alternative="leave --index out: all are compared")
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
    """The folder of an importable package, found without importing it or those around it; None where there is none."""
    locations: list[str] | None = None
    parts = package.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        finders = [find for finder in sys.meta_path if (find := getattr(finder, "find_spec", None))]
        try:
            spec = next((spec for find in finders if (spec := find(name, locations)) is not None), None)
        except (KeyError, ValueError):
            # A folder without __init__.py inside a package: only an import of its parent could tell where it is.
            return None
        if spec is None or spec.submodule_search_locations is None:
            return None
        locations = list(spec.submodule_search_locations)
    return next((Path(each) for each in locations or () if Path(each, "__init__.py").is_file()), None)
