"""Masks as annotation files store them, painted only once the crop and the size are known.

Both kinds, `Polygons` and `RunLengths`, stay in the file's frame and paint themselves into a window of the
resized image. Work and memory grow with the object, never with the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image

from embedmask.data.problems import DEGENERATE, BadObject
from embedmask.structures import Size

Bounds = tuple[float, float, float, float]
Window = tuple[int, int, int, int]
"""left, top, right, bottom px, half-open."""
Patch = tuple[NDArray[np.bool_], int, int]
"""Part of a mask `[h, w]`, with its first row and column in the window."""
TINY, THIN = 0.1, 1e-3
"""Three points that span less, px², may lie on a line; a polygon narrower than this, px, is one."""


@dataclass(frozen=True)
class Polygons:
    """One object as the union of filled polygons.

    Attributes:
        parts: float32 `[P, 2]` x, y px each, P >= 3.
    """

    parts: list[NDArray[np.float32]]

    def bounds(self) -> Bounds:
        """Enclosing box, xyxy px."""
        points = self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        return left, top, right, bottom

    def paint(self, scale: tuple[float, float], window: Window) -> Patch | None:
        """The mask inside a window of the image resized by `scale` `(y, x)`; None where they do not meet.

        Corners are scaled before they are filled, so edges stay sharp at any size.
        """
        area = _meet(self.bounds(), scale, window)
        if area is None:
            return None
        left, top, right, bottom = area
        # The library rounds corners left of and above its canvas differently: begin where the object does.
        x0 = max(math.floor(self.bounds()[0] * scale[1]), 0)
        y0 = max(math.floor(self.bounds()[1] * scale[0]), 0)
        factor, shift = np.array(scale[::-1]), np.array((x0, y0))
        flat = [(part * factor - shift).ravel().tolist() for part in self.parts]
        runs = coco_mask.frPyObjects(flat, bottom - y0, right - x0)
        assert isinstance(runs, list)  # a list of polygons gives a list
        pixels = coco_mask.decode(coco_mask.merge(runs))[top - y0 :, left - x0 :]
        return pixels.astype(bool), top - window[1], left - window[0]


@dataclass(frozen=True)
class RunLengths:
    """One object as COCO's run lengths: columns one after the other, background first.

    Attributes:
        counts: int64 `[runs]`, their sum is height x width.
        size: `(height, width)` of the image.
    """

    counts: NDArray[np.int64]
    size: Size

    def bounds(self) -> Bounds:
        """Enclosing box, xyxy px."""
        height = self.size[0]
        ends = np.cumsum(self.counts)
        first, last = ends[:-1:2], ends[1::2] - 1  # first and last pixel of each foreground run
        filled = first <= last
        first, last = first[filled], last[filled]
        wraps = bool((first // height != last // height).any())
        top, bottom = (0, height) if wraps else (int((first % height).min()), int((last % height).max()) + 1)
        return int(first.min()) // height, top, int(last.max()) // height + 1, bottom

    def area(self) -> int:
        """Count the pixels of the mask."""
        return int(self.counts[1::2].sum())

    def paint(self, scale: tuple[float, float], window: Window) -> Patch | None:
        """The mask inside a window of the image resized by `scale` `(y, x)`; None where they do not meet.

        A resized pixel belongs to the object when at least half of the filtered pixels under it do.
        """
        area = _meet(self.bounds(), scale, window)
        if area is None:
            return None
        left, top, right, bottom = area
        seen = (left / scale[1], top / scale[0], right / scale[1], bottom / scale[0])
        margin = (
            math.ceil(max(1.0, 1 / scale[0], 1 / scale[1])) + 1
        )  # what the filter looks at beyond the sides
        x1, y1 = (max(math.floor(low) - margin, 0) for low in seen[:2])
        x2, y2 = (
            min(math.ceil(high) + margin, end) for high, end in zip(seen[2:], self.size[::-1], strict=True)
        )
        pixels = Image.fromarray(self.pixels(x1, y1, x2, y2) * np.uint8(255))
        inside = (
            seen[0] - x1,
            seen[1] - y1,
            min(seen[2] - x1, pixels.width),  # rounding may step over the last column or row
            min(seen[3] - y1, pixels.height),
        )
        resized = pixels.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=inside)
        return np.asarray(resized) >= 128, top - window[1], left - window[0]

    def pixels(self, x1: int, y1: int, x2: int, y2: int) -> NDArray[np.bool_]:
        """The mask inside a box of the file's frame, bool `[y2 - y1, x2 - x1]`; decodes those columns."""
        height = self.size[0]
        ends = np.clip(np.cumsum(self.counts), x1 * height, x2 * height)
        lengths = np.diff(ends, prepend=x1 * height)
        flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
        return np.ascontiguousarray(flat.reshape(x2 - x1, height)[:, y1:y2].T)


