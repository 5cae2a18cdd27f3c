"""Calibration: the requested candidates, boxes and mask pixels, for any random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import small_config
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from embedmask import EmbedMask, Postprocessor
from embedmask.benchmark.calibration import (
    CANDIDATES,
    calibrate_embedmask,
    calibrate_torchvision,
    standardize,
    write_test_image,
)
from embedmask.structures import ImageBatch


def batch(height: int = 128, width: int = 192) -> ImageBatch:
    rng = torch.Generator().manual_seed(0)
    return ImageBatch(torch.randn(1, 3, height, width, generator=rng), [(height, width)])


def loaded(
    detections: int, seed: int = 0, trained: bool = False, cells: float = 8.0, **changes: Any
) -> EmbedMask:
    torch.manual_seed(seed)
    model = EmbedMask(small_config(max_detections=detections, **changes)).eval()
    calibrate_embedmask(model, batch(), detections, trained=trained, box_cells=cells)
    return model


@torch.no_grad()
@pytest.mark.parametrize("preset", ["paper", "ijcai21", "fused"])
def test_requested_number_of_detections(preset: str) -> None:
    model = loaded(20, preset=preset)
    predictions = model(batch())
    logits = torch.cat([level.flatten() for level in predictions.class_logits])
    threshold = model.config.candidate_threshold * (2 if preset == "fused" else 1)
    assert int((logits.sigmoid() > threshold).sum()) == pytest.approx(20 * CANDIDATES, abs=1)
    (found,) = Postprocessor.from_config(model.config)(predictions, [(128, 192)], [(128, 192)])
    assert len(found) == 20
    assert len(found.labels.unique()) == model.config.num_classes


@torch.no_grad()
def test_box_size_and_mask_area() -> None:
    areas = []
    for cells in (1.0, 8.0):
        model = loaded(20, cells=cells)
        (found,) = Postprocessor.from_config(model.config)(model(batch()), [(128, 192)], [(128, 192)])
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        areas.append(float(sides.prod(1).mean()))
        filled = sum(found.masks.areas()) / float(sides.prod(1).sum())
        assert 0.2 < filled < 0.9
    assert areas[1] > 3 * areas[0]


def test_trained_model_changes_class_bias_only() -> None:
    torch.manual_seed(0)
    before = EmbedMask(small_config(max_detections=5)).state_dict()
    after = loaded(5, trained=True).state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert changed == ["head.class_logits.bias"]


@torch.no_grad()
def test_mask_rcnn_requested_number_of_detections() -> None:
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=6,
        min_size=96,
        max_size=128,
        box_detections_per_img=10,
    )
    model.roi_heads.box_head = nn.Sequential(nn.Flatten(), nn.Linear(256 * 49, 1024))  # faster
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    calibrate_torchvision(model.eval(), image, 10)
    (found,) = model([image])
    assert len(found["boxes"]) == 10
    sides = found["boxes"][:, 2:] - found["boxes"][:, :2]
    assert 20**2 < float(sides.prod(1).mean()) < 96 * 128  # neither points nor the whole image
    assert len(found["labels"].unique()) > 1


@torch.no_grad()
@pytest.mark.parametrize("layer", [nn.Conv2d(3, 5, 1), nn.Linear(3, 5)])
def test_layers_are_standardized(layer: nn.Module) -> None:
    rng = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(2, 3, 7, 7, generator=rng)
        if isinstance(layer, nn.Conv2d)
        else torch.randn(40, 3, generator=rng)
    )
    watched = standardize(lambda: layer(inputs), {layer: (2.0, 3.0)}, watch=layer)
    output = layer(inputs).transpose(0, 1).flatten(1)
    assert watched.shape == output.T.shape
    torch.testing.assert_close(output.mean(1), torch.full((5,), 2.0))
    torch.testing.assert_close(output.std(1), torch.full((5,), 3.0))


def test_image_has_size_and_bytes_of_a_photo(tmp_path: Path) -> None:
    write_test_image(tmp_path / "a.jpg", (123, 241))
    with Image.open(tmp_path / "a.jpg") as image:
        assert (image.size, image.format, image.mode) == ((241, 123), "JPEG", "RGB")
    assert 0.1 < (tmp_path / "a.jpg").stat().st_size / (123 * 241) < 1
