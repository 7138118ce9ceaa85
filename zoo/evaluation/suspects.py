"""Training items whose labels are probably wrong: heads that did not learn an item disagree with its label.

The order is that of confident learning (Northcutt et al., https://arxiv.org/abs/1911.00068): the score for the item's
own label, lowest first.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.data.items import Example
from zoo.results import Suspect
from zoo.runtime.answers import predicted_labels
from zoo.schema import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.runtime.answers import Floats

#: Errors of a regression above this number of typical errors are suspicious.
FAR = 4.0


def find_suspects(
    task: Task,
    scores: "Floats",
    targets: "NDArray[np.float32] | NDArray[np.int64]",
    labels: Sequence[str],
    examples: Sequence[Example],
) -> tuple[Suspect, ...]:
    """The suspicious items, the most suspicious first; `scores` [items, labels] are by heads that did not learn them.

    With one label an item is suspicious if another label is predicted; with several, if a label is predicted to be in
    the other state; in a regression, if the error is FAR above the typical (median) error. Rows of NaN are left out.
    """
    import numpy as np

    seen = np.flatnonzero(np.isfinite(scores).all(1)).tolist()
    found, truth = scores[seen].astype(np.float64), targets[seen]
    if not seen:
        return ()
    if task is Task.REGRESSION:
        errors = np.abs(found[:, 0] - truth.reshape(-1))
        typical = max(float(np.median(errors)), 1e-12)
        own, doubtful, about = -errors, errors > FAR * typical, None
    elif task is Task.MULTI_LABEL:
        likely = np.where(truth > 0, found, 1 - found)
        own, about = likely.min(1), likely.argmin(1)
        doubtful = own < 0.5
    else:
        own, about = found[np.arange(len(found)), truth.astype(np.int64)], None
        doubtful = found.argmax(1) != truth
    answers = predicted_labels(task, scores[seen], labels, ())
    order = sorted(np.flatnonzero(doubtful).tolist(), key=lambda index: (own[index], examples[seen[index]].name))
    return tuple(
        Suspect(
            place=seen[index],
            name=examples[seen[index]].name,
            label=examples[seen[index]].label,
            predicted=answers[index],
            about=labels[about[index]] if about is not None else "",
            score=abs(float(own[index])),
        )
        for index in order
    )
