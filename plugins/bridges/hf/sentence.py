"""The files that sentence-transformers puts beside a model (https://www.sbert.net): pooling, dense layers, prompts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
from zoo_plugins.bridges.hf.files import CHECKPOINTS, parse_json, read_json
from zoo_plugins.bridges.hf.library import HINT

from zoo.errors import IntegrityError, UsageError
from zoo.schema import WeightFile
from zoo.textkit import ACTIVATIONS, DenseLayer

if TYPE_CHECKING:
    from zoo.hub import Repository

SETTINGS = "config_sentence_transformers.json"
#: The names of activations in config.json of a dense layer -> those of `zoo.textkit`. No name is imported.
NAMES = {
    f"torch.nn.modules.{'linear' if kind == 'Identity' else 'activation'}.{kind}": name
    for name, kind in ACTIVATIONS.items()
}
POOLINGS: Mapping[str, Literal["mean", "cls"]] = {
    "mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls",
}  # fmt: skip


class Steps(NamedTuple):
    """The steps of sentence-transformers, and the folder of the encoder's files.

    `is_encoder` is false for other repositories, whose models may have a classifier; `settings` are those of a
    CrossEncoder. `weights` are the files of the dense layers: their names in the entry, and their paths in the
    repository.
    """

    folder: str = ""
    pooling: Literal["mean", "cls"] = "mean"
    normalize: bool = False
    dense: Sequence[DenseLayer] = ()
    weights: Mapping[str, str] = {}
    is_encoder: bool = False
    settings: Mapping[str, Any] = {}


class Prompts(NamedTuple):
    """Prompts by name, and the name of the default one."""

    texts: Mapping[str, str]
    default: str | None


def read_steps(repository: "Repository") -> Steps:
    """The steps in `modules.json` and in the files of the modules; without these files, the mean over tokens.

    Raises UsageError for modules and settings that zoo does not have.
    """
    if "modules.json" not in repository.sizes:
        return Steps()
    modules = parse_json(repository.read("modules.json"), "modules.json", list[dict[str, Any]], "a list of modules")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    folders = [f"{path}/" if (path := str(module.get("path", "")).strip("/")) else "" for module in modules]
    if kinds == ["Transformer"]:
        # A CrossEncoder: a classifier without pooling.
        found = read_json(repository, SETTINGS) if SETTINGS in repository.sizes else {}
        return Steps(folder=folders[0], settings={key: found[key] for key in ("activation_fn",) if key in found})
    dense = kinds[2:-1] if kinds[-1:] == ["Normalize"] else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(dense) - {"Dense"}:
        raise UsageError(
            f"{repository.origin} has the modules {', '.join(kinds)}: "
            "zoo supports Transformer, Pooling, Dense and Normalize",
            hint=HINT,
        )
    settings = read_json(repository, f"{folders[1]}config.json")
    modes = {key.removeprefix("pooling_mode_") for key, value in settings.items() if value is True and "_mode_" in key}
    if isinstance(named := settings.get("pooling_mode"), str):
        modes = {named}
    if len(modes) != 1 or not modes <= set(POOLINGS):
        raise UsageError(
            f"{repository.origin} pools by {' and '.join(sorted(modes)) or 'nothing'}: zoo supports mean and cls",
            hint=HINT,
        )
    if settings.get("include_prompt") is False and any(read_prompts(repository).texts.values()):
        raise UsageError(
            f"{repository.origin} leaves prompts out of the pooling (include_prompt is false): zoo does not", hint=HINT
        )
    layers = [_dense(repository, folder) for folder in folders[2 : 2 + len(dense)]]
    return Steps(
        folder=folders[0],
        pooling=POOLINGS[modes.pop()],
        normalize="Normalize" in kinds,
        dense=[layer for layer, _ in layers],
        weights={layer.file: path for layer, path in layers},
        is_encoder=True,
    )


def read_prompts(repository: "Repository") -> Prompts:
    """The prompts of a repository. Raises IntegrityError for a default prompt that is not among them."""
    settings = read_json(repository, SETTINGS) if SETTINGS in repository.sizes else {}
    given, default = settings.get("prompts"), settings.get("default_prompt_name")
    texts = (
        {str(name): text for name, text in given.items() if isinstance(text, str)} if isinstance(given, dict) else {}
    )
    if default is not None and default not in texts:
        raise IntegrityError(f"{repository.origin}: the default prompt {default} is not among the prompts", hint=HINT)
    # Empty prompts are placeholders of the library.
    return Prompts({name: text for name, text in texts.items() if text or name == default}, default)


def _dense(repository: "Repository", folder: str) -> tuple[DenseLayer, str]:
    """Returns a dense layer, and the path of its weights. Raises UsageError for settings that zoo does not have."""
    config = read_json(repository, f"{folder}config.json")
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    other = [
        key
        for key in ("module_input_name", "module_output_name")
        if config.get(key) not in (None, "sentence_embedding")
    ]
    if config.get("use_residual") or other:
        raise UsageError(
            f"{repository.origin}: the dense layer {folder.strip('/')} has {other[0] if other else 'use_residual'}, "
            "which zoo does not support",
            hint=HINT,
        )
    if name not in NAMES:
        raise UsageError(
            f"{repository.origin}: the activation of a dense layer is {name}", hint=f"known: {', '.join(NAMES)}"
        )
    found = next((path for path in CHECKPOINTS if folder + path in repository.sizes), "")
    if not found:
        raise UsageError(f"{repository.origin} has no weights in {folder}", hint=HINT)
    inputs, outputs = config.get("in_features"), config.get("out_features")
    if not isinstance(inputs, int) or not isinstance(outputs, int) or min(inputs, outputs) < 1:
        raise IntegrityError(f"{repository.origin}: {folder}config.json has no in_features and out_features", hint=HINT)
    return DenseLayer(
        file=f"{folder.strip('/').replace('/', '-')}-{found}",
        inputs=inputs,
        outputs=outputs,
        bias=config.get("bias", True) is not False,
        activation=NAMES[name],
    ), folder + found


def dim_after(steps: Steps, width: int, origin: str) -> int:
    """The length of the features, if the encoder's vectors have the length `width`.

    Raises IntegrityError for dense layers that do not fit one another.
    """
    for layer in steps.dense:
        if layer.inputs != width:
            raise IntegrityError(
                f"{origin}: a dense layer takes {layer.inputs} numbers, but the one before gives {width}", hint=HINT
            )
        width = layer.outputs
    return width


def dense_files(repository: "Repository", steps: Steps) -> list[WeightFile]:
    """The files of the dense layers, under names of their own."""
    return [msgspec.structs.replace(repository.file(path), path=name) for name, path in steps.weights.items()]
