"""Checks of a fine-tuned bundle."""

import json
from pathlib import Path

import numpy as np
import pytest

from zoo import Zoo
from zoo.bundle import read_split
from zoo.data.dataset import load
from zoo.graph import external_data
from zoo.runtime.ort import create_session


def check_bundle(zoo: Zoo, path: Path, data: Path, *, held: int) -> None:
    """The bundle predicts what fine-tuning predicted, verifies, exports again, and its file runs by itself."""
    model = str(path)
    bundle = zoo.open(model)
    assert bundle.manifest.parity.passed
    assert {check.batch for check in bundle.manifest.parity.checks} >= {1, 2, 7}
    evaluation = zoo.evaluate(model, data, held_out=True)
    assert evaluation.metrics.n == held
    assert evaluation.trained_on == 0
    by_finetuning = {held.digest: held for held in read_split(bundle).values() if held.held_out}
    digests = _digests(zoo, model, data)
    for answer in evaluation.predictions:
        scores = np.array(by_finetuning[digests[answer.input]].scores)
        first, second = np.sort(scores)[::-1][:2]
        if first - second > 1e-4:
            assert answer.labels[0][0] == bundle.manifest.labels[int(scores.argmax())]
    assert evaluation.metrics.accuracy == pytest.approx(bundle.manifest.metrics.accuracy)
    assert zoo.evaluate(model, data).trained_on == len(digests) - held
    assert all(is_same for _, is_same in zoo.verify(model))
    exported = zoo.export(model, path.parent / "exported")
    assert exported.model.read_bytes() == bundle.model.read_bytes()
    model = exported.read_model()
    session = create_session(model, "cpu", tables=external_data.files(model, exported.map))
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["zoo.labels"]) == list(bundle.manifest.labels)


def _digests(zoo: Zoo, model: str, data: Path) -> dict[str, str]:
    return {e.name: e.digest for e in load(data, zoo.open(model).manifest.preprocess).examples}
