"""Masks in the forms that other programs read: label images, LabelMe's and YOLO's polygons.

All are made from crops, one object at a time, and lose nothing: an outline runs along the edges of pixels, so whoever
fills it by the even-odd rule, as COCO's code does, gets the same pixels back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage  # type: ignore[import-untyped]

from embedmask.errors import BadInput
from embedmask.structures import CropMasks, Instances

Bools = npt.NDArray[np.bool_]
Points = npt.NDArray[np.int64]
MAX_LABELS = 2**16 - 1
TOUCHING = np.ones((3, 3), int)
"""Pixels that meet at a corner belong to one piece: outlines cross there."""


def label_image(masks: CropMasks, name: str) -> npt.NDArray[np.uint16]:
    """One number a pixel: 0 background, k the k-th mask; where masks overlap, the first of them.

    Args:
        masks: of one image, by descending score.
        name: of the image, for messages.

    Returns:
        uint16 `[H, W]`.

    Raises:
        BadInput: more masks than there are numbers.
    """
    if len(masks) > MAX_LABELS:
        raise BadInput(
            f"{name}: {len(masks)} objects, but a label image has numbers for {MAX_LABELS}; "
            "lower --max-detections or choose another --format"
        )
    labels = np.zeros(masks.image_size, np.uint16)
    for number, crop, (y, x) in _numbered(masks, range(len(masks), 0, -1)):
        labels[y : y + crop.shape[0], x : x + crop.shape[1]][crop] = number
    return labels


def labelme(instances: Instances, class_names: Sequence[str], image_path: str) -> dict[str, Any]:
    """The image's objects as LabelMe stores them: a polygon a piece, `group_id` k for the k-th object.

    Args:
        instances: of one image, on any device.
        class_names: name of each label.
        image_path: the image, relative to the file that is written.
    """
    height, width = instances.masks.image_size
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
        for number, crop, (y, x) in _numbered(instances.masks, range(1, len(instances) + 1))
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
    """`class x1 y1 x2 y2 ...` for each object that has pixels, as fractions of the image's width and height.

    Pieces and holes are joined to one polygon by lines that are walked there and back.
    """
    size = instances.masks.image_size[::-1]
    labels = instances.labels.tolist()
    lines = []
    for number, crop, (y, x) in _numbered(instances.masks, range(1, len(instances) + 1)):
        # six decimals: a tenth of a pixel of an image 200,000 px wide
        values = ((outline(crop) + np.array([x, y])) / size).ravel().tolist()
        lines.append(" ".join([str(labels[number - 1]), *(f"{value:.6f}" for value in values)]))
    return lines


def outline(mask: Bools) -> Points:
    """All outlines of a mask as one closed path along the edges of its pixels, for the even-odd rule.

    Args:
        mask: bool `[h, w]` with at least one pixel.

    Returns:
        int64 `[P, 2]`, x, y of the corners; from the first outline's first corner a line leads to each further outline
        and back.
    """
    first, *others = rings(mask)
    start = first[:1]
    return np.concatenate([first, *(part for ring in others for part in (start, ring, ring[:1]))])


def rings(mask: Bools) -> list[Points]:
    """The outlines of a mask, holes included: x, y of the corners of each, int64 `[P, 2]`.

    A point of the pixel grid is a corner where an odd number of its four pixels is inside. In every row and every
    column of the grid corners come in pairs with an edge between them; a ring follows these edges in turns.
    """
    padded = np.pad(mask, 1)
    y, x = np.nonzero(padded[1:, 1:] ^ padded[:-1, 1:] ^ padded[1:, :-1] ^ padded[:-1, :-1])
    by_column = np.lexsort((y, x))
    place = np.argsort(by_column)
    across = by_column[
        place ^ 1
    ].tolist()  # the other end of a corner's vertical edge; i ^ 1 is its horizontal one's
    found, seen = [], bytearray(len(x))
    for start in range(0, len(x), 2):
        ring, corner = [], start
        while not seen[corner]:
            seen[corner] = seen[corner ^ 1] = True
            ring += [corner, corner ^ 1]
            corner = across[corner ^ 1]
        if ring:
            found.append(np.stack((x[ring], y[ring]), 1))
    return found


def pieces(mask: Bools) -> Iterator[tuple[Bools, tuple[int, int]]]:
    """The connected parts of a mask, each cropped, with its first row and column."""
    numbers, _ = ndimage.label(mask, TOUCHING)
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbers), start=1):
        yield numbers[rows, columns] == number, (rows.start, columns.start)


def _numbered(masks: CropMasks, numbers: Iterable[int]) -> Iterator[tuple[int, Bools, tuple[int, int]]]:
    """Number, crop and offset of those of the masks, counted from 1, that have pixels; one crop at a time."""
    for number in numbers:
        crop = masks.crops[number - 1].cpu().numpy()
        if crop.any():
            yield number, crop, masks.offsets[number - 1]
