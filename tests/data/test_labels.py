"""Labels of heads that come with weights: the classes of ImageNet, second names, and files of names."""

import csv
from pathlib import Path
from typing import Any

import pytest
from msgspec import convert
from msgspec.structs import replace

from zoo import DataError, PretrainedHead, label_names
from zoo.data.labels import count_outputs, imagenet, labels_of, other_names, read_label_map, without_head
from zoo.errors import MissingFileError
from zoo.registry.registry import builtin_registry_path, load_registry
from zoo.schema import Entry, ImagePreprocess, Lineage, Manifest, Parity, Task, WeightFile


def manifest(labels: tuple[str, ...], label_ids: tuple[str, ...] = ()) -> Manifest:
    preprocess = ImagePreprocess(resize=8, crop=8, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    entry = Entry(
        name="some-model", family="some", task="image-features", description="", license="MIT", params=1, dim=1,
        preprocess=preprocess, files=(WeightFile(path="w", sha256=None, size=None, sources=("https://x",)),),
    )  # fmt: skip
    return Manifest(
        schema_version=1, name="some-model", task=Task.SINGLE_LABEL, precision="fp32", preprocess=preprocess, dim=1,
        inputs=(), outputs=(), license="MIT", files=(), lineage=Lineage(entry=entry, weights=(), versions={}),
        parity=Parity(samples="", checks=()), labels=labels, label_ids=label_ids,
    )  # fmt: skip


def test_the_classes_are_torchvisions_and_timms() -> None:
    from timm.data import ImageNetInfo
    from torchvision.models import ResNet18_Weights

    classes, info = imagenet(), ImageNetInfo("imagenet-1k")
    assert list(classes.names) == ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert list(classes.ids) == info.label_names()
    assert list(classes.synonyms) == [info.index_to_description(index) for index in range(1000)]
    assert len(set(classes.ids)) == len(set(classes.names)) == 1000


def test_labels_of_a_head() -> None:
    head = PretrainedHead(labels="imagenet-1k")
    assert label_names(head)[:2] == ("tench", "goldfish")
    assert labels_of(head).ids[281] == "n02123045"
    assert count_outputs(head) == 1000
    assert count_outputs(PretrainedHead(task="fill-mask", outputs=30522)) == 30522
    assert labels_of(PretrainedHead(labels=("no", "yes"))) == (("no", "yes"), ())


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "a head needs labels"),
        ({"labels": ["a", "b", "a"]}, "two labels of a head are equal"),
        ({"labels": ["a", "b"], "ids": ["x"]}, "1 ids for 2 labels"),
        ({"labels": "imagenet-2k"}, "Invalid enum value"),
        ({"labels": ["a"], "task": "detection"}, "Invalid enum value"),
    ],
)
def test_heads_that_cannot_be(given: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        convert(given, PretrainedHead)


@pytest.fixture
def cats() -> Manifest:
    """A classifier of three ImageNet classes, the crane (a bird) among them."""
    return manifest(labels=("tabby", "crane bird", "crane"), label_ids=("n02123045", "n02012849", "n03126707"))


def test_second_names(cats: Manifest) -> None:
    names = other_names(cats)
    assert names["n02123045"] == names["tabby, tabby cat"] == "tabby"
    assert names["n02012849"] == "crane bird"
    # The synonym "crane" is the label of the machine.
    assert "crane" not in names
    assert other_names(manifest(labels=("a", "b"))) == {}


def test_a_file_of_names(cats: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text("\ufeffmine,model\nKatze,tabby\n Kranich , n02012849\n\nKran,crane\nKatze,n02123045\n")
    assert read_label_map(path, cats) == {"Katze": "tabby", "Kranich": "crane bird", "Kran": "crane"}
    path.write_text("Katze,tabby\n")
    assert read_label_map(path, cats) == {"Katze": "tabby"}


def test_only_the_documented_header_is_one(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text("mine,model\nfoto,photo\n")
    assert read_label_map(path, manifest(labels=("photo", "x"))) == {"foto": "photo"}
    assert read_label_map(path, manifest(labels=("photo", "model"))) == {"foto": "photo", "mine": "model"}
    path.write_text("foto,photo\nmine,model\n")
    with pytest.raises(DataError, match=r"map\.csv:2 maps 'mine' to 'model'"):
        read_label_map(path, manifest(labels=("photo",)))


def test_a_quoted_cell_is_one_cell(tmp_path: Path) -> None:
    path, names = tmp_path / "map.csv", ["two\nlines", "a\u2028separator", "a\x0cfeed", "n\x85l", "x" * 4]
    path.write_text("".join(f'"{name}",photo\n' for name in names), newline="")
    assert list(read_label_map(path, manifest(labels=("photo",)))) == names


@pytest.mark.parametrize(
    ("content", "problem", "hint"),
    [
        (b"Katze,taby\n", r"map\.csv:1 maps 'Katze' to 'taby', which is not a label", "did you mean tabby"),
        (
            b"mine,theirs\nKatze,tabby\n",
            r"map\.csv:1 maps 'mine' to 'theirs'",
            "known labels: tabby, crane bird, crane",
        ),
        (b"\n\nKatze,tabby\n\nHund,dog\n", r"map\.csv:5 maps 'Hund' to 'dog'", "known labels"),
        (b'"Ka\ntze",tabby\nHund,dog\n', r"map\.csv:3 maps 'Hund' to 'dog'", "known labels"),
        (b"Katze,tabby,1\n", r"map\.csv:1 has 3 columns instead of two", "a comma"),
        (b"Katze\n", r"map\.csv:1 has 1 column instead of two", "a comma"),
        (b"Katze;tabby\n", r"map\.csv:1 has 1 column instead of two", "not a semicolon"),
        (b"Katze\ttabby\n", r"map\.csv:1 has 1 column instead of two", "not a tab"),
        (b"a,tabby\nKatze,tabby\nKatze,crane\n", r"map\.csv:3 maps 'Katze' to 'crane', an earlier row", "remove one"),
        (b"", r"map\.csv maps no label", "a comma"),
        (b"mine,model\n\n", r"map\.csv maps no label", "a comma"),
        (b'"Katze,tabby\n', r"map\.csv:1 is not CSV: unexpected end of data", "a comma"),
        (b"\xff\xfe\x00", "cannot be read", "UTF-8"),
    ],
)
def test_files_of_names_that_cannot_be(cats: Manifest, tmp_path: Path, content: bytes, problem: str, hint: str) -> None:
    (tmp_path / "map.csv").write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        read_label_map(tmp_path / "map.csv", cats)
    assert hint in str(caught.value.hint)


def test_a_cell_above_the_readers_limit(cats: Manifest, tmp_path: Path) -> None:
    limit = csv.field_size_limit(1 << 10)
    try:
        (tmp_path / "map.csv").write_text("x" * 2000 + ",tabby\n")
        with pytest.raises(DataError, match=r"map\.csv:1 is not CSV: field larger than field limit"):
            read_label_map(tmp_path / "map.csv", cats)
    finally:
        csv.field_size_limit(limit)


def test_paths_that_are_no_file_of_names(cats: Manifest, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        read_label_map(tmp_path / "absent.csv", cats)
    with pytest.raises(DataError, match="is a folder"):
        read_label_map(tmp_path, cats)


def test_a_model_without_a_head_says_why() -> None:
    none = manifest(labels=("a",))
    row = none.lineage.entry

    def stored(**facts: Any) -> Manifest:
        return replace(none, lineage=replace(none.lineage, entry=replace(row, **facts)))

    assert without_head(row) == "its weights have no classifier"
    assert without_head(replace(row, no_head="lost")) == without_head(stored(no_head="lost")) == "lost"
    assert "--raw" in without_head(stored(head=PretrainedHead(labels=("a", "b"))))
    # Bundles and kept entries of earlier versions have neither field.
    assert without_head(none).startswith("its row names no classifier. If an earlier zoo wrote it: ")
    assert "zoo export some-model -o DIR" in without_head(none)
    assert "zoo pull hf/acme/net" in without_head(replace(row, name="hf/acme/net"))
    for entry in load_registry([builtin_registry_path()]).values():
        assert (entry.head is None) == (entry.no_head is not None), entry.name
