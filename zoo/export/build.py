"""Registry row -> features bundle: the family's graph with preprocessing in front, gated, under ZOO_HOME/graphs.

The work is done once and in a child process (`python -m zoo.export.build`), because it may import torch and nothing
else that runs a model should.
"""

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zoo.backbone import Backbone
from zoo.bundle import MODEL, SCHEMA_VERSION, Bundle, describe_files, write_manifest
from zoo.data import samples
from zoo.data.tokenizers import TextEncoder, place_tokenizer, write_word_level
from zoo.errors import PluginError, UsageError, ZooError
from zoo.export import parity, trunk
from zoo.export.reference import expect, torchvision_pixels
from zoo.graph import edit, prefix
from zoo.progress import Progress
from zoo.schema import (
    FEATURES,
    PIXELS,
    Entry,
    ExportOptions,
    FileDigest,
    ImagePreprocess,
    Lineage,
    Manifest,
    Preprocess,
    Task,
    TensorSpec,
    TextPreprocess,
    WordsPreprocess,
)
from zoo.system.files import staged_dir
from zoo.system.process import Child, EndedError, Parent, python
from zoo.words.table import WordTable

if TYPE_CHECKING:
    import onnx

#: Words of a table that the gate's samples are made of.
GATE_WORDS = 60
VERSIONED = ("backbone-zoo", "onnx", "onnxruntime-gpu", "onnxruntime", "torch", "tokenizers", "Pillow", "numpy")


def build(
    entry: Entry,
    weights: Path,
    family: Callable[[Entry, Path], Backbone],
    target: Path,
    cut: int | None = None,
) -> Bundle:
    """Export, join, gate and write the features bundle of `entry` at `target`; torch is imported in this process.

    With `cut` its trunk: the same with the tensors that stage `cut` takes in place of the features, but for those that
    are inputs. Raises GateError when the graph is not the model, PluginError when the family's graph breaks its
    contract, UsageError for a cut where no two stages meet.
    """
    backbone = family(entry, weights)
    with staged_dir(target) as folder:
        backbone.prepare()
        preprocess = input_of_bundle(entry, weights, folder)
        outputs = trunk.computed(backbone, cut) if cut else (_features(entry),)
        backbone.export(folder / MODEL, ExportOptions(cut=cut))
        body = edit.clean(edit.load(folder / MODEL), trunk.NAME if cut else entry.family)
        trunk.check_contract(body, entry, entry.inputs, outputs)
        whole = with_prefix(body, preprocess)
        options = {"cut": cut} if cut else {}
        lineage = Lineage(entry=entry, weights=_digests(entry), versions=versions(), options=options)
        edit.describe(whole, metadata(lineage, preprocess, ()))
        edit.save(whole, folder / MODEL)
        reader = encoder(preprocess, folder)
        items, origin = samples.bundled(preprocess, gate_words(entry, reader))
        reference = trunk.reference(backbone, cut) if cut else backbone.reference
        expected = expect(reference, items, origin, reader, torchvision_pixels)
        report = parity.check(folder / MODEL, expected)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name=entry.name,
            task=Task.EMBEDDING,
            precision="fp32",
            preprocess=preprocess,
            dim=entry.dim,
            inputs=edit.tensor_specs(whole)[0],
            outputs=outputs if cut else edit.tensor_specs(whole)[1],
            cut=PIXELS if isinstance(preprocess, ImagePreprocess) else None,
            license=entry.license,
            files=describe_files(folder),
            lineage=lineage,
            parity=report,
        )
        write_manifest(folder, manifest)
    return Bundle(target, manifest)


