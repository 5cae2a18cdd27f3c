"""Results of an exported file, with numpy: settings, exact masks as run lengths, COCO results, label images.

Used by `runtime.py`, which is beside it. Runs are int64 `[T, 2]`: first pixel and the one after the last, numbered
column by column as in COCO.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Size = tuple[int, int]
Threshold = float | Sequence[float] | Mapping[str, float]


class BadFile(ValueError):
    """Error in user input. The message is one line naming the item and the fix."""


@dataclass(frozen=True)
class Settings:
    """Settings that the decoder needs in addition to the graph's outputs.

    Attributes:
        class_names: name of each label.
        score_thresholds: default threshold on final scores, one per class.
        short_side, long_side, rounding: rule of `resized_size`; `short_side` None: no resizing.
        page, channels, depth: page and channels of image files to read (None: the default), reduction to 8 bits.
        strides: px per cell of the levels.
        pixel_stride: px per cell of p.
        score: `product`, class score x centerness, or `root`, its square root.
        candidate_threshold, nms_threshold: applied within the graph, to the class score, or with `root` to the product.
        max_detections: results per image.
        outputs: K.
        rescore: multiply scores by the agreement of mask and box, see `rescored`.
        mask_threshold: phi above which a pixel belongs to a mask.
        interpolation: `prob` and `log_prob` resize phi or log phi from the grid of p, upsampled by `upsampling`, inside
            the box; `aligned` resizes phi from the grid of p itself, whose cells lie at y s + s // 2.
        upsampling: factor of p for `prob` and `log_prob`.
        margin, min_margin_cells: a mask reaches this part of the box's side, and at least this number of cells, beyond
            its box.
        outside_log_prob: log phi outside a mask's range of cells.
        dense_masks: whether the graph also returns log phi.
    """

    class_names: list[str]
    score_thresholds: list[float]
    short_side: int | None
    long_side: int
    rounding: str
    page: int | None
    channels: list[int] | None
    depth: str | float
    strides: list[int]
    pixel_stride: int
    score: str
    candidate_threshold: float
    nms_threshold: float
    max_detections: int
    outputs: int
    rescore: bool
    mask_threshold: float
    interpolation: str
    upsampling: int
    margin: float
    min_margin_cells: float
    outside_log_prob: float
    dense_masks: bool

    @property
    def least_score(self) -> float:
        """Return the smallest threshold on final scores that the graph serves."""
        least = self.candidate_threshold
        return math.sqrt(least) if self.score == "root" else least

    def thresholds(self, requested: Threshold | None) -> Array:
        """Return the threshold of each class, float32 `[C]`; `BadFile` for those that the graph does not serve."""
        own, names = self.score_thresholds, self.class_names
        if isinstance(requested, Mapping):
            unknown = [name for name in requested if name not in names]
            if unknown:
                raise BadFile(f"score_threshold: the model has no class {unknown[0]!r}")
            requested = [requested.get(name, value) for name, value in zip(names, own, strict=True)]
        try:
            values = np.array(own if requested is None else requested, np.float64)
            values = values.reshape(len(own)) if values.ndim else values.repeat(len(own))
        except (TypeError, ValueError):
            raise BadFile(
                f"score_threshold {requested}: pass a number, or {len(own)}: one per class"
            ) from None
        least = self.least_score
        wrong = values[~((values >= least * (1 - 1e-5)) & (values <= 1))]  # nan as well
        if len(wrong):
            raise BadFile(f"score_threshold {wrong[0]:g}: this file serves {least:.3g} to 1")
        return values.astype(np.float32)

    def resized_size(self, size: Size) -> Size:
        """Return the size at which an image enters the network: its short or its long side has the given length."""
        if self.short_side is None:
            return size
        short, long, target, limit = min(size), max(size), self.short_side, self.long_side
        if self.rounding == "nearest":
            scale = min(target / short, limit / long)
            return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)
        if limit * short < long:
            return (1, limit) if size[0] <= size[1] else (limit, 1)
        if long / short * target > limit:
            target = max(round(limit * short / long), 1)
        if short == target:
            return size
        other = int(target * long / short)
        return (target, other) if size[0] <= size[1] else (other, target)


@dataclass
class Result:
    """The detections of one image by descending score, in its own frame.

    Attributes:
        boxes: float32 `[R, 4]` xyxy px.
        scores: float32 `[R]`.
        labels: int64 `[R]`, 0..C-1.
        runs: of each mask int64 `[T, 2]`: first pixel of each run and the one after its last, column by column.
        size: `(height, width)` of the image.
        class_names: name of each label.
    """

    boxes: Array
    scores: Array
    labels: Array
    runs: list[Array]
    size: Size
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: Sequence[int] | Array) -> Result:
        """Return the detections at `index`, in that order."""
        rows = np.asarray(index, np.int64)
        return Result(
            self.boxes[rows],
            self.scores[rows],
            self.labels[rows],
            [self.runs[row] for row in rows.tolist()],
            self.size,
            self.class_names,
        )

    def masks(self) -> NDArray[np.bool_]:
        """Return all masks, bool `[R, H, W]`. Memory grows with objects x image."""
        dense = np.zeros((len(self), *self.size), bool)
        for mask, runs in zip(dense, self.runs, strict=True):
            mask[:] = to_dense(runs, self.size)
        return dense

    def label_image(self) -> NDArray[np.uint16]:
        """Return uint16 `[H, W]`: 0 background, k the k-th detection; where masks overlap, the first keeps the pixels.

        Raises:
            BadFile: more detections than numbers of 16 bits.
        """
        if len(self) >= 2**16:
            raise BadFile(f"{len(self)} objects, but a label image holds at most 65535; lower max_detections")
        flat = np.zeros(self.size[0] * self.size[1], np.uint16)  # column by column, as runs
        # the best detection last, since later ones replace the pixels of earlier ones
        for number in range(len(self), 0, -1):
            for start, stop in self.runs[number - 1].tolist():
                flat[start:stop] = number
        return flat.reshape(self.size[1], self.size[0]).T

    def coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return COCO results: `image_id`, `category_id` (label + 1), `bbox` (xywh px), `score`, `segmentation`."""
        boxes = self.boxes.astype(np.float64)
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        rows = zip(self.labels.tolist(), xywh.tolist(), self.scores.tolist(), self.runs, strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": box,
                "score": score,
                "segmentation": to_rle(runs, self.size),
            }
            for label, box, score, runs in rows
        ]


