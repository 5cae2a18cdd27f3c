"""Images of results beside the truth, for the page of nuclei.py."""

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
from embedmask.evaluation.matching import Labels, label_image, matching_metrics
from embedmask.evaluation.overlap import crop_of
from embedmask.files import atomic_write
from embedmask.visualize import Pixels, contact_sheet, side_by_side

SIDE, ZOOM = 256, 2
"""Of the images: at most so many px of the file, so many times enlarged ..."""
CLOSE_SIDE, CLOSE_ZOOM = 120, 4
"""... and of the close look."""
PARTNER_IOU = 0.5
CONTRAST = (1, 99.8)
"""Percentiles of the values that become black and white ..."""
GAMMA = 0.6
"""... between which dark ones are lifted: the brightest nuclei are many times as bright as others."""
WHITE = 255.0
"""Of objects without partner; the others' colours are not grey."""
Colors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shot:
    """An image of the page: its file's name, and what is said of it."""

    name: str
    caption: str


@dataclass(frozen=True)
class Scenes:
    """What one model found in the images of a data set; results count from `threshold` on."""

    name: str
    dataset: CocoInstances
    evaluator: CocoEvaluator
    threshold: float

    def truth(self, image_id: int) -> Labels:
        """Objects of an image as a label image."""
        return self._labels(image_id, self.evaluator.ground_truth_by_image([image_id])[image_id])

    def found(self, image_id: int) -> Labels:
        """Results of an image as a label image, as matching takes them."""
        results = self.evaluator.results_by_image([image_id])[image_id]
        return self._labels(image_id, [one for one in results if one["score"] >= self.threshold])

    def quality(self, image_id: int) -> float:
        """Mean matching AP of one image."""
        return matching_metrics(self.evaluator, self.threshold, [image_id])["matching/mAP"]

    def pixels(self, image_id: int) -> Pixels:
        """uint8 [H, W, 3]."""
        image = self.dataset.image(self.dataset.image_ids.index(image_id))
        return np.ascontiguousarray(image.permute(1, 2, 0).numpy())

    def file_name(self, image_id: int) -> str:
        """Shortened where it is long."""
        path = self.dataset.image_path(self.dataset.image_ids.index(image_id))
        return path.name if len(path.name) <= 24 else f"{path.stem[:12]}…{path.suffix}"

    def _labels(self, image_id: int, records: Iterable[dict[str, Any]]) -> Labels:
        masks = (crop_of(record["segmentation"]) for record in records)
        return label_image(masks, self.evaluator.size_of(image_id))


def write_ranked(scenes: Scenes, folder: Path) -> Iterator[Shot]:
    """The best, the middle and the worst images: truth beside results."""
    qualities = {image_id: scenes.quality(image_id) for image_id in scenes.dataset.image_ids}
    for name, image_id in ranked(qualities).items():
        truth, found = scenes.truth(image_id), scenes.found(image_id)
        place, _ = crowded_place(truth, SIDE)
        colors = partners(truth, found)
        image = scenes.pixels(image_id)
        sides = [outlined(image, *one, place, ZOOM) for one in zip((truth, found), colors, strict=True)]
        write_small(side_by_side(sides[0], sides[1], ("ground truth", scenes.name)), folder / f"{name}.png")
        yield Shot(
            name,
            f"**{name.replace('_', ' ').capitalize()}:** `{scenes.file_name(image_id)}`, matching AP "
            f"{qualities[image_id]:.3f}, {count_labels(truth)} objects, {count_labels(found)} found",
        )


