"""Sample inputs that ship with zoo, for parity checks when there is no data of the user."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.data.dataset import Dataset
from zoo.data.items import Item, TextPair
from zoo.errors import NotFoundError
from zoo.schema import ImagePreprocess, Preprocess, TextPreprocess

#: The number of held-out items that the parity check compares.
PARITY_SAMPLES = 8

FOLDER = Path(__file__).resolve().parents[1] / "assets"


def bundled(preprocess: Preprocess, words: Sequence[str] = (), *, pairs: bool = False) -> tuple[list[Any], str]:
    """Returns at least seven images, or sentences of very different lengths, and their name in a report.

    Three more texts are made of `words`: a model of another language may know no word of the sentences. For a model
    that fills masks, each sentence has one. With `pairs` every other text is a pair of two sentences.
    """
    if isinstance(preprocess, ImagePreprocess):
        images = sorted(FOLDER.glob("*.jpg"))
        if not images:
            raise NotFoundError(f"the sample images are missing from {FOLDER}", hint="install backbone-zoo again")
        return images, "the bundled images"
    texts = (FOLDER / "sentences.txt").read_text(encoding="utf-8").splitlines()
    if isinstance(preprocess, TextPreprocess) and preprocess.mask_token is not None:
        texts = [_masked(text, preprocess.mask_token, number) for number, text in enumerate(texts)]
        long = " ".join(each.replace(preprocess.mask_token, "x") for each in texts[1:] * 5)
        return [texts[0], f"{texts[0]} {long}", *texts[1:]], "the bundled sentences, each with a mask"
    # One text is longer than any model reads, so that all positions and the truncation are compared.
    texts.insert(1, " ".join(texts * 5))
    if words:
        texts = [" ".join(words), " ".join(words[::2]), " ".join(words[:1]), *texts]
    if pairs:
        seconds = [*texts[::-1]]
        mixed = [TextPair(text, seconds[index]) if index % 2 else text for index, text in enumerate(texts)]
        return mixed, "the bundled sentences, half of them in pairs"
    return texts, "the bundled sentences"


def _masked(text: str, mask: str, number: int) -> str:
    """The text with a mask in place of a word: of the first, of the last, or of one between."""
    words = text.split(" ")
    words[(0, len(words) - 1, len(words) // 2)[number % 3]] = mask
    return " ".join(words)


def parity_samples(held: Dataset) -> Sequence[Item]:
    """Held-out items of as many classes as possible, independent of the order of the data."""
    seen: Counter[str] = Counter()
    order = []
    for example in sorted(held.examples, key=lambda example: example.digest):
        seen[example.label] += 1
        order.append((seen[example.label], example.digest, example.item))
    return [item for _, _, item in sorted(order, key=lambda row: row[:2])[:PARITY_SAMPLES]]
