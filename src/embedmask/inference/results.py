"""Instances -> what leaves the package, `sv.Detections` and COCO results: masks become run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from faster_coco_eval.core import mask as mask_api

from embedmask._supervision import CompactMask, sv
from embedmask.structures import CropMasks, Instances, Size

Bools = npt.NDArray[np.bool_]


def to_detections(
    instances: Instances, class_names: Sequence[str], score_threshold: float = 0.0
) -> sv.Detections:
    """Results of one picture for a user's hands, in the picture's own frame, by descending score.

    Args:
        instances: of one picture, on any device.
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
    """Results of one picture in COCO's result format, ready for JSON, by descending score.

    Args:
        instances: of one picture, on any device.
        image_id: the data set's id of the picture.
        category_ids: the data set's category id of each label.

    Returns:
        `image_id`, `category_id`, `bbox` (xywh px), `score` and `segmentation` of each result, a compressed
        RLE of the whole picture with `counts` as text.
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
    # supervision knows no crop without pixels: one pixel outside the mask stands for it
    crops = [crop if crop.size else np.zeros((1, 1), bool) for crop in _arrays(masks)]
    corners = [
        (x, y) if crop.numel() else (0, 0) for crop, (y, x) in zip(masks.crops, masks.offsets, strict=True)
    ]
    return CompactMask(
        [run_lengths(crop).astype(np.int32) for crop in crops],
        np.array([crop.shape for crop in crops], np.int32).reshape(-1, 2),
        np.array(corners, np.int32).reshape(-1, 2),
        masks.image_size,
    )


def coco_rles(masks: CropMasks) -> list[dict[str, Any]]:
    """Compressed RLE of each mask in its whole picture: `{"size": [H, W], "counts": text}`."""
    placed = zip(_arrays(masks), masks.offsets, strict=True)
    return [_coco_rle(crop, offset, masks.image_size) for crop, offset in placed]


def run_lengths(mask: Bools) -> npt.NDArray[np.int64]:
    """Lengths of the alternating runs of a mask `[h, w]` read column by column; the first run is of False."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(starts, prepend=0, append=mask.size)


def _coco_rle(crop: Bools, offset: tuple[int, int], image_size: Size) -> dict[str, Any]:
    height, width = image_size
    y, x = offset
    # only the crop's own columns are laid out: those beside it are whole runs of False
    strip = np.zeros((height, crop.shape[1]), dtype=bool, order="F")
    strip[y : y + crop.shape[0]] = crop
    runs = run_lengths(strip).tolist()
    runs[0] += x * height
    after = (width - x - crop.shape[1]) * height
    if len(runs) % 2:
        runs[-1] += after
    elif after:
        runs.append(after)
    rle: Any = mask_api.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def _arrays(masks: CropMasks) -> list[Bools]:
    """The crops on the CPU, moved there in one go."""
    if not masks.crops:
        return []
    flat = masks.pixels().cpu().numpy()
    ends = np.cumsum([crop.numel() for crop in masks.crops])[:-1]
    parts = zip(np.split(flat, ends), masks.crops, strict=True)
    return [part.reshape(tuple(crop.shape)) for part, crop in parts]
