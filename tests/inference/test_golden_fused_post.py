"""Post-processing of preset `fused` with masks against the authors' results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_files import (
    assert_near,
    fixture,
    golden_inputs,
    golden_predictions,
    location_strides,
    preset,
    unpack,
)
from torch import Tensor

from embedmask import Postprocessor, Predictions
from embedmask.coupling import weighted_distance
from embedmask.inference.proposals import class_wise_nms, decode_proposals
from embedmask.inference.results import coco_results
from embedmask.locations import resize_aligned
from embedmask.structures import Instances

DIFFERENT_PIXELS = 2
"""Pixels per mask that may differ, because float32 sums are computed in another order."""


def predictions_of(z: Any) -> Predictions:
    inputs = {name: value.detach() for name, value in golden_inputs(z).items()}
    return golden_predictions(z, inputs, location_strides(z["level_hw"]))


@pytest.fixture(scope="module")
def run() -> tuple[Any, list[Instances]]:
    z = fixture("post_fused.npz")
    sizes, originals = (
        [tuple(s) for s in z[key].tolist()] for key in ("image_sizes_hw", "original_sizes_hw")
    )
    return z, Postprocessor.from_config(preset("fused"))(predictions_of(z), sizes, originals)


@pytest.mark.parametrize("image", [0, 1, 2])
def test_detections_and_order(run: tuple[Any, list[Instances]], image: int) -> None:
    z, actual = run[0], run[1][image]
    assert_near(actual.scores, z[f"im{image}.scores"], 1e-5, "scores")
    assert actual.labels.tolist() == (z[f"im{image}.labels"] - 1).tolist()
    assert_near(actual.boxes, z[f"im{image}.boxes"], 1e-5, "boxes")
    assert len(actual.masks) == len(actual)


@pytest.mark.parametrize("image", [0, 1])
def test_masks(run: tuple[Any, list[Instances]], image: int) -> None:
    z, actual = run[0], run[1][image]
    expected = unpack(z, f"im{image}.masks_packed", tuple(z[f"im{image}.masks_shape"].tolist()))
    assert actual.masks.to_dense().shape == expected.shape
    different = (actual.masks.to_dense() != expected).flatten(1).sum(1)
    assert int(different.max()) <= DIFFERENT_PIXELS
    areas = torch.tensor(actual.masks.areas())
    assert (areas - torch.tensor(z[f"im{image}.mask_area"])).abs().max() <= DIFFERENT_PIXELS
    boxes = [row["bbox"] for row in coco_results(actual, image, list(range(80)))]
    assert_near(torch.tensor(boxes), z[f"im{image}.coco.bbox_xywh"], 1e-4, "COCO boxes")


@pytest.mark.parametrize("image", [0, 1])
def test_late_clip_drops_detections(run: tuple[Any, list[Instances]], image: int) -> None:
    """Check that detections without area are dropped after the best hundred are selected, and not replaced."""
    z = run[0]
    cfg = preset("fused")
    arguments = predictions_of(z), image, tuple(z["image_sizes_hw"][image].tolist()), cfg
    actual = decode_proposals(*arguments, score_threshold=cfg.candidate_threshold, max_detections=100)
    assert len(actual) == len(z[f"im{image}.scores"]) < z[f"im{image}.n_before_clip"]


def test_maps_of_phi(run: tuple[Any, list[Instances]]) -> None:
    """Check phi at stride 4: coupled on the grid of the embedding, then upsampled as in training."""
    z, predictions = run[0], predictions_of(run[0])
    for image in (0, 1):
        cells = [m.shape[2] * m.shape[3] for m in predictions.class_logits]
        embed, margin = (
            torch.cat([m[image].flatten(1) for m in maps], 1).T
            for maps in (predictions.proposal_embed, predictions.proposal_margin)
        )
        assert len(embed) == sum(cells)
        rows = torch.tensor(z[f"im{image}.location"])[z[f"im{image}.raw_masks_index"]]
        pixels = predictions.pixel_embed[image]
        phi: Tensor = weighted_distance(pixels.flatten(1), embed[rows], margin[rows]).neg().exp()
        maps = resize_aligned(phi.view(len(rows), 1, *pixels.shape[1:]), 2)[:, 0]
        assert_near(maps, z[f"im{image}.raw_masks"], 1e-4, "phi at stride 4")


@pytest.mark.parametrize("limit", [1, 7])
def test_fewer_detections(run: tuple[Any, list[Instances]], limit: int) -> None:
    """Check that the limit applies before clipping, which then drops boxes without area."""
    z, whole = run
    few = Postprocessor.from_config(preset("fused"), max_detections=limit)(
        predictions_of(z),
        [tuple(s) for s in z["image_sizes_hw"].tolist()],
        [tuple(s) for s in z["original_sizes_hw"].tolist()],
    )
    for one, more in zip(few, whole, strict=True):
        assert min(len(more), 1) <= len(one) <= limit  # the last image has no objects
        assert torch.equal(one.scores, more.scores[: len(one)])


def test_nms() -> None:
    z = fixture("layers_fused.npz")
    boxes, scores, labels = (torch.tensor(z[f"nms.{name}"]) for name in ("boxes", "scores", "labels"))
    assert class_wise_nms(boxes, scores, labels, 0.6).tolist() == z["nms.keep"].tolist()
