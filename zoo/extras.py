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


def require(purpose: str, *packages: str) -> None:
    """Raise MissingExtraError if one of `packages` (import names) is not installed; the hint installs all of them."""
    missing = [package for package in packages if find_spec(package) is None]
    if not missing:
        return
    bundle = "use a bundle that was exported elsewhere"
    # These small extras are enough for a verb that needs no other package.
    for extra, content, alternative in (
        ("search", {"usearch"}, "leave --index out to compare all vectors"),
        ("data", {"pyarrow"}, None),
        ("words", {"pyarrow", "numpy"}, None),
    ):
        if content.issuperset(packages):
            raise MissingExtraError(missing[0], extra, purpose, alternative=alternative)
    # The extra of a bridge's library is named after the library, and includes the packages for training.
    for package in missing:
        if package in ("timm", "transformers"):
            raise MissingExtraError(package, package, purpose, alternative=bundle)
    train = {"torch", "torchvision", "onnxscript", "matplotlib"}
    extras = [] if train.issuperset(missing) else ["gpu"]
    if "pyarrow" in missing:
        extras.append("words")
    if train.intersection(missing):
        extras.append("train")
    alternative = "cpu in place of gpu, never both" if "gpu" in extras else bundle
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
            # A folder without __init__.py inside a package is only found by importing its parent.
            return None
        if spec is None or spec.submodule_search_locations is None:
            return None
        locations = list(spec.submodule_search_locations)
    return next((Path(each) for each in locations or () if Path(each, "__init__.py").is_file()), None)


def version() -> str:
    """The installed version of backbone-zoo."""
    import importlib.metadata

    return importlib.metadata.version("backbone-zoo")
