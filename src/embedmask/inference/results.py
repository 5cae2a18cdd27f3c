"""Conversion of `Instances` to `sv.Detections` and to COCO results, with masks as run lengths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from faster_coco_eval.core import mask as mask_api

from embedmask._supervision import CompactMask, sv
from embedmask.structures import CropMasks, Instances, RunCrops

MAX_RUNS = 1 << 18
"""Runs of several masks processed at once, which bounds memory."""


def to_detections(
    instances: Instances, class_names: Sequence[str], score_threshold: float = 0.0
) -> sv.Detections:
    """Convert the instances of one image to supervision's detections.

    Args:
        instances: of one image, on any device.
        class_names: name of each label.
        score_threshold: minimum score of a detection.

    Returns:
        Detections by descending score, in the frame of the original image: `xyxy` float32 [R, 4] px, `confidence`
        float32 [R], `class_id` int64 [R], `data["class_name"]` str [R], and `mask`, a `CompactMask` of run lengths
        that reads as bool [R, H, W]. R may be 0.
    """
    scores = instances.scores.detach().float().cpu().numpy()
    keep = np.flatnonzero(scores >= score_threshold)
    labels = instances.labels.detach().cpu().numpy().astype(np.int64)[keep]
    return sv.Detections(
        xyxy=instances.boxes.detach().float().cpu().numpy().reshape(-1, 4)[keep],
        confidence=scores[keep],
        class_id=labels,
        mask=compact_masks(instances.masks.select(keep.tolist())),
        data={"class_name": np.array([class_names[label] for label in labels], dtype=str)},
    )


def coco_results(instances: Instances, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Convert the instances of one image to COCO's result format, ready for JSON.

    Args:
        instances: of one image, on any device.
        image_id: id of the image in the data set.
        category_ids: category id of each label in the data set.

    Returns:
        A dictionary per instance, by descending score: `image_id`, `category_id`, `bbox` (xywh px), `score` and
        `segmentation`, a compressed RLE of the whole image with `counts` as text.
    """
    boxes = instances.boxes.detach().cpu().double().reshape(-1, 4)
    xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    rows = zip(
        instances.labels.tolist(), xywh, instances.scores.tolist(), coco_rles(instances.masks), strict=True
    )
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


def compact_masks(masks: CropMasks) -> CompactMask:
    """Convert masks to supervision's `CompactMask`: run lengths of each crop, column by column."""
    crops = RunCrops.of(masks.crops)
    # supervision supports no crop without pixels: use one pixel of background instead
    shapes = [shape if min(shape) else (1, 1) for shape in crops.shapes]
    corners = [
        (x, y) if min(shape) else (0, 0) for shape, (y, x) in zip(crops.shapes, masks.offsets, strict=True)
    ]
    return CompactMask(
        _run_lengths(crops.runs, [h * w for h, w in shapes]),
        np.array(shapes, np.int32).reshape(-1, 2),
        np.array(corners, np.int32).reshape(-1, 2),
        masks.image_size,
    )


def coco_rles(masks: CropMasks) -> list[dict[str, Any]]:
    """Return the compressed RLE of each mask in its whole image: `{"size": [H, W], "counts": text}`."""
    height, width = masks.image_size
    crops = RunCrops.of(masks.crops)
    runs = []
    for crop_runs, (crop_height, _), (y, x) in zip(crops.runs, crops.shapes, masks.offsets, strict=True):
        # pixels are counted column by column, and no run crosses a column: pixel c * crop_height + r of the crop
        # is (x + c) * height + (y + r) of the image, so each run shifts by an offset of its column
        column = crop_runs[:, :1].astype(np.int64) // max(crop_height, 1)  # [T, 1]
        runs.append(crop_runs + column * (height - crop_height) + x * height + y)
    rles: Any = [
        mask_api.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        for counts in _run_lengths(runs, [height * width] * len(runs))
    ]
    return [{"size": [height, width], "counts": rle["counts"].decode("ascii")} for rle in rles]


def _run_lengths(runs: Sequence[npt.NDArray[Any]], pixels: Sequence[int]) -> list[npt.NDArray[Any]]:
    """Return the lengths of the alternating runs of each mask, background first; adjacent runs are merged.

    Args:
        runs: of each mask, `[T, 2]`: first pixel of each foreground run and the pixel after its last, ascending.
        pixels: number of pixels of each mask.
    """
    if not runs:
        return []
    if len(runs) > 1 and sum(map(len, runs)) > MAX_RUNS:
        middle = len(runs) // 2
        return _run_lengths(runs[:middle], pixels[:middle]) + _run_lengths(runs[middle:], pixels[middle:])
    # all runs in one array [T, 2]; those of mask r are rows stops[r] - counts[r] .. stops[r] - 1
    joined = np.concatenate(runs)
    counts = np.array([len(own) for own in runs])
    stops = np.cumsum(counts)
    nonempty = counts > 0
    # where the next run begins, or where the mask ends: a run that ends there has no background after it
    following = np.append(joined[1:, 0], 0)
    following[stops[nonempty] - 1] = np.array(pixels)[nonempty]
    has_gap = joined[:, 1] != following
    # boundaries to keep [T, 2]: an end before a gap, a start after one or at the first run of a mask
    keep = np.stack([np.append(True, has_gap)[:-1], has_gap], 1)
    keep[(stops - counts)[nonempty], 0] = True
    # append to the boundaries of each mask its number of pixels, where its last run ends
    ends = np.append(0, np.cumsum(keep.sum(1)))[stops]
    flat = np.insert(joined[keep], ends, pixels)
    first = np.append(0, ends + np.arange(1, len(runs) + 1))
    # differences of neighbouring boundaries are lengths; the first of each mask is counted from 0
    lengths = np.diff(flat, prepend=flat.dtype.type(0))
    lengths[first[:-1]] = flat[first[:-1]]
    return [lengths[begin:end] for begin, end in itertools.pairwise(first.tolist())]
