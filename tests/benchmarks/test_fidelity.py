"""The script fidelity.py: its counts, and equality of slow and fast inference in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import load_script
from small_models import small_config

from embedmask import EmbedMask
from embedmask.data.coco import CocoInstances
from embedmask.masks import MaskCrop, RunMasks
from embedmask.structures import Instances
from embedmask.synthetic.dataset import make_shapes

benchmark = load_script("fidelity")


def squares(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Instances:
    """Return objects that fill their boxes, in 100 x 100 px."""
    crops = [
        MaskCrop(np.ones((int(y2 - y1), int(x2 - x1)), bool), int(y1), int(x1)) for x1, y1, x2, y2 in boxes
    ]
    masks = RunMasks.from_crops(crops, (100, 100))
    return Instances(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), masks)


def match_counts(slow: Instances, fast: Instances) -> dict[str, float]:
    counts = benchmark.MatchCounts()
    counts.add(slow, fast)
    figures: dict[str, float] = counts.figures()
    return figures


BOXES = [[0.0, 0.0, 50.0, 50.0], [50.0, 50.0, 100.0, 100.0], [0.0, 50.0, 40.0, 90.0], [60.0, 0.0, 80.0, 20.0]]
SLOW = squares(BOXES, [0.9, 0.8, 0.7, 0.2], [0, 1, 0, 0])


def test_counts_only_instances_of_the_same_class_and_box() -> None:
    assert match_counts(SLOW, SLOW) == {"instances": 3, "same": 1.0, "mask_iou": 1.0}
    other_class = squares(BOXES, [0.9, 0.8, 0.7, 0.2], [0, 0, 0, 0])
    assert match_counts(SLOW, other_class)["same"] == pytest.approx(2 / 3)
    moved = [BOXES[0], BOXES[1], [1.0, 50.0, 41.0, 90.0], BOXES[3]]  # IoU 39 / 41
    assert match_counts(SLOW, squares(moved, [0.9, 0.8, 0.7, 0.2], [0, 1, 0, 0]))["same"] == pytest.approx(
        2 / 3
    )
    nothing = Instances(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), RunMasks([], (100, 100)))
    assert match_counts(SLOW, nothing) == {"instances": 3, "same": 0, "mask_iou": 0}
    assert match_counts(nothing, SLOW)["instances"] == 0


def test_a_counterpart_is_matched_once_and_masks_are_compared() -> None:
    twice = squares([BOXES[0], BOXES[0]], [0.9, 0.8], [0, 0])
    assert match_counts(twice, squares(BOXES[:1], [0.9], [0]))["same"] == 0.5
    half = squares(BOXES[:1], [0.9], [0])
    half.masks = squares([[0.0, 25.0, 50.0, 50.0]], [0.9], [0]).masks
    assert match_counts(squares(BOXES[:1], [0.9], [0]), half)["mask_iou"] == 0.5


@pytest.mark.parametrize("preset", ["paper", "ijcai21", "fused"])
@pytest.mark.parametrize("twin", ["reference", "plain"])
def test_float32_equals_the_reference(preset: str, twin: str, tmp_path: Path) -> None:
    make_shapes(tmp_path, train=1, val=2, size=48)
    torch.manual_seed(0)
    model = EmbedMask(small_config(preset=preset, num_classes=8, max_detections=10)).eval()
    torch.nn.init.constant_(model.head.class_logits.bias, 1.0)
    torch.nn.init.constant_(model.head.box.bias, 1.5)
    dataset = CocoInstances.open(tmp_path, "val")
    found = benchmark.compare(model, dataset, [0, 1], ["torch"], twin)
    assert set(found) == {"torch float32", "torch bfloat16"}
    assert found["torch float32"]["instances"] > 0
    assert found["torch float32"]["same"] > 0.9
    assert found["torch float32"]["mask_iou"] > 0.99
