"""BERT's tokenizer from its `vocab.txt`: the `tokenizer.json` that every bundle carries, for rows without one.

The vocabulary is one piece a line, its id the line's number from 0, as Google published it
(https://github.com/google-research/bert); pieces inside a word begin with ##.
"""

from pathlib import Path

import msgspec

from zoo.errors import IntegrityError
from zoo.schema import TextPreprocess, WordPiece

TOKENIZER = "tokenizer.json"
UNKNOWN, FIRST, LAST = "[UNK]", "[CLS]", "[SEP]"
#: Read as one token where a text spells them out, as far as the vocabulary has them.
SPECIAL = ("[PAD]", UNKNOWN, FIRST, LAST, "[MASK]")
HINT = "the file is not the vocabulary that this row describes"


def place_tokenizer(preprocess: TextPreprocess, weights: Path, folder: Path) -> TextPreprocess:
    """Write the row's tokenizer into `folder` as a `tokenizer.json`; returns the preprocessing that names it.

    A file that is one already is copied as it is. Raises IntegrityError for a vocabulary that is not whole.
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
    """Ids of the pieces. Raises IntegrityError for invalid UTF-8, a piece listed twice or a missing special token."""
    try:
        # Only a line feed ends a line: vocabularies hold other separators as pieces.
        pieces = path.read_bytes().decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path.name} is not UTF-8: {error.reason}", hint=HINT) from error
    vocabulary: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        first = vocabulary.setdefault(piece, number)
        if first != number:
            raise IntegrityError(f"{path.name} lists {piece!r} in line {first + 1} and {number + 1}", hint=HINT)
    if missing := [token for token in (UNKNOWN, FIRST, LAST) if token not in vocabulary]:
        raise IntegrityError(f"{path.name} lacks {', '.join(missing)}", hint=HINT)
    return vocabulary
