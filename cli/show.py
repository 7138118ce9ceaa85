"""zoo show: the facts about a model or a bundle."""

from collections.abc import Sequence
from typing import Annotated

import typer
from zoo_cli.metrics import summary
from zoo_cli.output import counted, human_count, human_size, next_command, next_steps, print_json, write
from zoo_cli.state import make_zoo

from zoo import Bundle, Entry, label_names, to_plain, without_head

#: The number of labels that are printed; --json has all.
SHOWN = 10


def command(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A name from the registry or of another library (timm/NAME), or the path of a bundle.")
    ],
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show a model: inputs, preprocessing, sources, sha256, license; for a bundle also metrics and origin."""
    zoo = make_zoo(context)
    if zoo.is_path(model):
        bundle = zoo.open(model)
        if json:
            print_json("bundle", to_plain(bundle.manifest))
        else:
            _print_bundle(model, bundle)
        return
    entry = zoo.entry(model)
    if json:
        labels = {"labels": label_names(entry.head)} if entry.head else {}
        facts = {"inputs": to_plain(entry.inputs), "pinned": entry.is_pinned, **labels}
        print_json("model", {**to_plain(entry), **facts})
    else:
        _print_entry(entry)
        if zoo.store.is_pulled(entry, zoo.lock):
            next_steps(entry)
        else:
            next_command("zoo", "pull", entry.name, *(() if entry.is_pinned else ("--trust-first",)))


def _print_entry(entry: Entry) -> None:
    write(f"{entry.name}: {entry.description}")
    facts = {
        "family": entry.family,
        "task": entry.task,
        "features": f"{entry.dim} numbers",
        "head": _head(entry),
        "params": human_count(entry.params),
        "license": entry.license,
        "origin": entry.origin or "-",
        "inputs": "; ".join(f"{spec.name} {spec.dtype} {_shape(spec.shape)}" for spec in entry.inputs),
        "preprocess": ", ".join(f"{key} {value}" for key, value in to_plain(entry.preprocess).items()),
    }
    _print_facts(facts)
    for file in entry.files:
        digest = f"sha256 {file.sha256}" if file.sha256 else "no sha256 known: pull it with --trust-first"
        write(f"  {file.path}  {human_size(file.size)}  {digest}")
        for url in file.sources:
            write(f"    {url}")
    if entry.notes:
        write(f"  notes: {entry.notes}")


def _head(entry: Entry) -> str:
    if entry.head is None:
        return f"none: {without_head(entry)}"
    if entry.head.task == "fill-mask":
        return "fills masks"
    if entry.head.task == "regression":
        return "a number"
    labels = label_names(entry.head)
    return f"one of {_some(labels)}" if entry.head.task == "single-label" else f"some of {_some(labels)}"


def _some(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:SHOWN])
    return f"{shown}, ... ({len(labels):,} in all)" if len(labels) > SHOWN else shown


def _print_bundle(model: str, bundle: Bundle) -> None:
    manifest = bundle.manifest
    write(f"{model}: {manifest.task} bundle, {manifest.precision}, made from {manifest.lineage.entry.name}")
    facts = {
        "inputs": "; ".join(f"{spec.name} {spec.dtype} {_shape(spec.shape)}" for spec in manifest.inputs),
        "outputs": "; ".join(f"{spec.name} {spec.dtype} {_shape(spec.shape)}" for spec in manifest.outputs),
        "preprocess": ", ".join(f"{key} {value}" for key, value in to_plain(manifest.preprocess).items()),
        "license": manifest.license,
        "parity": f"{len(manifest.parity.checks)} checks passed on {manifest.parity.samples}",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.lineage.versions.items()),
    }
    if manifest.labels:
        facts["labels"] = _some(manifest.labels)
    if manifest.unfrozen:
        facts["unfrozen"] = f"the last {counted(manifest.unfrozen, 'stage')} of the backbone"
    if manifest.metrics:
        facts["held out"] = summary(manifest.metrics)
    if manifest.lineage.data:
        facts["data"] = f"sha256 {manifest.lineage.data}, seed {manifest.lineage.seed}"
    _print_facts(facts)
    for file in manifest.files:
        write(f"  {file.path}  {human_size(file.size)}  sha256 {file.sha256}")
    next_command("zoo", "run", model, "INPUT")


def _print_facts(facts: dict[str, str]) -> None:
    for name, value in facts.items():
        write(f"  {name + ':':<12} {value}")


def _shape(shape: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(str(axis) for axis in shape) + "]"