def build_in_child(entry: Entry, weights: Path, target: Path, progress: Progress, cut: int | None = None) -> Bundle:
    """`build` in a child process, whose family is found by its plugin there. Raises what the child raised.

    The child is in a session of its own: Ctrl-C reaches this process alone, which ends the child and says so.
    """
    request = {"entry": entry, "weights": str(weights), "target": str(target), "cut": cut}
    what = f"the first {cut} stages of {entry.name}" if cut else entry.name
    with (
        progress.task(f"exporting {what} to ONNX and checking it (once)", None),
        Child(python("-m", "zoo.export.build")) as child,
    ):
        try:
            child.ask(request)
        except EndedError as ended:
            raise PluginError(
                f"the family '{entry.family}' ended the process that exported {entry.name} (exit code {ended.code})",
                plugin=entry.family,
                hint=f"zoo plugins check {entry.family} shows where; or there was not enough memory",
            ) from None
    return Bundle.open(target)


def with_prefix(body: "onnx.ModelProto", preprocess: Preprocess) -> "onnx.ModelProto":
    """The features graph that takes raw input: pictures get the preprocessing prefix, token ids are raw already."""
    import onnx

    if not isinstance(preprocess, ImagePreprocess):
        return body
    crop = preprocess.crop
    whole = edit.join(prefix.image_prefix(preprocess), body)
    edit.declare(whole, PIXELS, onnx.TensorProto.FLOAT, ["batch", 3, crop, crop])
    return whole


def encoder(preprocess: Preprocess, folder: Path) -> ImagePreprocess | TextEncoder:
    """What turns samples into arrays for the gate."""
    if isinstance(preprocess, ImagePreprocess):
        return preprocess
    if isinstance(preprocess, TextPreprocess):
        return TextEncoder(preprocess, folder)
    raise UsageError("a bundle's words are tokens: a row of words has no encoder of its own")


def input_of_bundle(entry: Entry, weights: Path, folder: Path) -> Preprocess:
    """How the bundle in `folder` prepares raw input; the tokenizer that this needs is put there."""
    preprocess = entry.preprocess
    if isinstance(preprocess, WordsPreprocess):
        return write_word_level(WordTable.open(weights), preprocess, folder)
    return place_tokenizer(preprocess, weights, folder) if isinstance(preprocess, TextPreprocess) else preprocess


def gate_words(entry: Entry, reader: ImagePreprocess | TextEncoder) -> Sequence[str]:
    """Words for the gate's samples where the row is a list of words, so that every part of its table is looked at."""
    if isinstance(entry.preprocess, WordsPreprocess) and isinstance(reader, TextEncoder):
        return reader.sample(GATE_WORDS)
    return ()


def metadata(lineage: Lineage, preprocess: Preprocess, labels: Sequence[str]) -> dict[str, str]:
    """What a bare runtime can read from the file itself: labels, preprocessing, license, origin."""
    facts = {
        "zoo.entry": lineage.entry.name,
        "zoo.license": lineage.entry.license,
        "zoo.preprocess": msgspec.json.encode(preprocess).decode(),
        "zoo.weights_sha256": json.dumps({file.path: file.sha256 for file in lineage.weights}, sort_keys=True),
        "zoo.versions": json.dumps(dict(lineage.versions), sort_keys=True),
    }
    return {**facts, "zoo.labels": json.dumps(list(labels), ensure_ascii=False)} if labels else facts


def versions() -> dict[str, str]:
    """The installed versions of all that shapes an exported file."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _features(entry: Entry) -> TensorSpec:
    return TensorSpec(name=FEATURES, dtype="float32", shape=("batch", entry.dim))


def _digests(entry: Entry) -> tuple[FileDigest, ...]:
    files = [file for file in entry.files if file.sha256 is not None]
    return tuple(FileDigest(path=file.path, size=file.size or 0, sha256=file.sha256 or "") for file in files)


def _serve_parent() -> None:
    """Build what the parent asks for; the answer is {} or the error."""
    from zoo.plugin.manager import Plugins

    class Request(msgspec.Struct):
        entry: Entry
        weights: str
        target: str
        cut: int | None = None

    parent = Parent()
    message = parent.receive()
    assert message is not None
    try:
        request = msgspec.convert(message.data, Request)
        build(request.entry, Path(request.weights), Plugins().make, Path(request.target), request.cut)
        parent.send({})
    except ZooError as error:
        parent.fail(error)


if __name__ == "__main__":
    _serve_parent()
