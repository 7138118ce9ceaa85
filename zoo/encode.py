"""Raw items to arrays: pictures decoded, texts tokenised. The same functions serve finetune, run, evaluate and serve.

Decode policy for pictures: JPEG, PNG, WebP and BMP only; EXIF orientation applied; converted to 8-bit RGB; the first
frame of an animation; a JPEG is shrunk while decoding only as long as its short side stays at least twice `resize`.
"""

import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias

from zoo import views
from zoo.errors import DataError, IntegrityError, RegistryError, quote
from zoo.schema import ImagePreprocess, TextPreprocess, WordsPreprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as PilImage

    Pixels: TypeAlias = NDArray[np.uint8]

#: Raised whenever what this module makes of the same bytes changes: it is part of the feature cache's key.
VERSION = 1
#: The tokenizer of a bundle whose row has none.
TOKENIZER = "tokenizer.json"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
#: Pictures above this are refused before they are decoded: a few bytes can announce gigabytes.
MAX_PIXELS = 100_000_000
#: A strip longer than this many times its width would resize to more pixels than it has.
MAX_ASPECT = 50

_warnings_lock = Lock()


def decode_image(
    item: "str | Path | bytes | PilImage | Pixels | views.Viewed | DataError", short_side: int
) -> "Pixels":
    """RGB uint8 [height, width, 3] of a file, its bytes, a PIL image or an array, or of a view of one of these.

    Raises DataError naming the file for anything that is not a whole picture of an accepted format and size.
    """
    import numpy as np
    from PIL import Image

    if isinstance(item, DataError):
        # Whoever listed the items knows already why there is none.
        raise item
    if isinstance(item, views.Viewed):
        whole = decode_image(item.item, round(views.ROOM * short_side))
        return views.transform(whole, item.digest, item.view)
    # Without a path an error has its item's place, and whoever has the items names it.
    path = str(item) if isinstance(item, str | Path) else None
    name = type(item).__name__ if path is None else path
    if isinstance(item, np.ndarray):
        return _checked_array(item)
    try:
        if isinstance(item, Image.Image):
            _check_size(*item.size, name, path)
            return np.asarray(_upright_rgb(item))
        if not isinstance(item, str | Path | bytes):
            raise DataError(
                f"a picture is a path, bytes, a PIL image or an array, not {name}", hint="give one of those"
            )
        with _quiet():
            picture = Image.open(BytesIO(item) if isinstance(item, bytes) else item, formats=FORMATS)
        with picture:
            _check_size(*picture.size, name, path)
            picture.draft("RGB", (2 * short_side, 2 * short_side))
            return np.asarray(_upright_rgb(picture))
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file", path=path, hint="check the path") from error
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        reason = "not a picture of an accepted format" if "cannot identify" in str(error) else str(error)
        raise DataError(
            f"{name}: cannot be decoded: {reason}",
            path=path,
            hint=f"accepted: {', '.join(FORMATS)}; remove or repair it",
        ) from error


def _checked_array(item: "NDArray[Any]") -> "Pixels":
    if item.dtype != "uint8" or item.ndim != 3 or item.shape[2] != 3 or 0 in item.shape:
        raise DataError(
            f"an image array must be uint8 [height, width, 3], not {item.dtype} {list(item.shape)}",
            hint="convert it to 8-bit RGB",
        )
    height, width = item.shape[:2]
    _check_size(width, height, "an image array", None)
    return item


def _check_size(width: int, height: int, name: str, path: str | None) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name}: {width}x{height} is above the cap of {MAX_PIXELS:,} pixels", path=path, hint="make it smaller"
        )
    if not 0 < max(width, height) <= MAX_ASPECT * min(width, height):
        what = "too long and thin to classify" if width and height else "empty"
        raise DataError(f"{name}: {width}x{height} is {what}", path=path, hint="remove it, or cut it up")


