"""Masks of annotation files: polygons and run lengths, painted once the crop and the scale are known.

`Polygons` and `RunLengths` keep the coordinates of the file and are painted into a window of the resized image.
Time and memory grow with the object, not with the image.
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
from embedmask.errors import BadInput
from embedmask.masks import MaskCrop
from embedmask.run_lengths import check_counts, decode_counts, tight_boxes
from embedmask.structures import Size

Bounds = tuple[float, float, float, float]
Window = tuple[int, int, int, int]
"""Left, top, right, bottom px; right and bottom are exclusive."""
FIRST = np.zeros(1, np.int64)
"""Index of the first run of a single mask."""
TINY, THIN = 0.1, 1e-3
"""Parallelogram area (px²) below which three points may be collinear; width (px) below which a polygon is a line."""


@dataclass(frozen=True)
class Polygons:
    """Object as the union of filled polygons.

    Attributes:
        parts: points of each polygon, float32 `[P, 2]` x, y px, P >= 3.
    """

    parts: list[NDArray[np.float32]]

    def bounds(self) -> Bounds:
        """Return the enclosing box, xyxy px."""
        points = self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        return left, top, right, bottom

    def is_line(self) -> bool:
        """Return whether the points of every polygon are collinear, so that the object has no area."""
        for points in self.parts:
            # the area spanned by three of the points settles most polygons in a tenth of the time
            (ax, ay), (bx, by), (cx, cy) = points[:: len(points) // 3][:3].tolist()
            if abs((bx - ax) * (cy - ay) - (by - ay) * (cx - ax)) > TINY:
                return False
            if np.linalg.matrix_rank(points - points[0], tol=THIN) >= 2:
                return False
        return True

    def paint(self, scale: tuple[float, float], window: Window) -> MaskCrop | None:
        """Paint the mask into a window of the resized image.

        The points are scaled before the polygons are filled, so edges stay sharp at any scale.

        Args:
            scale: `(y, x)` factors from the coordinates of the file to the resized image.
            window: region of the resized image.

        Returns:
            The part of the mask inside the window; None if they do not overlap.
        """
        overlap = _overlap(self.bounds(), scale, window)
        if overlap is None:
            return None
        left, top, right, bottom = overlap
        # pycocotools rounds points left of or above its canvas differently, so the canvas begins where the object does
        x0 = max(math.floor(self.bounds()[0] * scale[1]), 0)
        y0 = max(math.floor(self.bounds()[1] * scale[0]), 0)
        factor, shift = np.array(scale[::-1]), np.array((x0, y0))  # [2] x, y
        flat = [(part * factor - shift).ravel().tolist() for part in self.parts]
        runs = coco_mask.frPyObjects(flat, bottom - y0, right - x0)
        assert isinstance(runs, list)  # a list of polygons gives a list
        # paint from (x0, y0), then cut off the part above and left of the overlap: [bottom - top, right - left]
        pixels = coco_mask.decode(coco_mask.merge(runs))[top - y0 :, left - x0 :]
        return MaskCrop(pixels.astype(bool), top - window[1], left - window[0])


@dataclass(frozen=True)
class RunLengths:
    """Object as COCO run lengths: column by column, background first.

    Attributes:
        counts: lengths of alternating background and foreground runs, int64 `[T]`; their sum is height x width.
        size: `(height, width)` of the image.
    """

    counts: NDArray[np.int64]
    size: Size

    @classmethod
    def from_coco(cls, value: Mapping[str, Any], size: Size) -> RunLengths:
        """Parse the COCO form `{"size": [H, W], "counts": ...}`, with counts as text or as a list of integers.

        Raises:
            BadObject: the run lengths are malformed, empty or of another size than the image, `(height, width)`.
        """
        stored: Any = value.get("size")
        counts: Any = value.get("counts")
        if not isinstance(stored, Sequence) or list(stored) != list(size):
            raise BadObject(
                "wrong size",
                f"has a mask of size {stored}, but its image is {list(size)} (height, width); encode it again",
            )
        is_text = isinstance(counts, (str, bytes))
        if not is_text and not (isinstance(counts, list) and all(type(count) is int for count in counts)):
            message = "has run lengths whose counts are neither text nor whole numbers; encode the mask again"
            raise BadObject("bad mask", message)
        try:
            lengths = decode_counts([counts])[0] if is_text else np.array(counts, dtype=np.int64)
            check_counts(lengths, size)
        except BadInput as error:
            raise BadObject("bad mask", f"has {error}") from None
        if not lengths[1::2].any():
            raise BadObject("empty mask", "has an empty mask; remove it")
        return cls(lengths, size)

    def bounds(self) -> Bounds:
        """Return the enclosing box, xyxy px."""
        ends = np.cumsum(self.counts)
        filled = self.counts[1::2] > 0  # foreground runs, [T // 2]
        starts, stops = ends[:-1:2][filled], ends[1::2][filled]
        left, top, right, bottom = tight_boxes(starts, stops, FIRST, self.size[0])[0].tolist()
        return left, top, right, bottom

    def area(self) -> int:
        """Return the number of pixels of the mask."""
        return int(self.counts[1::2].sum())

    def paint(self, scale: tuple[float, float], window: Window) -> MaskCrop | None:
        """Paint the mask into a window of the resized image; arguments and result as in `Polygons.paint`.

        The mask is resized bilinearly; a pixel belongs to the object if its value is at least one half.
        """
        overlap = _overlap(self.bounds(), scale, window)
        if overlap is None:
            return None
        left, top, right, bottom = overlap
        # the overlap in the coordinates of the file
        source = (left / scale[1], top / scale[0], right / scale[1], bottom / scale[0])
        # decode the pixels under the filter's support as well: one source pixel, more when shrinking
        margin = math.ceil(max(1.0, 1 / scale[0], 1 / scale[1])) + 1
        x1, y1 = (max(math.floor(low) - margin, 0) for low in source[:2])
        x2, y2 = (
            min(math.ceil(high) + margin, end) for high, end in zip(source[2:], self.size[::-1], strict=True)
        )
        pixels = Image.fromarray(self.pixels(x1, y1, x2, y2) * np.uint8(255))
        inside = (
            source[0] - x1,
            source[1] - y1,
            min(source[2] - x1, pixels.width),  # rounding may exceed the last column or row
            min(source[3] - y1, pixels.height),
        )
        resized = pixels.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=inside)
        return MaskCrop(np.asarray(resized) >= 128, top - window[1], left - window[0])

    def pixels(self, x1: int, y1: int, x2: int, y2: int) -> NDArray[np.bool_]:
        """Decode the mask inside a box in the coordinates of the file, bool `[y2 - y1, x2 - x1]`."""
        height = self.size[0]
        # clip the ends of all runs to columns x1..x2, so that runs outside get length 0
        ends = np.clip(np.cumsum(self.counts), x1 * height, x2 * height)
        lengths = np.diff(ends, prepend=x1 * height)
        flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)  # [(x2 - x1) * height]
        return np.ascontiguousarray(flat.reshape(x2 - x1, height)[:, y1:y2].T)


Segmentation = Polygons | RunLengths


def raise_fault(fault: BadObject) -> None:
    """Raise the error; the default handler of degenerate polygons."""
    raise fault


def parse_segmentation(
    value: Any, size: Size, on_bad_part: Callable[[BadObject], None] = raise_fault
) -> Segmentation:
    """Parse and check the `segmentation` of an annotation.

    Args:
        value: list of polygons `[x1, y1, x2, y2, ...]`; or run lengths `{size, counts}`, with counts as a list or
            compressed text; or `RunLengths`, which are returned as they are.
        size: `(height, width)` of the image.
        on_bad_part: called with the error of a degenerate polygon of an object that has valid polygons as well; if it
            returns, that polygon is dropped.

    Raises:
        BadObject: the segmentation cannot be used; the message has the cause and a fix, but no location.
    """
    if isinstance(value, Mapping):
        return RunLengths.from_coco(value, size)
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
    polygons = Polygons(parts)
    if polygons.is_line():
        raise BadObject("degenerate polygon", "has a polygon without area; correct or remove it")
    if is_outside:
        message = f"has polygons outside its image {list(size)} (height, width); remove it"
        raise BadObject("empty mask", message)
    for fault in faults:
        on_bad_part(fault)
    return polygons


def _parse_polygon(values: Any, size: Size) -> tuple[NDArray[np.float32], bool]:
    """Return the points of a polygon, float32 `[P, 2]`, and whether its bounds overlap the image."""
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
    # Points slightly outside are common; far outside, painting would need unlimited memory. NaN also fails the test.
    if not (-width < left <= right < 2 * width and -height < top <= bottom < 2 * height):
        raise BadObject(
            "bad mask",
            f"has a polygon far outside its image {list(size)} (height, width), or not finite; "
            "correct or remove it",
        )
    return points, left < width and top < height and right > 0 and bottom > 0


def to_coco_rle(mask: Segmentation, size: Size) -> dict[str, Any]:
    """Encode a mask of an image `(height, width)` as COCO's compressed run lengths, `{"size": ..., "counts": bytes}`.

    Polygons are rasterized as pycocotools does.
    """
    if isinstance(mask, RunLengths):
        runs: Any = coco_mask.frPyObjects({"size": list(size), "counts": mask.counts.tolist()}, *size)
        return dict(runs)
    parts: Any = coco_mask.frPyObjects(
        [shortest_decimals(part).ravel().tolist() for part in mask.parts], *size
    )
    return dict(coco_mask.merge(parts))


def shortest_decimals(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the shortest decimals (2 to 5 places) that round to the same float32 values.

    Files have few decimals, and a pixel may be painted for 10.7 but not for the float32 value 10.699999809.
    """
    exact = values.astype(np.float64)
    for places in (5, 4, 3, 2):
        decimals = exact.round(places)
        exact = np.where(decimals.astype(np.float32) == values, decimals, exact)
    return exact


