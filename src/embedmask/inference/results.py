"""Conversion of `Instances` to `sv.Detections` and to COCO results, with masks as run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from embedmask._supervision import CompactMask, sv
from embedmask.masks import RunMasks
from embedmask.run_lengths import alternating_lengths, move_runs
from embedmask.structures import Instances, PixelMap


def to_detections(instances: Instances, class_names: Sequence[str]) -> sv.Detections:
    """Convert the instances of one image to supervision's detections.

    Returns:
        Detections by descending score, in the frame of the original image: `xyxy` float32 [R, 4] px, `confidence`
        float32 [R], `class_id` int64 [R], `data["class_name"]` str [R], and `mask`, a `CompactMask` of run lengths
        that reads as bool [R, H, W]. R may be 0.
    """
    labels = instances.labels.detach().cpu().numpy().astype(np.int64)
    return sv.Detections(
        xyxy=instances.boxes.detach().float().cpu().numpy().reshape(-1, 4),
        confidence=instances.scores.detach().float().cpu().numpy(),
        class_id=labels,
        mask=compact_masks(instances.masks),
        data={"class_name": np.array([class_names[label] for label in labels], dtype=str)},
    )


def add_embeddings(detections: sv.Detections, instances: Instances, pixels: PixelMap | None) -> None:
    """Add q and s to `data`, and p of the image, if known, to `metadata`; see `Predictor.__call__`."""
    for name in ("proposal_embed", "proposal_margin"):
        detections.data[name] = getattr(instances, name).float().cpu().numpy()
    if pixels is not None:
        detections.metadata |= {
            "pixel_embed": pixels.embed.float().cpu().numpy(),
            "pixel_stride": pixels.stride,
            "network_size": pixels.image_size,
        }


def coco_results(instances: Instances, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Convert the instances of one image to COCO's result format, ready for JSON.

    Args:
        category_ids: category id of each label in the data set.

    Returns:
        A dictionary per instance, by descending score: `image_id`, `category_id`, `bbox` (xywh px), `score` and
        `segmentation`, a compressed RLE of the whole image with `counts` as text.
    """
    boxes = instances.boxes.detach().cpu().double().reshape(-1, 4)
    xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    rles = instances.masks.to_coco_rle()
    rows = zip(instances.labels.tolist(), xywh, instances.scores.tolist(), rles, strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": bbox,
            "score": score,
            "segmentation": rle,
        }
        for label, bbox, score, rle in rows
    ]


def compact_masks(masks: RunMasks) -> CompactMask:
    """Convert masks to supervision's `CompactMask`: run lengths of each crop, column by column."""
    boxes = masks.boxes()
    # supervision supports no crop without pixels: use one pixel of background instead
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
    shapes = (boxes[:, 2:] - boxes[:, :2])[:, ::-1]
    runs = move_runs(masks.runs, masks.frame[0], -boxes[:, 1::-1], shapes[:, 0])
    lengths = alternating_lengths(runs, shapes.prod(1).tolist())
    return CompactMask(lengths, shapes.astype(np.int32), boxes[:, :2].astype(np.int32), masks.frame)
