"""The conformance check: right families pass it, and each wrong one fails exactly the check of its fault."""

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.kit.installed import PLAIN
from tests.kit.word_tables import WORDS, binary, entry, text, vectors, write_list, write_table
from zoo.backbone import Backbone
from zoo.schema import Entry
from zoo.testing import Report, check_backbone

#: A right family, in which the tests change one thing at a time; its features are the scaled mean colour.
RIGHT = """
from zoo.torchkit import TorchBackbone, as_stage
from zoo.backbone import Backbone

def network(change=lambda features, module: features):
    import torch

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]), requires_grad=False)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, pixels):
            return change(pixels.mean((2, 3)) * self.scale, self)

    return Network().eval()

class Toy(TorchBackbone):
    family = "toy"

    def build(self):
        return network()
"""
NORMAL = "RandomNormalLike"

#: The fault, the code of the family, and the only check that must fail.
WRONG = [
    ("the output has another name", PLAIN + '    output = "embedding"\n', "inputs and outputs"),
    ("an opset of tomorrow", PLAIN + "    opset = 21\n", "IR and opset"),
    (
        "an operator of one runtime alone",
        PLAIN + '    nodes = [("Gelu", ["mean"], ["gelu"], {"domain": "com.microsoft"})]\n',
        "IR and opset",
    ),
    ("a frozen batch", PLAIN + '    nodes = [("Reshape", ["mean", "one_row"], ["row"], {})]\n', "dynamic batch"),
    (
        "a batch axis of fixed length",
        RIGHT + '    def export(self, path, options):\n        import torch\n        torch.onnx.export(self.module, '
        '(torch.ones(2, 3, 32, 32),), str(path), input_names=["pixels"], output_names=["features"], '
        "opset_version=20, dynamo=True, external_data=False, verbose=False)\n",
        "dynamic batch",
    ),
    (
        "random noise in the graph",
        PLAIN + f'    nodes = [("{NORMAL}", ["mean"], ["noise"], {{}}), ("Add", ["mean", "noise"], ["noisy"], {{}})]\n',
        "graph deterministic",
    ),
    ("a wrong conversion", PLAIN + '    nodes = [("Neg", ["mean"], ["negative"], {})]\n', "parity"),
    (
        "a wrong reference",
        PLAIN + '    def reference(self, feeds):\n        return {"features": feeds["pixels"].mean((2, 3)) + 0.01}\n',
        "parity",
    ),
    (
        "random noise in the reference",
        PLAIN + "    def reference(self, feeds):\n        import numpy as np\n        "
        'return {"features": feeds["pixels"].mean((2, 3)) + np.random.rand(3)}\n',
        "reference deterministic",
    ),
    (
        "the reference is of another size",
        PLAIN + '    def reference(self, feeds):\n        return {"features": feeds["pixels"].mean((1, 2, 3))}\n',
        "reference",
    ),
    (
        "a leak between the rows of a batch",
        RIGHT.replace("return network()", "return network(lambda features, module: features + 0.1 * features.mean(0))"),
        "batch-invariant",
    ),
    (
        "dropout left on",
        RIGHT.replace(
            "return network()",
            "import torch\n        return torch.nn.Sequential(network(), torch.nn.Dropout(0.5))",
        ),
        "eval mode",
    ),
    (
        "state that changes as it runs",
        RIGHT.replace(
            "return network()", "return network(lambda features, module: features + 0 * module.seen.add_(1))"
        ),
        "state unchanged",
    ),
    (
        "stages that leave something out",
        RIGHT + '    def stages(self):\n        from torch import nn\n        '
        'return [as_stage(nn.AdaptiveAvgPool2d(1), ["pixels"], output="mean"), '
        'as_stage(nn.Flatten(), ["mean"], output="features")]\n',
        "stages",
    ),
    (
        "stages with tensors of their own",
        RIGHT + '    def stages(self):\n        return [as_stage(self.build(), ["pixels"], output="features")]\n',
        "stages",
    ),
    ("torch at import", "import torch\n" + RIGHT, "light import"),
    ("torch when the hook is asked", RIGHT + "\ndef zoo_register_backbones():\n    import torch\n", "light import"),
    ("an exit in the export", PLAIN.replace("        import numpy as np", "        raise SystemExit(3)", 1), "export"),
    ("no file", PLAIN.replace("        import numpy as np", "        return", 1), "export"),
    ("files it cannot read", RIGHT.replace("return network()", "raise OSError('not mine')"), "weights"),
]  # fmt: skip

