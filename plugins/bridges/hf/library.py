"""What the families of texts and of images of the library transformers share: its architectures, and no code."""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from zoo.errors import NotFoundError, UsageError, quote
from zoo.extras import require

if TYPE_CHECKING:
    from zoo.hub import Repository

Config: TypeAlias = Mapping[str, Any]
HINT = "choose another model"
#: Keys of config.json that name code, or files to load it from.
CODE = frozenset({"auto_map", "custom_pipelines", "_name_or_path", "name_or_path"})


def without_code(config: Config) -> dict[str, Any]:
    """The configuration without keys that can name code, at any depth."""
    return {
        key: without_code(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in CODE
    }


def check_architecture(model_type: str, config: Config, repository: "Repository", family: str) -> None:
    """Check that the installed transformers can build the encoder of a configuration, for the family called `family`.

    Raises MissingExtraError; UsageError for a model that needs its own code and for one without an encoder;
    NotFoundError for an unknown architecture.
    """
    require_library(family)
    import transformers
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    if model_type not in CONFIG_MAPPING:
        if config.get("auto_map"):
            raise UsageError(
                f"{repository.origin} needs its own code (trust_remote_code), which is never run", hint=HINT
            )
        known = [name for name, kind in CONFIG_MAPPING.items() if kind in MODEL_MAPPING]
        near = difflib.get_close_matches(model_type, known, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else HINT
        version = transformers.__version__
        raise NotFoundError(f"transformers {version} has no architecture {quote(model_type)}", hint=hint)
    if CONFIG_MAPPING[model_type] not in MODEL_MAPPING:
        raise UsageError(f"{repository.origin}: {model_type} has no encoder in transformers", hint=HINT)


def require_library(family: str) -> None:
    """Raise MissingExtraError unless the packages of `transformers` or `transformers-images` are installed."""
    images = ("torchvision",) if family.endswith("images") else ()
    require(f"the family {family}", "transformers", "torch", *images)
