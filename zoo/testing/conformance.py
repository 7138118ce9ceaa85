"""The requirements on a family: each function returns a short finding or raises BrokenError; STEPS lists them."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from zoo.backbone import Backbone
from zoo.bundle import MODEL
from zoo.data import samples
from zoo.data.images import decode_image
from zoo.data.labels import reads_pairs
from zoo.data.tokenizers import TextEncoder
from zoo.errors import brief, quote
from zoo.export import build, parity
from zoo.export.reference import BATCHES, Case
from zoo.export.trunk import answer_specs
from zoo.graph import edit, external_data
from zoo.graph.prefix import image_prefix
from zoo.runtime.ort import create_session
from zoo.schema import FEATURES, IMAGE, PIXELS, Entry, ExportOptions, ImagePreprocess, TensorSpec, WordsPreprocess
from zoo.system.process import python
from zoo.torchkit import TorchBackbone
from zoo.words import plain_reader

if TYPE_CHECKING:
    import torch

    from zoo.backbone import TensorMap

#: Packages that a plugin's module must not import at its top, because `zoo list` would wait for them.
HEAVY = ("torch", "onnxruntime", "onnx", "numpy", "transformers", "tensorflow", "jax")
#: Seconds after which the import of a module counts as hanging.
IMPORT_LIMIT = 60
#: The number of words of a table whose vectors are compared.
CHECKED_WORDS = 8
#: Lists the heavy packages that a plugin imports, without zoo.system.process, whose imports would be listed too.
IMPORT_SCRIPT = f"""
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[1])
module = importlib.import_module(sys.argv[2])
getattr(module, "zoo_register_backbones", list)()
print()
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""


class BrokenError(Exception):
    """Raised with the finding by a check whose requirement is not met."""


class UnseenError(Exception):
    """Raised with the reason by a check that is not possible here."""


class Subject:
    """The family to check, and results of checks that later checks need."""

    def __init__(self, cls: type[Backbone], entry: Entry, weights: Path, module: str, folder: Path) -> None:
        self.cls = cls
        self.entry = entry
        self.weights = weights
        self.module = module
        self.exported = folder / "exported" / MODEL
        self.built = folder / "built"
        self.exported.parent.mkdir()
        self.size: int | None = None

    @cached_property
    def backbone(self) -> Backbone:
        """The family with the files of the row, prepared as after a pull."""
        backbone = self.cls(self.entry, self.weights)
        backbone.prepare()
        return backbone

    @cached_property
    def network(self) -> "torch.nn.Module":
        """The module of a torch family, with its head if the row has one."""
        assert isinstance(self.backbone, TorchBackbone)
        return self.backbone.module if self.entry.head is None else self.backbone.whole

    @cached_property
    def session(self) -> Any:
        """The exported graph in ONNX Runtime."""
        model, folder = self.exported.read_bytes(), self.exported.parent
        return create_session(model, "cpu", tables=external_data.files(model, external_data.beside(folder)))

    @cached_property
    def encoder(self) -> ImagePreprocess | TextEncoder:
        """The encoder from raw items to arrays, made from the files of a bundle."""
        folder = self.exported.parent
        return build.encoder(build.input_of_bundle(self.entry, self.weights, folder), folder)

    @cached_property
    def batches(self) -> "list[TensorMap]":
        """The bundled samples as inputs of the graph, a batch for each size that the parity check uses."""
        import numpy as np

        encoder = self.encoder
        words, pairs = build.parity_words(self.entry, encoder), reads_pairs(self.entry)
        items, _ = samples.bundled(self.entry.preprocess, words, pairs=pairs)
        together: Callable[[list[Any]], TensorMap]
        if isinstance(encoder, ImagePreprocess):
            prefix = create_session(image_prefix(encoder).SerializeToString(), "cpu")
            images = [decode_image(item, encoder.resize)[None] for item in items]
            rows: list[Any] = [prefix.run(None, {IMAGE: image})[0] for image in images]
            together = lambda chosen: {PIXELS: np.concatenate(chosen)}  # noqa: E731 - the other branch has a method
        else:
            rows, together = list(encoder.tokens(items)), encoder.batch
        return [together([rows[index % len(rows)] for index in range(size)]) for size in BATCHES]

    def features(self, feeds: "TensorMap") -> Any:
        """Features float [batch, dim], computed by the family's reference()."""
        import numpy as np

        answer = self.backbone.reference(feeds)
        wanted = [spec.name for spec in answer_specs(self.entry)]
        if list(answer) != wanted:
            raise BrokenError(f"reference() returns {', '.join(answer) or 'nothing'} instead of {' and '.join(wanted)}")
        return np.asarray(answer[FEATURES])

    def run(self, feeds: "TensorMap") -> Any:
        """Features, computed by the exported graph. Raises BrokenError if the runtime refuses the shapes."""
        try:
            return self.session.run([FEATURES], dict(feeds))[0]
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise BrokenError(f"the graph cannot run at batch {_size(feeds)}: {brief(str(error))}") from error