Segmentation = Polygons | RunLengths


def raise_fault(fault: BadObject) -> None:
    """Raise the fault."""
    raise fault


def parse_segmentation(
    value: Any, size: Size, on_bad_part: Callable[[BadObject], None] = raise_fault
) -> Segmentation:
    """Check and compact the `segmentation` of an annotation.

    Args:
        value: list of polygons `[x1, y1, x2, y2, ...]`, or run lengths `{size, counts}` with counts a list
            or a string, or `RunLengths`, which stay as they are.
        size: `(height, width)` of the image.
        on_bad_part: called for a degenerate polygon beside others that can be used; it is left out if this returns.

    Raises:
        BadObject: the fault and how to fix it, without the name of the file or the annotation.
    """
    if isinstance(value, Mapping):
        return _parse_runs(value, size)
    if isinstance(value, RunLengths):
        return value
    if not isinstance(value, (list, tuple)) or not len(value):
        raise BadObject("bad mask", "has no segmentation; add polygons or run lengths, or remove it")
    parts, faults, is_outside = [], [], True
    for part in value:
        try:
            points, meets_image = _parse_polygon(part, size)
            parts.append(points)
            is_outside &= not meets_image
        except BadObject as error:
            if error.kind not in DEGENERATE:
                raise
            faults.append(error)
    if not parts:
        raise faults[0]
    if all(map(_is_line, parts)):
        raise BadObject("degenerate polygon", "has a polygon without area; correct or remove it")
    if is_outside:
        raise BadObject(
            "empty mask", f"has polygons outside its image {list(size)} (height, width); remove it"
        )
    for fault in faults:
        on_bad_part(fault)
    return Polygons(parts)


def _parse_polygon(values: Any, size: Size) -> tuple[NDArray[np.float32], bool]:
    """Return the points of a polygon, `[P, 2]`, and whether its bounds meet the image."""
    try:
        flat = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise BadObject(
            "bad mask", "has a polygon that is not a list of numbers; write [x1, y1, x2, y2, ...]"
        ) from None
    if flat.ndim != 1 or len(flat) % 2:
        raise BadObject(
            "bad mask", "has a polygon that is not a flat list of x, y pairs; write [x1, y1, x2, y2, ...]"
        )
    if len(flat) < 6:
        raise BadObject(
            "degenerate polygon", f"has a polygon with {len(flat) // 2} points; give at least 3 or remove it"
        )
    points = flat.reshape(-1, 2)
    width, height = size[1], size[0]
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    # Written so that nan fails too. A little outside is common; far away, painting would need endless memory.
    if not (-width < left <= right < 2 * width and -height < top <= bottom < 2 * height):
        raise BadObject(
            "bad mask",
            f"has a polygon far outside its image {list(size)} (height, width), or not finite; "
            "correct or remove it",
        )
    return points, left < width and top < height and right > 0 and bottom > 0


