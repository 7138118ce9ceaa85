"""Word vectors in a prepared, memory-mapped form beside a registry row's files, with look-up and exact search.

prepared/  vectors.bin    float32 [words, dim], unless a file of the row already holds the table in this form
           words.bin      all words in UTF-8, concatenated
           offsets.bin    int64 [words + 1], the start of each word
           order.bin      int32 [words], the ids sorted by the bytes of their words, for binary search
           norms.bin      float32 [words]
           prepared.json  the sha256, size and time of each file, so that opening reads none of them

Everything is little-endian and in C order. A look-up reads a few pages, a search the whole table once.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from zoo.errors import AccessError, DataError, IntegrityError, NotFoundError, quote, short
from zoo.extras import require
from zoo.schema import FileDigest
from zoo.store.store import StoredFile, is_untouched, stored_file
from zoo.system.files import is_unchanged, map_file, sha256_file, staged_dir, storage_errors
from zoo.system.records import SchemaError, find_record, read_record, write_record

if TYPE_CHECKING:
    import mmap

    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

FOLDER, MANIFEST, SCHEMA_VERSION = "prepared", "prepared.json", 1
VECTORS, WORDS, OFFSETS, ORDER, NORMS = "vectors.bin", "words.bin", "offsets.bin", "order.bin", "norms.bin"
PARTS = (VECTORS, WORDS, OFFSETS, ORDER, NORMS)
#: Bytes of similarities in memory at once; more queries need several passes over the table.
BUDGET = 1 << 28
#: The longest word for which similar spellings are looked up: their number grows with its length.
MAX_SPELLING = 40
#: The pre-tokenizer `Whitespace`: https://docs.rs/tokenizers, pre_tokenizers::whitespace.
PIECES = re.compile(r"\w+|[^\w\s]+")
#: The smallest divisor in place of a norm, so that a zero vector has similarity 0 to every word.
TINY = 1e-30


class InPlace(Struct, frozen=True):
    """A file of the registry row whose bytes from `offset` on are the table."""

    file: str
    offset: int


class _Prepared(Struct, frozen=True, kw_only=True):
    schema_version: int
    count: int
    dim: int
    table: InPlace | None
    files: tuple[StoredFile, ...]

    @property
    def vectors(self) -> InPlace:
        """The file with the vectors, in which they begin at `offset`."""
        return self.table or InPlace(VECTORS, 0)

    def path(self, weights: Path, name: str) -> Path:
        """The path of a recorded file."""
        return weights / name if self.table and name == self.table.file else weights / FOLDER / name

    def fits(self, weights: Path) -> bool:
        """Whether the recorded files and their sizes are those of a table of this shape."""
        file, offset = self.vectors.file, self.vectors.offset
        wanted = {NORMS: 4 * self.count, ORDER: 4 * self.count, OFFSETS: 8 * (self.count + 1)}
        wanted[file] = offset + 4 * self.count * self.dim
        sizes = {each.path: each.size for each in self.files}
        is_whole = wanted.items() <= sizes.items() and sizes.keys() == {*wanted, WORDS}
        return is_whole and min(self.count, self.dim) > 0 <= offset and (weights / file).parent == weights


def prepare(
    weights: Path, batches: "Iterable[tuple[list[bytes], Floats]]", dim: int, table: InPlace | None = None
) -> None:
    """Write the prepared form of batches (words, vectors [len(words), dim]) into `weights`, whole or not at all.

    Words must be distinct and UTF-8, numbers finite. With `table` the vectors stay in that file. Raises AccessError for
    a full disk and a folder that may not be written.
    """
    with storage_errors(weights), staged_dir(weights / FOLDER) as stage:
        count = _write_rows(stage, batches, with_vectors=table is None)
        files = [stored_file(stage, path.name, sha256_file(path)) for path in sorted(stage.iterdir())]
        if table is not None:
            files.append(stored_file(weights, table.file, sha256_file(weights / table.file)))
        manifest = _Prepared(schema_version=SCHEMA_VERSION, count=count, dim=dim, table=table, files=tuple(files))
        write_record(stage / MANIFEST, manifest)


def is_prepared(weights: Path) -> bool:
    """Whether `weights` has an unchanged prepared form, which `WordTable.open` can open."""
    return _read_manifest(weights) is not None


def verify(weights: Path) -> list[tuple[FileDigest, bool]]:
    """Hash the prepared form in `weights`; returns every expected file, and whether it is unchanged.

    The next `is_prepared` hashes damaged files again, and so finds that the form must be prepared again. The list is
    empty if there is no prepared form of this version, and has only the manifest if that is damaged.
    """
    folder, name = weights / FOLDER, f"{FOLDER}/{MANIFEST}"
    if not folder.exists():
        return []
    try:
        found = read_record(folder / MANIFEST, _Prepared, SCHEMA_VERSION, hint="")
    except SchemaError:
        return []
    except (AccessError, IntegrityError):
        found = None
    if found is None:
        return [(FileDigest(path=name, size=0, sha256=""), False)]
    size = (folder / MANIFEST).stat().st_size
    results = [(FileDigest(path=name, size=size, sha256=sha256_file(folder / MANIFEST)), found.fits(weights))]
    parts = [file for file in found.files if file.path in PARTS]
    if bad := {file for file in parts if not is_unchanged(folder / file.path, file)}:
        files = tuple(structs.replace(file, mtime_ns=0) if file in bad else file for file in found.files)
        with suppress(OSError):
            write_record(folder / MANIFEST, structs.replace(found, files=files))
    digests = [FileDigest(path=f"{FOLDER}/{file.path}", size=file.size, sha256=file.sha256) for file in parts]
    return [*results, *zip(digests, (file not in bad for file in parts), strict=True)]


class WordTable:
    """A memory-mapped table: `vectors` float32 [len(table), dim], with an id for each word."""

    def __init__(
        self,
        vectors: "Floats",
        norms: "Floats",
        text: "mmap.mmap | bytes",
        offsets: "NDArray[np.int64]",
        order: "NDArray[np.int32]",
        lowercase: bool = False,
    ) -> None:
        self.vectors = vectors
        self.norms = norms
        self.lowercase = lowercase
        self._text = text
        self._offsets = offsets
        self._order = order

    @classmethod
    def open(cls, weights: Path, *, lowercase: bool = False) -> "WordTable":
        """The prepared form in `weights`; with `lowercase` words are looked up in lower case.

        Raises NotFoundError if there is none, or one of another version, or if its bytes have changed.
        """
        require("word vectors", "numpy")
        found = _read_manifest(weights)
        if found is None:
            raise NotFoundError(f"{weights} holds no prepared word vectors", hint="zoo pull NAME prepares them")
        folder, n = weights / FOLDER, found.count
        table = found.vectors
        return cls(
            _map(found.path(weights, table.file), "<f4", (n, found.dim), table.offset),
            _map(folder / NORMS, "<f4", (n,)),
            map_file(folder / WORDS),
            _map(folder / OFFSETS, "<i8", (n + 1,)),
            _map(folder / ORDER, "<i4", (n,)),
            lowercase,
        )

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[str]:
        """Every word, in the order of the ids."""
        return map(self.word, range(len(self)))

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return int(self.vectors.shape[1])

    def word(self, index: int) -> str:
        """The word with this id."""
        return self._bytes(index).decode()

    def find(self, word: str) -> int | None:
        """The id of a word; None if the word is not in the table."""
        wanted = (word.lower() if self.lowercase else word).encode(errors="surrogateescape")
        index = bisect_left(self._order, wanted, key=self._bytes)
        if index == len(self) or self._bytes(self._order[index]) != wanted:
            return None
        return int(self._order[index])

    def id(self, word: str) -> int:
        """The id of a word. Raises NotFoundError with similarly spelt words in its hint."""
        found = self.find(word)
        if found is None:
            near = self.near(word)
            hint = f"did you mean {' or '.join(map(short, near))}?" if near else "try another spelling"
            raise NotFoundError(f"{quote(word)} is not among the {len(self):,} words", hint=hint)
        return found

    def near(self, word: str, count: int = 3) -> list[str]:
        """At most `count` words that differ from `word` by one edit, in the order of their ids.

        An edit adds, removes or changes a letter, or swaps two. Candidates are generated and looked up, as in
        https://norvig.com/spell-correct.html: comparing every word of the table would take seconds.
        """
        if len(word) > MAX_SPELLING:
            return []
        letters = sorted({*"abcdefghijklmnopqrstuvwxyz-' ", *word} - {" "})
        splits = [(word[:at], word[at:]) for at in range(len(word) + 1)]
        edits = {left + right[1:] for left, right in splits if right}
        edits |= {left + right[1] + right[0] + right[2:] for left, right in splits if len(right) > 1}
        edits |= {left + letter + right for left, right in splits for letter in letters}
        edits |= {left + letter + right[1:] for left, right in splits if right for letter in letters}
        found = sorted({index for each in edits if each and (index := self.find(each)) is not None})
        return [self.word(index) for index in found[:count]]

    def nearest(
        self, vectors: "Floats", top: int, exclude: Sequence[Sequence[int]] = ()
    ) -> list[list[tuple[int, float]]]:
        """For each of `vectors` [queries, dim] the `top` nearest words as (id, cosine similarity), best first.

        The search is exact: one matrix product over the table, which is neither copied nor normalised. Of equal
        similarities the lower id comes first. `exclude` has the ids to leave out for each query.
        """
        import numpy as np

        found = []
        step = max(1, BUDGET // (4 * len(self)))
        divisors = np.maximum(self.norms, np.float32(TINY))
        for start in range(0, len(vectors), step):
            similar = _unit(vectors[start : start + step]) @ self.vectors.T
            similar /= divisors
            for row, scores in enumerate(similar, start):
                if row < len(exclude):
                    scores[list(exclude[row])] = -np.inf
                found.append(_best(scores, top))
        return found

    def ids(self, text: str) -> list[int]:
        """The ids of the known words in `text`, or of the whole text if it is one word of the table.

        A text is split as by a bundle's tokenizer (zoo.data.tokenizers.write_word_level). Raises NotFoundError for one
        unknown word, DataError for a text without any known word.
        """
        words = PIECES.findall(text)
        whole = self.find(text.strip())
        found = [whole] if whole is not None else [index for word in words if (index := self.find(word)) is not None]
        if not found and len(words) == 1:
            self.id(words[0])
        if not found:
            raise DataError(
                f"no word of {quote(text)} is among the {len(self):,} words", hint="remove it, or reword it"
            )
        return found

    def around(self, groups: Sequence[Sequence[int]], top: int = 10) -> list[list[tuple[str, float]]]:
        """For each group of ids the `top` words nearest to the mean of their vectors, without the group itself."""
        import numpy as np

        means = np.array([self.vectors[list(group)].mean(0) for group in groups], np.float32).reshape(-1, self.dim)
        return self._named(self.nearest(means, top, groups))

    def neighbours(self, words: Sequence[str], top: int = 10) -> list[list[tuple[str, float]]]:
        """For each word the `top` nearest other words with their cosine similarity. Raises NotFoundError."""
        return self.around([[self.id(word)] for word in words], top)

    def analogy(self, a: str, b: str, c: str, top: int = 10) -> list[tuple[str, float]]:
        """Words nearest to a - b + c ("king" - "man" + "woman"), these three left out. Raises NotFoundError.

        Each vector is scaled to length one first, as in Mikolov et al. (https://aclanthology.org/N13-1090) and
        gensim's most_similar(positive=[a, c], negative=[b]).
        """
        import numpy as np

        ids = [self.id(word) for word in (a, b, c)]
        first, second, third = _unit(self.vectors[ids])
        return self._named(self.nearest(np.stack([first - second + third]), top, [ids]))[0]

    def _bytes(self, index: "int | np.integer[Any]") -> bytes:
        return self._text[self._offsets[index] : self._offsets[index + 1]]

    def _named(self, found: list[list[tuple[int, float]]]) -> list[list[tuple[str, float]]]:
        return [[(self.word(index), score) for index, score in row] for row in found]


def _write_rows(stage: Path, batches: "Iterable[tuple[list[bytes], Floats]]", *, with_vectors: bool) -> int:
    """Write every file but the manifest; returns the number of words."""
    import numpy as np

    words: list[bytes] = []
    end = 0
    with ExitStack() as stack:
        names = (WORDS, OFFSETS, NORMS, *([VECTORS] if with_vectors else []))
        text, offsets, norms, *vectors = (stack.enter_context((stage / name).open("wb")) for name in names)
        offsets.write(np.zeros(1, "<i8").tobytes())
        for batch, rows in batches:
            words += batch
            text.write(b"".join(batch))
            ends = end + np.cumsum([len(word) for word in batch], dtype="<i8")
            offsets.write(ends.tobytes())
            end = int(ends[-1])
            with np.errstate(over="ignore"):
                norms.write(np.linalg.norm(rows.astype("<f8"), axis=1).astype("<f4").tobytes())
            for file in vectors:
                file.write(rows.astype("<f4", copy=False).tobytes())
    order = np.array(sorted(range(len(words)), key=words.__getitem__), "<i4")
    (stage / ORDER).write_bytes(order.tobytes())
    return len(words)


def _read_manifest(weights: Path) -> _Prepared | None:
    """The manifest in `weights`; None if it is missing or a file has changed. Files with another time are hashed."""
    manifest = weights / FOLDER / MANIFEST
    found = find_record(manifest, _Prepared, SCHEMA_VERSION)
    if found is None or not found.fits(weights):
        return None
    try:
        paths = {file: found.path(weights, file.path) for file in found.files}
        moved = [file for file, path in paths.items() if not is_untouched(path, file)]
    except (OSError, ValueError):
        return None
    if not all(is_unchanged(paths[file], file) for file in moved):
        return None
    if moved:
        # A copied ZOO_HOME has other times. Record them to save the next hashing; this fails in a read-only home.
        with suppress(OSError):
            files = tuple(stored_file(path.parent, path.name, file.sha256) for file, path in paths.items())
            write_record(manifest, structs.replace(found, files=files))
    return found


def _map(path: Path, dtype: str, shape: tuple[int, ...], offset: int = 0) -> "NDArray[Any]":
    import math

    import numpy as np

    return np.frombuffer(map_file(path), dtype, math.prod(shape), offset).reshape(shape)


def _unit(vectors: "Floats") -> "Floats":
    import numpy as np

    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = vectors / np.maximum(norms, np.float32(TINY))
    return unit


def _best(scores: "Floats", top: int) -> list[tuple[int, float]]:
    """Returns the index and the score of the `top` highest scores; of equal scores the first."""
    import numpy as np

    top = min(top, len(scores))
    least = np.partition(scores, len(scores) - top)[len(scores) - top]
    chosen = np.flatnonzero(scores >= least)
    order = chosen[np.argsort(-scores[chosen], kind="stable")][:top]
    return [(int(index), float(scores[index])) for index in order if scores[index] > -np.inf]
