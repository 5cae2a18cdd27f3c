"""benchmarks/nuclei_groups.py: crowding of label images, and the groups."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import load_script

script = load_script("nuclei_groups")


@pytest.mark.parametrize(("gap", "expected"), [(0, 2 / 3), (2, 2 / 3), (3, 0)])
@pytest.mark.parametrize("transposed", [False, True])
def test_crowding_counts_objects_with_a_near_neighbor(gap: int, expected: float, transposed: bool) -> None:
    """Two objects `gap` px apart, and one far from both."""
    labels = np.zeros((12, 40), dtype=np.int64)
    labels[2:6, 2:6], labels[2:6, 6 + gap : 10 + gap], labels[2:6, 30:34] = 1, 2, 7
    assert script.crowding(labels.T if transposed else labels) == pytest.approx(expected)


def test_crowding_without_objects_is_zero() -> None:
    assert script.crowding(np.zeros((5, 5), dtype=np.int64)) == 0


def test_quarters_hold_each_image_once_in_order() -> None:
    values = {image_id: float(image_id * 7 % 11) for image_id in range(10)}
    groups = script.quarters(values)
    assert [len(group) for group in groups] == [3, 3, 2, 2]
    order = [values[image_id] for group in groups for image_id in group]
    assert order == sorted(order)
    assert sorted(image_id for group in groups for image_id in group) == list(range(10))
