"""The search for repeated objects agrees with a comparison of all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask

from embedmask.data.consistency import find_repeats
from embedmask.data.packed import GroundTruth, PackedAnnotations
from embedmask.data.segmentation import Polygons, to_coco_rle

SIZE = (120, 160)


def outlines(rng: np.random.Generator) -> list[Polygons]:
    """Return triangles, each repeated up to three times, equal or slightly moved, in random order."""
    polygons = []
    for _ in range(12):
        corners = rng.uniform(0, 110, (3, 2))
        for _ in range(rng.integers(1, 4)):
            moved = corners + rng.choice([0, 0.3, 6]) * rng.normal(size=(3, 2))
            polygons.append(Polygons([moved.astype(np.float32)]))
    return [polygons[place] for place in rng.permutation(len(polygons))]


@pytest.mark.parametrize("seed", range(6))
def test_repeats_agree_with_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [outlines(rng) for _ in range(3)]
    labels = [rng.integers(0, 2, len(own)) for own in masks]
    packed = PackedAnnotations(
        GroundTruth(
            labels[image],
            list(own),
            SIZE,
            image,
            np.zeros(len(own), dtype=bool),
            np.full(len(own), np.nan),
            np.full((len(own), 4), np.nan, dtype=np.float32),
        )
        for image, own in enumerate(masks)
    )
    repeats = find_repeats(packed, *packed.measure())
    assert repeats
    rles = [to_coco_rle(mask, SIZE) for own in masks for mask in own]
    same = np.asarray(coco_mask.iou(rles, rles, [0] * len(rles))) >= 0.9
    same &= packed.owners[:, None] == packed.owners
    same &= packed.labels[:, None] == packed.labels
    np.fill_diagonal(same, False)
    assert all(same[pair] for pair in repeats.items())
    remaining = np.setdiff1d(np.arange(len(rles)), list(repeats))
    assert not same[np.ix_(remaining, remaining)].any()  # without the repeats, all objects differ
