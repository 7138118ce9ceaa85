"""Real inputs that ship with zoo, for gates that have no data of the user's to look at."""

from collections.abc import Sequence
from pathlib import Path

from zoo.data.dataset import Dataset, Item
from zoo.errors import NotFoundError
from zoo.schema import ImagePreprocess, Preprocess

#: Held-out items that the parity gate looks at.
GATE_SAMPLES = 8

FOLDER = Path(__file__).resolve().parents[1] / "assets"


def bundled(preprocess: Preprocess, words: Sequence[str] = ()) -> tuple[list[Path] | list[str], str]:
    """(at least seven pictures, or sentences of very different lengths; what they are called in a report).

    `words` make three texts more: a model of another language knows no word of the sentences.
    """
    if isinstance(preprocess, ImagePreprocess):
        pictures = sorted(FOLDER.glob("*.jpg"))
        if not pictures:
            raise NotFoundError(f"the sample pictures are missing from {FOLDER}", hint="install backbone-zoo again")
        return pictures, "the bundled pictures"
    texts = (FOLDER / "sentences.txt").read_text(encoding="utf-8").splitlines()
    # One that fills the longest model: every position is looked at, and so is the cut at the row's limit.
    texts.insert(1, " ".join(texts * 5))
    if words:
        texts = [" ".join(words), " ".join(words[::2]), " ".join(words[:1]), *texts]
    return texts, "the bundled sentences"


def gate_samples(held: Dataset) -> Sequence[Item]:
    """Held-out items of as many classes as possible, the same ones whatever the order of the data."""
    ranked = sorted(held.examples, key=lambda example: example.digest)
    seen: dict[str, int] = {}
    order = []
    for example in ranked:
        seen[example.label] = seen.get(example.label, 0) + 1
        order.append((seen[example.label], example.digest, example.item))
    return [item for _, _, item in sorted(order, key=lambda row: row[:2])[:GATE_SAMPLES]]
