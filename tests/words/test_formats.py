"""Published word vectors: the same numbers as gensim to the bit, and a typed error for every broken file."""

import json
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from gensim.models import KeyedVectors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zoo_plugins.backbones.word2vec import Word2Vec

from tests.kit.word_tables import WORDS, binary, entry, text, vectors, write_list, write_table
from zoo import IntegrityError, RegistryError, ZooError
from zoo.words import formats, plain_reader
from zoo.words.table import WordTable

DIM = 12
TABLE = vectors(len(WORDS), DIM)
#: The folder may be the same for all examples, because each writes its files anew.
MANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


def opened(folder: Path, name: str, data: bytes, dim: int = DIM, **config: str) -> WordTable:
    """The words of the file, prepared by the plugin."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(data)
    Word2Vec(entry(path, None, dim, config=config), folder).prepare()
    return WordTable.open(folder)


def check_same(table: WordTable, wanted: KeyedVectors) -> None:
    """Vectors, order and nearest words equal gensim's, the vectors to the bit."""
    assert list(table) == wanted.index_to_key
    assert table.vectors.tobytes() == wanted.vectors.tobytes()
    for word in wanted.index_to_key[:: max(1, len(wanted) // 5)]:
        ours, theirs = table.neighbours([word], 5)[0], wanted.most_similar(word, topn=5)
        assert [name for name, _ in ours] == [name for name, _ in theirs]
        np.testing.assert_allclose([s for _, s in ours], [s for _, s in theirs], atol=1e-6)
    a, b, c = wanted.index_to_key[:3]
    theirs = wanted.most_similar(positive=[a, c], negative=[b], topn=5)
    assert [name for name, _ in table.analogy(a, b, c, 5)] == [name for name, _ in theirs]


@pytest.mark.parametrize("newline", [True, False])
def test_the_binary_form_is_gensims_to_the_bit(tmp_path: Path, newline: bool) -> None:
    table = opened(tmp_path, "vectors.bin", binary(WORDS, TABLE, newline=newline))
    check_same(table, KeyedVectors.load_word2vec_format(str(tmp_path / "vectors.bin"), binary=True))


@pytest.mark.parametrize("form", ["{!r}", "{:.6f}", "{:.17g}", "{:+.3e}"])
@pytest.mark.parametrize(
    ("name", "header", "end"), [("v.vec", True, " \n"), ("v.vec", True, "\n"), ("v.txt", False, "\n")]
)
def test_the_text_forms_are_gensims_to_the_bit(tmp_path: Path, name: str, header: bool, end: str, form: str) -> None:
    table = opened(tmp_path, name, text(WORDS, TABLE, header=header, end=end, form=form))
    # gensim leaves files without a header open, so that it gets the same lines with a header.
    (tmp_path / "headed").write_bytes(text(WORDS, TABLE, end=end, form=form))
    check_same(table, KeyedVectors.load_word2vec_format(str(tmp_path / "headed")))


def test_a_word_of_glove_may_hold_spaces(tmp_path: Path) -> None:
    words = [". . .", *WORDS, "at name@domain.com", ". . . . .", "to nan inf"]
    rows = vectors(len(words), DIM)
    table = opened(tmp_path / "a", "v.txt", text(words, rows, header=False))
    assert list(table) == words
    assert table.vectors.tobytes() == rows.tobytes()
    plain = plain_reader.rows(entry(tmp_path / "a/v.txt", None, DIM), tmp_path / "a", "glove-text")
    assert [word.decode() for word, _ in plain] == words
    with pytest.raises(IntegrityError, match=r"row 1 \('\.'\) has 14 numbers, not 12"):
        opened(tmp_path / "b", "v.vec", text(words, rows))
    for line in ("the 0.5 end", "the end 1e-3", "the -7"):
        with pytest.raises(IntegrityError, match=r"row 2 \('the'\) has 1[34] numbers, not 12"):
            opened(tmp_path / "c", "v.txt", text(["a", line], rows[:2], header=False))


def test_what_gensim_writes_is_read(tmp_path: Path) -> None:
    theirs = KeyedVectors(DIM)
    theirs.add_vectors(WORDS, TABLE)
    for is_binary in (True, False):
        name = "own.bin" if is_binary else "own.vec"
        theirs.save_word2vec_format(str(tmp_path / name), binary=is_binary)
        folder = tmp_path / str(is_binary)
        check_same(opened(folder, name, (tmp_path / name).read_bytes()), theirs)


def test_of_a_word_that_comes_twice_the_first_row_counts(tmp_path: Path) -> None:
    words = [*WORDS[:5], WORDS[2], *WORDS[5:]]
    rows = vectors(len(words), DIM)
    table = opened(tmp_path / "a", "v.bin", binary(words, rows))
    theirs = KeyedVectors.load_word2vec_format(str(tmp_path / "a/v.bin"), binary=True)
    # gensim keeps an empty row at the end for the one that it leaves out.
    assert list(table) == WORDS == [word for word in theirs.index_to_key if word is not None]
    assert table.vectors.tobytes() == theirs.vectors[: len(table)].tobytes()
    listed = write_list(tmp_path / "words.txt", words)
    Word2Vec(entry(write_table(tmp_path / "t.npy", rows), listed, DIM), tmp_path).prepare()
    again = WordTable.open(tmp_path)
    assert again.vectors.tobytes() == table.vectors.tobytes()
    assert list(again) == WORDS


@pytest.mark.parametrize("listed", ["w.parquet", "w.txt", "w.json", "w.ids.json"])
@pytest.mark.parametrize(
    ("suffix", "dtype", "order"),
    [
        *((".npy", dtype, "C") for dtype in ("float16", "float32", "float64")),
        (".npy", "float32", "F"),
        *((".safetensors", dtype, "C") for dtype in ("float16", "float32", "float64")),
    ],
)
def test_a_table_and_its_list(tmp_path: Path, suffix: str, listed: str, dtype: str, order: str) -> None:
    numbers = np.asarray(TABLE.astype(dtype), order=order)
    table = write_table(tmp_path / f"t{suffix}", numbers)
    Word2Vec(entry(table, write_list(tmp_path / listed, WORDS), DIM), tmp_path).prepare()
    opened = WordTable.open(tmp_path)
    assert list(opened) == WORDS
    np.testing.assert_array_equal(opened.vectors, numbers.astype(np.float32))
    # A table that already has the prepared format is not copied.
    assert (tmp_path / "prepared/vectors.bin").exists() == (dtype != "float32" or order != "C")


def test_a_parquet_list_with_several_columns_needs_the_name(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {"rank": range(len(WORDS)), "word": WORDS}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "w.parquet")
    assert formats.read_words(tmp_path / "w.parquet", "word") == [word.encode() for word in WORDS]
    for column, problem in ((None, "columns are rank, word"), ("no", "columns are"), ("rank", "not text")):
        with pytest.raises(IntegrityError, match=problem):
            formats.read_words(tmp_path / "w.parquet", column)


def npy(header: str, data: bytes = TABLE.tobytes(), version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header.encode() + data


HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}\n"
GOOD_BIN, GOOD_TEXT = binary(WORDS, TABLE), text(WORDS, TABLE)
N = len(WORDS)
BAD_NUMBERS = TABLE.copy()
BAD_NUMBERS[3, 4] = np.nan
BROKEN = {
    "huge.bin": (binary(WORDS, TABLE, header="4000000000 300"), "4000000000 words of 300"),
    "many.bin": (binary(WORDS, TABLE, header=f"4000000000 {DIM}"), "announces 4,000,000,000 words of 12, and only"),
    "more.bin": (binary(WORDS, TABLE, header=f"{N + 1} {DIM}"), "announces|ends inside"),
    "fewer.bin": (binary(WORDS, TABLE, header=f"{N - 1} {DIM}"), "contains more than"),
    "none.bin": (binary(WORDS, TABLE, header=f"0 {DIM}"), "0 words"),
    "negative.bin": (binary(WORDS, TABLE, header=f"-5 {DIM}"), "first line"),
    "header.bin": (b"\x80\x04", "first line"),
    "cut.bin": (GOOD_BIN[:-20], "ends inside row"),
    "empty.bin": (b"", "empty"),
    "latin.bin": (binary(["caf\xe9".encode("latin-1"), *WORDS[1:]], TABLE), "word of row 1 is not UTF-8"),
    "blank.bin": (binary(["", *WORDS[1:]], TABLE), "word of row 1 is empty"),
    "nan.bin": (binary(WORDS, BAD_NUMBERS), r"row 4 \('.*'\) holds numbers that are not finite"),
    "huge.vec": (text(WORDS, TABLE, header="4000000000 300"), "4000000000 words of 300"),
    "many.vec": (text(WORDS, TABLE, header=f"4000000000 {DIM}"), "announces 4,000,000,000"),
    "more.vec": (text(WORDS, TABLE, header=f"{N + 1} {DIM}"), f"ends after {N} of the {N + 1} words"),
    "fewer.vec": (text(WORDS, TABLE, header=f"{N - 1} {DIM}"), "contains more than"),
    "cut.vec": (GOOD_TEXT[: GOOD_TEXT.rindex(b" ")], "has 11 numbers, not 12"),
    "latin.vec": (text(["caf\xe9".encode("latin-1"), *WORDS[1:]], TABLE), "not UTF-8"),
    "words.vec": (GOOD_TEXT.replace(b"\nthe ", b"\nthe end "), "has 13 numbers"),
    "no-number.txt": (b"the" + b" x" * DIM + b"\n", "row 1 .*not a number"),
    "overflow.txt": (b"the" + b" 1e39" * DIM + b"\n", "not finite"),
    "wide.txt": (text(WORDS, vectors(N, DIM + 1), header=False), "has 13 numbers, not 12"),
    "blank.txt": (text(WORDS, TABLE, header=False) + b"\n", "has 0 numbers"),
    "long.txt": (b"x" * 200_000, "line is longer"),
    "wide.npy": (npy(HEADER.format("<f4", f"{N}, {DIM + 1}")), "the row's dim is 12"),
    "long.npy": (npy(HEADER.format("<f4", f"4000000000, {DIM}")), "announces 192,000,000,000 bytes"),
    "short.npy": (npy(HEADER.format("<f4", f"{N - 1}, {DIM}")), "announces"),
    "flat.npy": (npy(HEADER.format("<f4", f"{N * DIM},")), "two axes"),
    "ints.npy": (npy(HEADER.format("<i4", f"{N}, {DIM}")), "'<i4'"),
    "objects.npy": (npy(HEADER.format("|O", f"{N}, {DIM}")), "O"),
    "code.npy": (npy("{'descr': __import__('os').system('touch canary'), }\n"), "header"),
    "magic.npy": (b"PK\x03\x04" * 50, r"not numpy's \.npy"),
    "long.safetensors": (struct.pack("<Q", 1 << 63) + b"{}", "longer than the file"),
    "tensors.safetensors": (struct.pack("<Q", 2) + b"{}" + TABLE.tobytes(), "one table"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_typed_error(tmp_path: Path, name: str) -> None:
    data, problem = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(data)
    listed = write_list(tmp_path / "list.txt", WORDS) if path.suffix in (".npy", ".safetensors") else None
    with pytest.raises(IntegrityError, match=problem) as caught:
        Word2Vec(entry(path, listed, DIM), tmp_path).prepare()
    assert caught.value.exit_code == 5
    assert caught.value.hint
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted({name, *(["list.txt"] if listed else [])})


LISTS = {
    "short.txt": ("\n".join(WORDS[:-1]).encode(), "lists 70 words, the table has 71"),
    "latin.txt": (b"caf\xe9\n" * N, "not UTF-8"),
    "blank.txt": (b"\n" * N, "empty"),
    "dict.json": (json.dumps(dict.fromkeys(WORDS, 0)).encode(), "ids are not 0 to"),
    "half.json": (b'["the", ', "neither a list"),
    "numbers.json": (b"[1, 2]", "neither a list"),
    "surrogate.json": (b'["\\ud800"]', "neither a list|not Unicode"),
    "no.parquet": (b"PAR1 nothing PAR1", "cannot be read as Parquet"),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_broken_list_is_one_typed_error(tmp_path: Path, name: str) -> None:
    data, problem = LISTS[name]
    (tmp_path / name).write_bytes(data)
    table = write_table(tmp_path / "t.npy", TABLE)
    with pytest.raises(IntegrityError, match=problem.replace("70", str(N - 1)).replace("71", str(N))):
        Word2Vec(entry(table, tmp_path / name, DIM), tmp_path).prepare()
    assert not (tmp_path / "prepared").exists()


def test_a_lying_header_costs_no_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "v.bin"
    path.write_bytes(binary(WORDS, TABLE, header=f"4000000000 {DIM}"))
    backbone = Word2Vec(entry(path, None, DIM), tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match="announces"):
            backbone.prepare()
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"config": {"format": "gensim"}}, "format of v.bin is unknown"),
        ({"config": {"arch": "cbow"}}, "unknown config.arch"),
        ({"config": {"format": "npy"}}, "needs a list"),
    ],
)
def test_a_row_that_contradicts_itself(tmp_path: Path, change: dict, problem: str) -> None:
    path = tmp_path / "v.bin"
    path.write_bytes(GOOD_BIN)
    with pytest.raises(RegistryError, match=problem):
        Word2Vec(entry(path, None, DIM, **change), tmp_path)


word = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=" \n\r\t\v\f\x1c\x1d\x1e\x1f\x85"), min_size=1
)
number = st.floats(width=32, allow_nan=False, allow_infinity=False)


