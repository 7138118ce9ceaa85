"""Digests never change, because they are cache keys and folder names under ZOO_HOME; and walks through folders."""

import shutil
from pathlib import Path

from zoo.schema import TextPreprocess
from zoo.system.files import map_file, sha256, sha256_file, sha256_json, size_of, walk

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_digests_of_bytes_texts_and_files(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(b"abc") == sha256("abc") == sha256_file(tmp_path / "abc") == ABC
    assert sha256(map_file(tmp_path / "abc")) == ABC


def test_digests_of_data() -> None:
    preprocess = TextPreprocess(tokenizer="tokenizer.json", max_length=8, pooling="mean", normalize=True)
    assert sha256_json([("a", 1), None, 0.5]) == sha256('[["a",1],null,0.5]')
    assert sha256_json({"b": 1, "a": 2}) == sha256_json({"a": 2, "b": 1}) == sha256('{"a":2,"b":1}')
    # The fields of a struct stay in the order of its class.
    assert sha256_json(preprocess) == sha256(
        '{"kind":"text","tokenizer":"tokenizer.json","max_length":8,"pooling":"mean","normalize":true}'
    )


def test_a_walk_beside_a_process_that_removes_files(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "file").write_bytes(b"12345")
    found = walk(tmp_path)
    assert next(found)[0] == tmp_path
    assert next(found)[0].parent == tmp_path
    shutil.rmtree(tmp_path / "b")
    shutil.rmtree(tmp_path / "c" / "inner")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    names = {path.relative_to(tmp_path).as_posix() for path, _ in found} - {"a", "b", "c"}
    assert names == {"a/inner", "a/inner/file"}
    assert [path for path, _ in walk(tmp_path / "absent")] == []
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a" / "inner")
    assert size_of(tmp_path / "a") == 5 + len(str(tmp_path / "a" / "inner"))
    assert (size_of(tmp_path / "a" / "inner" / "file"), size_of(tmp_path / "b")) == (5, 0)