def _row(subject: Subject) -> str:
    """The row has a known license, and a sha256 for every file."""
    entry = subject.entry
    if entry.license.lower() in ("unknown", "noassertion", "none", "other", "tbd"):
        raise BrokenError(f"the license of {entry.name} is '{entry.license}'")
    if unpinned := [file.path for file in entry.files if not file.is_pinned]:
        raise BrokenError(f"{', '.join(unpinned)} has no sha256 in the row")
    return f"{entry.license}, {len(entry.files)} pinned"


def _light_import(subject: Subject) -> str:
    """The entry point's module imports no heavy package (tried in a separate process)."""
    command = python("-c", IMPORT_SCRIPT, json.dumps(sys.path), subject.module)
    try:
        child = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=IMPORT_LIMIT
        )
    except subprocess.TimeoutExpired:
        raise BrokenError(f"importing {subject.module} takes more than {IMPORT_LIMIT} s") from None
    lines = (child.stdout if child.returncode == 0 else child.stderr).strip().splitlines() or [""]
    if child.returncode != 0:
        raise BrokenError(f"{subject.module} cannot be imported in a separate process: {brief(lines[-1])}")
    if heavy := json.loads(lines[-1]):
        raise BrokenError(f"importing {subject.module} also imports {', '.join(heavy)}: import inside the methods")
    return f"{subject.module} imports nothing heavy"


def _loads(subject: Subject) -> str:
    """The class accepts the row, and its module loads the files."""
    if isinstance(subject.backbone, TorchBackbone):
        count = sum(parameter.numel() for parameter in subject.network.parameters())
        return f"{count:,} parameters"
    return f"{type(subject.backbone).__name__} takes the row"


def _eval_mode(subject: Subject) -> str:
    """No part of the module is in training mode: dropout is off, batch norm uses its stored statistics."""
    training = [name or "the module itself" for name, part in subject.network.named_modules() if part.training]
    if training:
        raise BrokenError(f"in training mode: {', '.join(training[:3])}; build() ends with .eval()")
    return "no part in training mode"


def _answers(subject: Subject) -> str:
    """reference() returns finite features of the declared size."""
    import numpy as np

    feeds, dim = subject.batches[1], subject.entry.dim
    features = subject.features(feeds)
    if features.shape != (_size(feeds), dim):
        raise BrokenError(f"reference() gives {list(features.shape)}, the row says dim {dim}: [{_size(feeds)}, {dim}]")
    if not np.isfinite(features).all():
        raise BrokenError("reference() returns numbers that are not finite")
    return f"float [batch, {dim}]"


def _state_stays(subject: Subject) -> str:
    """Running the module does not change its tensors."""
    import torch

    before = {name: tensor.clone() for name, tensor in subject.network.state_dict().items()}
    subject.features(subject.batches[1])
    after = subject.network.state_dict()
    if changed := [name for name in before if not torch.equal(before[name], after[name])]:
        raise BrokenError(f"running the module changes {', '.join(changed[:3])}")
    return f"{len(before)} tensors unchanged"


def _reference_repeats(subject: Subject) -> str:
    """Two runs of reference() on the same input return the same bytes."""
    return _repeats(subject.features, "reference()", subject)


def _export(subject: Subject) -> str:
    """export() writes the graph."""
    start = time.perf_counter()
    subject.backbone.export(subject.exported, ExportOptions(head=subject.entry.head is not None))
    seconds = time.perf_counter() - start
    if not subject.exported.is_file():
        raise BrokenError(f"export() wrote no {MODEL}")
    files = [path for path in subject.exported.parent.rglob("*") if path.is_file()]
    subject.size = sum(path.stat().st_size for path in files)
    return f"{subject.size:,} bytes in {seconds:.1f} s"


