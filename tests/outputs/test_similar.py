"""zoo similar equals brute force in numpy, for every kind of file and for inputs; its warnings and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.kit.cli import fails, parsed, zoo
from tests.kit.outputs import FORMATS, some_texts, write_lines
from zoo import DataError, UsageError, Zoo

QUERY = "card late late 7"


def brute(query: np.ndarray, vectors: np.ndarray, top: int) -> list[int]:
    """The indices of the most similar rows, computed in the simplest way."""
    cosine = vectors @ query / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query))
    return [int(row) for row in np.argsort(-cosine, kind="stable")[:top]]


def test_every_file_and_the_inputs_themselves_agree_with_numpy(kept_shelf: Path, tmp_path: Path) -> None:
    house, lines = Zoo(), write_lines(tmp_path / "t.txt", 9000)
    session = house.session("tiny-bert", "cpu")
    vectors, query = session.features(some_texts(9000)), session.features([QUERY])[0]
    wanted = brute(query, vectors, 7)
    cosines = vectors[wanted] @ query / (np.linalg.norm(vectors[wanted], axis=1) * np.linalg.norm(query))
    for name in FORMATS:
        house.embed("tiny-bert", house.each_input("tiny-bert", [str(lines)]), tmp_path / name, device="cpu")
    for given in (*FORMATS, "t.txt"):
        found = house.similar("tiny-bert", QUERY, [str(tmp_path / given)], device="cpu", top=7)
        assert [name for name, _ in found.matches] == [f"t.txt:{row + 1}" for row in wanted], given
        np.testing.assert_allclose([value for _, value in found.matches], cosines, atol=1e-5)
        assert (found.compared, found.warnings, found.failed) == (9000, (), 0)
    both = house.similar("tiny-bert", QUERY, [str(tmp_path / "v.npy"), str(tmp_path / "t.txt")], device="cpu", top=4)
    assert both.compared == 18000
    assert [name for name, _ in both.matches] == [f"t.txt:{row + 1}" for row in wanted[:2] for _ in "ab"]


def test_the_command(kept_shelf: Path, tmp_path: Path) -> None:
    lines = tmp_path / "t.txt"
    lines.write_text("late parcel\nmy card\nbill\n")
    done = zoo("similar", "tiny-bert", "my card", lines, "--top", 2)
    assert done.returncode == 0, done.stderr
    first, second = (line.split("\t") for line in done.stdout.splitlines())
    assert first == ["1.0000", "t.txt:2"]
    assert float(second[0]) < 1
    assert "3 compared on cpu" in done.stderr
    following = "next: zoo embed tiny-bert INPUT -o vectors.npy"
    assert following in done.stderr
    assert zoo("embed", "tiny-bert", lines, "-o", tmp_path / "v.npy").returncode == 0
    assert following not in zoo("similar", "tiny-bert", "my card", tmp_path / "v.npy").stderr
    answer = parsed(zoo("similar", "tiny-bert", "my card", tmp_path / "v.npy", "--json"))["similar"]
    assert answer["matches"][0]["input"] == "t.txt:2"
    assert (answer["compared"], answer["warnings"], answer["approximate"]) == (3, [], False)
    (tmp_path / "bad.csv").write_text("text,n\nmy card,1\n,2\n")
    bad = zoo("similar", "tiny-bert", "my card", tmp_path / "bad.csv")
    assert bad.returncode == 1
    assert "bad.csv:3 has an empty 'text'" in bad.stderr
    assert bad.stdout == "1.0000\tbad.csv:2\n"
    fails(2, "the query must be one input, got 3", "similar", "tiny-bert", lines, lines)
    fails(2, "the text is empty", "similar", "tiny-bert", " ", lines)
    fails(3, "no such file", "similar", "tiny-bert", "my card", "gone.txt")


def test_images(kept_shelf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("red", (200, 10, 10)), ("blue", (10, 10, 220)), ("pink", (220, 90, 90))):
        Image.new("RGB", (60, 60), colour).save(folder / f"{name}.png")
    answer = parsed(zoo("similar", "tiny-lite", folder / "red.png", folder, "--json", "--top", 3))["similar"]
    assert answer["matches"][0]["input"] == str(folder / "red.png")
    session = Zoo().session("tiny-lite", "cpu")
    names = [str(folder / f"{name}.png") for name in ("blue", "pink", "red")]
    vectors = session.features(names)
    assert [match["input"] for match in answer["matches"]] == [names[row] for row in brute(vectors[2], vectors, 3)]


def test_inputs_that_all_fail_are_named(kept_shelf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"x")
    Image.new("RGB", (60, 60), (200, 10, 10)).save(tmp_path / "red.png")
    done = zoo("similar", "tiny-lite", tmp_path / "red.png", folder, "--json")
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)["similar"]
    assert (answer["compared"], answer["matches"], answer["failed"]) == (0, [], 1)
    assert answer["failures"][0]["input"] == str(folder / "broken.png")
    assert f"failed: {folder / 'broken.png'}" in done.stderr
    assert done.stderr.count("error: ") == 1


def test_another_model_is_warned_about(kept_shelf: Path, tmp_path: Path) -> None:
    house = Zoo()
    for name in FORMATS:
        house.embed("tiny-bert", ["my card", "bill"], tmp_path / name, device="cpu")
        found = house.similar("tiny-bert-cls", "my card", [tmp_path / name], device="cpu")
        assert len(found.warnings) == 1
        assert "was made by another model (tiny-bert, fp32" in found.warnings[0]
    # A Parquet file names its model, a `.npy` file alone does not.
    for kept in ("v.parquet", "v.npy"):
        (tmp_path / f"{kept}.zoo.json").unlink()
    assert "another model" in house.similar("tiny-bert-cls", "x", [tmp_path / "v.parquet"], device="cpu").warnings[0]
    alone = house.similar("tiny-bert", "my card", [tmp_path / "v.npy"], device="cpu")
    assert "does not say which model" in alone.warnings[0]
    assert "warning: " in zoo("similar", "tiny-bert-cls", "x", tmp_path / "v.parquet").stderr


def test_what_cannot_be_compared(kept_shelf: Path, tmp_path: Path) -> None:
    house = Zoo()
    np.save(tmp_path / "five.npy", np.ones((3, 5), np.float32))
    np.save(tmp_path / "whole.npy", np.ones((3, 32), np.int64))
    np.save(tmp_path / "none.npy", np.ones((0, 32), np.float32))
    (tmp_path / "broken.npy").write_bytes(b"x")
    for name, words in (
        ("five.npy", "vectors of 5 numbers; this model's have 32"),
        ("whole.npy", "holds no vectors"),
        ("none.npy", "^no inputs to compare with$"),
        ("broken.npy", "cannot be read"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            house.similar("tiny-bert", "my card", [tmp_path / name], device="cpu")
        assert caught.value.hint
    with pytest.raises(UsageError, match="--top must be at least 1, got 0"):
        house.similar("tiny-bert", "my card", ["a"], top=0)


def test_somebody_elses_vectors(kept_shelf: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(500, 32))
    vectors[100] = 0
    np.save(tmp_path / "theirs.npy", vectors)
    query = Zoo().session("tiny-bert", "cpu").features(["my card"])[0]
    found = Zoo().similar("tiny-bert", "my card", [tmp_path / "theirs.npy"], device="cpu", top=500)
    others = brute(query, np.delete(vectors, 100, 0).astype(np.float32), 499)
    rows = [row if row < 100 else row + 1 for row in others]
    named = [name for name, _ in found.matches if name != "theirs.npy:100"]
    assert named == [f"theirs.npy:{row}" for row in rows]
    assert dict(found.matches)["theirs.npy:100"] == 0


def test_an_index_finds_what_comparing_all_finds(
    kept_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("usearch")
    house, texts = Zoo(), some_texts(3000)
    house.embed("tiny-bert", texts, tmp_path / "v.npy", device="cpu")
    plain = house.similar("tiny-bert", QUERY, [tmp_path / "v.npy"], device="cpu", index=True)
    assert not plain.approximate
    assert not (tmp_path / "v.npy.usearch").exists()
    monkeypatch.setattr("zoo.outputs.similar.INDEXED", 1000)
    for _ in range(2):
        found = house.similar("tiny-bert", QUERY, [tmp_path / "v.npy"], device="cpu", index=True)
        assert found.approximate
        assert found.compared == 3000
        assert [name for name, _ in found.matches] == [name for name, _ in plain.matches]
    made = (tmp_path / "v.npy.usearch").stat().st_mtime_ns
    house.embed("tiny-bert", [*texts, QUERY], tmp_path / "v.npy", device="cpu")
    found = house.similar("tiny-bert", QUERY, [tmp_path / "v.npy"], device="cpu", index=True)
    assert found.matches[0][0] == QUERY
    assert (tmp_path / "v.npy.usearch").stat().st_mtime_ns > made


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_left_out(kept_shelf: Path, tmp_path: Path, bad: float) -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 32)).astype(np.float32)
    query = Zoo().session("tiny-bert", "cpu").features(["my card"])[0]
    order = brute(query, vectors, 60)
    vectors[order[0], 3] = vectors[order[7], 30] = bad
    # The squares of its numbers exceed float32.
    vectors[order[3]] *= 1e30
    np.save(tmp_path / "v.npy", vectors)
    found = Zoo().similar("tiny-bert", "my card", [tmp_path / "v.npy"], device="cpu", top=60)
    assert [name for name, _ in found.matches] == [f"v.npy:{row}" for row in order if row not in (order[0], order[7])]
    assert found.compared == 58
    assert any("left out 2 vectors with numbers that are not finite" in line for line in found.warnings)
    np.save(tmp_path / "v.npy", np.full((3, 32), bad, np.float32))
    with pytest.raises(DataError, match="no inputs to compare with"):
        Zoo().similar("tiny-bert", "my card", [tmp_path / "v.npy"], device="cpu")