def ranked(qualities: Mapping[int, float]) -> dict[str, int]:
    """Two best, two middle and two worst images by name, each once."""
    order = sorted(qualities, key=lambda image_id: -qualities[image_id])
    middle = max(len(order) // 2 - 1, 0)
    wanted = {
        "best_1": 0, "best_2": 1, "middle_1": middle, "middle_2": middle + 1,
        "worst_2": len(order) - 2, "worst_1": len(order) - 1,
    }  # fmt: skip
    chosen: dict[str, int] = {}
    for name, place in wanted.items():
        if 0 <= place < len(order) and order[place] not in chosen.values():
            chosen[name] = order[place]
    return chosen


def write_close_look(scenes: Sequence[Scenes], folder: Path) -> Shot:
    """The most crowded place of all images: truth and every model, and the bare image to make the number even."""
    first = scenes[0]
    places = {i: crowded_place(first.truth(i), CLOSE_SIDE) for i in first.dataset.image_ids}
    image_id = max(places, key=lambda i: places[i][1])
    place, count = places[image_id]
    image, truth = first.pixels(image_id), first.truth(image_id)
    nothing = np.zeros_like(truth)
    colors = partners(truth, first.found(image_id))[0]
    panels = {"ground truth": outlined(image, truth, colors, place, CLOSE_ZOOM)}
    for one in scenes:
        found = one.found(image_id)
        panels[one.name] = outlined(image, found, partners(truth, found)[1], place, CLOSE_ZOOM)
    if len(panels) % 2:
        panels = {"image": outlined(image, nothing, np.zeros((1, 3)), place, CLOSE_ZOOM), **panels}
    titled = list(panels.items())
    pairs = [
        side_by_side(a, b, (left, right))
        for (left, a), (right, b) in zip(titled[::2], titled[1::2], strict=True)
    ]
    write_small(contact_sheet(pairs, columns=1), folder / "close.png")
    text = f"the most crowded {CLOSE_SIDE} x {CLOSE_SIDE} px of all images, enlarged {CLOSE_ZOOM} times"
    return Shot("close", f"**Close look:** {text}: `{first.file_name(image_id)}`, {count} objects")


def crowded_place(truth: Labels, side: int) -> tuple[tuple[slice, slice], int]:
    """The square of `side` px, or less in a smaller image, that holds most centres of objects, and how many."""
    ids = np.unique(truth[truth > 0])
    centers = np.array([np.argwhere(truth == label).mean(0) for label in ids]).reshape(-1, 2)
    room = np.maximum(np.array(truth.shape) - side, 0)
    corners = np.clip(np.rint(centers - side / 2), 0, room) if len(ids) else np.zeros((1, 2))
    inside = (centers >= corners[:, None]) & (centers < corners[:, None] + side)
    counts = inside.all(-1).sum(1)
    top, left = corners[counts.argmax()].astype(int).tolist()
    return (slice(top, top + side), slice(left, left + side)), int(counts.max())


def partners(truth: Labels, found: Labels) -> tuple[Colors, Colors]:
    """Colours of the objects of two label images, float [labels + 1, 3]: partners share theirs, others are white.

    Label images leave no choice: above half of its union an object has one partner at most.
    """
    rows, columns = int(truth.max()) + 1, int(found.max()) + 1
    both = np.bincount((truth * columns + found).ravel(), minlength=rows * columns).reshape(rows, columns)
    union = both.sum(1, keepdims=True) + both.sum(0, keepdims=True) - both
    good = both / np.maximum(union, 1) >= PARTNER_IOU
    good[0], good[:, 0] = False, False
    of_truth = np.where(good.any(1)[:, None], [color(label) for label in range(rows)], WHITE)
    of_found = np.where(good.any(0)[:, None], of_truth[good.argmax(0)], WHITE)
    return of_truth, of_found


def color(label: int) -> tuple[float, ...]:
    """A bright colour for each number; neighbours in number are far apart in hue."""
    return tuple(255 * part for part in colorsys.hsv_to_rgb(label * 0.381966 % 1, 0.8, 1))


def outlined(image: Pixels, labels: Labels, colors: Colors, place: tuple[slice, slice], zoom: int) -> Pixels:
    """A place of an image, its contrast stretched, enlarged; outlines lie inside the objects, white ones are thick."""
    crop = image[place].astype(np.float32)
    low, high = np.percentile(crop, CONTRAST)
    stretched = (255 * np.clip((crop - low) / max(high - low, 1), 0, 1) ** GAMMA).astype(np.uint8)
    size = (zoom * crop.shape[1], zoom * crop.shape[0])
    scene = np.array(Image.fromarray(stretched).resize(size, Image.Resampling.BICUBIC))
    rest = labels[place].repeat(zoom, 0).repeat(zoom, 1)
    alone = (colors == WHITE).all(1)
    for step in range(zoom):
        edge = on_edge(rest)
        painted = edge & (alone[rest] | (step < zoom // 2))
        scene[painted] = colors[rest[painted]].astype(np.uint8)
        rest[edge] = 0
    return scene


def count_labels(labels: Labels) -> int:
    """How many objects a label image has."""
    return len(np.unique(labels[labels > 0]))


def on_edge(labels: Labels) -> npt.NDArray[np.bool_]:
    """Pixels of objects that have a neighbour, of four, that is not of the same object; the image's rim is none."""
    around = np.pad(labels, 1, mode="edge")
    neighbours = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    differs: npt.NDArray[np.bool_] = np.any([labels != other for other in neighbours], axis=0)
    return differs & (labels > 0)


def write_small(image: Pixels, path: Path) -> None:
    """A PNG of few bytes."""
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary, optimize=True)