def pixel_area(mask: Segmentation, size: Size) -> float:
    """Return the number of pixels of a mask in an image `(height, width)`."""
    return mask.area() if isinstance(mask, RunLengths) else float(coco_mask.area(to_coco_rle(mask, size)))


def mask_iou(first: Segmentation, second: Segmentation, size: Size) -> float:
    """Return the IoU of two masks of an image `(height, width)`; 1 without painting if they are stored equally."""
    stored = [mask.parts if isinstance(mask, Polygons) else [mask.counts] for mask in (first, second)]
    if [part.tobytes() for part in stored[0]] == [part.tobytes() for part in stored[1]]:
        return 1.0
    return float(
        np.asarray(coco_mask.iou([to_coco_rle(first, size)], [to_coco_rle(second, size)], [0]))[0, 0]
    )


def _overlap(bounds: Bounds, scale: tuple[float, float], window: Window) -> Window | None:
    """Return the pixels of the window that the scaled bounds touch; None if there are none."""
    scale_y, scale_x = scale
    left = max(math.floor(bounds[0] * scale_x), window[0])
    top = max(math.floor(bounds[1] * scale_y), window[1])
    right = min(math.ceil(bounds[2] * scale_x) + 1, window[2])
    bottom = min(math.ceil(bounds[3] * scale_y) + 1, window[3])
    return (left, top, right, bottom) if left < right and top < bottom else None