#: The shipped family with a preparation and a reference that read the files in the same way, right or wrong.
WORDLY = """
from zoo import words
from zoo.backbone import Backbone
from zoo.progress import SILENT
from zoo_plugins.backbones.word2vec import Word2Vec

class Wordly(Word2Vec):
    family, column = "toy", "word"

    def __init__(self, entry, weights):
        Backbone.__init__(self, entry, weights)
        self.preprocess = entry.preprocess

    def read(self):
        import numpy as np
        import pyarrow.parquet

        listed = pyarrow.parquet.read_table(self.weights / "w.parquet")[self.column].to_pylist()
        return listed, np.load(self.weights / "t.npy")

    def kept(self, listed):
        return [row for row, word in enumerate(listed) if word not in listed[:row]]

    def distinct(self):
        listed, table = self.read()
        rows = self.kept(listed)
        return [listed[row].encode() for row in rows], table[rows]

    def prepare(self, progress=SILENT):
        words.prepare(self.weights, [self.distinct()], self.entry.dim)

    def reference(self, feeds):
        import numpy as np

        _, table = self.distinct()
        used = feeds["attention_mask"].astype(bool) & (feeds["input_ids"] < len(table))
        gathered = table[np.where(used, feeds["input_ids"], 0)] * used[..., None]
        return {"features": gathered.sum(1) / np.maximum(used.sum(1, keepdims=True), 1)}

class Toy(Wordly):
    "Right as it is."
"""
READ_WRONGLY = "    def read(self):\n        listed, table = super().read()\n        return "

