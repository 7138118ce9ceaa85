"""Digests: their values are cache keys and names of folders under ZOO_HOME, and never change."""

from pathlib import Path

from zoo.schema import TextPreprocess
from zoo.system.files import map_file, sha256, sha256_file, sha256_json

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
