"""Export of masks as label images and as polygons of LabelMe and YOLO.

All formats are written from crops, one object at a time, without loss: outlines run along the edges of pixels, so
filling them by the even-odd rule, as COCO's code does, restores the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage  # type: ignore[import-untyped]

from embedmask.errors import UnsupportedImage
from embedmask.masks import MaskCrop, RunMasks
from embedmask.structures import Instances

Bools = npt.NDArray[np.bool_]
Points = npt.NDArray[np.int64]
MAX_LABELS = 2**16 - 1
TOUCHING = np.ones((3, 3), int)
"""8-connectivity: pixels that meet at a corner belong to one piece."""


def label_image(masks: RunMasks, name: str) -> npt.NDArray[np.integer[Any]]:
    """Render the masks of image `name`, by descending score, as a label image.

    Returns:
        uint16 `[H, W]`: 0 for the background, k for the k-th mask; the first of overlapping masks wins.

    Raises:
        UnsupportedImage: more masks than labels of 16 bits.
    """
    if len(masks) > MAX_LABELS:
        raise UnsupportedImage(
            f"{name}: {len(masks)} objects, but a label image holds at most {MAX_LABELS}; "
            "lower --max-detections or choose --format tiff, which has 32 bits"
        )
    return masks.to_label_image(np.uint16)


def labelme(instances: Instances, class_names: Sequence[str], image_path: str) -> dict[str, Any]:
    """Return the content of a LabelMe file: one polygon per piece, with `group_id` k for the k-th object.

    Args:
        image_path: path of the image, relative to the LabelMe file.
    """
    height, width = instances.masks.frame
    labels, scores = instances.labels.tolist(), instances.scores.tolist()
    shapes = [
        {
            "label": class_names[labels[number - 1]],
            "points": (outline(piece) + np.array([x + left, y + top])).astype(float).tolist(),
            "group_id": number,
            "description": f"score {scores[number - 1]:.4f}",
            "shape_type": "polygon",
            "flags": {},
        }
        for number, (crop, y, x) in numbered_crops(instances.masks)
        for piece, (top, left) in pieces(crop)
    ]
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def yolo_lines(instances: Instances) -> list[str]:
    """Return a line of YOLO per object: `class x1 y1 x2 y2 ...`, relative to width and height; empty masks are skipped.

    Pieces and holes are joined to one polygon by connecting lines, which are traversed in both directions.
    """
    size = instances.masks.frame[::-1]
    labels = instances.labels.tolist()
    lines = []
    for number, (crop, y, x) in numbered_crops(instances.masks):
        # six decimals: a tenth of a pixel of an image 200,000 px wide
        values = ((outline(crop) + np.array([x, y])) / size).ravel().tolist()
        lines.append(" ".join([str(labels[number - 1]), *(f"{value:.6f}" for value in values)]))
    return lines


def outline(mask: Bools) -> Points:
    """Return all outlines of a non-empty mask, `[h, w]`, as one closed path along pixel edges, for the even-odd rule.

    Returns:
        x, y of the corners, int64 `[P, 2]`. A line connects the first corner of the first outline to each further
        outline and back.
    """
    first, *others = rings(mask)
    start = first[:1]
    return np.concatenate([first, *(part for ring in others for part in (start, ring, ring[:1]))])


def rings(mask: Bools) -> list[Points]:
    """Return the outlines of a mask, holes included: x, y of the corners of each, int64 `[P, 2]`.

    A point of the pixel grid is a corner if an odd number of its four pixels is inside; it is two corners if two
    diagonal pixels are, and the rings keep these apart. In every row and every column of the grid, corners come in
    pairs with an edge between them; a ring follows horizontal and vertical edges in turn.
    """
    padded = np.pad(mask, 1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    diagonal = (nw == se) & (ne == sw) & (nw != ne)
    y, x = np.nonzero(nw ^ ne ^ sw ^ se | diagonal)
    twice = 1 + diagonal[y, x]
    y, x = np.repeat(y, twice), np.repeat(x, twice)
    # the first of two corners ends the edge from the left; it also ends the edge from above if nw and se are inside
    second = np.append(False, (y[1:] == y[:-1]) & (x[1:] == x[:-1]))[: len(y)]
    below = second ^ (diagonal & ne)[y, x]
    # corners are sorted by row, so corners 2 k and 2 k + 1 are the ends of a horizontal edge: i ^ 1 is the other end.
    # sorted by column, the same holds for vertical edges: `across[i]` is the other end of the vertical edge of i
    by_column = np.lexsort((below, y, x))
    place = np.argsort(by_column)
    across = by_column[place ^ 1].tolist()
    outlines, is_visited = [], bytearray(len(x))
    for start in range(0, len(x), 2):
        ring, corner = [], start
        while not is_visited[corner]:
            is_visited[corner] = is_visited[corner ^ 1] = True
            ring += [corner, corner ^ 1]
            corner = across[corner ^ 1]
        if ring:
            outlines.append(np.stack((x[ring], y[ring]), 1))
    return outlines


def polygons(mask: Bools) -> list[list[Points]]:
    """Return the polygons of a mask, valid as simple features: one per piece of pixels that share edges.

    Returns:
        Of each polygon its outline, counterclockwise in coordinates (x, y), and then its holes, clockwise: x, y of the
        corners, int64 `[P, 2]`. No ring visits a corner twice; rings may touch at a corner.
    """
    numbers, count = ndimage.label(mask)
    shells: list[list[Points]] = [[] for _ in range(count)]
    holes: list[list[Points]] = [[] for _ in range(count)]
    for ring in rings(mask):
        # the first edge leads to the right: direct the ring so that the mask is below edges to the right
        x, y = ring[0].tolist()
        is_below = y < len(mask) and mask[y, x]
        for loop in _loops(ring if is_below else ring[::-1]):
            # a pixel of the mask beside a horizontal edge: below an edge to the right, above one to the left
            one, other = (loop[0], loop[1]) if loop[0][1] == loop[1][1] else (loop[1], loop[2])
            pixel = (one[1], one[0]) if other[0] > one[0] else (one[1] - 1, one[0] - 1)
            points = np.array(loop)
            following = np.roll(points, -1, 0)
            twice_area = (points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum()
            (shells if twice_area > 0 else holes)[numbers[pixel] - 1].append(points)
    return [[*shell, *inside] for shell, inside in zip(shells, holes, strict=True)]


def _loops(ring: Points) -> Iterator[list[tuple[int, int]]]:
    """Split a ring where it visits a corner again; yield loops without repeated corners."""
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for x, y in ring.tolist():
        start = place.setdefault((x, y), len(path))
        if start == len(path):
            path.append((x, y))
            continue
        yield path[start:]
        for corner in path[start + 1 :]:
            del place[corner]
        del path[start + 1 :]
    yield path


def pieces(mask: Bools) -> Iterator[tuple[Bools, tuple[int, int]]]:
    """Yield the connected pieces of a mask, each as a crop with its first row and column."""
    numbers, _ = ndimage.label(mask, TOUCHING)
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbers), start=1):
        yield numbers[rows, columns] == number, (rows.start, columns.start)


def numbered_crops(masks: RunMasks) -> Iterator[tuple[int, MaskCrop]]:
    """Yield number, counted from 1, and crop of the non-empty masks; one crop at a time."""
    yield from ((number, crop) for number, crop in enumerate(masks.crops(), start=1) if crop.pixels.size)
