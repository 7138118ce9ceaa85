"""Word vectors: the prepared form beside a row's files, memory-mapped; its index of words, and exact search.

prepared/  vectors.bin    float32 [words, dim], unless a file of the row already holds the table in this form
           words.bin      the UTF-8 of all words, one after another;  offsets.bin  int64 [words + 1], where each begins
           order.bin      int32 [words], the ids in the order of their words' bytes, for binary search
           norms.bin      float32 [words]
           prepared.json  the digests, sizes and times of these, so that opening reads none of them

Everything is little-endian and in C order. Nothing is read before it is asked for: a look-up touches a few pages, a
search the whole table once.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from zoo.errors import AccessError, DataError, IntegrityError, NotFoundError, quote, short
from zoo.extras import require
from zoo.schema import FileDigest
from zoo.store.store import StoredFile, is_untouched, stored_file
from zoo.system.files import map_file, sha256_file, staged_dir, storage_errors
from zoo.system.records import SchemaError, find_record, read_record, write_record

if TYPE_CHECKING:
    import mmap

    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

FOLDER, MANIFEST, SCHEMA_VERSION = "prepared", "prepared.json", 1
VECTORS, WORDS, OFFSETS, ORDER, NORMS = "vectors.bin", "words.bin", "offsets.bin", "order.bin", "norms.bin"
PARTS = (VECTORS, WORDS, OFFSETS, ORDER, NORMS)
#: Bytes of similarities held at once: more queries than fit go through the table in several passes.
BUDGET = 1 << 28
#: Spelling is only looked into for words of ordinary length: the candidates grow with it.
LONGEST = 40
#: What the pre-tokenizer `Whitespace` makes of a text: https://docs.rs/tokenizers, pre_tokenizers::whitespace.
PIECES = re.compile(r"\w+|[^\w\s]+")
#: What a norm of zero is raised to, so that such a vector is similar to nothing.
TINY = 1e-30


class InPlace(msgspec.Struct, frozen=True):
    """A file of the row whose bytes from `offset` on are the table itself."""

    file: str
    offset: int


class _Prepared(msgspec.Struct, frozen=True, kw_only=True):
    schema_version: int
    count: int
    dim: int
    table: InPlace | None
    files: tuple[StoredFile, ...]

    def fits(self, weights: Path) -> bool:
        """Whether the recorded files are those that a table of this shape has, in the sizes that it gives them."""
        sizes = {file.path: file.size for file in self.files}
        numbers = 4 * self.count * self.dim
        wanted = {NORMS: 4 * self.count, ORDER: 4 * self.count, OFFSETS: 8 * (self.count + 1)}
        if self.table is None:
            wanted[VECTORS] = numbers
        elif self.table.offset >= 0 and (weights / self.table.file).parent == weights:
            wanted[self.table.file] = self.table.offset + numbers
        else:
            return False
        is_whole = all(sizes.get(name) == size for name, size in wanted.items())
        return min(self.count, self.dim) > 0 and is_whole and sizes.keys() == {*wanted, WORDS}


def prepare(
    weights: Path, batches: "Iterable[tuple[list[bytes], Floats]]", dim: int, table: InPlace | None = None
) -> None:
    """Write the prepared form of (words, vectors [len(words), dim]) into `weights`, whole or not at all.

    Words are distinct and UTF-8, numbers finite: the caller has checked. With `table` the vectors stay where they are.
    Raises AccessError when there is no space or no right to write.
    """
    with storage_errors(weights), staged_dir(weights / FOLDER) as stage:
        count = _write_rows(stage, batches, with_vectors=table is None)
        files = [stored_file(stage, path.name, sha256_file(path)) for path in sorted(stage.iterdir())]
        if table is not None:
            files.append(stored_file(weights, table.file, sha256_file(weights / table.file)))
        manifest = _Prepared(schema_version=SCHEMA_VERSION, count=count, dim=dim, table=table, files=tuple(files))
        write_record(stage / MANIFEST, manifest)


def is_prepared(weights: Path) -> bool:
    """Whether `WordTable.open` will find a prepared form there whose bytes are those that were written."""
    return _read_manifest(weights) is not None


def verify(weights: Path) -> list[tuple[FileDigest, bool]]:
    """Hash every file of the prepared form in `weights` again: (expected, whether it is still so).

    A damaged part is hashed again by the next look, which then prepares the form anew. There is no file where nothing
    is prepared, or by another version; a form whose manifest is damaged is that one file.
    """
    manifest = weights / FOLDER / MANIFEST
    if not (weights / FOLDER).exists():
        return []
    try:
        found = read_record(manifest, _Prepared, SCHEMA_VERSION, hint="")
    except SchemaError:
        return []
    except (AccessError, IntegrityError):
        found = None
    if found is None:
        return [(FileDigest(path=f"{FOLDER}/{MANIFEST}", size=0, sha256=""), False)]
    digest = FileDigest(path=f"{FOLDER}/{MANIFEST}", size=manifest.stat().st_size, sha256=sha256_file(manifest))
    results = [(digest, found.fits(weights))]
    for file in found.files:
        if file.path in PARTS:
            path = weights / FOLDER / file.path
            is_same = path.is_file() and not path.is_symlink() and sha256_file(path) == file.sha256
            results.append((FileDigest(path=f"{FOLDER}/{file.path}", size=file.size, sha256=file.sha256), is_same))
    bad = {file.path.removeprefix(f"{FOLDER}/") for file, is_same in results if not is_same} - {MANIFEST}
    if bad:
        files = tuple(msgspec.structs.replace(f, mtime_ns=0) if f.path in bad else f for f in found.files)
        with suppress(OSError):
            write_record(manifest, msgspec.structs.replace(found, files=files))
    return results


class WordTable:
    """An opened table: `vectors` float32 [len(table), dim], an id for each word. All of it is memory-mapped."""

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
        """The prepared form in `weights`; `lowercase` lowers every word that is looked up.

        Raises NotFoundError when there is none, one of another version, or one whose bytes have changed.
        """
        require("word vectors", "numpy")
        found = _read_manifest(weights)
        if found is None:
            raise NotFoundError(f"{weights} holds no prepared word vectors", hint="zoo pull NAME prepares them")
        folder, n = weights / FOLDER, found.count
        table, offset = (
            (folder / VECTORS, 0) if found.table is None else (weights / found.table.file, found.table.offset)
        )
        return cls(
            _map(table, "<f4", (n, found.dim), offset),
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
        """The id of a word, None when the table does not have it."""
        wanted = (word.lower() if self.lowercase else word).encode(errors="surrogateescape")
        place = bisect_left(self._order, wanted, key=self._bytes)
        if place == len(self) or self._bytes(self._order[place]) != wanted:
            return None
        return int(self._order[place])

    def id(self, word: str) -> int:
        """The id of a word. Raises NotFoundError with words that are spelt nearly so."""
        found = self.find(word)
        if found is None:
            near = self.near(word)
            hint = f"did you mean {' or '.join(map(short, near))}?" if near else "try another spelling"
            raise NotFoundError(f"{quote(word)} is not among the {len(self):,} words", hint=hint)
        return found

    def near(self, word: str, count: int = 3) -> list[str]:
        """Words that one edit (a letter more, less or changed, two swapped) makes of `word`, lowest ids first.

        Candidates are made and looked up, as Norvig's corrector does (https://norvig.com/spell-correct.html): a
        comparison with every word of the table would take seconds.
        """
        if len(word) > LONGEST:
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
        """For each of `vectors` [queries, dim] its `top` nearest (id, cosine similarity), best first.

        Exact: one matrix product over the table, which is neither copied nor normalised. Of equal similarities the
        lower id comes first. `exclude` names, query by query, ids to leave out.
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
        """The ids of the words of `text` that the table has; the whole text may be one.

        A text falls apart as in a bundle's tokenizer (zoo.data.tokenizers.write_word_level). Raises NotFoundError for
        an unknown word, DataError for a text without any known one.
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
        """For each group of ids the `top` words nearest to the mean of its vectors, the group's own left out."""
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
    """What is prepared in `weights`; files with another time are hashed again, None when one is not the same."""
    folder = weights / FOLDER
    found = find_record(folder / MANIFEST, _Prepared, SCHEMA_VERSION)
    if found is None or not found.fits(weights):
        return None
    moved = False
    try:
        for file in found.files:
            path = (weights if found.table and file.path == found.table.file else folder) / file.path
            if not is_untouched(path, file):
                moved = True
                if path.is_symlink() or sha256_file(path) != file.sha256:
                    return None
    except (OSError, ValueError):
        return None
    if moved:
        # A copied home has other times. Only a saving for the next look: a read-only one does without it.
        with suppress(OSError):
            # Their digests are those of the record: a file with another time was hashed above.
            files = tuple(
                stored_file(weights if found.table and f.path == found.table.file else folder, f.path, f.sha256)
                for f in found.files
            )
            write_record(folder / MANIFEST, msgspec.structs.replace(found, files=files))
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
    """The `top` highest scores with their positions; of equal ones the first."""
    import numpy as np

    top = min(top, len(scores))
    least = np.partition(scores, len(scores) - top)[len(scores) - top]
    chosen = np.flatnonzero(scores >= least)
    order = chosen[np.argsort(-scores[chosen], kind="stable")][:top]
    return [(int(index), float(scores[index])) for index in order if scores[index] > -np.inf]