@MANY
@given(
    st.dictionaries(word, st.lists(number, min_size=3, max_size=3), min_size=1, max_size=8),
    st.sampled_from(["v.bin", "v.vec", "v.txt"]),
)
def test_what_is_written_comes_back(tmp_path: Path, rows: dict[str, list[float]], name: str) -> None:
    table = np.array(list(rows.values()), np.float32)
    data = binary(list(rows), table) if name == "v.bin" else text(list(rows), table, header=name == "v.vec")
    (tmp_path / name).write_bytes(data)
    parts = list(formats.read(tmp_path / name, formats.SUFFIXES[Path(name).suffix], 3))
    assert [each.decode() for words, _ in parts for each in words] == list(rows)
    assert b"".join(numbers.tobytes() for _, numbers in parts) == table.tobytes()


@MANY
@given(
    st.one_of(
        st.binary(max_size=300),
        st.builds(lambda a, b, rest: f"{a} {b}\n".encode() + rest, st.integers(0, 5), st.integers(1, 4), st.binary()),
        st.builds(lambda at, value: GOOD_BIN[:at] + value + GOOD_BIN[at:], st.integers(0, 300), st.binary(max_size=4)),
        st.builds(
            lambda at, value: GOOD_TEXT[:at] + value + GOOD_TEXT[at:], st.integers(0, 300), st.binary(max_size=4)
        ),
        st.builds(lambda header: npy(HEADER.format("<f4", header)), st.text(max_size=20)),
    ),
    st.sampled_from(["bin", "vec", "txt", "npy", "safetensors", "json", "words", "parquet"]),
    st.sampled_from([1, 2, DIM]),
)
def test_arbitrary_bytes_are_read_or_refused(tmp_path: Path, data: bytes, kind: str, dim: int) -> None:
    path = tmp_path / f"v.{kind}"
    path.write_bytes(data)
    with suppress(ZooError):
        if kind in ("json", "words", "parquet"):
            formats.read_words(path)
        elif kind in ("npy", "safetensors"):
            formats.read_table(path, kind, dim)
        else:
            for words, numbers in formats.read(path, formats.SUFFIXES[f".{kind}"], dim):
                assert numbers.shape == (len(words), dim)
                assert np.isfinite(numbers).all()


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes("\ufeffone\r\ntwo\n".encode())
    assert formats.read_words(tmp_path / "words.txt") == [b"one", b"two"]
