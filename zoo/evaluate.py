"""Quality of predictions: accuracy with its interval, macro-F1, per-class precision and recall, confusion."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.schema import Metrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Two-sided 95 %.
Z = 1.959964


def measure(scores: "NDArray[np.float32]", targets: Sequence[int], labels: Sequence[str]) -> Metrics:
    """Metrics of class scores [items, labels] against the true positions in `labels`."""
    import numpy as np

    predicted = scores.argmax(1)
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (np.asarray(targets), predicted), 1)
    hits = confusion.diagonal()
    per_class = {
        label: {
            "precision": _ratio(hits[index], confusion[:, index].sum()),
            "recall": _ratio(hits[index], confusion[index].sum()),
            "f1": _ratio(2 * hits[index], confusion[:, index].sum() + confusion[index].sum()),
            "n": float(confusion[index].sum()),
        }
        for index, label in enumerate(labels)
    }
    present = [label for index, label in enumerate(labels) if confusion[index].any() or confusion[:, index].any()]
    return Metrics(
        n=len(targets),
        accuracy=_ratio(hits.sum(), len(targets)),
        accuracy_interval=wilson(int(hits.sum()), len(targets)),
        macro_f1=sum(per_class[label]["f1"] for label in present) / len(present),
        per_class=per_class,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson, JASA 22, 1927): honest for small n and near 0 and 1."""
    share, z2 = hits / n, Z * Z
    centre = share + z2 / (2 * n)
    margin = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = ((centre + sign * margin) / (1 + z2 / n) for sign in (-1, 1))
    # At 0 and 1 the interval ends there, and rounding must not say otherwise.
    return (low if hits else 0.0), (high if hits < n else 1.0)


def _ratio(part: "int | np.int64", whole: "int | np.int64") -> float:
    return float(part) / float(whole) if whole else 0.0
