"""Rescoring by masks: by hand, against the slow twin, and in the post-processing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import random_predictions, small_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import box_iou, masks_to_boxes

from embedmask import Postprocessor
from embedmask.inference.rescoring import rescore_by_masks, uncovered_fractions
from embedmask.masks import RunMasks
from embedmask.structures import Instances

SIZE = (24, 32)


def filled(*boxes: tuple[int, int, int, int]) -> Tensor:
    """Return dense masks of rectangles, xyxy."""
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


def make_instances(
    dense: Tensor, boxes: list[tuple[int, ...]], scores: list[float], labels: list[int]
) -> Instances:
    masks = RunMasks.from_dense(dense)
    return Instances(
        torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores), torch.tensor(labels), masks
    )


def twin(dense: Tensor, boxes: Tensor, scores: Tensor, labels: list[int]) -> Tensor:
    """Compute the scores pixel by pixel, mask by mask."""
    new = []
    for i, mask in enumerate(dense):
        if not mask.any():
            new.append(0.0)
            continue
        better = [dense[j] for j in range(i) if labels[j] == labels[i]]
        taken = torch.stack(better).any(0) if better else torch.zeros(SIZE, dtype=torch.bool)
        free = (mask & ~taken).sum() / mask.sum()
        around = masks_to_boxes(mask[None]) + torch.tensor([0, 0, 1, 1])
        new.append(float(scores[i] * free * box_iou(boxes[i][None], around)))
    return torch.tensor(new)


def test_full_mask_keeps_score() -> None:
    rectangles = [(2, 2, 10, 12), (10, 2, 20, 12)]
    rescored = rescore_by_masks(make_instances(filled(*rectangles), rectangles, [0.9, 0.5], [0, 0]))
    assert rescored.scores.tolist() == pytest.approx([0.9, 0.5])


def test_duplicate_of_same_class_loses_score() -> None:
    same = (2, 2, 10, 12)
    results = make_instances(filled(same, same, (12, 2, 20, 12), same), [same, same, (12, 2, 20, 12), same],
                    [0.9, 0.8, 0.5, 0.4], [0, 0, 0, 1])  # fmt: skip
    rescored = rescore_by_masks(results)
    assert rescored.scores.tolist() == pytest.approx([0.9, 0.5, 0.4, 0.0])
    assert rescored.labels.tolist() == [0, 0, 1, 0]
    assert rescored.boxes[1].tolist() == [12, 2, 20, 12]
    assert torch.equal(rescored.masks.to_dense()[1], filled((12, 2, 20, 12))[0])


def test_half_mask_halves_score() -> None:
    rescored = rescore_by_masks(make_instances(filled((2, 2, 6, 12)), [(2, 2, 10, 12)], [0.8], [0]))
    assert rescored.scores.tolist() == pytest.approx([0.4])


def test_empty_mask_scores_zero() -> None:
    dense = torch.cat([filled((0, 0, 0, 0)), filled((0, 0, 32, 24))])
    rescored = rescore_by_masks(make_instances(dense, [(2, 2, 6, 6), (0, 0, 32, 24)], [0.9, 0.3], [0, 0]))
    assert rescored.scores.tolist() == pytest.approx([0.3, 0.0])
    rescored = rescore_by_masks(
        make_instances(dense, [(0, 0, 0, 0), (0, 0, 32, 24)], [0.9, 0.3], [0, 0])
    )  # 0 / 0
    assert rescored.scores.tolist() == pytest.approx([0.3, 0.0])


def test_no_results() -> None:
    empty = RunMasks([], SIZE)
    none = Instances(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), empty)
    assert len(rescore_by_masks(none)) == 0
    assert uncovered_fractions(empty, []).shape == (0,)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**31))
def test_equals_slow_twin(count: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=draw) * torch.tensor([24.0, 16])
    boxes = torch.cat([low, low + 1 + 7 * torch.rand(count, 2, generator=draw)], 1)
    dense = torch.zeros(count, *SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(dense, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = torch.rand(y2 - y1, x2 - x1, generator=draw) < 0.6
    scores = torch.rand(count, generator=draw).sort(descending=True).values
    labels = torch.randint(0, 2, (count,), generator=draw).tolist()
    expected = twin(dense, boxes, scores, labels)
    rescored = rescore_by_masks(
        make_instances(dense, [tuple(b) for b in boxes.tolist()], scores.tolist(), labels)
    )
    assert (rescored.scores.diff() <= 0).all()
    before = {tuple(box): i for i, box in enumerate(boxes.tolist())}
    order = [before[tuple(box)] for box in rescored.boxes.tolist()]
    assert sorted(order) == list(range(count))
    assert rescored.scores.tolist() == pytest.approx(expected[order].tolist(), abs=1e-6)
    assert rescored.labels.tolist() == [labels[i] for i in order]
    assert torch.equal(rescored.masks.to_dense(), dense[order])


class LargestTensor(TorchDispatchMode):
    """Keeps the largest number of values in a tensor that is computed."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.count = max(self.count, out.numel())
        return out


def test_memory_grows_with_the_number_of_boxes() -> None:
    count = 100
    boxes = [(x, y, x + 2, y + 2) for y in range(0, 20, 2) for x in range(0, 20, 2)]
    instances = make_instances(filled(*boxes), boxes, [0.5] * count, [0] * count)
    with LargestTensor() as largest:
        rescore_by_masks(instances)
    assert 0 < largest.count <= 4 * count


def test_postprocessor_rescores() -> None:
    predictions = random_predictions((64, 64))
    plain, rescored = (
        Postprocessor.from_config(small_config(embed_dim=4, rescore_masks=rescore), max_detections=1000)(
            predictions, [(64, 64)], [(64, 64)]
        )[0]
        for rescore in (False, True)
    )
    expected = rescore_by_masks(plain)
    assert len(rescored) == len(plain) > 0
    assert torch.equal(rescored.scores, expected.scores)
    assert torch.equal(rescored.masks.to_dense(), expected.masks.to_dense())
    assert (rescored.proposal_embed == expected.proposal_embed).all()


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_best_results_with_few_detections(limit: int) -> None:
    predictions = random_predictions((96, 96))
    config = small_config(embed_dim=4, rescore_masks=True, candidate_threshold=0.0)
    whole, few = (
        Postprocessor.from_config(config, max_detections=count)(predictions, [(96, 96)], [(96, 96)])[0]
        for count in (50, limit)
    )
    assert len(few) == limit
    assert torch.equal(few.scores, whole.scores[:limit])
    assert torch.equal(few.boxes, whole.boxes[:limit])
