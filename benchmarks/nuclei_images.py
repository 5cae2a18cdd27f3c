"""Images of results beside the ground truth, for the page of nuclei.py."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedmask.data.coco import CocoInstances
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.matching import Labels, matching_metrics
from embedmask.files import atomic_write
from embedmask.masks import RunMasks
from embedmask.visualize import Pixels, contact_sheet, side_by_side

SIDE, ZOOM = 256, 2
"""Maximum side of the part of an image that is shown, px, and its magnification."""
CLOSE_SIDE, CLOSE_ZOOM = 120, 4
"""Side of the close-up, px, and its magnification."""
PARTNER_IOU = 0.5
CONTRAST = (1, 99.8)
"""Percentiles of the values that are mapped to black and white."""
GAMMA = 0.6
"""Exponent of the mapping: the brightest nuclei are many times as bright as the others."""
WHITE = 255.0
"""Color of objects without partner; all other colors are saturated."""
Colors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shot:
    """Image of the page: the name of its file, and its caption."""

    name: str
    caption: str


@dataclass(frozen=True)
class Scenes:
    """Results of one model on a data set, from a score threshold on, with the images and the ground truth."""

    name: str
    dataset: CocoInstances
    evaluator: CocoEvaluator
    threshold: float

    def ground_truth(self, image_id: int) -> Labels:
        """Return the objects of an image as a label image."""
        return self._labels(image_id, self.evaluator.ground_truth.records[image_id])

    def results(self, image_id: int) -> Labels:
        """Return the results of an image as a label image, as for matching."""
        results = self.evaluator.results_by_image([image_id])[image_id]
        return self._labels(image_id, [one for one in results if one["score"] >= self.threshold])

    def quality(self, image_id: int) -> float:
        """Return the mean matching AP of one image."""
        return matching_metrics(self.evaluator, self.threshold, [image_id])["matching/mAP"]

    def pixels(self, image_id: int) -> Pixels:
        """Return an image, uint8 `[H, W, 3]`."""
        image = self.dataset.image(self.dataset.image_ids.index(image_id))
        return np.ascontiguousarray(image.permute(1, 2, 0).numpy())

    def file_name(self, image_id: int) -> str:
        """Return the file name of an image, shortened if it is long."""
        path = self.dataset.image_path(self.dataset.image_ids.index(image_id))
        return path.name if len(path.name) <= 24 else f"{path.stem[:12]}…{path.suffix}"

    def _labels(self, image_id: int, records: Iterable[dict[str, Any]]) -> Labels:
        """Return records with masks as a label image."""
        size = self.evaluator.ground_truth.sizes[image_id]
        return RunMasks.from_rle((r["segmentation"] for r in records), size).to_label_image()


def write_ranked(scenes: Scenes, folder: Path, prefix: str = "") -> Iterator[Shot]:
    """Write the best, middle and worst images, ground truth beside results; yield their captions.

    The names of the files begin with `prefix`.
    """
    qualities = {image_id: scenes.quality(image_id) for image_id in scenes.dataset.image_ids}
    for name, image_id in ranked(qualities).items():
        gt, pred = scenes.ground_truth(image_id), scenes.results(image_id)
        window, _ = crowded_window(gt, SIDE)
        colors = partners(gt, pred)
        image = scenes.pixels(image_id)
        sides = [outlined(image, *one, window, ZOOM) for one in zip((gt, pred), colors, strict=True)]
        write_small(
            side_by_side(sides[0], sides[1], ("ground truth", scenes.name)), folder / f"{prefix}{name}.png"
        )
        yield Shot(
            f"{prefix}{name}",
            f"**{name.replace('_', ' ').capitalize()}:** `{scenes.file_name(image_id)}`, matching AP "
            f"{qualities[image_id]:.3f}, {count_labels(gt)} objects, {count_labels(pred)} detections",
        )


def ranked(qualities: Mapping[int, float]) -> dict[str, int]:
    """Return name -> image id of two best, two middle and two worst images, each image once."""
    order = sorted(qualities, key=lambda image_id: -qualities[image_id])
    middle = max(len(order) // 2 - 1, 0)
    ranks = {
        "best_1": 0, "best_2": 1, "middle_1": middle, "middle_2": middle + 1,
        "worst_2": len(order) - 2, "worst_1": len(order) - 1,
    }  # fmt: skip
    chosen: dict[str, int] = {}
    for name, rank in ranks.items():
        if 0 <= rank < len(order) and order[rank] not in chosen.values():
            chosen[name] = order[rank]
    return chosen


def write_close_look(scenes: Sequence[Scenes], folder: Path) -> Shot:
    """Write the most crowded window of all images: ground truth and all models in pairs; return its caption."""
    first = scenes[0]
    windows = {i: crowded_window(first.ground_truth(i), CLOSE_SIDE) for i in first.dataset.image_ids}
    image_id = max(windows, key=lambda i: windows[i][1])
    window, count = windows[image_id]
    image, gt = first.pixels(image_id), first.ground_truth(image_id)
    colors = partners(gt, first.results(image_id))[0]
    panels = {"ground truth": outlined(image, gt, colors, window, CLOSE_ZOOM)}
    for one in scenes:
        pred = one.results(image_id)
        panels[one.name] = outlined(image, pred, partners(gt, pred)[1], window, CLOSE_ZOOM)
    # panels are shown in pairs: the plain image makes their number even
    if len(panels) % 2:
        plain = outlined(image, np.zeros_like(gt), np.zeros((1, 3)), window, CLOSE_ZOOM)
        panels = {"image": plain, **panels}
    titled = list(panels.items())
    pairs = [
        side_by_side(a, b, (left, right))
        for (left, a), (right, b) in zip(titled[::2], titled[1::2], strict=True)
    ]
    write_small(contact_sheet(pairs, columns=1), folder / "close.png")
    text = f"the most crowded {CLOSE_SIDE} x {CLOSE_SIDE} px of all images, enlarged {CLOSE_ZOOM} times"
    return Shot("close", f"**Close look:** {text}: `{first.file_name(image_id)}`, {count} objects")


def crowded_window(labels: Labels, side: int) -> tuple[tuple[slice, slice], int]:
    """Return the square of `side` px, clipped to the image, with the most centers of objects, and their number."""
    ids = np.unique(labels[labels > 0])
    centers = np.array([np.argwhere(labels == label).mean(0) for label in ids]).reshape(-1, 2)  # [G, 2]
    # candidates: windows centered on each object, moved inside the image
    room = np.maximum(np.array(labels.shape) - side, 0)
    corners = np.clip(np.rint(centers - side / 2), 0, room) if len(ids) else np.zeros((1, 2))
    # [windows, G, 2]: is a center inside a window?
    inside = (centers >= corners[:, None]) & (centers < corners[:, None] + side)
    counts = inside.all(-1).sum(1)
    top, left = corners[counts.argmax()].astype(int).tolist()
    return (slice(top, top + side), slice(left, left + side)), int(counts.max())


def partners(gt: Labels, pred: Labels) -> tuple[Colors, Colors]:
    """Return colors of the objects of two label images: partners share a color, others are white.

    In label images an object has at most one partner with an IoU above 0.5, so no assignment is needed.

    Returns:
        For each label image float `[labels + 1, 3]`, 0..255; the background is white.
    """
    rows, columns = int(gt.max()) + 1, int(pred.max()) + 1
    # joint histogram of the labels: intersections in px, [G + 1, R + 1]
    both = np.bincount((gt * columns + pred).ravel(), minlength=rows * columns).reshape(rows, columns)
    union = both.sum(1, keepdims=True) + both.sum(0, keepdims=True) - both
    good = both / np.maximum(union, 1) >= PARTNER_IOU
    good[0], good[:, 0] = False, False  # background
    of_gt = np.where(good.any(1)[:, None], [color(label) for label in range(rows)], WHITE)
    of_pred = np.where(good.any(0)[:, None], of_gt[good.argmax(0)], WHITE)
    return of_gt, of_pred


def color(label: int) -> tuple[float, ...]:
    """Return a bright color for a label; consecutive labels differ strongly in hue."""
    # golden-ratio steps around the hue circle
    return tuple(255 * part for part in colorsys.hsv_to_rgb(label * 0.381966 % 1, 0.8, 1))


def outlined(image: Pixels, labels: Labels, colors: Colors, window: tuple[slice, slice], zoom: int) -> Pixels:
    """Return a window of an image, with stretched contrast, enlarged, with outlines inside the objects.

    Args:
        image: uint8 `[H, W, 3]`.
        labels: label image `[H, W]`.
        colors: of the labels, float `[labels + 1, 3]`; white outlines are twice as thick.
        window: rows and columns.
        zoom: magnification.
    """
    crop = image[window].astype(np.float32)
    low, high = np.percentile(crop, CONTRAST)
    stretched = (255 * np.clip((crop - low) / max(high - low, 1), 0, 1) ** GAMMA).astype(np.uint8)
    size = (zoom * crop.shape[1], zoom * crop.shape[0])
    scene = np.array(Image.fromarray(stretched).resize(size, Image.Resampling.BICUBIC))
    rest = labels[window].repeat(zoom, 0).repeat(zoom, 1)
    alone = (colors == WHITE).all(1)
    # peel off one pixel of every object per step: thin outlines take half of the steps
    for step in range(zoom):
        edge = on_edge(rest)
        painted = edge & (alone[rest] | (step < zoom // 2))
        scene[painted] = colors[rest[painted]].astype(np.uint8)
        rest[edge] = 0
    return scene


def count_labels(labels: Labels) -> int:
    """Return the number of objects of a label image."""
    return len(np.unique(labels[labels > 0]))


def on_edge(labels: Labels) -> npt.NDArray[np.bool_]:
    """Return the pixels of objects with a 4-neighbor outside the object; the border of the image is not an edge."""
    around = np.pad(labels, 1, mode="edge")
    neighbors = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    differs: npt.NDArray[np.bool_] = np.any([labels != other for other in neighbors], axis=0)
    return differs & (labels > 0)


def write_small(image: Pixels, path: Path) -> None:
    """Write a PNG file with the best compression."""
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary, optimize=True)