def _versions(subject: Subject) -> str:
    """The graph's IR version, opset and operators can be read by the runtime."""
    model = edit.load(subject.exported)
    foreign = {item.domain for item in model.opset_import} - {"", "ai.onnx"}
    used = {node.domain for node in model.graph.node} & foreign
    if used or model.functions:
        raise BrokenError(f"operators beyond ONNX's own: {', '.join(sorted(used)) or 'local functions'}")
    opset = max(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    return f"IR {model.ir_version}, opset {opset}"


def _declared(subject: Subject) -> str:
    """The graph's inputs and outputs are those of the row; `_any_batch` checks that axes are dynamic."""
    inputs, outputs = edit.tensor_specs(edit.load(subject.exported))
    wanted = answer_specs(subject.entry)
    for what, declared, found in (("inputs", subject.entry.inputs, inputs), ("outputs", wanted, outputs)):
        if len(declared) != len(found) or not all(map(_fits, declared, found)):
            shown = [
                ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in side) for side in (found, declared)
            ]
            raise BrokenError(f"the graph's {what} are {shown[0]}, the row's {shown[1]}")
    return f"{', '.join(spec.name for spec in inputs)} -> {', '.join(spec.name for spec in wanted)}"


def _any_batch(subject: Subject) -> str:
    """Named axes of the row are dynamic, and the graph runs at several lengths of them."""
    import numpy as np

    inputs, outputs = edit.tensor_specs(edit.load(subject.exported))
    fixed = [
        f"{spec.name}, axis {axis}"
        for spec, declared in zip((*inputs, outputs[0]), (*subject.entry.inputs, None), strict=True)
        for axis, length in enumerate(declared.shape if declared else ("batch",))
        if isinstance(length, str) and isinstance(spec.shape[axis], int)
    ]
    if fixed:
        raise BrokenError(f"axes of fixed length: {'; '.join(fixed)}")
    for feeds in subject.batches:
        features = subject.run(feeds)
        if features.shape != (_size(feeds), subject.entry.dim) or not np.isfinite(features).all():
            raise BrokenError(f"at batch {_size(feeds)} the graph returns {list(features.shape)} or non-finite numbers")
    lengths = {feeds[spec.name].shape[1] for feeds in subject.batches for spec in inputs if "sequence" in spec.shape}
    return f"batch {str(BATCHES)[1:-1]}" + (f", sequence {str(sorted(lengths))[1:-1]}" if lengths else "")


def _graph_repeats(subject: Subject) -> str:
    """Two runs of the graph on the same input return the same bytes."""
    return _repeats(subject.run, "the graph", subject)


def _parity(subject: Subject) -> str:
    """The graph's features and scores equal those of the family's reference on the original files."""
    checks = [
        check
        for feeds in subject.batches
        for check in parity.compare(subject.session, Case(feeds, subject.backbone.reference(feeds)))
    ]
    worst = max(checks, key=lambda check: check.value / check.bound)
    if not worst.passed:
        raise BrokenError(
            f"{worst.name} is {worst.value:.3g} at batch {worst.batch}, at most {worst.bound:g} is allowed"
        )
    return f"max difference {max(check.value for check in checks if 'max' in check.name):.1e}"


def _words(subject: Subject) -> str:
    """A text of one word gets the word's vector from the original files, which a second, simple reader reads.

    The parity check cannot find a word list that is read in a wrong order: graph and reference are then equally wrong.
    """
    import numpy as np

    encoder, preprocess = subject.encoder, subject.entry.preprocess
    assert isinstance(encoder, TextEncoder)
    assert isinstance(preprocess, WordsPreprocess)
    try:
        found, twice = plain_reader.spread(subject.entry, subject.weights, CHECKED_WORDS)
    except ValueError as error:
        raise UnseenError(str(error)) from error
    got = subject.run(encoder.batch(encoder.tokens(list(found))))
    wrong = [
        quote(word)
        for (word, vector), features in zip(found.items(), got, strict=True)
        if not np.allclose(features, vector, rtol=0, atol=1e-6 * max(1.0, float(np.abs(vector).max())))
    ]
    listed, table = preprocess.words or preprocess.table, preprocess.table
    if wrong:
        where = f"{listed} and {table} give" if preprocess.words else f"{table} gives"
        raise BrokenError(
            f"{', '.join(wrong[:3])} ({len(wrong)} of {len(found)} words) do not get the vector that {where} them"
        )
    return f"{len(found)} words of {listed} have their vectors" + (", one that comes twice the first" if twice else "")


