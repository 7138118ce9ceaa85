"""Registry row -> features bundle: the family's graph with preprocessing in front, checked, under ZOO_HOME/graphs.

Each bundle is built once, in a child process (`python -m zoo.export.build`). Building imports torch, and the process
that runs a model must not import it.
"""

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zoo.backbone import Backbone
from zoo.bundle import MODEL, SCHEMA_VERSION, Bundle, describe_files, write_manifest
from zoo.data import samples
from zoo.data.labels import LabelList, labels_of, reads_pairs
from zoo.data.tokenizers import TextEncoder, place_tokenizer, write_word_level
from zoo.errors import PluginError, UsageError, ZooError
from zoo.export import parity, trunk
from zoo.export.reference import expect
from zoo.graph import edit, prefix
from zoo.progress import Progress
from zoo.schema import (
    PIXELS,
    PRETRAINED,
    Entry,
    ExportOptions,
    FileDigest,
    ImagePreprocess,
    Lineage,
    Manifest,
    Parity,
    Preprocess,
    Task,
    TextPreprocess,
    WordsPreprocess,
)
from zoo.system.files import staged_dir
from zoo.system.process import Child, EndedError, Parent, python
from zoo.words.table import WordTable

if TYPE_CHECKING:
    from typing import Self

    import onnx

#: Packages whose versions are recorded.
VERSIONED = ("backbone-zoo", "onnx", "onnxruntime-gpu", "onnxruntime", "torch", "tokenizers", "Pillow", "numpy")


def build(
    entry: Entry,
    weights: Path,
    family: Callable[[Entry, Path], Backbone],
    target: Path,
    cut: int | None = None,
) -> Bundle:
    """Export, check and write the features bundle of `entry` at `target`; torch is imported in this process.

    With `cut` the bundle is a trunk: its outputs are the inputs of stage `cut`. Raises GateError when the numbers
    differ, PluginError when the graph's inputs or outputs are not those of the row, UsageError for an impossible cut.
    """
    backbone = family(entry, weights)
    with staged_dir(target) as folder:
        backbone.prepare()
        preprocess = input_of_bundle(entry, weights, folder)
        outputs = trunk.output_specs(backbone, cut) if cut else trunk.answer_specs(entry)
        backbone.export(folder / MODEL, ExportOptions(cut=cut, head=entry.head is not None and not cut))
        body = edit.clean(edit.load(folder / MODEL), trunk.NAME if cut else entry.family)
        trunk.check_contract(body, entry, entry.inputs, outputs)
        whole = with_prefix(body, preprocess)
        manifest = _draft(entry, cut)
        edit.describe(whole, metadata(manifest.lineage, preprocess, manifest.labels))
        edit.save(whole, folder / MODEL)
        reader = encoder(preprocess, folder)
        items, origin = samples.bundled(preprocess, parity_words(entry, reader), pairs=reads_pairs(entry) and not cut)
        reference = trunk.reference(backbone, cut) if cut else backbone.reference
        expected = expect(reference, items, origin, reader)
        manifest = msgspec.structs.replace(
            manifest,
            preprocess=preprocess,
            inputs=edit.tensor_specs(whole)[0],
            outputs=outputs if cut else edit.tensor_specs(whole)[1],
            files=describe_files(folder),
            parity=parity.check(folder / MODEL, expected),
        )
        write_manifest(folder, manifest)
    return Bundle(target, manifest)


def _draft(entry: Entry, cut: int | None) -> Manifest:
    """The manifest of a row's bundle without the facts that only the written files show."""
    digests = tuple(
        FileDigest(path=file.path, size=file.size or 0, sha256=file.sha256) for file in entry.files if file.sha256
    )
    lineage = Lineage(entry=entry, weights=digests, versions=versions(), options={"cut": cut} if cut else {})
    head = None if cut else entry.head
    labels = LabelList(()) if head is None else labels_of(head)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=entry.name,
        task=Task.EMBEDDING if head is None else Task(head.task),
        precision="fp32",
        preprocess=entry.preprocess,
        dim=entry.dim,
        inputs=(),
        outputs=(),
        cut=PIXELS if isinstance(entry.preprocess, ImagePreprocess) else None,
        license=entry.license,
        files=(),
        lineage=lineage,
        parity=Parity(samples="", checks=()),
        activation=None if head is None else head.activation,
        labels=labels.names,
        label_ids=labels.ids,
        head=None if head is None else PRETRAINED,
    )