def decode_masks(
    p: Array,
    boxes: Array,
    q: Array,
    s: Array,
    settings: Settings,
    *,
    image_size: Size,
    original_size: Size,
) -> list[Array]:
    """Decode the masks of R detections of one image.

    Args:
        p: `[D, h, w]`.
        boxes: `[R, 4]` px of the network's frame.
        q: `[R, D]`.
        s: `[R, 1 or D]`.
        image_size: `(height, width)` of the image in the network, before padding.
        original_size: `(height, width)` of the image; the frame of the masks.

    Returns:
        The runs of each mask.
    """
    aligned, in_log = settings.interpolation == "aligned", settings.interpolation == "log_prob"
    limit = math.log(settings.mask_threshold) if in_log else settings.mask_threshold
    outside = min(settings.outside_log_prob, limit) if in_log else 0.0
    cell = settings.pixel_stride // settings.upsampling
    for axis in (1, 2):
        p = _upsample(p, settings.upsampling, axis)
    sides = zip(p.shape[1:], original_size, image_size, strict=True)
    rows, columns = (_positions(*side, cell, settings, aligned=aligned) for side in sides)
    runs = []
    for box, center, margin in zip(boxes, q, s, strict=True):
        window = (0, p.shape[1], 0, p.shape[2]) if aligned else _range(box / cell, p.shape[1:], settings)
        y1, y2, x1, x2 = window
        offset = p[:, y1:y2, x1:x2] - center[:, None, None]
        distance = (margin[:, None, None] * offset * offset).sum(0)  # d of eq. 3
        if aligned:
            y1, y2, x1, x2 = _span(distance <= 1 - math.log(settings.mask_threshold))
            distance = distance[y1:y2, x1:x2]
        values = np.pad(-distance if in_log else np.exp(-distance), 1, constant_values=outside)
        crop, corner = _resize(values, (y1, y2, x1, x2), rows, columns)
        runs.append(encode(crop > limit, corner, original_size[0]))
    return runs


