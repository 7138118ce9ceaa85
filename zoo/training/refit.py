"""Fits the head of a fine-tuned bundle again, to the features of a converted copy of the bundle."""

import msgspec

from zoo.bundle import Bundle
from zoo.data.dataset import Dataset
from zoo.data.items import Unreadable
from zoo.evaluation.evaluate import infer_readable
from zoo.export.accuracy_guard import Refitted, training_options
from zoo.runtime.session import Session
from zoo.schema import HeadSpec
from zoo.system.interrupt import Interrupt
from zoo.training.fit_head import fit
from zoo.training.loop import TrainingRun
from zoo.training.problem import Problem


def refit_head(candidate: Bundle, source: Bundle, trained: Dataset, unreadable: Unreadable) -> Refitted:
    """A head for the features of `candidate`, fitted with the options of `source` to the items in `trained`."""
    manifest, spec = source.manifest, source.manifest.head
    assert isinstance(spec, HeadSpec)
    options = msgspec.structs.replace(
        training_options(manifest), lr=spec.lr, weight_decay=spec.weight_decay, unfreeze=0, augment=0
    )
    features, trained = infer_readable(Session(candidate, "cpu"), trained, "features", unreadable)
    problem = Problem(features, trained.targets(manifest.labels), len(manifest.labels) or 1, options)
    found = fit(problem, TrainingRun(stop=Interrupt()))
    return Refitted(found.layers, found.thresholds)