def _rows_alone(subject: Subject) -> str:
    """The features of an item do not depend on the other items of its batch."""
    check = parity.rows_alone(subject.session, subject.batches[-1])
    if not check.passed:
        raise BrokenError(f"a row alone and in a batch of {check.batch} differ by {check.value:.3g}")
    return f"max difference {check.value:.1e}"


def _stages(subject: Subject) -> str:
    """stages(), run in order, compute the module's features with the module's own parameters."""
    import numpy as np
    import torch

    assert isinstance(subject.backbone, TorchBackbone)
    stages, feeds = subject.backbone.stages(), subject.batches[1]
    own = {id(parameter) for parameter in subject.backbone.module.parameters()}
    if not all(id(parameter) in own for stage in stages for parameter in stage.parameters()):
        raise BrokenError("a stage has parameters that are not the module's")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}
    with torch.inference_mode():
        for stage in stages:
            tensors = stage(tensors)
    if FEATURES not in tensors:
        raise BrokenError(f"the last stage returns {', '.join(tensors)}, not features")
    got, wanted = tensors[FEATURES].numpy(), subject.features(feeds)
    if got.shape != wanted.shape or not np.allclose(got, wanted, rtol=1e-5, atol=1e-5):
        raise BrokenError("the stages run in order do not return the module's features")
    return f"stages: {len(stages)}"


def _whole_chain(subject: Subject) -> str:
    """The exported file with the row's preprocessing passes the checks of `zoo export`."""

    def export(backbone: Backbone, path: Path, options: ExportOptions) -> None:
        shutil.copytree(subject.exported.parent, path.parent, dirs_exist_ok=True)

    # The build copies the file that is already checked instead of exporting again.
    family = type(subject.cls.__name__, (subject.cls,), {"export": export})
    bundle = build.build(subject.entry, subject.weights, family, subject.built)
    return f"{len(bundle.manifest.parity.checks)} comparisons on {bundle.manifest.parity.samples}"


def _repeats(run: "Callable[[TensorMap], Any]", name: str, subject: Subject) -> str:
    first, second = (run(subject.batches[-1]) for _ in range(2))
    if first.tobytes() != second.tobytes():
        raise BrokenError(f"two runs of {name} on the same input differ")
    return "two runs are equal"


def _fits(declared: TensorSpec, found: TensorSpec) -> bool:
    same = (declared.name, declared.dtype, len(declared.shape)) == (found.name, found.dtype, len(found.shape))
    sizes = zip(declared.shape, found.shape, strict=False)
    return same and all(want == have for want, have in sizes if isinstance(want, int))


def _size(feeds: "TensorMap") -> int:
    return len(next(iter(feeds.values())))


class Step(NamedTuple):
    """A check. `needs` are the checks that must pass before it; `only` is the kind of families it is for, None: all."""

    name: str
    look: Callable[[Subject], str]
    needs: tuple[str, ...] = ()
    only: Literal["torch", "words"] | None = None


STEPS = (
    Step("license and digests", _row),
    Step("light import", _light_import),
    Step("weights", _loads),
    Step("eval mode", _eval_mode, ("weights",), only="torch"),
    Step("reference", _answers, ("weights", "eval mode")),
    Step("state unchanged", _state_stays, ("reference",), only="torch"),
    Step("reference deterministic", _reference_repeats, ("reference", "state unchanged")),
    Step("export", _export, ("weights", "eval mode")),
    Step("IR and opset", _versions, ("export",)),
    Step("inputs and outputs", _declared, ("export", "IR and opset")),
    Step("dynamic batch", _any_batch, ("inputs and outputs",)),
    Step("graph deterministic", _graph_repeats, ("dynamic batch",)),
    Step("parity", _parity, ("reference deterministic", "graph deterministic")),
    Step("words", _words, ("parity",), only="words"),
    Step("batch-invariant", _rows_alone, ("graph deterministic",)),
    Step("stages", _stages, ("reference deterministic",), only="torch"),
    Step("whole chain", _whole_chain, ("parity", "batch-invariant")),
)
