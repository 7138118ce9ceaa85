"""The conversion of texts to token ids, and the `tokenizer.json` files of bundles."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from zoo.data.items import TextPair
from zoo.errors import DataError, IntegrityError, RegistryError, quote
from zoo.schema import TextPreprocess, WordPiece, WordsPreprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The name of a tokenizer that zoo writes into a bundle.
TOKENIZER = "tokenizer.json"
UNKNOWN, FIRST, LAST = "[UNK]", "[CLS]", "[SEP]"
#: Tokens that are also recognised in texts, if the vocabulary has them.
SPECIAL = ("[PAD]", UNKNOWN, FIRST, LAST, "[MASK]")
HINT = "the file is not the vocabulary that this row describes"


class Tokens(list[int]):
    """The token ids of one text or pair. `types` are their token types; empty means 0 for each."""

    types: Sequence[int] = ()


class TextEncoder:
    """Converts texts to token ids, truncated at the row's limit and padded to the longest text of a batch.

    The text of the preprocessing's prompt comes before each text.
    """

    def __init__(self, preprocess: TextPreprocess, folder: Path) -> None:
        self.preprocess = preprocess
        self.prompt = preprocess.prompts.get(preprocess.prompt or "", "")
        self.path = folder / preprocess.tokenizer

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(self.path))
        except Exception as error:
            # The library raises plain Exception.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise IntegrityError(
                f"{self.path.name} is not a readable tokenizer: {reason}",
                hint="choose another model, or pull again",
            ) from error
        # Published files may have a shorter limit and a fixed padding; only the row's limit counts.
        tokenizer.enable_truncation(self.preprocess.max_length)
        tokenizer.no_padding()
        return tokenizer

    def tokens(self, texts: Sequence[str | TextPair]) -> list[Tokens]:
        """Tokens of each text or pair, special tokens included, at most `max_length` of them.

        Of a pair that is too long, the longer text loses tokens at its end, as in transformers.
        """
        given = [self.prompt + text if isinstance(text, str) else tuple(text) for text in texts]
        found = []
        for encoding in self._tokenizer.encode_batch(given):
            row = Tokens(encoding.ids)
            if self.preprocess.segments:
                row.types = encoding.type_ids
            found.append(row)
        return found

    def check_known(self, text: str | TextPair, row: Sequence[int]) -> None:
        """Raise DataError when `row`, the tokens of `text`, has no known word and the model refuses such texts."""
        if self._unknown is not None and all(token == self._unknown for token in row):
            # Leave out the token for unknown words.
            count = self._tokenizer.get_vocab_size() - 1
            problem = f"no word of {quote(str(text))} is among the {count:,} words"
            raise DataError(problem, hint="remove it, or reword it")

    def check_masked(self, text: str | TextPair, row: Sequence[int]) -> None:
        """Raise DataError unless `row`, the tokens of `text`, contains the mask once."""
        mask = self.preprocess.mask_token
        if (count := row.count(self.mask_id)) == 1:
            return
        if count:
            problem = f"the text {quote(str(text))} has {count} masks, and only one can be filled"
            raise DataError(problem, hint=f"put words in place of the other {mask}")
        is_cut = mask is not None and mask in text and len(row) == self.preprocess.max_length
        problem = f"the text {quote(str(text))} has no {mask}"
        problem += f" among its first {len(row)} tokens" if is_cut else ""
        raise DataError(problem, hint=f"put {mask} in place of a word; --features prints the vector of any text")

    @cached_property
    def mask_id(self) -> int:
        """The id of the mask. Raises IntegrityError if the tokenizer does not have it."""
        found = self._tokenizer.token_to_id(self.preprocess.mask_token or "")
        if found is None:
            raise IntegrityError(f"{self.path.name} has no token {self.preprocess.mask_token}", hint=HINT)
        return int(found)

    def words(self, ids: Sequence[int]) -> list[str]:
        """The text of each token id."""
        return [self._tokenizer.decode([index], skip_special_tokens=False) for index in ids]

    @cached_property
    def _unknown(self) -> int | None:
        token = self.preprocess.unknown_token
        return None if token is None else self._tokenizer.token_to_id(token)

    def sample(self, count: int) -> list[str]:
        """About `count` of the tokenizer's words, evenly spread over its ids."""
        size = self._tokenizer.get_vocab_size()
        return [self._tokenizer.id_to_token(index) for index in range(0, size, max(1, size // count))]

    def batch(self, rows: Sequence[Sequence[int]]) -> "dict[str, NDArray[np.int64]]":
        """The graph's inputs, each int64 [len(rows), longest]; padded with 0 where the mask is 0."""
        import numpy as np

        longest = max(len(row) for row in rows)
        ids = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        if not self.preprocess.segments:
            return {"input_ids": ids, "attention_mask": mask}
        types = np.zeros_like(ids)
        for index, row in enumerate(rows):
            if isinstance(row, Tokens):
                types[index, : len(row.types)] = row.types
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def write_word_level(words: Iterable[str], preprocess: WordsPreprocess, folder: Path) -> TextPreprocess:
    """Write a `tokenizer.json` whose ids are the indices of `words`; returns the preprocessing for a bundle with it.

    A text is split into runs of letters, digits and underscores, and runs of other characters. Unknown words become an
    additional token, or with `unknown: token` the row's unknown token. Raises RegistryError if that token is not among
    the words.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {word: index for index, word in enumerate(words)}
    token = preprocess.unknown_token or "[UNK]"
    if preprocess.unknown_token is not None and token not in vocabulary:
        raise RegistryError(
            f"the unknown_token {quote(token)} is not among the words", hint="correct the row's preprocess"
        )
    while preprocess.unknown_token is None and token in vocabulary:
        token = f"[{token}]"
    vocabulary.setdefault(token, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=token))
    if preprocess.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / TOKENIZER), pretty=False)
    refused = token if preprocess.unknown == "skip" else None
    return TextPreprocess(
        tokenizer=TOKENIZER,
        max_length=preprocess.max_length,
        pooling="mean",
        normalize=False,
        unknown_token=refused,
    )


def is_one_token(text: str, preprocess: WordsPreprocess) -> bool:
    """Whether a tokenizer of `write_word_level` keeps a text unchanged, as one word."""
    from tokenizers import normalizers, pre_tokenizers

    normal = normalizers.Lowercase().normalize_str(text) if preprocess.lowercase else text
    return [text] == [part for part, _ in pre_tokenizers.Whitespace().pre_tokenize_str(normal)]


def check_item(item: object, *, pairs: bool) -> str | TextPair:
    """A text; with `pairs` also a pair of texts. Raises the errors of `check_text`, and DataError for other pairs."""
    if not isinstance(item, TextPair):
        return check_text(item)
    if not pairs:
        raise DataError(
            "this model reads single texts, not pairs", hint="leave --pair out, or choose a classifier of pairs"
        )
    return TextPair(check_text(item.text), check_text(item.pair))


def check_text(item: object) -> str:
    """The text itself. Raises DataError unless it is a str with a visible character."""
    if isinstance(item, DataError):
        # The error was found when the items were listed.
        raise item
    if not isinstance(item, str):
        raise DataError(f"a text model reads str, not {type(item).__name__}", hint="give strings")
    try:
        item.encode()
    except UnicodeEncodeError as error:
        raise DataError("a text is not UTF-8", hint="iconv -t UTF-8 | zoo run MODEL -") from error
    if not item.strip():
        raise DataError("the text is empty", hint="remove the row, or fill it")
    return item


def place_tokenizer(preprocess: TextPreprocess, weights: Path, folder: Path) -> TextPreprocess:
    """Write the row's tokenizer into `folder` as a `tokenizer.json`; returns the preprocessing that names it.

    A `tokenizer.json` is copied unchanged. Raises IntegrityError for an incomplete vocabulary.
    """
    source = weights / preprocess.tokenizer
    if preprocess.wordpiece is None:
        (folder / preprocess.tokenizer).write_bytes(source.read_bytes())
        return preprocess
    (folder / TOKENIZER).write_text(tokenizer_json(source, preprocess.wordpiece), encoding="utf-8")
    return msgspec.structs.replace(preprocess, tokenizer=TOKENIZER, wordpiece=None)


def tokenizer_json(path: Path, wordpiece: WordPiece) -> str:
    """The tokenizer over the vocabulary at `path`, in the format of the library `tokenizers`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = read_vocabulary(path)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=wordpiece.chinese_chars,
        strip_accents=wordpiece.strip_accents,
        lowercase=wordpiece.lowercase,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL if token in vocabulary])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{FIRST}:0 $A:0 {LAST}:0",
        pair=f"{FIRST}:0 $A:0 {LAST}:0 $B:1 {LAST}:1",
        special_tokens=[(token, vocabulary[token]) for token in (FIRST, LAST)],
    )
    return str(tokenizer.to_str())


def read_vocabulary(path: Path) -> dict[str, int]:
    """The id of each piece. Raises IntegrityError for invalid UTF-8, duplicates and missing special tokens."""
    try:
        # Only a line feed ends a line: other separators may be pieces.
        pieces = path.read_bytes().decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path.name} is not UTF-8: {error.reason}", hint=HINT) from error
    vocabulary: dict[str, int] = {}
    for index, piece in enumerate(pieces):
        first = vocabulary.setdefault(piece, index)
        if first != index:
            raise IntegrityError(f"{path.name} lists {piece!r} in line {first + 1} and {index + 1}", hint=HINT)
    if missing := [token for token in (UNKNOWN, FIRST, LAST) if token not in vocabulary]:
        raise IntegrityError(f"{path.name} lacks {', '.join(missing)}", hint=HINT)
    return vocabulary
