"""Instances -> what leaves the package, `sv.Detections` and COCO results: masks become run lengths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from faster_coco_eval.core import mask as mask_api

from embedmask._supervision import CompactMask, sv
from embedmask.structures import CropMasks, Instances, RunCrops, Runs

MAX_RUNS = 1 << 18
"""Runs of several masks that are worked on at once."""


def to_detections(
    instances: Instances, class_names: Sequence[str], score_threshold: float = 0.0
) -> sv.Detections:
    """Results of one image for a user's hands, in the image's own frame, by descending score.

    Args:
        instances: of one image, on any device.
        class_names: name of each label.
        score_threshold: what scores below is left out.

    Returns:
        `xyxy` float32 [R, 4] px, `confidence` float32 [R], `class_id` int64 [R], str `data["class_name"]` [R]
        and `mask`, which reads as bool [R, H, W] but is a `CompactMask`: run lengths. R may be 0.
    """
    scores = instances.scores.detach().float().cpu().numpy()
    kept = np.flatnonzero(scores >= score_threshold)
    labels = instances.labels.detach().cpu().numpy().astype(np.int64)[kept]
    return sv.Detections(
        xyxy=instances.boxes.detach().float().cpu().numpy().reshape(-1, 4)[kept],
        confidence=scores[kept],
        class_id=labels,
        mask=compact_masks(instances.masks.select(kept.tolist())),
        data={"class_name": np.array([class_names[label] for label in labels], dtype=str)},
    )


def coco_results(instances: Instances, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Results of one image in COCO's result format, ready for JSON, by descending score.

    Args:
        instances: of one image, on any device.
        image_id: the data set's id of the image.
        category_ids: the data set's category id of each label.

    Returns:
        `image_id`, `category_id`, `bbox` (xywh px), `score` and `segmentation` of each result, a compressed
        RLE of the whole image with `counts` as text.
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
    """The same masks as supervision keeps them: run lengths, column by column, of each crop."""
    crops = RunCrops.of(masks.crops)
    # supervision knows no crop without pixels: one pixel outside the mask stands for it
    shapes = [shape if min(shape) else (1, 1) for shape in crops.shapes]
    corners = [
        (x, y) if min(shape) else (0, 0) for shape, (y, x) in zip(crops.shapes, masks.offsets, strict=True)
    ]
    return CompactMask(
        _lengths(crops.runs, [h * w for h, w in shapes]),
        np.array(shapes, np.int32).reshape(-1, 2),
        np.array(corners, np.int32).reshape(-1, 2),
        masks.image_size,
    )


def coco_rles(masks: CropMasks) -> list[dict[str, Any]]:
    """Compressed RLE of each mask in its whole image: `{"size": [H, W], "counts": text}`."""
    height, width = masks.image_size
    crops = RunCrops.of(masks.crops)
    placed = zip(crops.runs, crops.shapes, masks.offsets, strict=True)
    runs = [_in_image(own, shape[0], offset, height) for own, shape, offset in placed]
    rles: Any = [
        mask_api.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        for counts in _lengths(runs, [height * width] * len(runs))
    ]
    return [{"size": [height, width], "counts": rle["counts"].decode("ascii")} for rle in rles]


def _in_image(runs: Runs, crop_height: int, offset: tuple[int, int], height: int) -> npt.NDArray[np.int64]:
    """Runs of a crop, counted in its image. None leaves its column: each moves by what the columns are longer."""
    column = runs[:, :1].astype(np.int64) // max(crop_height, 1)
    moved: npt.NDArray[np.int64] = runs + column * (height - crop_height) + offset[1] * height + offset[0]
    return moved


def _lengths(runs: Sequence[npt.NDArray[Any]], pixels: Sequence[int]) -> list[npt.NDArray[Any]]:
    """Lengths of alternating runs, the first of False, of many masks at once; runs that touch are one.

    Args:
        runs: of each mask, `[T, 2]`: first pixel of each run of True and the one after its last.
        pixels: of each mask, whole.
    """
    if not runs:
        return []
    if len(runs) > 1 and sum(map(len, runs)) > MAX_RUNS:
        middle = len(runs) // 2
        return _lengths(runs[:middle], pixels[:middle]) + _lengths(runs[middle:], pixels[middle:])
    joined = np.concatenate(runs)
    counts = np.array([len(own) for own in runs])
    stops = np.cumsum(counts)
    some = counts > 0
    following = np.append(joined[1:, 0], 0)
    following[stops[some] - 1] = np.array(pixels)[some]
    apart = joined[:, 1] != following
    kept = np.stack([np.append(True, apart)[:-1], apart], 1)
    kept[(stops - counts)[some], 0] = True
    ends = np.append(0, np.cumsum(kept.sum(1)))[stops]
    flat = np.insert(joined[kept], ends, pixels)
    first = np.append(0, ends + np.arange(1, len(runs) + 1))
    lengths = np.diff(flat, prepend=flat.dtype.type(0))
    lengths[first[:-1]] = flat[first[:-1]]
    return [lengths[begin:end] for begin, end in itertools.pairwise(first.tolist())]