#: A fault that the preparation and the reference share, and the code of the family.
WRONG_WORDS = [
    ("the list is reversed", f"{READ_WRONGLY}listed[::-1], table"),
    ("the list is sorted", f"{READ_WRONGLY}sorted(listed), table"),
    ("the list is shifted by one", f"{READ_WRONGLY}[listed[-1], *listed[:-1]], table"),
    ("the table is shifted by one", f"{READ_WRONGLY}listed, table[[-1, *range(len(table) - 1)]]"),
    ("the last two rows are swapped", f"{READ_WRONGLY}listed, table[[*range(len(table) - 2), -1, -2]]"),
    ("another column", '    column = "lemma"'),
    (
        "the last of a word's rows counts",
        "    def kept(self, listed):\n        "
        "return [row for row, word in enumerate(listed) if word not in listed[row + 1 :]]",
    ),
]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], type[Backbone]]]:
    """A function that makes the class Toy from code, in a module that child processes can import, too."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(code: str) -> type[Backbone]:
        (tmp_path / "toy_family.py").write_text(code)
        family: type[Backbone] = importlib.import_module("toy_family").Toy
        return family

    yield load
    sys.modules.pop("toy_family", None)


def row(**changes: object) -> Entry:
    preprocess = {"kind": "image", "resize": 40, "crop": 32, "interpolation": "bilinear"}
    file = {"path": "toy.bin", "sha256": "0" * 64, "size": 1, "sources": ["file:///toy.bin"]}
    fields = {
        "name": "toy", "family": "toy", "task": "image-features", "description": "toy", "license": "CC0-1.0",
        "params": 3, "dim": 3, "preprocess": {**preprocess, "mean": [0.5] * 3, "std": [0.3] * 3}, "files": [file],
    }  # fmt: skip
    return msgspec.convert({**fields, **changes}, Entry)


def failed(report: Report) -> list[str]:
    """The failed checks; those that depend on them must be skipped, and all others passed."""
    states = {check.name: check.state for check in report.checks}
    assert all(check.detail for check in report.checks)
    return [name for name, state in states.items() if state == "failed"]


@pytest.mark.parametrize("code", [RIGHT, PLAIN], ids=["torch", "onnx"])
def test_a_right_family_passes(toy: Callable[[str], type[Backbone]], tmp_path: Path, code: str) -> None:
    report = check_backbone(toy(code), row(), tmp_path)
    assert report.failures == []
    assert report.passed
    assert report.size is not None
    assert report.size > 100
    names = [check.name for check in report.checks]
    assert ("stages" in names) is ("TorchBackbone" in code)
    assert names[-1] == "whole chain"


@pytest.mark.parametrize(("code", "check"), [each[1:] for each in WRONG], ids=[each[0] for each in WRONG])
def test_a_wrong_family_fails_that_check_alone(
    toy: Callable[[str], type[Backbone]], tmp_path: Path, code: str, check: str
) -> None:
    report = check_backbone(toy(textwrap.dedent(code)), row(), tmp_path)
    assert failed(report) == [check]
    assert not report.passed
    assert report.failures[0].startswith(f"{check}: ")
    assert "\n" not in report.failures[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"license": "unknown"}, "the license of toy is 'unknown'"),
        (
            {"files": [{"path": "toy.bin", "sha256": None, "size": None, "sources": ["file:///t"]}]},
            "toy.bin has no sha256",
        ),
    ],
)
def test_a_row_without_license_or_digest(
    toy: Callable[[str], type[Backbone]], tmp_path: Path, change: dict[str, object], said: str
) -> None:
    report = check_backbone(toy(PLAIN), row(**change), tmp_path)
    assert failed(report) == ["license and digests"]
    assert said in report.failures[0]


def words_row(folder: Path, words: list[str], lowercase: bool = True, **config: str) -> Entry:
    """A row with a table and a list whose second column has the words."""
    import pyarrow
    import pyarrow.parquet

    columns = {"lemma": [*words[5:], *words[:5]], "word": words}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "w.parquet")
    table = write_table(folder / "t.npy", vectors(len(words), 6))
    return entry(table, folder / "w.parquet", 6, config=config, lowercase=lowercase)


#: Words of which one occurs twice.
TWICE = [*WORDS[:9], "zoo", *WORDS[9:20], "zoo", *WORDS[20:]]


def test_words_that_are_read_rightly_pass(toy: Callable[[str], type[Backbone]], tmp_path: Path) -> None:
    report = check_backbone(toy(WORDLY), words_row(tmp_path, TWICE, column="word"), tmp_path)
    assert report.failures == []
    details = {check.name: (check.state, check.detail) for check in report.checks}
    assert details["words"] == ("passed", "9 words of w.parquet have their vectors, one that comes twice the first")


@pytest.mark.parametrize("change", [each[1] for each in WRONG_WORDS], ids=[each[0] for each in WRONG_WORDS])
def test_words_that_are_read_wrongly_on_both_sides_fail_one_check(
    toy: Callable[[str], type[Backbone]], tmp_path: Path, change: str
) -> None:
    report = check_backbone(toy(f"{WORDLY}\n{change}\n"), words_row(tmp_path, TWICE, column="word"), tmp_path)
    assert failed(report) == ["words"], report.failures
    assert {check.state for check in report.checks} == {"passed", "failed"}
    assert "do not get the vector that w.parquet and t.npy give them" in report.failures[0]


#: Files of words by name, with the functions that write them.
TABLE = vectors(len(WORDS), 12)
LAYOUTS: dict[str, Callable[[Path], object]] = {
    "v.bin": lambda path: path.write_bytes(binary(WORDS, TABLE)),
    "v.vec": lambda path: path.write_bytes(text(WORDS, TABLE, end=" \n")),
    "v.txt": lambda path: path.write_bytes(text([". . .", *WORDS[1:]], TABLE, header=False, end=" \n")),
    "t.npy": lambda path: write_table(path, np.asfortranarray(TABLE)),
    "half.npy": lambda path: write_table(path, TABLE.astype(np.float16)),
    "t.safetensors": lambda path: write_table(path, TABLE.astype(np.float64)),
}
LISTS = ("w.parquet", "w.txt", "w.json", "w.ids.json")


@pytest.mark.parametrize(
    ("name", "listed", "lowercase"),
    [
        *((name, None, True) for name in list(LAYOUTS)[:3]),
        *((name, listed, True) for name in list(LAYOUTS)[3:] for listed in LISTS),
        ("v.bin", None, False),
    ],
)
def test_the_shipped_words_pass_in_every_layout(tmp_path: Path, name: str, listed: str | None, lowercase: bool) -> None:
    from zoo_plugins.backbones.word2vec import Word2Vec

    LAYOUTS[name](tmp_path / name)
    words = None if listed is None else write_list(tmp_path / listed, WORDS)
    unknown = {"unknown": "token", "unknown_token": "king"} if lowercase else {"unknown": "zero"}
    report = check_backbone(Word2Vec, entry(tmp_path / name, words, 12, lowercase=lowercase, **unknown), tmp_path)
    assert report.failures == []
    (found,) = [check for check in report.checks if check.name == "words"]
    assert (found.state, found.detail) == ("passed", f"8 words of {listed or name} have their vectors")


def test_a_fault_in_the_shipped_reading_of_lists_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo_plugins.backbones.word2vec import Word2Vec

    from zoo.words import formats

    read_words = formats.read_words
    monkeypatch.setattr(formats, "read_words", lambda path, column=None: read_words(path, column)[::-1])
    report = check_backbone(Word2Vec, words_row(tmp_path, WORDS, column="word"), tmp_path)
    assert failed(report) == ["words"], report.failures


@pytest.mark.parametrize(
    ("words", "config", "said"),
    [
        (WORDS, {"format": "ours"}, "the format of t.npy is none of word2vec-binary, "),
        (WORDS, {"format": "glove-text"}, "t.npy cannot be read as glove-text: it has a list of words"),
        (WORDS, {"format": "word2vec-binary"}, "t.npy cannot be read as word2vec-binary: "),
        (WORDS, {}, "t.npy cannot be read as npy: w.parquet has the columns lemma, word"),
        ([f"W-{index}" for index in range(60)], {"column": "word"}, "no word of w.parquet can occur in a text"),
    ],
)
def test_words_that_cannot_be_looked_at_are_no_claim(
    toy: Callable[[str], type[Backbone]], tmp_path: Path, words: list[str], config: dict[str, str], said: str
) -> None:
    """A third-party family may have its own format: its check is neither passed nor failed."""
    report = check_backbone(toy(WORDLY), words_row(tmp_path, words, **config), tmp_path)
    assert report.failures == []
    assert report.passed
    (found,) = [check for check in report.checks if check.state == "skipped"]
    assert found.name == "words"
    assert found.detail.startswith(f"could not check: {said}")


def test_other_rows_have_no_words(toy: Callable[[str], type[Backbone]], tmp_path: Path) -> None:
    assert "words" not in [check.name for check in check_backbone(toy(PLAIN), row(), tmp_path).checks]