def _is_line(points: NDArray[np.float32]) -> bool:
    """All points on one line."""
    (ax, ay), (bx, by), (cx, cy) = points[:: len(points) // 3][:3].tolist()
    if abs((bx - ax) * (cy - ay) - (by - ay) * (cx - ax)) > TINY:
        return False  # three points tell most polygons apart, in a tenth of the time
    return int(np.linalg.matrix_rank(points - points[0], tol=THIN)) < 2


def _parse_runs(value: Mapping[str, Any], size: Size) -> RunLengths:
    stored, counts = value.get("size"), value.get("counts")
    if not isinstance(stored, Sequence) or list(stored) != list(size):
        raise BadObject(
            "wrong size",
            f"has a mask of size {stored}, but its image is {list(size)} (height, width); encode it again",
        )
    runs = decode_counts(counts) if isinstance(counts, (str, bytes)) else _list_counts(counts)
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise BadObject("bad mask", "has run lengths that do not add up to its image; encode the mask again")
    if not runs[1::2].any():
        raise BadObject("empty mask", "has an empty mask; remove it")
    return RunLengths(runs, size)


def _list_counts(counts: Any) -> NDArray[np.int64]:
    if isinstance(counts, list) and all(type(count) is int for count in counts):
        return np.array(counts, dtype=np.int64)
    raise BadObject(
        "bad mask", "has run lengths whose counts are neither text nor whole numbers; encode the mask again"
    )


def to_rle(mask: Segmentation, size: Size) -> dict[str, Any]:
    """Return COCO's compressed run lengths of a mask, `{"size": [H, W], "counts": bytes}`, as pycocotools paints it."""
    if isinstance(mask, RunLengths):
        runs: Any = coco_mask.frPyObjects({"size": list(size), "counts": mask.counts.tolist()}, *size)
        return dict(runs)
    parts: Any = coco_mask.frPyObjects([as_written(part).ravel().tolist() for part in mask.parts], *size)
    return dict(coco_mask.merge(parts))


def as_written(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the shortest decimals (2 to 5 places) that round to the given float32 numbers.

    Files have few decimals, and whether a pixel is painted may depend on 10.7 not being 10.699999809.
    """
    exact = values.astype(np.float64)
    for places in (5, 4, 3, 2):
        decimals = exact.round(places)
        exact = np.where(decimals.astype(np.float32) == values, decimals, exact)
    return exact


def pixel_area(mask: Segmentation, size: Size) -> float:
    """Return the number of pixels of a mask in an image `(height, width)`."""
    return mask.area() if isinstance(mask, RunLengths) else float(coco_mask.area(to_rle(mask, size)))


def decode_counts(text: str | bytes) -> NDArray[np.int64]:
    """Compressed run lengths of COCO, int64 `[runs]`.

    Each count is written in groups of five bits, lowest first, on top of character 48; the sixth bit says
    that more follow, the last group's fifth bit is the sign. From the fourth count on, the difference to
    the last but one is stored.

    Raises:
        BadObject: the text is not such a code.
    """
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    groups = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    last = groups & 32 == 0
    if not len(groups) or groups.min() < 0 or groups.max() > 63 or not last[-1]:
        raise BadObject("bad mask", "has run lengths whose text is damaged; encode the mask again")
    stops = np.flatnonzero(last)
    starts = np.concatenate(([0], stops[:-1] + 1))
    places = np.arange(len(groups)) - np.repeat(starts, stops - starts + 1)
    if places.max() > 7:
        raise BadObject("bad mask", "has run lengths whose text is damaged; encode the mask again")
    counts = np.add.reduceat((groups & 31) << (5 * places), starts)
    negative = groups[stops] & 16 != 0
    counts -= np.where(negative, np.int64(1) << (5 * (stops - starts + 1)), 0)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def _meet(bounds: Bounds, scale: tuple[float, float], window: Window) -> Window | None:
    """Whole pixels of the window that the scaled bounds touch, or None."""
    scale_y, scale_x = scale
    left = max(math.floor(bounds[0] * scale_x), window[0])
    top = max(math.floor(bounds[1] * scale_y), window[1])
    right = min(math.ceil(bounds[2] * scale_x) + 1, window[2])
    bottom = min(math.ceil(bounds[3] * scale_y) + 1, window[3])
    return (left, top, right, bottom) if left < right and top < bottom else None
