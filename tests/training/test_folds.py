"""Every item is left out, classes evenly, copies together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo import Task
from zoo.training.folds import FOLDS, cross_validation, group_numbers, held_back


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), min_size=2, max_size=80), st.integers(0, 9))
def test_every_item_is_left_out_once_in_each_repetition(items: list[tuple[int, int]], seed: int) -> None:
    targets, groups = (np.array(column) for column in zip(*items, strict=True))
    masks = cross_validation(Task.SINGLE_LABEL, targets, groups, seed)
    names = np.unique(groups)
    if len(names) < 2:
        assert masks.shape == (1, len(items))
        assert masks.all()
        return
    count = min(FOLDS, len(names))
    assert len(masks) % count == 0
    for start in range(0, len(masks), count):
        np.testing.assert_array_equal((~masks[start : start + count]).sum(0), 1)
    for name in names:
        assert (masks[:, groups == name] == masks[:, groups == name][:, :1]).all()
    assert (~masks).any(1).all()


def test_classes_are_divided_evenly() -> None:
    targets = np.repeat([0, 1, 2], [50, 12, 3])
    masks = cross_validation(Task.SINGLE_LABEL, targets, np.arange(65), 0, repeats=1)
    for kind, most in ((0, 10), (1, 3), (2, 1)):
        out = (~masks[:, targets == kind]).sum(1)
        assert out.max() <= most
        assert out.max() - out.min() <= 1


def test_a_seed_decides() -> None:
    targets = np.arange(700) % 3
    first, again, other = (cross_validation(Task.SINGLE_LABEL, targets, np.arange(700), seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_part_is_held_back(fraction: float) -> None:
    groups = group_numbers([str(index // 2) for index in range(200)])
    [mask] = held_back(groups, fraction, 3)
    assert (~mask).sum() == round(fraction * 200)
    assert (mask[::2] == mask[1::2]).all()
