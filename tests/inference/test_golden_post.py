"""Post-processing with masks against the authors' results."""

from __future__ import annotations

import pytest
import torch
from golden_files import assert_near, fixture, golden_inputs, golden_predictions, preset, unpack
from torchvision.ops import batched_nms, box_iou

from embedmask import Postprocessor
from embedmask.inference.mask_decoding import OUTSIDE_LOG_PROB, cell_ranges
from embedmask.structures import Instances


def instances_of(version: str, original: bool, max_detections: int = 100) -> tuple[object, list[Instances]]:
    z = fixture(f"post_{version}.npz")
    inputs = {name: value.detach() for name, value in golden_inputs(z).items()}
    sizes = [tuple(s) for s in z["image_sizes_hw"].tolist()]
    originals = [tuple(s) for s in z["original_sizes_hw"].tolist()] if original else sizes
    postprocess = Postprocessor.from_config(preset(version), max_detections=max_detections)
    return z, postprocess(golden_predictions(z, inputs, 1.0), sizes, originals)


def match(
    z: object, image: int, actual: Instances, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of the fixture and of `actual` for detections that agree in class, box and score."""
    boxes = torch.tensor(z[f"im{image}.boxes"])
    boxes = boxes if scale is None else boxes * scale
    same = (torch.tensor(z[f"im{image}.labels"])[:, None] - 1 == actual.labels) & (
        box_iou(boxes, actual.boxes) > 0.99
    )
    same &= (torch.tensor(z[f"im{image}.scores"])[:, None] - actual.scores).abs() < 1e-3
    expected_rows = same.any(1).nonzero()[:, 0]
    return expected_rows, same[expected_rows].float().argmax(1)


@pytest.mark.parametrize("version", ["v1", "v3"])
@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("original", [False, True])
def test_detections_and_masks(version: str, image: int, original: bool) -> None:
    z, results = instances_of(version, original)
    actual = results[image]
    size = z["original_sizes_hw" if original else "image_sizes_hw"][image]
    scale = torch.tensor(size[::-1].copy()) / torch.tensor(z["image_sizes_hw"][image][::-1].copy())
    expected_rows, rows = match(z, image, actual, scale.repeat(2).float())
    has_area = (torch.tensor(z[f"im{image}.boxes"])[:, 2:] > torch.tensor(z[f"im{image}.boxes"])[:, :2]).all(
        1
    )
    # known difference: boxes that have no area after clipping are dropped
    assert expected_rows.tolist() == has_area.nonzero()[:, 0].tolist()
    assert len(expected_rows) >= 0.99 * len(has_area)
    assert_near(actual.scores[rows], torch.tensor(z[f"im{image}.scores"])[expected_rows], 1e-5, "scores")
    prefix = "coco_raw.masks" if original else "post_masks"
    shape = z[f"im{image}.coco_masks_shape" if original else f"im{image}.post_masks_shape"]
    expected = unpack(z, f"im{image}.{prefix}_packed", tuple(shape.tolist()))[expected_rows]
    different = (actual.masks.to_dense()[rows] != expected).flatten(1).sum(1)
    assert int(different.max()) <= 2
    assert (actual.scores.diff() <= 0).all()


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_image_without_detections(version: str) -> None:
    _, results = instances_of(version, original=True)
    assert len(results[2]) == 0
    assert results[2].masks.to_dense().shape == (0, 200, 270)
    assert results[2].boxes.shape == (0, 4)


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_max_detections(limit: int) -> None:
    _, few = instances_of("v1", original=False, max_detections=limit)
    _, all_of_them = instances_of("v1", original=False, max_detections=10_000)
    assert len(few[0]) == min(limit, len(all_of_them[0]))
    torch.testing.assert_close(few[0].scores, all_of_them[0].scores[:limit])


@pytest.mark.parametrize("case", ["0", "1", "2", "3", "exact"])
def test_nms(case: str) -> None:
    """Check that class-wise NMS with the authors' "+1" equals plain NMS on boxes that end one pixel later."""
    z = fixture("layers.npz")
    boxes = torch.tensor(z[f"nms.{case}.boxes"]) + torch.tensor([0.0, 0, 1, 1])
    scores, labels = torch.tensor(z[f"nms.{case}.scores"]), torch.tensor(z[f"nms.{case}.labels"])
    keep = batched_nms(boxes, scores, labels, float(z[f"nms.{case}.thresh"]))
    assert sorted(keep.tolist()) == z[f"nms.{case}.keep"].tolist()


@pytest.mark.parametrize(("version", "fill"), [("v1", 0.0), ("v3", OUTSIDE_LOG_PROB)])
def test_cells_filled_by_the_authors_kernel(version: str, fill: float) -> None:
    z = fixture("layers.npz")
    out = torch.tensor(z[f"maskprob.{version}.out"])
    ranges = cell_ranges(torch.tensor(z[f"maskprob.{version}.boxes_stride4"]), out.shape[1:], "log_prob")
    for values, (y1, y2, x1, x2) in zip(out, ranges.tolist(), strict=True):
        filled = torch.zeros_like(values, dtype=torch.bool)
        filled[y1:y2, x1:x2] = True
        assert torch.equal(values != fill, filled)


def test_cells_of_the_arxiv_box_mask() -> None:
    z = fixture("layers.npz")
    expected = torch.tensor(z["crop.boxes_to_masks"]).bool()
    ranges = cell_ranges(torch.tensor(z["crop.boxes"]), expected.shape[1:], "prob")
    for mask, (y1, y2, x1, x2) in zip(expected, ranges.tolist(), strict=True):
        rows = torch.zeros_like(mask)
        rows[y1:y2, x1:x2] = True
        assert torch.equal(rows, mask)
