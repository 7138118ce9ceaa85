"""The speed of a features bundle in fp32 and in int8 on real items.

The int8 model is made as `zoo export --precision int8` makes it, without the check of its accuracy, and is not kept.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec
import onnx

from zoo.bundle import Bundle
from zoo.data.items import Item
from zoo.errors import ZooError
from zoo.export import accuracy_guard, precision, precision_words
from zoo.export.export import copy_others
from zoo.runtime.session import Session
from zoo.schema import FEATURES, ImagePreprocess, WordsPreprocess

#: Images that give the ranges of the int8 model. The ranges do not change its speed.
CALIBRATED = 8
#: Seconds that one call should take, and the fewest and most items in it.
CALL, FEWEST, MOST = 0.25, 8, 4096
#: The calls of each model, and the seconds after which they end early; three are always made.
CALLS, SECONDS = 9, 2.0


def time_precisions(session: Session, items: Sequence[Item]) -> tuple[float, float | None]:
    """Milliseconds for one item of the loaded model, and of the same model in int8 on the CPU.

    Reading (decoding, tokenising) is included; items run in batches, as in `zoo embed`. `items` are readable and in
    random order. The models take turns; the figures are medians. int8 is None for a session on a GPU, and for a model
    that has no int8 form.
    """
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        sessions = [session]
        if session.device == "cpu" and (bundle := _quantised(session, items, Path(folder))) is not None:
            sessions.append(Session(bundle, "cpu"))
        count = _count(session, items)
        sample = [items[index % len(items)] for index in range(count)]
        seconds: list[list[float]] = [[_time(each, sample)] for each in sessions]
        # The first call of each model allocates memory, and is not counted.
        begun = time.perf_counter()
        for number in range(CALLS):
            if number >= 3 and time.perf_counter() - begun > SECONDS:
                break
            for each, found in zip(sessions, seconds, strict=True):
                found.append(_time(each, sample))
        del sessions[1:]
    first, *others = (1000 * median(found[1:]) / count for found in seconds)
    return first, others[0] if others else None


def _count(session: Session, items: Sequence[Item]) -> int:
    """The number of items that take about CALL seconds."""
    few = items[:FEWEST]
    _time(session, few)
    return max(FEWEST, min(MOST, int(CALL * len(few) / _time(session, few))))


def _time(session: Session, items: Sequence[Item]) -> float:
    begun = time.perf_counter()
    for _ in session.stream(items, [FEATURES]):
        pass
    return time.perf_counter() - begun


def _quantised(session: Session, items: Sequence[Item], folder: Path) -> Bundle | None:
    """The model of the session in int8, in `folder`; None if it has no int8 form."""
    source = session.bundle
    manifest = msgspec.structs.replace(source.manifest, precision="int8")
    try:
        copy_others(source, folder, is_converted=True)
        model = onnx.load_from_string(source.read_model())
        if isinstance(manifest.lineage.entry.preprocess, WordsPreprocess):
            model = precision_words.convert_table(model, "int8", source.map, folder)
        else:
            is_image = isinstance(manifest.preprocess, ImagePreprocess)
            batches = list(precision.calibration(session, items[:CALIBRATED])) if is_image else []
            model = precision.int8(model, batches)
    except ZooError:
        return None
    return accuracy_guard.save_bundle(model, manifest, folder)
