"""Masks pasted into crops equal torchvision's masks pasted into whole images."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes

from embedmask.model.maskrcnn_postprocess import paste, postprocess_mask_rcnn
from embedmask.structures import Size

SIDES = st.integers(1, 60)


def random_boxes(count: int, size: Size, seed: int) -> torch.Tensor:
    """Generate boxes inside the image, some on its border, some narrower than a pixel."""
    rng = torch.Generator().manual_seed(seed)
    limits = torch.tensor([size[1], size[0], size[1], size[0]])
    corners = torch.rand(count, 2, 2, generator=rng) * 1.4 - 0.2
    low, high = corners.clamp(0, 1).sort(dim=1).values.unbind(1)
    boxes = torch.cat([low, high], 1) * limits
    return boxes[(boxes[:, 2:] - boxes[:, :2] >= 0.01).all(1)]


@settings(max_examples=60, deadline=None)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 10_000))
def test_crops_equal_whole_masks(height: int, width: int, seed: int) -> None:
    boxes = random_boxes(6, (height, width), seed)
    grids = torch.rand(len(boxes), 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    expected = paste_masks_in_image(grids, boxes, (height, width))[:, 0] > 0.5
    actual = paste(grids, boxes, (height, width), 0.5)
    assert torch.equal(actual.to_dense(), expected)


def test_memory_grows_with_boxes() -> None:
    boxes = torch.tensor([[10.0, 20.0, 40.0, 60.0], [5000.0, 7000.0, 5030.0, 7040.0]])
    masks = paste(torch.ones(2, 1, 28, 28), boxes, (8000, 6000), 0.5)
    assert all(runs.nbytes < 36 * 46 for runs in masks.runs)
    assert all(31 * 41 <= area <= 34 * 44 for area in masks.areas())


def test_results_are_in_the_images_frame() -> None:
    boxes = torch.tensor([[8.0, 4.0, 24.0, 20.0]])
    detections = {"boxes": boxes, "scores": torch.ones(1), "labels": torch.tensor([2])}
    one = postprocess_mask_rcnn(
        {**detections, "masks": torch.full((1, 1, 28, 28), 0.6)}, (32, 40), (64, 120), mask_threshold=0.5
    )
    assert torch.equal(one.boxes, torch.tensor([[24.0, 8.0, 72.0, 40.0]]))
    assert torch.equal(one.boxes, resize_boxes(boxes, [32, 40], [64, 120]))
    assert one.masks.frame == (64, 120)
    dense = one.masks.to_dense()[0]
    assert dense[9:40, 25:72].all()
    strict = postprocess_mask_rcnn(
        {**detections, "masks": torch.full((1, 1, 28, 28), 0.6)}, (32, 40), (64, 120), mask_threshold=0.7
    )
    assert strict.masks.areas().tolist() == [0]


def test_boxes_end_with_the_image() -> None:
    """Check that boxes end with the image, although 35 px * (107 / 35) exceeds 107 in float32."""
    boxes = torch.tensor([[0.0, 0.0, 35.0, 35.0]])
    assert resize_boxes(boxes, [35, 35], [107, 107]).max() > 107
    detections = {"boxes": boxes, "scores": torch.ones(1), "labels": torch.tensor([2])}
    detections["masks"] = torch.ones(1, 1, 28, 28)
    one = postprocess_mask_rcnn(detections, (35, 35), (107, 107), mask_threshold=0.5)
    assert one.boxes.max() == 107


def test_no_detections() -> None:
    detections = {
        "boxes": torch.zeros(0, 4),
        "scores": torch.zeros(0),
        "labels": torch.zeros(0, dtype=torch.int64),
    }
    one = postprocess_mask_rcnn(
        {**detections, "masks": torch.zeros(0, 1, 28, 28)}, (32, 40), (64, 120), mask_threshold=0.5
    )
    assert len(one) == len(one.masks) == 0
    assert one.boxes.shape == (0, 4)