def _upright_rgb(picture: "PilImage") -> "PilImage":
    from PIL import ExifTags, Image

    turns = (
        *(None, None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM),
        *(Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90),
    )
    picture.load()
    with _quiet():
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    # ImageOps.exif_transpose would write the EXIF block anew, and fail on the many that break their own rules.
    turn = turns[orientation] if isinstance(orientation, int) and 0 < orientation < len(turns) else None
    if turn is not None:
        picture = picture.transpose(turn)
    if picture.mode.startswith("I;16"):
        # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
        import numpy as np

        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"the range of mode {picture.mode} is not known")
    if picture.mode == "P" and "transparency" in picture.info:
        # Pillow asks for this detour, by a warning; transparency itself is dropped either way.
        picture = picture.convert("RGBA")
    # A picture that is RGB already would be copied.
    return picture if picture.mode == "RGB" else picture.convert("RGB")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings from the user: about large pictures, which we judge, and untidy EXIF blocks.

    Warning filters belong to the process and not to the thread, so only short calls may be made inside.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class TextEncoder:
    """Texts to token ids by a `tokenizer.json`, cut at the row's limit, padded to the longest of the batch."""

    def __init__(self, preprocess: TextPreprocess, folder: Path) -> None:
        self.preprocess = preprocess
        self.path = folder / preprocess.tokenizer

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(self.path))
        except Exception as error:
            # The library raises plain Exception for whatever it cannot read.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise IntegrityError(
                f"{self.path.name} is no tokenizer that can be read: {reason}",
                hint="choose another model, or pull again",
            ) from error
        # Published files may carry a shorter limit and a fixed padding of their own: the row decides.
        tokenizer.enable_truncation(self.preprocess.max_length)
        tokenizer.no_padding()
        return tokenizer

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, at most `max_length` of them."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def check_known(self, text: str, row: Sequence[int], index: int | None = None) -> None:
        """Raise DataError, with its `index`, when `row` holds no word of `text` that the model knows.

        Only where the row of the registry wants that refused.
        """
        if self._unknown is not None and all(token == self._unknown for token in row):
            # The token for unknown words is none of the words.
            count = self._tokenizer.get_vocab_size() - 1
            problem = f"no word of {quote(text)} is among the {count:,} words"
            raise DataError(problem, index=index, hint="remove it, or reword it")

    @cached_property
    def _unknown(self) -> int | None:
        token = self.preprocess.unknown_token
        return None if token is None else self._tokenizer.token_to_id(token)

    def sample(self, count: int) -> list[str]:
        """About `count` of the tokenizer's words, spread evenly over its ids."""
        size = self._tokenizer.get_vocab_size()
        return [self._tokenizer.id_to_token(index) for index in range(0, size, max(1, size // count))]

    @staticmethod
    def batch(rows: Sequence[Sequence[int]]) -> "dict[str, NDArray[np.int64]]":
        """`input_ids` and `attention_mask`, int64 [len(rows), longest]; padded with 0 where the mask is 0."""
        import numpy as np

        longest = max(len(row) for row in rows)
        ids = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}


def write_word_level(words: Iterable[str], preprocess: WordsPreprocess, folder: Path) -> TextPreprocess:
    """Write a `tokenizer.json` whose ids are the places of `words`, and return how a bundle with it prepares texts.

    A text falls into runs of letters, digits and underscores, and runs of other signs. Whatever is not among `words`
    becomes one token more, which no word is called, or with `unknown: token` the row's own unknown token.
    Raises RegistryError when that is not among the words.
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
    """Whether a text is one word, as it stands, to the tokenizers that `write_word_level` writes."""
    from tokenizers import normalizers, pre_tokenizers

    normal = normalizers.Lowercase().normalize_str(text) if preprocess.lowercase else text
    return [text] == [part for part, _ in pre_tokenizers.Whitespace().pre_tokenize_str(normal)]


def check_text(item: object, index: int | None = None) -> str:
    """The text itself. Raises DataError, with its `index`, unless it is a str with a visible character."""
    if isinstance(item, DataError):
        # Whoever listed the items knows already why there is none.
        raise item
    if not isinstance(item, str):
        raise DataError(f"a text model reads str, not {type(item).__name__}", index=index)
    try:
        item.encode()
    except UnicodeEncodeError as error:
        raise DataError("a text is not UTF-8", index=index, hint="iconv -t UTF-8 | zoo run MODEL -") from error
    if not item.strip():
        raise DataError("an empty text has no answer", index=index, hint="remove the row, or fill it")
    return item


def encoder_version(preprocess: ImagePreprocess | TextPreprocess) -> str:
    """What, beside the item's bytes, decides the arrays made of it: a part of the feature cache's key."""
    import importlib.metadata

    library = "Pillow" if isinstance(preprocess, ImagePreprocess) else "tokenizers"
    major = importlib.metadata.version(library).split(".")[0]
    return f"encode {VERSION}, {library} {major}"
