"""Draw the outlines of several models on the same objects, at full zoom, for docs/results.md.

    python benchmarks/photographs_outlines.py --data cats --out docs/photographs/outlines.png \
        --models "EmbedMask=runs/photographs/704_steps/tal_0/model.safetensors" \
        "Mask R-CNN=runs/photographs/176_steps/maskrcnn_0/model.safetensors"

The objects are chosen by numbers, not by eye: all models found them (mask IoU of at least 0.5), the longer side of
their box is within a range, and they are ranked by the boundary IoU of the first model minus that of the last. Three
are drawn: at 90, 50 and 10 % of this ranking, where the first model is clearly better, about as good, clearly worse.
Without `--photographs`, the ground truth is a gray silhouette, for photographs that may not be redistributed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nuclei import evaluate
from nuclei_images import on_edge, write_small
from PIL import Image

from embedmask.data.coco import CocoInstances
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.overlap import Record, boundary_ious, mask_ious
from embedmask.masks import RunMasks
from embedmask.visualize import Pixels, contact_sheet, entitle
from embedmask.weights.checkpoint import load_checkpoint

FOUND_IOU = 0.5
"""Lowest mask IoU of a result that found an object."""
LONG_SIDE = (100, 240)
"""Range of the longer side of the box of a drawn object, px."""
SHARES = (0.9, 0.5, 0.1)
"""Places of the drawn objects in the ranking, from the worst (0) to the best (1) for the first model."""
MARGIN, ZOOM, THICKNESS = 6, 2, 2
"""Space around the object and the results, px; the magnification; and the thickness of outlines, enlarged px."""
PANEL_SIDE = 400
"""Minimum width and height of a panel, enlarged px, so that all titles are readable and equally large."""
PAPER, SILHOUETTE, OUTLINE = (255, 255, 255), (190, 190, 190), (214, 39, 40)
"""Colors of the background, the ground truth and the outline of a result."""
FRAME = 225
"""Gray value of the frame of a panel."""


@dataclass(frozen=True)
class Found:
    """Object that all models found: its record, and for each model its result and the boundary IoU."""

    gt: Record
    results: tuple[Record, ...]
    ious: tuple[float, ...]


def found_objects(
    evaluators: Sequence[CocoEvaluator], thresholds: Sequence[float], image_ids: Sequence[int]
) -> list[Found]:
    """Return the objects of the images that all models found and whose longer side is in the range."""
    # grouped once: each grouping sorts the results of all images
    grouped = [evaluator.results_by_image(image_ids) for evaluator in evaluators]
    found = []
    for image_id in image_ids:
        gts = [gt for gt in evaluators[0].ground_truth.records[image_id] if not gt["iscrowd"]]
        best = [
            best_results([one for one in results[image_id] if one["score"] >= threshold], gts)
            for results, threshold in zip(grouped, thresholds, strict=True)
        ]
        for g, gt in enumerate(gts):
            if all(g in one for one in best) and LONG_SIDE[0] <= max(gt["bbox"][2:]) <= LONG_SIDE[1]:
                found.append(Found(gt, tuple(one[g][0] for one in best), tuple(one[g][1] for one in best)))
    return found


def best_results(results: Sequence[Record], gts: Sequence[Record]) -> dict[int, tuple[Record, float]]:
    """Return the result with the highest mask IoU of each found object, and its boundary IoU, by the object's index."""
    if not results:
        return {}
    ious = mask_ious(results, gts)  # [R, G]
    edges = boundary_ious(results, gts, ious)
    rows = {g: int(ious[:, g].argmax()) for g in range(len(gts))}
    return {g: (results[r], float(edges[r, g])) for g, r in rows.items() if ious[r, g] >= FOUND_IOU}


def at_shares(objects: Sequence[Found]) -> list[Found]:
    """Return the objects at `SHARES` of the ranking by the first model's advantage over the last."""
    ranked = sorted(objects, key=lambda one: one.ious[0] - one.ious[-1])
    return [ranked[round(share * (len(ranked) - 1))] for share in SHARES]


def draw(one: Found, place: str, names: Sequence[str], photograph: Pixels | None) -> list[Pixels]:
    """Return a panel per model: the object, enlarged, and the outline of the model's result.

    Args:
        one: the object and the results.
        place: of the object in the ranking, for the titles.
        names: of the models.
        photograph: uint8 `[H, W, 3]`; None draws the ground truth as a silhouette.
    """
    frame = one.gt["segmentation"]["size"]
    masks = RunMasks.from_rle([one.gt["segmentation"], *(own["segmentation"] for own in one.results)], frame)
    # the window shows the object and all results
    boxes = masks.boxes()
    left, top = np.maximum(boxes[:, :2].min(0) - MARGIN, 0).tolist()
    right, bottom = np.minimum(boxes[:, 2:].max(0) + MARGIN, frame[::-1]).tolist()
    box = left, top, right, bottom
    truth, *results = (masks.window(k, box).repeat(ZOOM, 0).repeat(ZOOM, 1) for k in range(len(masks)))
    if photograph is None:
        scene = np.where(truth[..., None], SILHOUETTE, PAPER).astype(np.uint8)
    else:
        crop = Image.fromarray(photograph[top:bottom, left:right])
        scene = np.array(crop.resize(truth.shape[::-1], Image.Resampling.BICUBIC))
    panels = []
    for name, result, iou in zip(names, results, one.ious, strict=True):
        panel, rest = scene.copy(), result.astype(np.int32)
        for _ in range(THICKNESS):
            edge = on_edge(rest)
            panel[edge], rest[edge] = OUTLINE, 0
        panel = np.pad(panel, ((1, 1), (1, 1), (0, 0)), constant_values=FRAME)
        below, right = (max(PANEL_SIDE - side, 0) for side in panel.shape[:2])
        panel = np.pad(panel, ((0, below), (0, right), (0, 0)), constant_values=255)
        panels.append(entitle(panel, f"{place}, {name}: boundary IoU {iou:.2f}"))
    return panels


def sheet(data: Path, models: Mapping[str, Path], photographs: bool) -> Pixels:
    """Return the drawn objects below one another, with the models side by side."""
    dataset = CocoInstances.open(data, "val")
    evaluators = [evaluate(weights, dataset) for weights in models.values()]
    thresholds = [load_checkpoint(weights).config.score_thresholds()[0] for weights in models.values()]
    objects = found_objects(evaluators, thresholds, dataset.image_ids)
    if not objects:
        raise SystemExit(
            f"no object with a longer side of {LONG_SIDE[0]} to {LONG_SIDE[1]} px was found by all models"
        )
    panels: list[Pixels] = []
    for share, one in zip(SHARES, at_shares(objects), strict=True):
        photograph = None
        if photographs:
            image = dataset.image(dataset.image_ids.index(one.gt["image_id"]))
            photograph = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        panels += draw(one, f"{share:.0%}", [*models], photograph)
    return contact_sheet(panels, columns=len(models))


def main() -> None:
    """Parse the command line and write the image."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with val.json and images/")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=WEIGHTS")
    parser.add_argument("--photographs", action="store_true", help="draw the photographs below the outlines")
    parser.add_argument("--out", type=Path, required=True, help="PNG file")
    args = parser.parse_args()
    if malformed := [text for text in args.models if not all(text.partition("="))]:
        parser.error(f"--models {malformed[0]}: give NAME=WEIGHTS")
    torch.set_num_threads(1)
    models = {name: Path(weights) for name, _, weights in (text.partition("=") for text in args.models)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_small(sheet(args.data, models, args.photographs), args.out)


if __name__ == "__main__":
    main()