def _upsample(values: Array, factor: int, axis: int) -> Array:
    """Resize bilinearly along an axis, with half-pixel centers."""
    count = values.shape[axis]
    source = (np.arange(count * factor, dtype=np.float32) + 0.5) / factor - 0.5
    return values if factor == 1 else _look_up(values, source.clip(0, count - 1), axis)


def _look_up(values: Array, positions: Array, axis: int) -> Array:
    """Return values between the cells of an axis, linearly."""
    low = np.floor(positions).astype(np.int64)
    shape = [1] * values.ndim
    shape[axis] = -1
    weight = (positions - low).astype(np.float32).reshape(shape)
    one, other = (values.take(np.minimum(low + step, values.shape[axis] - 1), axis) for step in (0, 1))
    result: Array = one * (1 - weight) + other * weight
    return result


def _positions(
    cells: int, original: int, network: int, cell: int, settings: Settings, *, aligned: bool
) -> Array:
    """Return the position on the grid of p of each pixel along one side of the image, float64 `[original]`."""
    pixel = np.arange(original, dtype=np.float32) + np.float32(0.5)
    if aligned:
        # cell i lies at i s + s // 2, by two upsamplings: to half the stride, then to px
        half, stride = settings.pixel_stride // 2, settings.pixel_stride
        in_network = (pixel * np.float32(network / original) - np.float32(0.5)).clip(0, network - 1)
        source = (in_network - np.float32(half + half // 2)) / np.float32(stride)
    else:
        source = pixel.astype(np.float64) * (network / original / cell) - 0.5
    return source.clip(0, cells - 1).astype(np.float64)


def _range(box: Array, grid: Sequence[int], settings: Settings) -> tuple[int, int, int, int]:
    """Return the half-open range of cells y1, y2, x1, x2 that a mask may reach; `box` in cells."""
    low, high = box[:2], box[2:]
    reach = np.maximum((high - low) * np.float32(settings.margin), np.float32(settings.min_margin_cells))
    size = np.array([grid[1], grid[0]])
    (x1, y1), (x2, y2) = np.floor(low - reach).clip(0), np.minimum(np.ceil(high + reach), size)
    return int(y1), int(y2), int(x1), int(x2)


def _span(near: Array) -> tuple[int, int, int, int]:
    """Return the range of the cells that are True, and one more on each side: y1, y2, x1, x2; empty without any."""
    ends = []
    for axis in (1, 0):
        hits = np.flatnonzero(near.any(axis))
        ends += [max(hits[0] - 1, 0), min(hits[-1] + 2, near.shape[1 - axis])] if len(hits) else [0, 0]
    return ends[0], ends[1], ends[2], ends[3]


def _resize(
    values: Array, window: tuple[int, int, int, int], rows: Array, columns: Array
) -> tuple[Array, tuple[int, int]]:
    """Resize a window of cells to the pixels of the image that it reaches.

    Args:
        values: cells of the window and one more on each side.
        window: y1, y2, x1, x2.
        rows, columns: position of each pixel on the grid.

    Returns:
        Values `[h, w]`, and the first row and column of the image.
    """
    y1, y2, x1, x2 = window
    top, bottom = np.searchsorted(rows, y1 - 1, "right"), np.searchsorted(rows, y2)
    left, right = np.searchsorted(columns, x1 - 1, "right"), np.searchsorted(columns, x2)
    if y1 >= y2 or x1 >= x2:
        bottom, right = top, left
    across = _look_up(values, columns[left:right] - (x1 - 1), 1)
    return _look_up(across, rows[top:bottom] - (y1 - 1), 0), (int(top), int(left))


def encode(mask: Array, corner: tuple[int, int], height: int) -> Array:
    """Return the runs of a crop, bool `[h, w]`, that begins at row and column `corner` of an image of `height` rows."""
    padded = np.zeros((mask.shape[1], mask.shape[0] + 2), bool)
    padded[:, 1:-1] = mask.T
    ends = np.flatnonzero(padded[:, 1:] != padded[:, :-1])
    column, row = np.divmod(ends, mask.shape[0] + 1)
    pairs: Array = ((column + corner[1]) * height + row + corner[0]).reshape(-1, 2)
    return pairs


def to_dense(runs: Array, size: Size) -> Array:
    """Return a mask as bool `[H, W]`."""
    steps = np.zeros(size[0] * size[1] + 1, np.int8)
    np.add.at(steps, runs[:, 0], 1)
    np.add.at(steps, runs[:, 1], -1)
    flat: Array = np.cumsum(steps[:-1], dtype=np.int8).astype(bool)
    return flat.reshape(size[1], size[0]).T


def tight_box(runs: Array, height: int) -> tuple[int, int, int, int]:
    """Return the box around a mask, xyxy px, half-open; 0 for an empty one."""
    if not len(runs):
        return 0, 0, 0, 0
    columns = runs[:, 0] // height  # no run continues into the next column
    rows = runs - columns[:, None] * height
    return int(columns[0]), int(rows[:, 0].min()), int(columns[-1]) + 1, int(rows[:, 1].max())


def to_rle(runs: Array, size: Size) -> dict[str, Any]:
    """Return COCO's compressed run lengths: `{"size": [H, W], "counts": text}`."""
    # runs that touch, at the foot of a column and the head of the next, are one
    edges = [0]
    for start, stop in runs.tolist():
        if len(edges) > 1 and edges[-1] == start:
            edges[-1] = stop
        else:
            edges += [start, stop]
    if edges[-1] != size[0] * size[1]:
        edges.append(size[0] * size[1])
    counts = np.diff(edges).tolist()
    text = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:  # groups of five bits, lowest first; the sixth bit announces another group
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)
            text.append(chr(48 + group + (32 if more else 0)))
    return {"size": list(size), "counts": "".join(text)}


def rescored(boxes: Array, scores: Array, labels: Array, runs: Sequence[Array], size: Size) -> Array:
    """Multiply scores by the IoU of box and mask, and by the part of the mask that no better one of its class covers.

    Memory holds one dense mask of the image and one crop at a time.

    Args:
        boxes: `[R, 4]` px of the image; detections by descending score.

    Returns:
        float32 `[R]`; 0 for empty masks.
    """
    factors, taken = np.zeros(len(scores), np.float32), np.zeros(size, bool)
    for label in set(labels.tolist()):
        taken[:] = False
        for index in (row for row in np.flatnonzero(labels == label).tolist() if len(runs[row])):
            x1, y1, x2, y2 = tight_box(runs[index], size[0])
            window, crop = taken[y1:y2, x1:x2], (y2 - y1, x2 - x1)
            mask = to_dense(_shifted(runs[index], size[0], (y1, x1, y2 - y1)), crop)
            free = 1 - np.count_nonzero(mask & window) / np.count_nonzero(mask)
            window |= mask
            factors[index] = _iou(boxes[index], np.array([x1, y1, x2, y2], np.float32)) * np.float32(free)
    return scores * factors


def _shifted(runs: Array, height: int, window: tuple[int, int, int]) -> Array:
    """Return runs in the pixel numbers of a window: its first row and column, and its number of rows."""
    top, left, rows = window
    columns = runs[:, :1] // height
    shifted: Array = runs - columns * height - top + (columns - left) * rows
    return shifted


def _iou(one: Array, other: Array) -> np.float32:
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    common = (high - low).clip(0).prod()
    return np.float32(common / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - common))