class Building:
    """The export of a registry row in a child process, begun when the object is made; leaving the context ends it.

    The arguments are those of `build`; the child loads the family's plugin. Ctrl-C reaches only this process.
    """

    def __init__(self, entry: Entry, weights: Path, target: Path, cut: int | None = None) -> None:
        self.entry, self.target = entry, target
        self.what = entry.name
        if cut:
            self.what = f"the first {f'{cut} stages' if cut > 1 else 'stage'} of {entry.name}"
        self._child = Child(python("-m", "zoo.export.build"))
        self._child.send({"entry": entry, "weights": str(weights), "target": str(target), "cut": cut})

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()

    def wait(self, progress: Progress) -> Bundle:
        """The finished bundle. Raises the child's errors, and PluginError if the child ends without an answer."""
        with progress.task(f"exporting {self.what} to ONNX and checking it (once)", None):
            try:
                self._child.receive()
            except EndedError as ended:
                family, name = self.entry.family, self.entry.name
                raise PluginError(
                    f"the family '{family}' ended the process that exported {name} (exit code {ended.code})",
                    plugin=family,
                    hint=f"zoo plugins check {family} shows where, unless there was too little memory",
                ) from None
        return Bundle.open(self.target)


def with_prefix(body: "onnx.ModelProto", preprocess: Preprocess) -> "onnx.ModelProto":
    """The graph that takes raw input: images get the preprocessing in front, token ids need none."""
    if not isinstance(preprocess, ImagePreprocess):
        return body
    whole = edit.join(prefix.image_prefix(preprocess), body)
    whole.graph.value_info.append(edit.floats(PIXELS, ["batch", 3, preprocess.crop, preprocess.crop]))
    return whole


def encoder(preprocess: Preprocess, folder: Path) -> ImagePreprocess | TextEncoder:
    """The object that turns samples into arrays for the parity check."""
    if isinstance(preprocess, ImagePreprocess):
        return preprocess
    if isinstance(preprocess, TextPreprocess):
        return TextEncoder(preprocess, folder)
    raise UsageError("word preprocessing has no encoder: a bundle of words has a tokenizer")


def input_of_bundle(entry: Entry, weights: Path, folder: Path) -> Preprocess:
    """The preprocessing of the bundle in `folder`; if that needs a tokenizer, its file is written to `folder`."""
    preprocess = entry.preprocess
    if isinstance(preprocess, WordsPreprocess):
        return write_word_level(WordTable.open(weights), preprocess, folder)
    return place_tokenizer(preprocess, weights, folder) if isinstance(preprocess, TextPreprocess) else preprocess


def parity_words(entry: Entry, reader: ImagePreprocess | TextEncoder) -> Sequence[str]:
    """Words from all parts of a word table, for the samples of the parity check; none for other rows."""
    if isinstance(entry.preprocess, WordsPreprocess) and isinstance(reader, TextEncoder):
        return reader.sample(60)
    return ()


def metadata(lineage: Lineage, preprocess: Preprocess, labels: Sequence[str]) -> dict[str, str]:
    """The metadata of an exported file, which any runtime can read: labels, preprocessing, license, origin."""
    facts = {
        "zoo.entry": lineage.entry.name,
        "zoo.license": lineage.entry.license,
        "zoo.preprocess": msgspec.json.encode(preprocess).decode(),
        "zoo.weights_sha256": json.dumps({file.path: file.sha256 for file in lineage.weights}, sort_keys=True),
        "zoo.versions": json.dumps(dict(lineage.versions), sort_keys=True),
    }
    if isinstance(preprocess, ImagePreprocess):
        facts |= [prefix.ARITHMETIC]
    return {**facts, "zoo.labels": json.dumps(list(labels), ensure_ascii=False)} if labels else facts


def versions() -> dict[str, str]:
    """The installed versions of the packages that affect an exported file."""
    found = {}
    for name in VERSIONED:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _serve_parent() -> None:
    """Run the child process: build the bundle that the parent requests, then send {} or the error."""
    from zoo.plugin.manager import Plugins

    parent = Parent()
    message = parent.receive()
    assert message is not None
    try:
        request = message.data
        entry = msgspec.convert(request["entry"], Entry)
        build(entry, Path(request["weights"]), Plugins().make, Path(request["target"]), request["cut"])
        parent.send({})
    except ZooError as error:
        parent.fail(error)


if __name__ == "__main__":
    _serve_parent()
